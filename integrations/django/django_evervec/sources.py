"""Which source a model is, and its meaning in Django's terms: eligible rows, the vector's place."""

from dataclasses import dataclass

from django.apps import apps
from django.db import connections, models, router
from django.db.models import F, Field, Func, Q, TextField, Value
from django.db.models.expressions import RawSQL
from django.db.models.functions import Cast

from django_evervec import contract
from django_evervec.contract import Source
from django_evervec.errors import NotWatchedError


@dataclass(frozen=True)
class Embedded:
    """A model and the source that its table is."""

    model: type[models.Model]
    source: Source
    using: str

    @property
    def key(self) -> Field:
        """The field that is the source's key."""
        return self.field(self.source.key_column)

    @property
    def key_text(self) -> Cast:
        """A row's key as evervec has it."""
        return Cast(self.key.name, TextField())

    def lookup(self, suffix: str = "") -> str:
        """The way to the vector, or to a column beside it: "_hash", "_model"."""
        column = self.source.embedding_column + suffix
        if self.source.destination == "column":
            return self.field(column).name
        for relation in self.model._meta.related_objects:
            if relation.one_to_one and relation.related_model._meta.db_table == self.source.side_table:
                return f"{relation.name}__{_field(relation.related_model, column).name}"
        raise NotWatchedError(
            f"{self.model._meta.label} has its embeddings in the table {self.source.side_table}, which no model has: "
            "add one with a OneToOneField to it (EmbeddingFields, managed = False)"
        )

    def field(self, column: str) -> Field:
        """The model's field for a column."""
        return _field(self.model, column)

    @property
    def eligible(self) -> Q:
        """The rows that evervec embeds: active, and no required column blank."""
        condition = Q()
        if self.source.active_column:
            condition &= Q(**{self.field(self.source.active_column).name: True})
        elif self.source.active:
            condition &= Q(**{f"{self.key.name}__in": self._active_keys(self.source.active)})
        for column in self.source.required_columns:
            condition &= Q(_NotBlank(Cast(F(self.field(column).name), TextField()), Value(self.source.whitespace)))
        return condition

    @property
    def embedded(self) -> Q:
        """The rows that have a vector of the source's present model."""
        return Q(**{f"{self.lookup()}__isnull": False, self.lookup("_model"): self.source.model_label})

    def _active_keys(self, predicate: str) -> RawSQL:
        quote = connections[self.using].ops.quote_name
        table, key = quote(self.model._meta.db_table), quote(self.source.key_column)
        escaped = predicate.replace("%", "%%")
        # evervec.source is written by its owner alone, who may run any SQL.
        return RawSQL(f"SELECT t.{key} FROM {table} AS t WHERE ({escaped}\n)", [])  # noqa: S608, S611


class _NotBlank(Func):
    """Whether a text has more than whitespace, as evervec sees it."""

    function = "LTRIM"
    template = "(%(function)s(%(expressions)s) <> '')"
    output_field = models.BooleanField()


def embedded(model: type[models.Model], using: str | None = None, name: str | None = None) -> Embedded:
    """The source that a model's table is; NotWatchedError when there is none, or several and no name."""
    using = using or router.db_for_read(model) or "default"
    table = connections[using].ops.quote_name(model._meta.db_table)
    found = [source for source in contract.sources(using, table=table) if name in (None, source.name)]
    if len(found) > 1:
        found = [source for source in found if source.embedding_column == "embedding"]
    if len(found) != 1:
        raise NotWatchedError(
            f"{model._meta.label} is not watched: put WatchModel({model.__name__!r}, …) into a migration"
            if not found
            else f"{model._meta.label} has several sources: name one"
        )
    return Embedded(model, found[0], using)


def the_model() -> type[models.Model]:
    """The project's only model with an EmbeddedManager."""
    from django_evervec.managers import EmbeddedQuerySet  # noqa: PLC0415 - which needs this module

    found = [
        model
        for model in apps.get_models()
        if not model._meta.proxy and isinstance(model._default_manager.get_queryset(), EmbeddedQuerySet)
    ]
    if len(found) != 1:
        labels = ", ".join(model._meta.label for model in found) or "none"
        raise NotWatchedError(f"name the model: those that are embedded are {labels}")
    return found[0]


def _field(model: type[models.Model], column: str) -> Field:
    for field in model._meta.concrete_fields:
        if field.column == column:
            return field
    raise NotWatchedError(f"{model._meta.label} has no field for the column {column}, which its source names")
