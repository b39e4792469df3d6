"""The quick mean is the one that sentence-transformers computes, and stands in for no other kind of pooling."""

import importlib
from typing import Any

import pytest

from embedding.pooling import quicken

torch = importlib.import_module("torch")
modules = importlib.import_module("sentence_transformers.sentence_transformer.modules")

SIZES = (5, 7, 16)
"""Texts, tokens, dimensions."""


def features(**more: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([7, 3, 1, 0, 5])  # none at all: what is divided by then is not 0
    mask = (torch.arange(SIZES[1]) < lengths.unsqueeze(1)).to(torch.int64)
    return {"token_embeddings": torch.randn(SIZES, generator=generator), "attention_mask": mask, **more}


def both(given: dict[str, Any], **options: Any) -> tuple[Any, Any]:
    """What a pooling gives as it is, and quickened."""
    pooling = modules.Pooling(SIZES[2], **options)
    plain = pooling(dict(given))["sentence_embedding"]
    quicken([pooling])
    return plain, pooling(dict(given))["sentence_embedding"]


@pytest.mark.parametrize(
    "given",
    [
        features(),
        features(prompt_length=2),
        features(attention_mask=features()["attention_mask"].flip(1)),
        features(token_weights_sum=torch.tensor([3.0, 2.0, 1.0, 1.0, 2.5])),
        features(token_embeddings=features()["token_embeddings"].to(torch.bfloat16)),
        {"token_embeddings": features()["token_embeddings"]},
    ],
    ids=["plain", "with a prompt", "padded on the left", "weighted", "bfloat16", "without a mask"],
)
def test_the_quick_mean_is_the_librarys(given: dict[str, Any]) -> None:
    plain, quick = both(given)
    assert quick.dtype == plain.dtype
    torch.testing.assert_close(quick, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"pooling_mode": "cls"}, {"pooling_mode": ["mean", "max"]}, {"include_prompt": False}], ids=str
)
def test_other_kinds_of_pooling_are_left_as_they_are(options: dict[str, Any]) -> None:
    pooling = modules.Pooling(SIZES[2], **options)
    plain = pooling.forward
    quicken([pooling, torch.nn.Identity()])
    assert pooling.forward == plain
