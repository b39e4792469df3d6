"""The plan's search: the items nearest to a text."""

from typing import Any

from django_evervec.managers import EmbeddedQuerySet
from django_evervec.sources import the_model


def find_similar_items(query_text: str, limit: int = 10, *, model: Any = None) -> EmbeddedQuerySet:
    """The eligible items nearest to a text, each with its cosine `distance`.

    `model` is the project's embedded one where there is only one. Raises as `similar_to` does.
    """
    items: Any = (model or the_model())._default_manager
    found: EmbeddedQuerySet = items.similar_to(query_text, limit)
    return found
