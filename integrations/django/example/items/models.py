"""Things that neighbours share."""

from django.db import models
from django.urls import reverse

from django_evervec.models import EmbeddedModel


class Item(EmbeddedModel):
    """A thing. Its embedding follows its texts, whoever writes them."""

    name = models.CharField(max_length=200)
    description = models.TextField(blank=True)
    category = models.CharField(max_length=50)
    type = models.CharField(max_length=50)
    status = models.CharField(max_length=50, default="available")
    active = models.BooleanField(default=True)
    views = models.IntegerField(default=0)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        """The page of the item and of those like it."""
        return reverse("item", args=[self.pk])
