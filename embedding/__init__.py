"""The embedders and the encoder that batches their work. Importing this loads no model and no torch."""

from embedding.base import Embedder, Vectors
from embedding.embedders import known_dimension, load_embedder
from embedding.encoder import Encoder

__all__ = ["Embedder", "Encoder", "Vectors", "known_dimension", "load_embedder"]
