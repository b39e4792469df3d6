import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from pydantic import SecretStr

from evervec.errors import ConfigurationError
from evervec.log import configure_logging, get_logger
from evervec.settings import DEFAULT_MODEL, Backend, LogFormat, LogLevel, Settings, load_settings
from evervec.variables import variables

VALUES: dict[str, tuple[str, object]] = {
    "database_url": ("postgresql://me:secret@db/items", SecretStr("postgresql://me:secret@db/items")),
    "listen_url": ("postgresql://me:secret@direct/items", SecretStr("postgresql://me:secret@direct/items")),
    "temporal_address": ("temporal:7233", "temporal:7233"),
    "temporal_namespace": ("items", "items"),
    "temporal_api_key": ("secret", SecretStr("secret")),
    "temporal_tls_server_root_ca_cert": ("ca.pem", Path("ca.pem")),
    "temporal_tls_client_cert": ("cert.pem", Path("cert.pem")),
    "temporal_tls_client_private_key": ("key.pem", Path("key.pem")),
    "temporal_tls_domain": ("temporal.example", "temporal.example"),
    "task_queue": ("other", "other"),
    "model": ("stub:8", "stub:8"),
    "dimension": ("8", 8),
    "model_cache": ("/models", Path("/models")),
    "backend": ("onnx", Backend.ONNX),
    "device": ("cuda:1", "cuda:1"),
    "debounce_ms": ("0", 0),
    "debounce_max_ms": ("5000", 5000),
    "sweep_threshold": ("7", 7),
    "item_idle_seconds": ("60", 60),
    "max_attempts": ("9", 9),
    "metrics_address": ("0.0.0.0:9090", "0.0.0.0:9090"),
    "dashboard_address": ("0.0.0.0:80", "0.0.0.0:80"),
    "dashboard_token": ("secret", SecretStr("secret")),
    "log_level": ("ERROR", LogLevel.ERROR),
    "log_format": ("console", LogFormat.CONSOLE),
}
"""Of each setting a value that is not its default: as the environment has it, and as the code sees it."""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without anything that configures evervec."""
    for variable in variables():
        for name in (variable.name, *variable.aliases):
            monkeypatch.delenv(name, raising=False)


def test_each_setting_is_read_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert VALUES.keys() == Settings.model_fields.keys()
    for name, (text, _) in VALUES.items():
        monkeypatch.setenv(f"EVERVEC_{name.upper()}", text)
    settings, defaults = load_settings(), Settings.model_fields
    for name, (_, value) in VALUES.items():
        assert getattr(settings, name) == value != defaults[name].default


def test_defaults() -> None:
    settings = load_settings()
    assert (settings.model, settings.dimension, settings.backend) == (DEFAULT_MODEL, None, Backend.AUTO)
    assert (settings.task_queue, settings.temporal_namespace) == ("evervec", "default")
    assert (settings.debounce_ms, settings.debounce_max_ms, settings.sweep_threshold) == (100, 1000, 64)
    assert (settings.item_idle_seconds, settings.max_attempts) == (3600, 5)
    assert (settings.database_url, settings.metrics_address, settings.dashboard_token) == (None, None, None)


def test_a_variable_that_is_empty_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VALUES:
        monkeypatch.setenv(f"EVERVEC_{name.upper()}", "")
    assert load_settings() == Settings()
    assert load_settings().model_fields_set == set()


def test_the_plans_names_for_the_model_are_aliases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTENCE_TRANSFORMER_MODEL", "all-MiniLM-L6-v2")
    monkeypatch.setenv("EMBEDDING_DIMENSION", "384")
    settings = load_settings()
    assert (settings.model, settings.dimension) == ("all-MiniLM-L6-v2", 384)
    monkeypatch.setenv("EVERVEC_MODEL", "stub:8")
    monkeypatch.setenv("EVERVEC_DIMENSION", "8")
    settings = load_settings()
    assert (settings.model, settings.dimension) == ("stub:8", 8)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("EVERVEC_DIMENSION", "0"),
        ("EMBEDDING_DIMENSION", "many"),
        ("EVERVEC_BACKEND", "tensorflow"),
        ("EVERVEC_DEBOUNCE_MS", "-1"),
        ("EVERVEC_SWEEP_THRESHOLD", "0"),
        ("EVERVEC_ITEM_IDLE_SECONDS", "0"),
        ("EVERVEC_MAX_ATTEMPTS", "0"),
        ("EVERVEC_LOG_LEVEL", "loud"),
        ("EVERVEC_LOG_FORMAT", "xml"),
        ("EVERVEC_DEBOUNCE_MAX_MS", "99"),
        ("EVERVEC_TEMPORAL_TLS_CLIENT_CERT", "cert.pem"),
    ],
)
def test_a_value_that_cannot_be_used_is_one_line_that_names_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    message = str(caught.value)
    assert variable in message
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_the_database_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="EVERVEC_DATABASE_URL is not set"):
        _ = load_settings().listen_conninfo
    monkeypatch.setenv("EVERVEC_DATABASE_URL", "host=pooler")
    assert load_settings().listen_conninfo == "host=pooler"
    monkeypatch.setenv("EVERVEC_LISTEN_URL", "host=direct")
    settings = load_settings()
    assert (settings.database_conninfo, settings.listen_conninfo) == ("host=pooler", "host=direct")


def test_secrets_do_not_show() -> None:
    assert "secret" not in repr(Settings(database_url="host=db password=secret", temporal_api_key="secret"))


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What was logged since the last call; logging is as it was before when the test ends."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield lambda: capsys.readouterr().err
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


@pytest.mark.parametrize(("level", "count"), [("DEBUG", 4), ("INFO", 3), ("WARNING", 2), ("ERROR", 1)])
def test_the_log_level_is_the_least_that_is_logged(logged: Callable[[], str], level: str, count: int) -> None:
    configure_logging(Settings(log_level=LogLevel(level)))
    for logger in (get_logger("ours"), logging.getLogger("theirs")):
        logger.debug("a detail")
        logger.info("news")
        logger.warning("a worry")
        logger.error("trouble")
    lines = [json.loads(line) for line in logged().splitlines()]
    assert [line["logger"] for line in lines] == ["ours"] * count + ["theirs"] * count


def test_the_log_format_is_for_machines_or_for_people(logged: Callable[[], str]) -> None:
    configure_logging(Settings(log_format=LogFormat.CONSOLE))
    get_logger("ours").info("good news", source="items")
    line = logged()
    assert "good news" in line
    assert "source=items" in line
    configure_logging(Settings(log_format=LogFormat.JSON))
    get_logger("ours").info("good news", source="items")
    assert json.loads(logged())["source"] == "items"


def test_an_exceptions_words_are_not_logged(logged: Callable[[], str]) -> None:
    configure_logging(Settings())
    try:
        int("a row's text")
    except ValueError:
        logging.getLogger("theirs").exception("it failed")
        get_logger("ours").exception("it failed")
    text = logged()
    assert [json.loads(line)["error"] for line in text.splitlines()] == ["ValueError", "ValueError"]
    assert "a row's text" not in text
