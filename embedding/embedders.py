"""Which embedder a model's name means."""

from importlib.util import find_spec

from embedding import bundled, stub
from embedding.base import Embedder
from evervec.errors import EvervecError, ModelUnavailableError
from evervec.model import ModelSpec
from evervec.settings import DEFAULT_MODEL, Settings

DEFAULT_DIMENSION = 768


def load_embedder(model: ModelSpec, settings: Settings) -> Embedder:
    """Load what the model's name and revision mean; may take long. ModelUnavailableError, in one line, if it fails."""
    try:
        if model.name.startswith(stub.PREFIX):
            return stub.StubEmbedder(stub.stub_dimension(model.name))
        if model.name.startswith(bundled.PREFIX):
            return bundled.BundledEmbedder(model.name)
        return _load_sentence_transformer(model, settings)
    except EvervecError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelUnavailableError(
            f"the model {model.name!r} cannot be loaded: {type(error).__name__}: {reason[:300]}"
        ) from error


def known_dimension(name: str) -> int | None:
    """The dimension of a model that need not be loaded for it, None for others; a malformed name is an error."""
    if name.startswith(stub.PREFIX):
        return stub.stub_dimension(name)
    if name.startswith(bundled.PREFIX):
        return bundled.bundled_dimension(name)
    return DEFAULT_DIMENSION if name == DEFAULT_MODEL else None


def _load_sentence_transformer(model: ModelSpec, settings: Settings) -> Embedder:
    if find_spec("sentence_transformers") is None:
        raise ModelUnavailableError(
            f"the model {model.name!r} needs sentence-transformers: `pip install 'evervec[sentence-transformers]'`"
        )
    # Optional packages, and seconds to import.
    from embedding.light import load_light  # noqa: PLC0415

    light = load_light(model.name, model.revision or None, settings)
    if light is not None:
        return light
    from embedding.transformer import SentenceTransformerEmbedder  # noqa: PLC0415

    return SentenceTransformerEmbedder(model.name, model.revision, settings)
