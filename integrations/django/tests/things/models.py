"""A table whose embeddings are beside it, and one that changes its dimension."""

import uuid

from django.db import models
from pgvector.django import HnswIndex

from django_evervec.fields import EmbeddingField
from django_evervec.managers import EmbeddedManager
from django_evervec.models import EmbeddedModel, EmbeddingFields


class Note(models.Model):
    """Its columns are its own; drafts and archived notes are inactive."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    title = models.CharField(max_length=100, db_column="heading")
    body = models.TextField(blank=True)
    archived = models.BooleanField(default=False)

    objects = EmbeddedManager()


class NoteEmbedding(EmbeddingFields):
    """evervec's table beside the notes."""

    note = models.OneToOneField(
        Note, models.DO_NOTHING, primary_key=True, db_column="id", db_constraint=False, related_name="vector"
    )
    embedding = EmbeddingField(dimensions=8)

    class Meta:
        managed = False
        db_table = "things_note_embedding"


class Poem(EmbeddedModel):
    """Had 8 dimensions once."""

    text = models.TextField()
    embedding = EmbeddingField(dimensions=16)

    class Meta:
        indexes = [HnswIndex(fields=["embedding"], name="poem_nearest", opclasses=["vector_cosine_ops"])]
