"""What is installed holds the repository's SQL, to the byte."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from django_evervec import triggers
from tests.conftest import REPOSITORY

PROJECT = Path(__file__).parents[1]
IN_REPOSITORY = REPOSITORY / "db" / "triggers.sql"


def build(kind: str, project: Path, to: Path) -> Path:
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", to], cwd=project, check=True)
    [built] = to.iterdir()
    return built


def test_the_repository_has_it_once() -> None:
    assert triggers.path() == triggers.IN_REPOSITORY
    assert triggers.IN_REPOSITORY.samefile(IN_REPOSITORY)
    assert not triggers.PACKED.exists()


def test_a_wheel_holds_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(build("wheel", PROJECT, tmp_path / "wheel")) as wheel:
        assert wheel.read("django_evervec/triggers.sql") == IN_REPOSITORY.read_bytes()
        assert "django_evervec/management/commands/generate_embeddings.py" in wheel.namelist()


def test_a_wheel_of_the_source_distribution_holds_it(tmp_path: Path) -> None:
    source = build("sdist", PROJECT, tmp_path / "sdist")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    [unpacked] = (tmp_path / "unpacked").iterdir()
    with zipfile.ZipFile(build("wheel", unpacked, tmp_path / "wheel")) as wheel:
        assert wheel.read("django_evervec/triggers.sql") == IN_REPOSITORY.read_bytes()
