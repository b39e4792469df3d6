"""The example's app."""

from django.apps import AppConfig


class ItemsConfig(AppConfig):
    """Things that neighbours share."""

    name = "items"
