"""What a worker does for a workflow: fetch, embed, write back."""

from collections.abc import Callable
from typing import Any

from activities.item import ItemActivities
from db.items import Items
from embedding.encoder import Encoder
from evervec.settings import Settings


def all_activities(items: Items, encoder: Encoder, settings: Settings) -> list[Callable[..., Any]]:
    """Every activity, for a worker of one's own; its client needs `evervec.temporal.data_converter`."""
    return [ItemActivities(items, encoder, settings).generate_item_embedding]
