"""The README's tables say what the code does."""

import re
from pathlib import Path

import pytest

from app.api.problems import problem_types
from app.main import create_app
from app.settings import Settings, render_settings

ROOT = Path(__file__).parents[2]
README = ROOT.joinpath("README.md").read_text(encoding="utf-8")


def test_the_settings_table_is_what_the_settings_command_prints() -> None:
    found = re.search(r"<!-- settings -->\n(.*)\n<!-- /settings -->", README, re.DOTALL)
    assert found is not None
    assert found[1] == render_settings()


def test_the_api_table_lists_every_route() -> None:
    documented = set(re.findall(r"`(?:GET|POST|PUT|DELETE) (/[^`]*)`", README))
    assert documented == set(create_app(Settings()).openapi()["paths"]) | {"/docs", "/openapi.json"}


def test_the_error_table_lists_every_problem_type() -> None:
    rows = re.findall(r"^\| (\d{3}) \| `([a-z-]+)` \|", README, re.MULTILINE)
    assert {(int(status), name) for status, name in rows} == set(problem_types())


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "models/README.md"])
def test_every_file_that_a_document_links_to_exists(document: str) -> None:
    file = ROOT / document
    targets = re.findall(r"\]\((?!http)([^)#]+)", file.read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if not file.parent.joinpath(target).exists()] == []


def test_the_guide_for_contributors_names_every_kind_of_test() -> None:
    guide = ROOT.joinpath("CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `(tests/\w+)` \|", guide, re.MULTILINE))
    assert named == {f"tests/{file.parent.name}" for file in ROOT.glob("tests/*/__init__.py")}
