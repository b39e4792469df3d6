"""What a worker does for a workflow: fetch, embed, write back."""

from collections.abc import Callable
from typing import Any

from activities.batch import BatchActivities
from activities.fetch import FetchActivities
from activities.instance import InstanceCheck
from activities.item import ItemActivities
from activities.tally import Tally
from db.items import Items
from embedding.encoder import Encoder
from evervec.settings import Settings


def all_activities(
    items: Items, encoder: Encoder, settings: Settings, tally: Tally | None = None
) -> list[Callable[..., Any]]:
    """Every activity, for a worker of one's own; its client needs `evervec.temporal.data_converter`.

    Close the tally after the worker, or the work of its last seconds is missing in the history.
    """
    tally = tally or Tally(items)
    instance = InstanceCheck(items)
    fetch = FetchActivities(items, settings, instance)
    return [
        ItemActivities(items, encoder, settings, instance, tally).generate_item_embedding,
        BatchActivities(items, encoder, settings, instance, tally).batch_generate_embeddings,
        fetch.fetch_items_for_embedding,
        fetch.find_waiting_sources,
    ]
