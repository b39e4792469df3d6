"""What a start leaves for the next one, beside the converted model: the way that was chosen, and what names it."""

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from embedding.cores import available_cores

MODEL_FILES = {".json", ".txt", ".model", ".safetensors", ".bin"}
PACKAGES = ("openvino", "sentence-transformers", "tokenizers", "torch", "transformers")
"""What a converted model's vectors may depend on."""
ACCELERATORS = ("nvidia[0-9]*", "kfd", "dxg", "dri/renderD*")
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


class Choice(NamedTuple):
    """The best way, and how each one did."""

    backend: str
    figures: dict[str, str]


def recall_choice(file: Path) -> Choice | None:
    """What was chosen, None if that is not known."""
    try:
        found = read_json(file)
        return Choice(str(found["backend"]), {str(name): str(said) for name, said in found["figures"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def choice_file(folder: Path, backend: str) -> Path:
    """Where the choice under a setting is kept, for this machine."""
    return folder / f"{backend}-{machine()}.json"


def read_json(file: Path) -> Any:
    """OSError or ValueError where there is none."""
    return json.loads(file.read_text(encoding="utf-8"))


def write_json(file: Path, content: dict[str, Any]) -> None:
    """For the next start; where it cannot be written, that one finds out anew."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as new:
            new.write(json.dumps(content))
        Path(new.name).rename(file)
    except OSError:
        pass


def machine() -> str:
    """Names this machine's CPU and how much of it may be used: the speeds depend on both."""
    return _digest([platform.machine(), *_cpu(), str(available_cores())])[:16]


def start_fingerprint(source: Path, backend: str, device: str | None) -> str:
    """Names all that decides how a start computes the model whose files these are."""
    parts = [files_fingerprint(source), machine(), *_accelerators(), backend, str(device)]
    return _digest(parts)[:32]


def files_fingerprint(folder: Path) -> str:
    """Names the files of a model, and the packages' versions."""
    parts = [f"{package} {_version(package)}" for package in PACKAGES]
    for path in sorted(path for path in folder.rglob("*") if path.suffix in MODEL_FILES and path.is_file()):
        with path.open("rb") as content:
            parts.append(f"{path.relative_to(folder)} {hashlib.file_digest(content, 'sha256').hexdigest()}")
    return _digest(parts)[:32]


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256(repr(list(parts)).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _accelerators() -> list[str]:
    """Names what torch might compute on besides the CPU, and what of it this process may use."""
    devices = [str(path) for pattern in ACCELERATORS for path in sorted(Path("/dev").glob(pattern))]
    return [*devices, *(f"{name}={os.environ.get(name)}" for name in VISIBLE)]


def _cpu() -> list[str]:
    """Its name and what it can compute, of the first core."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return [platform.processor()]
    return [line for line in first.splitlines() if line.startswith(("model name", "flags", "Features", "CPU"))]
