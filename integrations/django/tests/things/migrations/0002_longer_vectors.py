import django_evervec.fields
from django.db import migrations
from django_evervec.operations import WatchModel


class Migration(migrations.Migration):
    dependencies = [("things", "0001_initial")]

    operations = [
        migrations.AlterField("poem", "embedding", django_evervec.fields.EmbeddingField(dimensions=16)),
        WatchModel("Poem", text=["text"], model="stub:16"),
    ]
