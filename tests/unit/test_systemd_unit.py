"""The unit file under deploy/ fits what it starts."""

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli.commands import processes
from evervec.errors import ConfigurationError
from evervec.settings import Settings

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "evervec@.service"


def read(unit: Path) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment, method-assign] # names as they are
    parsed.read_string(unit.read_text())
    return parsed


def test_it_gives_processes_the_time_that_they_need_to_stop() -> None:
    assert float(read(UNIT)["Service"]["TimeoutStopSec"]) > processes.STOP_SECONDS


def test_it_starts_again_unless_a_setting_is_wrong() -> None:
    service = read(UNIT)["Service"]
    assert service["Restart"] == "always"
    assert int(service["RestartPreventExitStatus"]) == ConfigurationError.exit_code


def test_its_variables_are_settings() -> None:
    name, _ = read(UNIT)["Service"]["Environment"].split("=", 1)
    assert name.removeprefix("EVERVEC_").lower() in Settings.model_fields


@pytest.mark.parametrize("instance", ["listener", "worker", "dashboard"])
def test_systemd_takes_it(instance: str, tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    assert getattr(processes, instance)
    unit = tmp_path / f"evervec@{instance}.service"
    unit.write_text(UNIT.read_text().replace("/opt/evervec/bin/evervec", sys.executable))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    about_it = [line for line in verified.stderr.splitlines() if unit.name in line]  # other units may have faults
    assert (verified.returncode, about_it) == (0, []), verified.stderr
