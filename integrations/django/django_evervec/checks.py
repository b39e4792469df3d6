"""Checks of the database (`manage.py check --database default`, and each `migrate`)."""

from collections.abc import Sequence
from typing import Any

from django.apps import apps
from django.core.checks import CheckMessage, Tags, Warning, register  # noqa: A004 - Django's name
from django.db import DatabaseError, router

from django_evervec.errors import EvervecError
from django_evervec.fields import EmbeddingField
from django_evervec.models import EmbeddedModel
from django_evervec.sources import embedded


@register(Tags.database)
def check_dimensions(*, databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """A field and its source should agree about the dimension."""
    found: list[CheckMessage] = []
    for using in databases or ():
        for model in apps.get_models():
            if issubclass(model, EmbeddedModel) and router.allow_migrate_model(using, model):
                found += _dimensions_differ(model, using)
    return found


def _dimensions_differ(model: type[EmbeddedModel], using: str) -> list[Warning]:
    try:
        about = embedded(model, using)
        source, field = about.source, about.field(about.source.embedding_column)
    except (EvervecError, DatabaseError):
        return []  # not migrated yet
    if not isinstance(field, EmbeddingField) or field.dimensions == source.dimension:
        return []
    return [
        Warning(
            f"{model._meta.label}.{field.name} has {field.dimensions} dimensions, its source {source.dimension}",
            hint="Set EVERVEC_DIMENSION to the model's; makemigrations, and put a WatchModel into that migration.",
            obj=model,
            id="evervec.W001",
        )
    ]
