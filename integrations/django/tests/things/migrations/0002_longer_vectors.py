from django.db import migrations

import django_evervec.fields
from django_evervec.operations import UnwatchModel, WatchModel


class Migration(migrations.Migration):
    dependencies = [("things", "0001_initial")]

    operations = [
        migrations.AlterField("poem", "embedding", django_evervec.fields.EmbeddingField(dimensions=16)),
        WatchModel("Poem", text=["text"], model="stub:16"),
        WatchModel(
            "Note",
            text=["title"],
            source="titles",
            embedding="title",
            destination="table",
            model="stub:8",
            prompt="title: ",
        ),
        UnwatchModel("Note", source="titles"),
    ]
