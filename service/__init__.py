"""What other code calls: EmbeddingService and search."""
