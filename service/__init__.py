"""What other code calls: EmbeddingService and search."""

from typing import TYPE_CHECKING, Any

from db.sources import Hit

if TYPE_CHECKING:
    from service.embedding_service import EmbeddingService
    from service.workflow import WorkflowStatus

__all__ = ["EmbeddingService", "Hit", "WorkflowStatus"]


def __getattr__(name: str) -> Any:
    """Import late what brings Temporal's client, which takes as long as most commands, and which they do without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from service import embedding_service  # noqa: PLC0415 - see above

    return getattr(embedding_service, name)
