"""Migration operations: evervec's schema, and which tables it watches."""

from collections.abc import Iterator, Sequence
from typing import Any

from django.core.exceptions import FieldDoesNotExist
from django.db import router
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.base import Operation
from django.db.utils import NotSupportedError

from django_evervec import conf, triggers

WATCH = """
SELECT evervec.watch(%(table)s::regclass, %(text)s::name[], required => %(required)s::name[], active => %(active)s,
                     key => %(key)s::name, source => %(source)s, model => %(model)s, dimension => %(dimension)s::int,
                     prompt => %(prompt)s, revision => %(revision)s, destination => %(destination)s,
                     embedding => %(embedding)s::name, overwrite => %(overwrite)s)
"""
UNWATCH = "SELECT evervec.unwatch(s.name) FROM evervec.source s WHERE s.name = %s AND s.relation = %s::regclass"
UNINSTALL_WHEN_UNUSED = """
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM evervec.source) THEN
    PERFORM evervec.uninstall();
  END IF;
END $$
"""


class InstallEvervec(Operation):
    """Run evervec's triggers.sql, which brings its schema up to date, and pgvector where the role may create it.

    Where a newer evervec has installed its own, that stays.

    Reversed it removes the schema, unless some table is still watched by others than this project's migrations.
    """

    reversible = True
    reduces_to_sql = True

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Nothing that Django knows of changes."""

    def database_forwards(self, app_label: str, schema_editor: Any, _from_state: Any, _to_state: Any) -> None:
        """Install, or bring up to date. What a newer evervec has installed is left as it is."""
        if _is_ours(app_label, schema_editor) and _present_version(schema_editor) <= triggers.version():
            statements = triggers.sql_for_a_transaction() if schema_editor.atomic_migration else triggers.sql()
            schema_editor.execute(statements, params=None)

    def database_backwards(self, app_label: str, schema_editor: Any, _from_state: Any, _to_state: Any) -> None:
        """Uninstall, unless something is watched."""
        if _is_ours(app_label, schema_editor):
            schema_editor.execute(UNINSTALL_WHEN_UNUSED, params=None)

    def describe(self) -> str:
        """For `migrate --plan`."""
        return "Install evervec"


class _ModelOperation(Operation):
    """What concerns the table of one model."""

    reversible = True
    reduces_to_sql = True
    model_name: str

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Nothing that Django knows of changes."""

    def references_model(self, name: str, _app_label: str) -> bool:
        """Whether the optimizer must keep its hands off operations of this model."""
        return name.lower() == self.model_name.lower()

    def _model(self, app_label: str, schema_editor: Any, state: Any) -> Any:
        """The model as the state has it; None where its table is not in this database."""
        model = state.apps.get_model(app_label, self.model_name)
        return model if _is_ours(app_label, schema_editor, model_name=model._meta.model_name) else None

    def _former(self, app_label: str, schema_editor: Any) -> "WatchModel | None":
        """What watched the model before this operation."""
        found = None
        for operation in _operations_before(self, schema_editor.connection):
            if isinstance(operation, WatchModel | UnwatchModel) and operation.is_about(app_label, self):
                found = operation if isinstance(operation, WatchModel) else None
        return found

    def is_about(self, _app_label: str, other: "_ModelOperation") -> bool:
        """Whether another operation is about the same source."""
        return self.model_name.lower() == other.model_name.lower() and self.source == other.source

    source: str | None


class WatchModel(_ModelOperation):
    """Watch the table of a model: from now on its embeddings follow its rows. Again with other options: alter that.

    Names are those of fields. `active` is a boolean field, or a predicate over the row in SQL. `model` and `dimension`
    default to the settings EVERVEC_MODEL and EVERVEC_DIMENSION; the other options are those of evervec.watch.
    Reversed it goes back to what an earlier WatchModel said, or unwatches.
    """

    def __init__(
        self,
        model_name: str,
        *,
        text: Sequence[str],
        required: Sequence[str] = (),
        active: str | None = None,
        key: str | None = None,
        source: str | None = None,
        model: str | None = None,
        dimension: int | None = None,
        prompt: str = "",
        revision: str = "",
        destination: str = "column",
        embedding: str = "embedding",
        overwrite: bool = False,
    ) -> None:
        self.model_name = model_name
        self.text = text
        self.required = required
        self.active = active
        self.key = key
        self.source = source
        self.model = model
        self.dimension = dimension
        self.prompt = prompt
        self.revision = revision
        self.destination = destination
        self.embedding = embedding
        self.overwrite = overwrite

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        """For squashed migrations."""
        return type(self).__name__, [], {**vars(self)}

    def database_forwards(self, app_label: str, schema_editor: Any, _from_state: Any, to_state: Any) -> None:
        """Watch. A column that is replaced takes its indexes with it: those are made again."""
        model = self._model(app_label, schema_editor, to_state)
        if not model:
            return
        indexes = _indexes(schema_editor, model)
        schema_editor.execute(WATCH, self._arguments(schema_editor, model))
        kept = {index.name for index in _indexes(schema_editor, model)}
        for index in indexes:
            if index.name not in kept:
                schema_editor.add_index(model, index)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Unwatch, or watch as before."""
        former = self._former(app_label, schema_editor)
        if former:
            former.database_forwards(app_label, schema_editor, from_state, to_state)
            return
        model = self._model(app_label, schema_editor, to_state)
        if not model:
            return
        unwatch(schema_editor, model, self)
        if self.destination == "table":
            side_table = schema_editor.quote_name(f"{model._meta.db_table}_{self.embedding}")
            schema_editor.execute(f"DROP TABLE IF EXISTS {side_table}")

    def describe(self) -> str:
        """For `migrate --plan`."""
        return f"Watch {self.model_name} with evervec"

    def _arguments(self, schema_editor: Any, model: Any) -> dict[str, Any]:
        """What evervec.watch is called with: this operation's attributes, in columns where they name fields."""
        columns: dict[str, str] = {field.name: field.column for field in model._meta.concrete_fields}

        def column(name: str) -> str:
            if name not in columns:
                raise FieldDoesNotExist(f"WatchModel: {model._meta.label} has no field {name!r}")
            return columns[name]

        arguments = vars(self) | {
            "table": schema_editor.quote_name(model._meta.db_table),
            "text": [column(name) for name in self.text],
            "required": [column(name) for name in self.required],
            "active": columns.get(self.active or "", self.active),
            "key": self.key and column(self.key),
        }
        if self.model is None:
            arguments["model"] = conf.text("EVERVEC_MODEL")
            arguments["dimension"] = self.dimension or int(conf.number("EVERVEC_DIMENSION") or 0) or None
        return arguments


class UnwatchModel(_ModelOperation):
    """No longer watch the table of a model; its embeddings stay. Reversed: watch it as the last WatchModel said."""

    def __init__(self, model_name: str, *, source: str | None = None) -> None:
        self.model_name = model_name
        self.source = source

    def database_forwards(self, app_label: str, schema_editor: Any, _from_state: Any, to_state: Any) -> None:
        """Unwatch."""
        model = self._model(app_label, schema_editor, to_state)
        if model:
            unwatch(schema_editor, model, self)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Watch as before."""
        former = self._former(app_label, schema_editor)
        if former:
            former.database_forwards(app_label, schema_editor, from_state, to_state)

    def describe(self) -> str:
        """For `migrate --plan`."""
        return f"Unwatch {self.model_name}"


def unwatch(schema_editor: Any, model: Any, operation: _ModelOperation) -> None:
    """Forget the model's source, if it is one."""
    table = model._meta.db_table
    schema_editor.execute(UNWATCH, [operation.source or table, schema_editor.quote_name(table)])


def _is_ours(app_label: str, schema_editor: Any, **hints: Any) -> bool:
    """Whether the project's routers want this here."""
    if not router.allow_migrate(schema_editor.connection.alias, app_label, **hints):
        return False
    if schema_editor.connection.vendor != "postgresql":
        connection = schema_editor.connection
        raise NotSupportedError(f"evervec needs PostgreSQL: the database {connection.alias!r} is {connection.vendor}")
    return True


def _present_version(schema_editor: Any) -> int:
    """The version of the schema that is there; 0 when there is none."""
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('evervec.instance') IS NOT NULL")
        if not cursor.fetchone()[0]:
            return 0
        cursor.execute("SELECT schema_version FROM evervec.instance")
        return int(cursor.fetchone()[0])


def _operations_before(operation: Operation, connection: Any) -> Iterator[Operation]:
    """All operations that come before this one. A loader makes migrations anew, but not the operations in them."""
    loader = MigrationLoader(connection, ignore_no_migrations=True)
    for key, migration in loader.graph.nodes.items():
        if any(made is operation for made in migration.operations):
            for earlier in loader.graph.forwards_plan(key):
                for made in loader.graph.nodes[earlier].operations:
                    if made is operation:
                        return
                    yield made


def _indexes(schema_editor: Any, model: Any) -> list[Any]:
    """The model's indexes that are in the database."""
    connection = schema_editor.connection
    with connection.cursor() as cursor:
        made = connection.introspection.get_constraints(cursor, model._meta.db_table)
    return [index for index in model._meta.indexes if index.name in made]
