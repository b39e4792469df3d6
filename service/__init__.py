"""What other code calls: EmbeddingService and search."""

from db.sources import Hit
from service.embedding_service import EmbeddingService
from service.workflow import WorkflowStatus

__all__ = ["EmbeddingService", "Hit", "WorkflowStatus"]
