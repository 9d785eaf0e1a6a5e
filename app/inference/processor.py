"""What this process may use of the processor: threads by affinity and container quota, its share, and bf16 support."""

import os
import platform
from math import ceil
from pathlib import Path
from typing import Final

_CGROUP: Final = Path("/sys/fs/cgroup")
_CPUINFO: Final = Path("/proc/cpuinfo")
_SYSTEM: Final = Path("/sys/devices/system/cpu")


def usable_threads(cgroup: Path = _CGROUP) -> int:
    """Return how many threads can run at once: the affinity mask, or the cgroup's processor quota if that is less.

    A container's quota does not show in the number of processors (cgroup v2 `cpu.max`, v1 `cpu.cfs_quota_us`).
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return affinity if quota is None else max(1, min(affinity, ceil(quota)))


def processor_share(number: int, count: int, system: Path = _SYSTEM) -> set[int] | None:
    """Return the processors for process `number` of `count`, or None if there are too few to give each its own.

    OpenVINO binds threads to the first processors that its process may use: several processes, to the same ones.
    Threads of one core stay together, as do cores of one package.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    usable = sorted(os.sched_getaffinity(0), key=lambda processor: _place(system, processor))
    if len(usable) < count:
        return None
    return set(usable[number * len(usable) // count : (number + 1) * len(usable) // count])


def _place(system: Path, processor: int) -> tuple[int, int, int]:
    """Return package, core and number of a processor; a system that does not tell has one of each."""
    topology = system / f"cpu{processor}" / "topology"
    try:
        package, core = (int((topology / name).read_text()) for name in ("physical_package_id", "core_id"))
    except (OSError, ValueError):
        package = core = 0
    return package, core, processor


def _quota(cgroup: Path) -> float | None:
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return None if limit in ("max", "-1") else int(limit) / int(period)


def has_bf16(cpuinfo: Path = _CPUINFO) -> bool:
    """Return whether the processor multiplies bfloat16 natively (AMX or AVX-512 on x86-64, Linux only)."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    return not processor_flags(cpuinfo).isdisjoint({"amx_bf16", "avx512_bf16"})


def processor_flags(cpuinfo: Path = _CPUINFO) -> frozenset[str]:
    """Return the names of the processor's features, where Linux tells them."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())
