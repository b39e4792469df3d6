"""What the admin shows of embeddings, and does about them."""

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from django_evervec.errors import EvervecError
from django_evervec.explain import FAILED, FRESH, STALE, Report, explain
from django_evervec.managers import EmbeddedQuerySet
from django_evervec.models import OutboxItem, SourceStatus
from django_evervec.sources import embedded


class EmbeddingStateFilter(admin.SimpleListFilter):
    """Fresh, stale or failed, as the outbox has it.

    What was edited while triggers were off counts as fresh until evervec's next walk over the table finds it.
    """

    title = "embedding"
    parameter_name = "embedding"

    def lookups(self, _request: HttpRequest, _model_admin: Any) -> list[tuple[str, str]]:
        """The states that can be chosen."""
        return [(state, state) for state in (FRESH, STALE, FAILED)]

    def queryset(self, _request: HttpRequest, queryset: QuerySet) -> QuerySet:
        """The eligible rows in the state that was chosen."""
        state = self.value()
        if state not in (FRESH, STALE, FAILED):
            return queryset
        about = embedded(queryset.model, queryset.db)
        waiting = OutboxItem.objects.filter(source=about.source.name, item_key=OuterRef("evervec_key"))
        failed = Exists(waiting.filter(state="failed"))
        # What is to be embedded again though nothing changed is fresh.
        changed = Exists(waiting.exclude(content_hash__isnull=False, content_hash=OuterRef(about.lookup("_hash"))))
        rows: QuerySet = queryset.alias(evervec_key=about.key_text).filter(about.eligible)
        if state == FAILED:
            rows = rows.filter(failed)
        else:
            fresh = about.embedded & ~changed & ~failed
            rows = rows.filter(fresh) if state == FRESH else rows.exclude(failed).exclude(fresh)
        return rows


class EmbeddingChangeList(ChangeList):
    """A page of rows with the state of each, which takes one statement a page."""

    def get_results(self, request: HttpRequest) -> None:
        """Read the page, and then how its rows stand."""
        super().get_results(request)
        self.result_list = list(self.result_list)
        note_reports(self.result_list, self.root_queryset.db)


def note_reports(rows: list[Any], using: str) -> None:
    """Leave with each row how it stands."""
    if not rows:
        return
    try:
        about = embedded(type(rows[0]), using)
        reports = explain(about, [getattr(row, about.key.attname) for row in rows])
    except EvervecError as error:
        # The list is there for other things too.
        for row in rows:
            row.evervec_report = Report("unknown", str(error))
        return
    for row in rows:
        row.evervec_report = reports[str(getattr(row, about.key.attname))]


class EmbeddingAdminMixin(admin.ModelAdmin):
    """For the ModelAdmin of a watched model: a column, a filter, and three actions, each one statement for all rows."""

    def __init__(self, model: Any, admin_site: Any) -> None:
        super().__init__(model, admin_site)
        for action in ("generate_embeddings", "regenerate_embeddings", "retry_embeddings"):
            self.actions = _with(self.actions or (), action)

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        """With the embedding's state at the end."""
        return _with(super().get_list_display(request), "embedding_status")

    def get_list_filter(self, request: HttpRequest) -> list[Any]:
        """With a filter by the embedding's state."""
        return _with(super().get_list_filter(request), EmbeddingStateFilter)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        """With the embedding's state on the page of an item that is there."""
        shown = super().get_readonly_fields(request, obj)
        return _with(shown, "embedding_status") if obj else list(shown)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """A list whose rows know how they stand."""
        return type("EmbeddingChangeList", (EmbeddingChangeList, super().get_changelist(request, **kwargs)), {})

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        """Without the vectors, which nobody looks at here."""
        rows: QuerySet = super().get_queryset(request)
        held = {field.name for field in rows.model._meta.concrete_fields}
        return rows.defer("embedding") if "embedding" in held else rows

    @admin.display(description="embedding")
    def embedding_status(self, row: Any) -> SafeString:
        """The state, its age and its reason."""
        if not hasattr(row, "evervec_report"):
            note_reports([row], row._state.db)
        report = row.evervec_report
        return format_html('<b class="evervec-{}">{}</b> <small>{}</small>', report.state, report.state, report.reason)

    @admin.action(description="Generate embeddings", permissions=["change"])
    def generate_embeddings(self, request: HttpRequest, queryset: QuerySet) -> None:
        """Have what is stale embedded."""
        self._do(request, queryset, EmbeddedQuerySet.generate_embeddings, "to be embedded; all others are fresh")

    @admin.action(description="Regenerate", permissions=["change"])
    def regenerate_embeddings(self, request: HttpRequest, queryset: QuerySet) -> None:
        """Have everything embedded anew."""
        self._do(request, queryset, EmbeddedQuerySet.regenerate_embeddings, "to be embedded anew")

    @admin.action(description="Retry failed", permissions=["change"])
    def retry_embeddings(self, request: HttpRequest, queryset: QuerySet) -> None:
        """Try again what was given up."""
        self._do(request, queryset, EmbeddedQuerySet.retry_embeddings, "that had failed tried again")

    def _do(self, request: HttpRequest, queryset: Any, action: Any, done: str) -> None:
        try:
            number = action(queryset)
        except EvervecError as error:
            self.message_user(request, str(error), messages.ERROR)
        else:
            self.message_user(request, f"{number} {'item' if number == 1 else 'items'} {done}.", messages.SUCCESS)


@admin.register(SourceStatus)
class SourceStatusAdmin(admin.ModelAdmin):
    """The counts of every watched table, to be looked at."""

    list_display = ["source", "eligible", "fresh", "stale", "pending", "failed", "covered", "model", "paused"]
    list_display_links = None

    @admin.display(description="coverage")
    def covered(self, status: SourceStatus) -> str:
        """In percent."""
        return f"{status.coverage:.1%}"

    def has_add_permission(self, _request: HttpRequest) -> bool:
        """Migrations watch tables."""
        return False

    def has_change_permission(self, _request: HttpRequest, _obj: Any = None) -> bool:
        """There is nothing to change."""
        return False

    def has_delete_permission(self, _request: HttpRequest, _obj: Any = None) -> bool:
        """Migrations unwatch tables."""
        return False


def _with(names: Any, name: Any) -> list[Any]:
    return [*names, *([] if name in names else [name])]
