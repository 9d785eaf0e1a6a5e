"""The pages say what the code does, and lead where they say."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.api.problems import problem_types
from app.main import create_app
from app.settings import Settings, describe_settings, render_settings

ROOT = Path(__file__).parents[2]
README = ROOT.joinpath("README.md").read_text(encoding="utf-8")
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("models/*.md"), *ROOT.glob("client/*.md")]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


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


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_leads_to_a_file_and_a_heading_that_exist(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]+))?\)", page.read_text(encoding="utf-8"))
    assert [name for name, _ in links if not (page.parent / name).exists()] == []
    targets = [((page.parent / name) if name else page, anchor) for name, anchor in links if anchor]
    assert [(str(target), anchor) for target, anchor in targets if anchor not in set(_anchors(target))] == []


def _anchors(page: Path) -> Iterator[str]:
    """Yield what a heading is called in an address, as GitHub and GitLab make it."""
    for heading in re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        yield re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_the_readme_leads_to_every_page() -> None:
    links = set(re.findall(r"\]\(([^)#]+)", README))
    assert {str(page.relative_to(ROOT)) for page in ROOT.glob("docs/*.md")} <= links


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"\bSENTIMENT_[A-Z]+__[A-Z_]+", page.read_text(encoding="utf-8")))
    assert named <= describe_settings().keys()


def test_the_comparison_has_the_figures_of_the_benchmark() -> None:
    page = ROOT.joinpath("docs", "benchmark.md").read_text(encoding="utf-8")
    figures = dict(re.findall(r"^\| (.+): 64 connections \| (\d+) \|", page, re.MULTILINE))
    rows = re.findall(r"^\| \[(\w+).*?\]\(\S+\) \| (\d+) / (\d+) \|", README, re.MULTILINE)
    assert len(rows) == 5
    for server, documented, ours in rows:
        name = server.lower()
        assert (figures[f"{name}, documented session"], figures[f"{name}, ours session"]) == (documented, ours)
    assert f"| this service | {figures['service']} |" in README


def test_the_guide_for_contributors_names_every_kind_of_test() -> None:
    guide = ROOT.joinpath("CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `(tests/\w+)` \|", guide, re.MULTILINE))
    assert named == {f"tests/{file.parent.name}" for file in ROOT.glob("tests/*/__init__.py")}
