"""What the README shows is what happens."""

import json
import re
import subprocess
from typing import Any

import pytest

from tests.live.served import ROOT, RunningServer, columns

README = ROOT.joinpath("README.md").read_text(encoding="utf-8")
CALLS = re.findall(r"^curl (?:.*\\\n)*.*", README, re.MULTILINE)


def _call(server: RunningServer, command: str) -> dict[str, Any]:
    shell = command.replace("http://127.0.0.1:8000", server.address)
    finished = subprocess.run(["bash", "-c", shell], capture_output=True, check=True, timeout=60)  # noqa: S603, S607
    answer: dict[str, Any] = json.loads(finished.stdout)
    return answer


def test_the_first_call_answers_as_shown(server: RunningServer) -> None:
    (block,) = re.findall(r"```json\n(.*)\n```", README)
    shown, answer = json.loads(block), _call(server, CALLS[0])
    assert columns(answer) == pytest.approx(columns(shown), abs=0.02)
    assert answer.pop("confidence") == pytest.approx(shown.pop("confidence"), abs=0.02)
    assert answer["emotion"].pop("label") == shown["emotion"].pop("label")
    for compared in ("probabilities", "emotion"):
        del answer[compared], shown[compared]
    assert answer == shown


def test_the_batch_call_answers_every_text_in_its_place(server: RunningServer) -> None:
    praise, question, blank = _call(server, CALLS[1])["results"]
    assert (praise["label"], question["label"]) == ("positive", "neutral")
    assert blank["error"]["title"] == "Empty text"
