"""What is pinned is what pyproject.toml asks for."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LINES = ROOT.joinpath("constraints.txt").read_text(encoding="utf-8").splitlines()
PROJECT = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]


def _requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    # Their versions are exact where they stand: an environment for a GPU is no environment of the tests.
    groups = [PROJECT["dependencies"], *(group for name, group in extras.items() if name != "gpu")]
    found = [Requirement(line) for group in groups for line in group]
    # What belongs to some versions of Python is pinned by one of them alone.
    return [wanted for wanted in found if "python_version" not in str(wanted.marker)]


def _pins() -> dict[str, Version]:
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in LINES)}


def test_every_line_is_a_plain_pin() -> None:
    assert [line for line in LINES if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9A-Za-z.]+", line)] == []
    assert len(_pins()) == len(LINES)


def test_every_dependency_is_pinned_to_a_version_that_it_allows() -> None:
    pins = _pins()
    unpinned = [str(wanted) for wanted in _requirements() if canonicalize_name(wanted.name) not in pins]
    assert unpinned == []
    wrong = [str(wanted) for wanted in _requirements() if pins[canonicalize_name(wanted.name)] not in wanted.specifier]
    assert wrong == []


def test_the_environment_for_a_gpu_is_as_exact() -> None:
    specifiers = [Requirement(line).specifier for line in PROJECT["optional-dependencies"]["gpu"]]
    assert all(specifier.operator == "==" for found in specifiers for specifier in found)
