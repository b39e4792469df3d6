"""A transformer computed by OpenVINO: on a CPU often twice as fast as torch.

The openvino package is driven directly: optimum, through which sentence-transformers would do it, wants an older
transformers. The converted model is kept in a cache folder, never in the model's own.
"""

import hashlib
import importlib
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from embedding.cores import available_cores
from evervec.log import get_logger

FILE = "model.xml"
KEPT = 6
"""So many converted models are kept; those that were not used for the longest leave."""

Infer: TypeAlias = Callable[[dict[str, NDArray[np.int64]]], NDArray[np.float32]]

logger = get_logger("evervec.embedding")


def fingerprint(transformer: Any, *packages: str) -> str:
    """Names the weights, the configuration and the packages' versions, and so what was made from them."""
    digest = hashlib.sha256(transformer.config.to_json_string().encode())
    for name, tensor in transformer.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().view(-1).numpy().data)
    digest.update(repr([(package, version(package)) for package in packages]).encode())
    return digest.hexdigest()[:32]


def precisions() -> list[str]:
    """Those worth a try on this machine: bfloat16 where the CPU computes it, then float32."""
    capabilities = importlib.import_module("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ["bf16", "f32"] if "BF16" in capabilities else ["f32"]


def open_model(transformer: Any, example: dict[str, Any], folder: Path) -> Any:
    """The converted model: from the folder if it is there, else made and, if that is possible, put there."""
    openvino = importlib.import_module("openvino")
    file = folder / FILE
    if file.exists():
        return read_model(file)
    model = _convert(transformer, example)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Written aside and renamed: two workers may do this at once, and one may die at it.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-", ignore_cleanup_errors=True) as aside:
            whole = Path(aside)
            openvino.save_model(model, whole / FILE, compress_to_fp16=False)
            folder.mkdir(exist_ok=True)
            if not file.exists():
                for part in ("model.bin", FILE):  # the .xml last: it says that both are there
                    (whole / part).replace(folder / part)
        _prune(folder.parent)
    except OSError as error:
        logger.warning("converted model not kept", folder=str(folder), reason=str(error))
    return model


def read_model(file: Path) -> Any:
    """A converted model, which was thereby used."""
    os.utime(file.parent)
    return importlib.import_module("openvino").Core().read_model(file)


def compile_forward(model: Any, precision: str, streams: int) -> Callable[..., Any]:
    """A replacement of the transformer's `forward`, which several threads may call at once, see `compile_model`."""
    torch = importlib.import_module("torch")
    output_class = importlib.import_module("transformers.modeling_outputs").BaseModelOutput
    infer = compile_model(model, precision, streams)

    def forward(**features: Any) -> Any:
        hidden = infer({name: value.numpy() for name, value in features.items() if hasattr(value, "numpy")})
        return output_class(last_hidden_state=torch.from_numpy(hidden))

    return forward


def compile_model(model: Any, precision: str, streams: int) -> Infer:
    """What gives the tokens' vectors; several threads may call it at once.

    Each thread's next call overwrites what the last one gave: by then the pooling has read it.
    """
    openvino = importlib.import_module("openvino")
    compiled = openvino.Core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": available_cores(),
            "NUM_STREAMS": streams,
            "ENABLE_CPU_PINNING": False,  # other processes want their share of the cores
        },
    )
    names = [port.get_any_name() for port in compiled.inputs]
    own = threading.local()

    def infer(features: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        own.request.infer({name: features[name] for name in names}, share_inputs=True)
        hidden: NDArray[np.float32] = own.request.get_tensor("last_hidden_state").data
        return hidden

    return infer


def _convert(transformer: Any, example: dict[str, Any]) -> Any:
    """Through the frontend: `openvino.convert_model` does the same and reports its use to openvino's makers."""
    decoder = importlib.import_module("openvino.frontend.pytorch.ts_decoder").TorchScriptPythonDecoder
    frontend = importlib.import_module("openvino.frontend").FrontEndManager().load_by_framework("pytorch")
    openvino = importlib.import_module("openvino")
    with warnings.catch_warnings(), importlib.import_module("torch").no_grad():
        warnings.simplefilter("ignore")  # of the tracer, about shapes that are constant here
        decoded = decoder(transformer, example_input=example)  # must outlive the conversion
        model = frontend.convert(frontend.load(decoded))
    for port in model.inputs:
        port.get_node().set_element_type(openvino.Type.i64)
        port.get_node().set_partial_shape(openvino.PartialShape([-1, -1]))
    model.validate_nodes_and_infer_types()
    return model


def _prune(parent: Path) -> None:
    kept = sorted((path for path in parent.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for old in kept[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
