"""Which way to compute a model: the fastest whose vectors are the same as torch's in float32.

A way is a function that takes the place of the transformer's `forward`; tokenising and pooling stay with
sentence-transformers.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from embedding import bfloat16, folders, openvino_model
from embedding.kept import Choice, choice_file, recall_choice, write_json
from embedding.light import keep_light
from embedding.probe import MINIMUM_COSINE, Encode, Measurement, clock_of, measure, minimum_cosine
from evervec.errors import ModelUnavailableError
from evervec.log import get_logger
from evervec.settings import Backend, Settings

if TYPE_CHECKING:
    from embedding.transformer import SentenceTransformerEmbedder

WORTH = 1.05
"""How much faster than float32 on torch another way must be."""
TORCH = "torch float32"

Forward = Callable[..., Any]

logger = get_logger("evervec.embedding")


class Figures(NamedTuple):
    """How a way did in the probe; on a CPU in seconds of one core."""

    texts_per_second: float
    minimum_cosine: float

    def __str__(self) -> str:
        return f"{self.texts_per_second:.0f} texts/s, minimum cosine {self.minimum_cosine:.5f}"


def choose(embedder: "SentenceTransformerEmbedder", settings: Settings) -> None:
    """Make the embedder, which computes with torch, compute the best way that the setting allows.

    ModelUnavailableError with the figure if the backend was set, and does not give the same vectors.
    """
    backend = settings.backend
    if backend is Backend.TORCH or (backend is Backend.AUTO and not _has_others(embedder)):
        return
    transformer = embedder.transformer
    folder = folders.converted(settings) / openvino_model.fingerprint(
        transformer, "torch", "transformers", *_installed("openvino")
    )
    ways = _ways(embedder, folder)
    file = choice_file(folder, backend)
    known = recall_choice(file)
    if known is not None and (known.backend == TORCH or known.backend in ways):
        logger.info("backend chosen before", backend=known.backend, **known.figures)
        name = known.backend
    else:
        found = _probe(embedder, backend, ways)
        logger.info("backend chosen", backend=found.backend, **found.figures)
        write_json(file, found._asdict())
        name = found.backend
    if name != TORCH:
        forward, converted = ways[name](), name.startswith(Backend.OPENVINO)
        if converted:
            keep_light(embedder, name, folder, settings)
        every = (*transformer.parameters(), *transformer.buffers())
        unused = every if converted else bfloat16.linear_weights(transformer)
        embedder.use(forward, release=unused)


def compare(encode: Encode, reference: Encode, device: str) -> None:
    """For the ONNX backend, which is a model of its own: refuse it if its vectors are others than the reference's."""
    clock = clock_of(device)
    right = measure(reference, clock)
    left = measure(encode, clock, right.groups)
    figures = Figures(left.texts_per_second, minimum_cosine(left.vectors, right.vectors))
    logger.info("backend compared", **{Backend.ONNX: str(figures), TORCH: str(Figures(right.texts_per_second, 1.0))})
    if not figures.minimum_cosine >= MINIMUM_COSINE:
        raise _refusal(Backend.ONNX, f"{Backend.ONNX}: {figures}")


def _refusal(backend: Backend, tried: str) -> ModelUnavailableError:
    return ModelUnavailableError(
        f"EVERVEC_BACKEND={backend} does not give this model's vectors ({tried}; "
        f"at least {MINIMUM_COSINE:.5f} is needed): set it to auto or torch"
    )


def _probe(embedder: "SentenceTransformerEmbedder", backend: Backend, ways: dict[str, Callable[[], Forward]]) -> Choice:
    reference = measure(embedder.encode_plain, clock_of(embedder.device))
    figures = {TORCH: Figures(reference.texts_per_second, 1.0)}
    failures = {}
    for name, make in ways.items():
        if backend not in (Backend.AUTO, Backend(name.split()[0])):
            continue
        try:
            found = _measure_way(embedder, make(), reference)
        except Exception as error:  # noqa: BLE001 - a way that does not work for this model is not taken
            failures[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        else:
            figures[name] = Figures(found.texts_per_second, minimum_cosine(reference.vectors, found.vectors))
    passed = {name: each for name, each in figures.items() if each.minimum_cosine >= MINIMUM_COSINE}
    if backend is not Backend.AUTO:
        del passed[TORCH]
        if not passed:
            tried = "; ".join(f"{name}: {said}" for name, said in {**failures, **figures}.items() if name != TORCH)
            raise _refusal(backend, tried)
    best = max(passed, key=lambda name: passed[name].texts_per_second / (1 if name == TORCH else WORTH))
    return Choice(best, {name: str(said) for name, said in {**figures, **failures}.items()})


def _measure_way(embedder: "SentenceTransformerEmbedder", forward: Forward, reference: Measurement) -> Measurement:
    with embedder.trying(forward):
        return measure(embedder.encode_plain, clock_of(embedder.device), reference.groups)


def _ways(embedder: "SentenceTransformerEmbedder", folder: Path) -> dict[str, Callable[[], Forward]]:
    """What might compute this model besides float32 on torch, by names that begin with the backend's."""
    ways: dict[str, Callable[[], Forward]] = {}
    if bfloat16.is_fast(embedder.device):
        ways["torch bfloat16"] = partial(bfloat16.make_forward, embedder.transformer, embedder.device)
    if embedder.device == "cpu" and find_spec("openvino") is not None:
        models: list[Any] = []  # made once, when it is first needed

        def make(precision: str) -> Forward:
            if not models:
                models.append(openvino_model.open_model(embedder.transformer, embedder.example(), folder))
            return openvino_model.compile_forward(models[0], precision, embedder.streams)

        for precision in openvino_model.precisions():
            ways[f"openvino {precision}"] = partial(make, precision)
    return ways


def _has_others(embedder: "SentenceTransformerEmbedder") -> bool:
    return bfloat16.is_fast(embedder.device) or (embedder.device == "cpu" and find_spec("openvino") is not None)


def _installed(package: str) -> tuple[str, ...]:
    return (package,) if find_spec(package) is not None else ()
