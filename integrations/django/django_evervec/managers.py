"""What a model's manager offers: similarity search, and having rows embedded."""

from collections.abc import Callable
from functools import partial
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db.models import Manager, Model, QuerySet
from pgvector.django import CosineDistance

from django_evervec import contract
from django_evervec.embedder import embed_query
from django_evervec.sources import Embedded, embedded


class EmbeddedQuerySet(QuerySet):
    """Rows of a watched table. `source` names one where the table has several."""

    def similar_to(self, query: "str | Model", limit: int = 10, *, source: str | None = None) -> "EmbeddedQuerySet":
        """The eligible rows nearest to a text, or to a row's own content, the nearest first, each with its `distance`.

        `distance` is the cosine distance, 0 to 2. The row itself is left out; without a vector it is near to nothing.
        Raises EmbedderUnavailableError where nothing can embed a text, QueryError for a blank one.
        """
        about = embedded(self.model, self.db, source)
        if isinstance(query, str):
            return self._nearest(about, embed_query(about.source, query))[:limit]
        own = self.model._base_manager.using(self.db).filter(about.embedded, pk=query.pk)
        vector = own.values_list(about.lookup(), flat=True).first()
        if vector is None:
            return self.none()
        return self.exclude(pk=query.pk)._nearest(about, vector)[:limit]

    def nearest_to(self, vector: list[float], *, source: str | None = None) -> "EmbeddedQuerySet":
        """All eligible rows by their distance to a vector of the source's model; slice it."""
        return self._nearest(embedded(self.model, self.db, source), vector)

    def eligible(self, *, source: str | None = None) -> "EmbeddedQuerySet":
        """The rows that evervec embeds: active, and no required column blank."""
        return self.filter(embedded(self.model, self.db, source).eligible)

    def generate_embeddings(self, *, source: str | None = None) -> int:
        """Have those of the rows embedded that are stale or were given up; returns how many. One statement."""
        return self._refire(source, force=False)

    def regenerate_embeddings(self, *, source: str | None = None) -> int:
        """Have all the rows embedded anew, if they are eligible; old vectors are found until the new ones are there."""
        return self._refire(source, force=True)

    def retry_embeddings(self, *, source: str | None = None) -> int:
        """Try again those of the rows that were given up; returns how many."""
        return self._with_keys(source, contract.retry_selected)

    def _refire(self, source: str | None, *, force: bool) -> int:
        return self._with_keys(source, partial(contract.refire_selected, force=force))

    def _with_keys(self, source: str | None, call: Callable[[str, str, str, tuple[Any, ...]], int]) -> int:
        """Call a function with a SELECT of the rows' keys: they need not leave the database."""
        self._for_write = True  # as update() has it: the database that is written to
        using = self.db
        about = embedded(self.model, using, source)
        # A slice needs its order.
        rows = (self if self.query.is_sliced else self.order_by()).using(using)
        try:
            select, params = rows.values_list(about.key_text).query.sql_with_params()
        except EmptyResultSet:
            return 0
        return call(using, about.source.name, select, params)

    def _nearest(self, about: Embedded, vector: list[float]) -> "EmbeddedQuerySet":
        near = self.filter(about.eligible, about.embedded)
        return near.annotate(distance=CosineDistance(about.lookup(), vector)).order_by("distance")


EmbeddedManager = Manager.from_queryset(EmbeddedQuerySet, "EmbeddedManager")
"""The manager of a watched model."""
