"""The table of options in docs/training.md says what a recipe takes."""

import re
from pathlib import Path

from app.training.recipe import render_options


def test_the_table_of_options_is_what_the_options_command_prints() -> None:
    page = Path(__file__).parents[2].joinpath("docs", "training.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- options -->\n(.*)\n<!-- /options -->", page, re.DOTALL)
    assert found is not None
    assert found[1] == render_options()
