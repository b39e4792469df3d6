from django.db import migrations, models

import django_evervec.fields
from django_evervec.operations import InstallEvervec, WatchModel


class Migration(migrations.Migration):
    initial = True
    dependencies = []

    operations = [
        InstallEvervec(),
        migrations.CreateModel(
            name="Item",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("embedding", django_evervec.fields.EmbeddingField(dimensions=512)),
                ("embedding_hash", django_evervec.fields.EmbeddingTextField()),
                ("embedding_model", django_evervec.fields.EmbeddingTextField()),
                ("embedded_at", django_evervec.fields.EmbeddingTimeField()),
                ("name", models.CharField(max_length=200)),
                ("description", models.TextField(blank=True)),
                ("category", models.CharField(max_length=50)),
                ("type", models.CharField(max_length=50)),
                ("status", models.CharField(default="available", max_length=50)),
                ("active", models.BooleanField(default=True)),
                ("views", models.IntegerField(default=0)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
            ],
            options={"abstract": False},
        ),
        WatchModel(
            "Item",
            text=["name", "description", "category", "type", "status"],
            required=["name", "description"],
            active="active",
            model="bundled:use-multilingual-v3",
        ),
    ]
