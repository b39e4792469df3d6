"""evervec for Django: embeddings that follow every write of a model's table, and what a project does with them."""

__version__ = "0.1.0"
