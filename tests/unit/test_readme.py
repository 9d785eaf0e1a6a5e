"""The README's tables say what the code does."""

import re
from pathlib import Path

from app.api.problems import problem_types
from app.main import create_app
from app.settings import Settings, render_settings

README = Path(__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8")


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


def test_every_file_that_the_readme_links_to_exists() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert Path(__file__).parents[2].joinpath(target).exists(), target
