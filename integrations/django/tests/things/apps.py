"""Tables of other shapes than the example's."""

from django.apps import AppConfig


class ThingsConfig(AppConfig):
    name = "tests.things"
    label = "things"
