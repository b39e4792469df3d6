"""The app `evervec`: commands, checks and what the admin shows."""

from django.apps import AppConfig


class EvervecConfig(AppConfig):
    """Add "django_evervec" to INSTALLED_APPS."""

    name = "django_evervec"
    label = "evervec"
    verbose_name = "Embeddings"

    def ready(self) -> None:
        """Register the checks."""
        from django_evervec import checks  # noqa: F401, PLC0415 - models are not loaded before
