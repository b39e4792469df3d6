"""How many cores the encoder may use."""

import os
from pathlib import Path

STREAMS_MOST = 8
"""So many passes go side by side at most; with more cores each gets several of them."""


def cpu_streams() -> int:
    """How many passes through a model go side by side on the CPU."""
    return min(available_cores(), STREAMS_MOST)


def available_cores(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """The cores that this process may use: by its affinity, and by a container's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(int(quota) for quota in _quotas(cgroups, own))]))


def _quotas(cgroups: Path, own: Path) -> list[float]:
    """The quotas of this process's groups, in cores. More threads than that would only be throttled."""
    found = []
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        version_2 = not controllers
        if not version_2 and "cpu" not in controllers.split(","):
            continue
        mount = cgroups if version_2 else cgroups / "cpu"
        group = mount / path.strip("/")
        while group.is_relative_to(mount):
            if version_2:
                quota, _, period = _read(group / "cpu.max").partition(" ")
            else:
                quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
            if quota.isdigit() and period.isdigit():  # "max" and "-1" are no quota
                found.append(int(quota) / int(period))
            group = group.parent
    return found


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
