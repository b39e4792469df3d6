"""The workflows: deterministic, light imports only."""

from workflows.item import ItemEmbeddingWorkflow
from workflows.safety_net import EmbeddingSafetyNetWorkflow
from workflows.sweep import EmbeddingSweepWorkflow


def all_workflows() -> list[type]:
    """Every workflow, for a worker of one's own."""
    return [ItemEmbeddingWorkflow, EmbeddingSweepWorkflow, EmbeddingSafetyNetWorkflow]
