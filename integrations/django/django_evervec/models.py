"""What a model takes to be embedded, and evervec's own tables as Django sees them."""

from django.db import models

from django_evervec.fields import EmbeddingField, EmbeddingTextField, EmbeddingTimeField
from django_evervec.managers import EmbeddedManager


class EmbeddingFields(models.Model):
    """The four columns that evervec writes, read-only here. Alone for the table of embeddings beside a model's own."""

    embedding = EmbeddingField()
    embedding_hash = EmbeddingTextField()
    embedding_model = EmbeddingTextField()
    embedded_at = EmbeddingTimeField()

    class Meta:
        """No table of its own."""

        abstract = True


class EmbeddedModel(EmbeddingFields):
    """A model whose rows are embedded, once a migration watches it."""

    objects = EmbeddedManager()

    class Meta:
        """No table of its own."""

        abstract = True


class OutboxItem(models.Model):
    """An item that waits to be embedded, or was given up. Read it with `source` named: the key alone is not unique."""

    source = models.TextField()
    item_key = models.TextField(primary_key=True)
    content_hash = models.TextField(null=True)
    state = models.TextField()
    attempts = models.IntegerField()
    last_error = models.TextField(null=True)
    queued_at = models.DateTimeField()

    class Meta:
        """evervec's table."""

        managed = False
        db_table = '"evervec"."outbox"'

    def __str__(self) -> str:
        return f"{self.source} {self.item_key}: {self.state}"


class SourceStatus(models.Model):
    """The counts of one watched table."""

    source = models.TextField(primary_key=True)
    total = models.BigIntegerField()
    eligible = models.BigIntegerField()
    fresh = models.BigIntegerField()
    stale = models.BigIntegerField()
    pending = models.BigIntegerField()
    failed = models.BigIntegerField()
    coverage = models.FloatField()
    oldest_pending_seconds = models.FloatField()
    model = models.TextField()
    dimension = models.IntegerField()
    paused = models.BooleanField()

    class Meta:
        """evervec's view."""

        managed = False
        db_table = '"evervec"."status"'
        verbose_name = "source"

    def __str__(self) -> str:
        return self.source


class Failure(models.Model):
    """An item that was given up until its content changes or somebody retries it."""

    source = models.TextField()
    item_key = models.TextField(primary_key=True)
    attempts = models.IntegerField()
    last_error = models.TextField(null=True)
    failed_at = models.DateTimeField()

    class Meta:
        """evervec's view."""

        managed = False
        db_table = '"evervec"."failures"'

    def __str__(self) -> str:
        return f"{self.source} {self.item_key}: {self.last_error}"
