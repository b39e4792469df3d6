"""What becomes of a text's token vectors: their mean, in one pass over them, or the first one.

sentence-transformers multiplies all token vectors with their mask, and sums the product up: a tenth of all the time
where the transformer itself is computed fast.
"""

import importlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEAN = "mean"
CLS = "cls"


def quicken(modules: Iterable[Any]) -> None:
    """Let a model's pooling do the same in less time, where it is the plain mean."""
    for module in modules:
        if pooling_kind(module) == MEAN:
            module.forward = _mean(module.forward)


def pool(kind: str, vectors: NDArray[np.float32], mask: NDArray[np.int64]) -> NDArray[np.float32]:
    """The same without torch: (texts, tokens, dimension) to (texts, dimension)."""
    if kind == CLS:
        return vectors[:, 0]
    weights = mask.astype(np.float32)
    sums = np.matmul(weights[:, np.newaxis], vectors)[:, 0]
    return np.asarray(sums / np.maximum(weights.sum(axis=1, keepdims=True), 1e-9))


def library_kind(module: Any) -> str | None:
    """The name of one of the library's own kinds of modules."""
    kind = type(module)
    return kind.__name__ if kind.__module__.startswith("sentence_transformers.") else None


def pooling_kind(module: Any) -> str | None:
    """The mean or the first token, if it is the library's own, and takes all tokens alike, those of a prompt too."""
    if library_kind(module) != "Pooling" or not module.include_prompt:
        return None
    # Releases before 6 have a flag for each mode, and this to name those that are set.
    named = getattr(module, "get_pooling_mode_str", str)
    mode = getattr(module, "pooling_mode", None) or named()
    return mode if mode in (MEAN, CLS) else None


def _mean(plain: Callable[..., Any]) -> Callable[..., Any]:
    """As the plain one, to which it leaves what is not a batch of float32 vectors with their mask."""
    torch = importlib.import_module("torch")

    def forward(features: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        vectors, mask = features["token_embeddings"], features.get("attention_mask")
        weighted_otherwise = not {"token_weights_sum", "cu_seq_lens_q"}.isdisjoint(features)
        if weighted_otherwise or mask is None or vectors.dtype != torch.float32 or mask.shape != vectors.shape[:2]:
            return plain(features, *arguments, **options)
        weights = mask.to(vectors.dtype)
        sums = torch.bmm(weights.unsqueeze(1), vectors).squeeze(1)
        features["sentence_embedding"] = sums / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)
        return features

    return forward
