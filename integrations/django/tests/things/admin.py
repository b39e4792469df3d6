from django.contrib import admin

from django_evervec.admin import EmbeddingAdminMixin
from tests.things.models import Note, Poem

admin.site.register(Poem, EmbeddingAdminMixin)


@admin.register(Note)
class NoteAdmin(EmbeddingAdminMixin, admin.ModelAdmin):
    list_display = ["title"]
