"""The embedders and the encoder that batches their work."""
