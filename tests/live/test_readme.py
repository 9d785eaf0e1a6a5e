"""What the README and the page on streams show is what happens."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.live.served import ROOT, RunningServer, columns

README = ROOT.joinpath("README.md").read_text(encoding="utf-8")
CALLS = re.findall(r"^curl (?:.*\\\n)*.*", README, re.MULTILINE)
CHINESE = ROOT.joinpath("README.zh-CN.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SNIPPETS: dict[str, str] = dict(re.findall(r"```(java|go|js|php)\n(.*?)```", README, re.DOTALL))
# What stands around a snippet, the name of its file, and the command that runs it.
LANGUAGES = {
    "java": (
        "{imports}class Main {{ public static void main(String[] arguments) throws Exception {{\n{body}}} }}",
        "Main.java",
        "java",
    ),
    "go": (
        'package main\nimport ("encoding/json"; "fmt"; "log"; "net/http"; "strings"; "time")\nfunc main() {{\n{body}}}',
        "main.go",
        "go run",
    ),
    "js": ("{body}", "main.mjs", "node"),
    "php": ("<?php\n{body}", "main.php", "php"),
}


def _run(server: RunningServer, command: str, directory: Path | None = None) -> bytes:
    shell = command.replace("http://127.0.0.1:8000", server.address)
    return subprocess.run(["bash", "-c", shell], stdout=subprocess.PIPE, cwd=directory, check=True, timeout=60).stdout  # noqa: S603, S607


def _call(server: RunningServer, command: str) -> Any:
    return json.loads(_run(server, command))


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


def test_the_call_of_text_embeddings_inference_answers_every_text(server: RunningServer) -> None:
    (call,) = [call for call in CALLS if "/predict" in call]
    assert [labels[0]["label"] for labels in _call(server, call)] == ["positive", "negative"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_prints_what_its_comments_say(server: RunningServer, program: str) -> None:
    program = program.replace("127.0.0.1:8000", server.address.removeprefix("http://"))
    finished = subprocess.run(  # noqa: S603 (of the README)
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT / "client")},
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    expected = re.findall(r"print\(.*\)  # (.*)", program)
    # A print in a loop has its lines in one comment.
    assert finished.stdout.splitlines() in (expected, ", ".join(expected).split(", "))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_snippet_prints_what_its_comment_says(server: RunningServer, language: str, tmp_path: Path) -> None:
    around, file, command = LANGUAGES[language]
    if not shutil.which(command.split()[0]):
        pytest.skip(f"there is no {command.split()[0]} here")
    if language == "php" and "curl" not in _output(["php", "-m"], tmp_path).split():
        pytest.skip("PHP has no curl here")
    imports, body = re.fullmatch(r"((?:import .*\n)*)([\s\S]*)", SNIPPETS[language]).groups()  # type: ignore[union-attr]
    program = around.format(imports=imports, body=body.replace("http://127.0.0.1:8000", server.address))
    (tmp_path / file).write_text(program, encoding="utf-8")
    (expected,) = re.findall(r"  // (.*)", body)
    assert re.fullmatch(re.escape(expected).replace("…", ".*"), _output([*command.split(), file], tmp_path).strip())


def _output(command: list[str], directory: Path) -> str:
    environment = {**os.environ, "GOCACHE": str(directory / "cache"), "GO111MODULE": "off"}
    return subprocess.check_output(command, cwd=directory, env=environment, encoding="utf-8", timeout=120)  # noqa: S603


def test_the_readme_in_chinese_shows_the_same_calls_and_snippets(server: RunningServer) -> None:
    assert re.findall(r"^curl (?:.*\\\n)*.*", CHINESE, re.MULTILINE) == CALLS[:2]
    assert dict(re.findall(r"```(java|go|js|php)\n(.*?)```", CHINESE, re.DOTALL)) == SNIPPETS
    assert SNIPPETS.keys() == LANGUAGES.keys()
    (program,) = re.findall(r"```python\n(.*?)```", CHINESE, re.DOTALL)
    program = program.replace("127.0.0.1:8000", server.address.removeprefix("http://"))
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60)  # noqa: S603
    assert finished.stdout == b"negative\n"


def test_the_stream_answers_every_line_as_shown(server: RunningServer, tmp_path: Path) -> None:
    page = ROOT.joinpath("docs", "bulk.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```jsonl\n(.*?)\n```", page, re.DOTALL)
    sent, *shown = block.splitlines()
    (tmp_path / "reviews.jsonl").write_text(f'{sent}\n{{"id": 8, "text": ""}}\n', encoding="utf-8")
    (call,) = [call for call in CALLS if "/stream" in call]
    _run(server, call, tmp_path)
    answers = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    for answer, like in zip(answers, shown, strict=True):
        assert re.fullmatch(re.escape(like).replace("…", ".*"), answer)
