"""Embeds a query as the items are embedded: same model, same prompt. By the dashboard, or in this process."""

import json
import urllib.error
import urllib.request
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from django_evervec import conf
from django_evervec.contract import Source
from django_evervec.errors import EmbedderUnavailableError, QueryError


def embed_query(source: Source, text: str) -> list[float]:
    """The vector of a text, of length `source.dimension`.

    EmbedderUnavailableError when neither the dashboard nor sentence-transformers is there; QueryError for a blank text.
    """
    if not text.strip():
        raise QueryError("there is no text to search for")
    address = conf.text("EVERVEC_DASHBOARD_URL")
    if address:
        [vector] = _by_dashboard(address, source, [text])
    elif _loads_here(source.model) and find_spec("sentence_transformers"):
        [vector] = _in_process(source, [text])
    else:
        raise EmbedderUnavailableError(
            f"nothing here can embed a query with the model {source.model!r}: "
            "set EVERVEC_DASHBOARD_URL to evervec's dashboard"
            + (", or pip install 'django-evervec[sentence-transformers]'" if _loads_here(source.model) else "")
        )
    if len(vector) != source.dimension:
        raise EmbedderUnavailableError(
            f"the query's vector has {len(vector)} dimensions, those of {source.name!r} have {source.dimension}"
        )
    return vector


def _by_dashboard(address: str, source: Source, texts: list[str]) -> list[list[float]]:
    headers = {"Content-Type": "application/json"}
    token = conf.text("EVERVEC_DASHBOARD_TOKEN")
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if not address.startswith(("http://", "https://")):
        raise EmbedderUnavailableError(f"EVERVEC_DASHBOARD_URL is not an http address: {address!r}")
    request = urllib.request.Request(  # noqa: S310 - checked above
        f"{address.rstrip('/')}/api/embed", json.dumps({"source": source.name, "texts": texts}).encode(), headers
    )
    try:
        with urllib.request.urlopen(request, timeout=conf.number("EVERVEC_DASHBOARD_TIMEOUT")) as reply:  # noqa: S310
            answer = json.load(reply)
            model, vectors = str(answer["model"]), list(answer["embeddings"])
    except urllib.error.HTTPError as error:
        with error:
            advice = ": check EVERVEC_DASHBOARD_TOKEN" if error.code in (401, 403) else f": {_reason(error)}"
        raise EmbedderUnavailableError(f"evervec's dashboard at {address} answers {error.code}{advice}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EmbedderUnavailableError(
            f"evervec's dashboard does not answer at {address} ({error}): start it, or check EVERVEC_DASHBOARD_URL"
        ) from error
    if model != source.model_label:
        raise EmbedderUnavailableError(
            f"evervec's dashboard at {address} embeds {source.name!r} with {model!r}, this database with "
            f"{source.model_label!r}: check that EVERVEC_DASHBOARD_URL is the dashboard of this database"
        )
    return vectors


def _reason(error: urllib.error.HTTPError) -> str:
    """The line that the dashboard gives, if it does."""
    try:
        told = json.load(error)
        return str(told.get("error") or told.get("detail") or error.reason)
    except (OSError, ValueError, AttributeError):
        return str(error.reason)


def _loads_here(model: str) -> bool:
    return not model.startswith(("bundled:", "stub:"))


def _in_process(source: Source, texts: list[str]) -> list[list[float]]:
    vectors = _model(source.model, source.revision).encode(
        texts, prompt=source.prompt or None, normalize_embeddings=True, show_progress_bar=False
    )
    return [[float(value) for value in vector] for vector in vectors]


@lru_cache(maxsize=2)
def _model(name: str, revision: str) -> Any:
    """The model, loaded once a process."""
    return import_module("sentence_transformers").SentenceTransformer(name, revision=revision or None)
