"""Where models are on this machine, and where what is made from them is kept."""

import os
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from evervec.errors import ModelUnavailableError
from evervec.settings import Settings


def downloads(settings: Settings) -> str | None:
    """The folder of downloaded models, None for the hub library's own."""
    return str(settings.model_cache) if settings.model_cache else os.environ.get("SENTENCE_TRANSFORMERS_HOME")


def converted(settings: Settings) -> Path:
    """Where converted models are kept."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (settings.model_cache or (Path(home) if home else Path.home() / ".cache")) / "evervec"


def repository_of(name: str) -> str:
    """The name of the hub's repository."""
    return name if "/" in name else f"sentence-transformers/{name}"


def is_cached(repository: str, revision: str | None, cache: str | None) -> bool:
    """Whether the cache knows if there is a modules.json: without one the pooling is guessed, for some models wrong."""
    return _cached_modules(repository, revision, cache) is not None


def model_folder(name: str, revision: str | None, settings: Settings) -> Path | None:
    """The files that the name means, without asking the hub: a folder or a download, None if it is neither."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    modules = _cached_modules(repository_of(name), revision, downloads(settings))
    return Path(modules).parent if isinstance(modules, str) else None


def _cached_modules(repository: str, revision: str | None, cache: str | None) -> object:
    """The path of modules.json, something else if it is known that there is none, None if nothing is known."""
    try:
        return try_to_load_from_cache(repository, "modules.json", cache_dir=cache, revision=revision)
    except HFValidationError:
        raise ModelUnavailableError(f"{repository!r} is no model's name: write owner/name, or a local folder") from None
