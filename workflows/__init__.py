"""The workflows: deterministic, light imports only."""

from workflows.item import ItemEmbeddingWorkflow


def all_workflows() -> list[type]:
    """Every workflow, for a worker of one's own."""
    return [ItemEmbeddingWorkflow]
