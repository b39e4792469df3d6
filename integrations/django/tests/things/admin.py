from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from django_evervec.admin import EmbeddingAdminMixin
from tests.things.models import Note, Poem

admin.site.register(Poem, EmbeddingAdminMixin)


@admin.register(Note)
class NoteAdmin(EmbeddingAdminMixin, admin.ModelAdmin):
    list_display = ["title"]
    actions = ["archive"]

    def archive(self, _request: HttpRequest, queryset: QuerySet) -> None:
        queryset.update(archived=True)
