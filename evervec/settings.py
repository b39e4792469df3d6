"""What belongs to a process: read from the environment, prefix `EVERVEC_`.

What belongs to a source (columns, model, dimension, prompt) lives in the database, see `db/triggers.sql`.
"""

from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, AliasChoices, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from evervec.errors import ConfigurationError

DEFAULT_MODEL = "sentence-transformers/paraphrase-multilingual-mpnet-base-v2"

PositiveInt = Annotated[int, Field(gt=0)]


def split_address(address: str) -> tuple[str, int]:
    """Host and port of a `host:port`, or of a `[::1]:port`; ValueError when it is none."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isascii() and port.isdecimal() and int(port) <= 65535):  # noqa: PLR2004
        raise ValueError(f"{address!r} is not a host:port")
    return host, int(port)


def _checked_address(address: str) -> str:
    split_address(address)
    return address


ListenAddress = Annotated[str, AfterValidator(_checked_address)]


class Backend(StrEnum):
    """How sentence-transformers computes."""

    AUTO = "auto"
    TORCH = "torch"
    OPENVINO = "openvino"
    ONNX = "onnx"


class LogLevel(StrEnum):
    """The least severe message that is logged."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


class LogFormat(StrEnum):
    """One JSON object a line, or coloured text for people."""

    JSON = "json"
    CONSOLE = "console"


class Settings(BaseSettings):
    """The settings of one evervec process. Times are in the unit that the name ends with."""

    model_config = SettingsConfigDict(
        env_prefix="EVERVEC_",
        env_ignore_empty=True,  # how a compose file or a chart says that a variable is not set
        populate_by_name=True,
        extra="ignore",
    )

    database_url: SecretStr | None = Field(None, description="PostgreSQL, as a libpq URL or key=value string")
    listen_url: SecretStr | None = Field(
        None, description="a direct connection for LISTEN, where DATABASE_URL goes through a transaction pooler"
    )
    temporal_address: str = Field("127.0.0.1:7233", description="host:port of the Temporal frontend")
    temporal_namespace: str = Field("default", description="Temporal namespace")
    temporal_api_key: SecretStr | None = Field(None, description="API key, for Temporal Cloud; implies TLS")
    temporal_tls_server_root_ca_cert: Path | None = Field(None, description="PEM file: the CA of Temporal's server")
    temporal_tls_client_cert: Path | None = Field(None, description="PEM file: the client certificate, for mTLS")
    temporal_tls_client_private_key: Path | None = Field(None, description="PEM file: the client's key, for mTLS")
    temporal_tls_domain: str | None = Field(None, description="server name that the certificate must bear")
    task_queue: str = Field("evervec", min_length=1, description="Temporal task queue of the workers")
    model: str = Field(
        DEFAULT_MODEL,
        min_length=1,
        validation_alias=AliasChoices("EVERVEC_MODEL", "SENTENCE_TRANSFORMER_MODEL"),
        description="model of the sources that `watch` adds: a sentence-transformers name or folder, bundled:…, stub:D",
    )
    dimension: PositiveInt | None = Field(
        None,
        validation_alias=AliasChoices("EVERVEC_DIMENSION", "EMBEDDING_DIMENSION"),
        description="dimension of the sources that `watch` adds; unset: the model's own",
    )
    model_cache: Path | None = Field(None, description="folder in which downloaded models are kept")
    backend: Backend = Field(Backend.AUTO, description="how sentence-transformers computes")
    device: str | None = Field(None, description="torch device, such as cpu or cuda:0; unset: the best there is")
    debounce_ms: int = Field(100, ge=0, description="how long an item must be quiet before it is embedded")
    debounce_max_ms: int = Field(1000, ge=0, description="how long a busy item may be held back at most")
    sweep_threshold: PositiveInt = Field(64, description="how many waiting items of a source count as bulk work")
    item_idle_seconds: PositiveInt = Field(3600, description="how long an item's workflow waits for another change")
    max_attempts: PositiveInt = Field(5, description="attempts before an item is kept as failed")
    metrics_address: ListenAddress | None = Field(None, description="host:port for Prometheus metrics; unset: none")
    dashboard_address: str = Field("127.0.0.1:8080", description="host:port of the dashboard")
    dashboard_token: SecretStr | None = Field(
        None, description="token that the dashboard asks for; it must be set where others than this machine reach it"
    )
    dashboard_viewer_token: SecretStr | None = Field(
        None, description="token of those who may look at the dashboard and change nothing"
    )
    temporal_ui_url: str | None = Field(None, description="Temporal's own web page, for links from the dashboard")
    log_level: LogLevel = Field(LogLevel.INFO, description="least severe level that is logged")
    log_format: LogFormat | None = Field(None, description="json or console; unset: console on a terminal")

    @model_validator(mode="after")
    def _check(self) -> "Settings":
        if self.debounce_max_ms < self.debounce_ms:
            raise ValueError("EVERVEC_DEBOUNCE_MAX_MS must not be below EVERVEC_DEBOUNCE_MS")
        if (self.temporal_tls_client_cert is None) != (self.temporal_tls_client_private_key is None):
            raise ValueError("EVERVEC_TEMPORAL_TLS_CLIENT_CERT and …_CLIENT_PRIVATE_KEY go together: set both or none")
        return self

    @cached_property
    def database_conninfo(self) -> str:
        """The connection string of the database, a ConfigurationError when there is none."""
        if self.database_url is None:
            raise ConfigurationError(
                "EVERVEC_DATABASE_URL is not set: name the database, or run `evervec up` and source .evervec/env"
            )
        return self.database_url.get_secret_value()

    @cached_property
    def listen_conninfo(self) -> str:
        """The connection string for LISTEN: EVERVEC_LISTEN_URL, else the database's."""
        return self.listen_url.get_secret_value() if self.listen_url else self.database_conninfo


def load_settings() -> Settings:
    """Read the environment; a value that cannot be used is one ConfigurationError that names its variable."""
    try:
        return Settings()
    except ValidationError as error:
        raise ConfigurationError("; ".join(_describe(problem) for problem in error.errors())) from None


def _describe(problem: object) -> str:
    assert isinstance(problem, dict)  # noqa: S101 - the shape that pydantic documents
    location = str(problem["loc"][0]) if problem["loc"] else ""
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not location:
        return message
    return f"{_variable(location)}: {message}"


def _variable(location: str) -> str:
    for field in Settings.model_fields.values():
        alias = field.validation_alias
        if isinstance(alias, AliasChoices) and location in alias.choices:
            return " or ".join(map(str, alias.choices))
    return f"EVERVEC_{location.upper()}"
