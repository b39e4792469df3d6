"""The items in the admin, with their embeddings."""

from django.contrib import admin

from django_evervec.admin import EmbeddingAdminMixin
from items.models import Item


@admin.register(Item)
class ItemAdmin(EmbeddingAdminMixin, admin.ModelAdmin):
    """Everything that EmbeddingAdminMixin brings, beside what is here."""

    list_display = ["name", "category", "active"]
    list_filter = ["active", "category"]
    search_fields = ["name", "description"]
