import os
import platform
from pathlib import Path

import pytest

from app.inference.processor import has_bf16, processor_share, usable_threads


@pytest.fixture(autouse=True)
def _eight_threads_of_x86(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


def cgroup_v2(directory: Path, content: str) -> Path:
    (directory / "cpu.max").write_text(content)
    return directory


def cgroup_v1(directory: Path, quota_us: str, period_us: str = "100000") -> Path:
    (directory / "cpu").mkdir()
    (directory / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota_us}\n")
    (directory / "cpu" / "cpu.cfs_period_us").write_text(f"{period_us}\n")
    return directory


def test_without_a_cgroup_the_affinity_decides(tmp_path: Path) -> None:
    assert usable_threads(tmp_path) == 8
    assert usable_threads(tmp_path / "none") == 8


@pytest.mark.parametrize(
    ("content", "threads"),
    [
        ("max 100000\n", 8),
        ("400000 100000\n", 4),
        ("250000 100000\n", 3),
        ("50000 100000\n", 1),
        ("100000 50000\n", 2),
        ("1600000 100000\n", 8),
    ],
)
def test_the_quota_of_cgroup_v2_limits_the_threads(tmp_path: Path, content: str, threads: int) -> None:
    assert usable_threads(cgroup_v2(tmp_path, content)) == threads


@pytest.mark.parametrize(("quota_us", "threads"), [("-1", 8), ("200000", 2), ("150000", 2), ("10000", 1)])
def test_the_quota_of_cgroup_v1_limits_the_threads(tmp_path: Path, quota_us: str, threads: int) -> None:
    assert usable_threads(cgroup_v1(tmp_path, quota_us)) == threads


def test_cgroup_v2_goes_before_v1(tmp_path: Path) -> None:
    cgroup_v1(tmp_path, "200000")
    assert usable_threads(cgroup_v2(tmp_path, "300000 100000")) == 3


def test_an_unreadable_quota_of_cgroup_v2_is_no_quota(tmp_path: Path) -> None:
    assert usable_threads(cgroup_v2(tmp_path, "")) == 8


def test_where_no_affinity_is_known_the_processors_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_threads(tmp_path) == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_threads(tmp_path) == 1


def topology(directory: Path, *places: tuple[int, int]) -> Path:
    """Write the package and core of each processor."""
    for processor, (package, core) in enumerate(places):
        (directory / f"cpu{processor}" / "topology").mkdir(parents=True)
        (directory / f"cpu{processor}" / "topology" / "physical_package_id").write_text(f"{package}\n")
        (directory / f"cpu{processor}" / "topology" / "core_id").write_text(f"{core}\n")
    return directory


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_shares_of_the_processors_are_as_equal_as_can_be_and_leave_none_out(tmp_path: Path, count: int) -> None:
    shares = [processor_share(number, count, tmp_path) or set() for number in range(count)]
    assert sorted(processor for share in shares for processor in share) == list(range(8))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_share_keeps_the_threads_of_a_core_together(tmp_path: Path) -> None:
    system = topology(tmp_path, *[(0, core) for core in (0, 1, 2, 3, 0, 1, 2, 3)])
    assert [processor_share(number, 2, system) for number in range(2)] == [{0, 4, 1, 5}, {2, 6, 3, 7}]


def test_a_share_keeps_to_a_package_where_it_can(tmp_path: Path) -> None:
    system = topology(tmp_path, *[(processor % 2, processor // 2) for processor in range(8)])
    assert [processor_share(number, 2, system) for number in range(2)] == [{0, 2, 4, 6}, {1, 3, 5, 7}]


def test_fewer_processors_than_processes_are_not_shared_out(tmp_path: Path) -> None:
    assert processor_share(0, 9, tmp_path) is None


def test_where_no_affinity_is_known_processors_are_not_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert processor_share(0, 2) is None


def cpuinfo(directory: Path, flags: str) -> Path:
    file = directory / "cpuinfo"
    file.write_text(f"processor\t: 0\nmodel name\t: Xeon\nflags\t\t: {flags}\nvmx flags\t: vnmi\n\nprocessor\t: 1\n")
    return file


@pytest.mark.parametrize(
    ("flags", "bf16"),
    [
        ("fpu avx2 avx512f amx_bf16 amx_tile amx_int8", True),
        ("fpu avx2 avx512f avx512_bf16", True),
        ("fpu avx2 avx512f avx512_vnni", False),
        ("fpu avx2 not_amx_bf16", False),
        ("", False),
    ],
)
def test_bf16_shows_in_the_flags_of_the_processor(tmp_path: Path, flags: str, *, bf16: bool) -> None:
    assert has_bf16(cpuinfo(tmp_path, flags)) is bf16


def test_a_processor_that_is_no_x86_has_no_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert not has_bf16(cpuinfo(tmp_path, "amx_bf16"))


def test_a_system_without_cpuinfo_has_no_bf16(tmp_path: Path) -> None:
    assert not has_bf16(tmp_path / "none")


def test_a_cpuinfo_without_flags_has_no_bf16(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\n")
    assert not has_bf16(tmp_path / "cpuinfo")
