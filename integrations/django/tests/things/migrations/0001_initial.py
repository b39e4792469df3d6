import uuid

import pgvector.django.indexes
from django.db import migrations, models

import django_evervec.fields
from django_evervec.operations import InstallEvervec, WatchModel

EMBEDDING = [
    ("embedding", django_evervec.fields.EmbeddingField(dimensions=8)),
    ("embedding_hash", django_evervec.fields.EmbeddingTextField()),
    ("embedding_model", django_evervec.fields.EmbeddingTextField()),
    ("embedded_at", django_evervec.fields.EmbeddingTimeField()),
]


class Migration(migrations.Migration):
    initial = True
    dependencies = []

    operations = [
        InstallEvervec(),
        migrations.CreateModel(
            name="Note",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, primary_key=True, serialize=False)),
                ("title", models.CharField(db_column="heading", max_length=100)),
                ("body", models.TextField(blank=True)),
                ("archived", models.BooleanField(default=False)),
            ],
        ),
        migrations.CreateModel(
            name="NoteEmbedding",
            fields=[
                ("embedding_hash", django_evervec.fields.EmbeddingTextField()),
                ("embedding_model", django_evervec.fields.EmbeddingTextField()),
                ("embedded_at", django_evervec.fields.EmbeddingTimeField()),
                (
                    "note",
                    models.OneToOneField(
                        db_column="id",
                        db_constraint=False,
                        on_delete=models.deletion.DO_NOTHING,
                        primary_key=True,
                        related_name="vector",
                        serialize=False,
                        to="things.note",
                    ),
                ),
                ("embedding", django_evervec.fields.EmbeddingField(dimensions=8)),
            ],
            options={"db_table": "things_note_embedding", "managed": False},
        ),
        WatchModel(
            "Note",
            text=["title", "body"],
            required=["title"],
            active="NOT archived AND heading NOT LIKE '%draft%'",
            model="stub:8",
            destination="table",
        ),
        migrations.CreateModel(
            name="Poem",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                *EMBEDDING,
                ("text", models.TextField()),
            ],
            options={
                "indexes": [
                    pgvector.django.indexes.HnswIndex(
                        fields=["embedding"], name="poem_nearest", opclasses=["vector_cosine_ops"]
                    )
                ],
            },
        ),
        WatchModel("Poem", text=["text"], model="stub:8"),
    ]
