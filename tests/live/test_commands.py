"""The commands that look at a bundle and at the machine, as a shell sees them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from app.inference.bundle import GOLDEN, MODEL
from tests.live.served import ROOT, run_command
from tests.tiny_bundle import HEADS, seal, write_tiny_bundle


def test_the_doctor_finds_nothing_where_the_service_runs(tiny_bundle: Path) -> None:
    done = run_command("doctor", MODEL__PATH=str(tiny_bundle), SERVER__PORT="0")
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert {line.split()[0] for line in lines} == {"ok", "absent"}
    assert lines[-1].startswith("ok      would run  on ")
    assert done.stderr == ""


def test_the_doctor_says_what_to_fix(tmp_path: Path) -> None:
    done = run_command("doctor", MODEL__PATH=str(tmp_path), SERVER__PORT="0")
    assert done.returncode == 1
    failed, fix = done.stdout.splitlines()[-2:]
    assert failed.startswith("FAILED  bundle     ")
    assert fix.startswith("        fix: ")


def test_inspect_tells_what_a_bundle_holds(tiny_bundle: Path) -> None:
    done = run_command("bundle", "inspect", str(tiny_bundle))
    assert done.returncode == 0
    told = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert told["bundle"].strip() == "tiny 0.0.1"
    assert told["labels"].strip() == "negative, neutral, positive"
    assert told["emotions"].strip() == "angry, happy, neutral"
    assert told["window"].strip() == "16 tokens; of a longer text the first 6 and the last 10"
    assert told["golden"].strip() == "7 texts"
    assert f"file {MODEL}" in told


def test_verify_proves_files_and_answers(tiny_bundle: Path) -> None:
    done = run_command("bundle", "verify", str(tiny_bundle), "--provider", "cpu")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "tiny 0.0.1: 3 files as recorded, 7 golden texts answered as recorded on cpu in fp32\n"


def _wrong_file(bundle: Path) -> None:
    with (bundle / MODEL).open("ab") as file:
        file.write(b"x")


def _wrong_answer(bundle: Path) -> None:
    golden = [{"text": "好", "probabilities": dict.fromkeys(HEADS.columns, 1 / 3)}]
    (bundle / GOLDEN).write_text(json.dumps(golden))
    seal(bundle)


@pytest.mark.parametrize(
    ("spoil", "reason"), [(_wrong_file, "is damaged"), (_wrong_answer, "does not answer as recorded")]
)
def test_verify_fails_with_one_clear_line(tmp_path: Path, spoil: Callable[[Path], None], reason: str) -> None:
    spoil(write_tiny_bundle(tmp_path))
    done = run_command("bundle", "verify", str(tmp_path), "--provider", "cpu")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


def test_onnx_runtime_reports_nothing_to_its_maker(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"):  # with either of the first two it keeps quiet
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_command("bundle", "verify", str(tiny_bundle), "--provider", "cpu").returncode == 0
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []  # no device id, no reports to be sent


def test_openapi_prints_the_document_or_what_breaks_clients_of_an_earlier_one(tmp_path: Path) -> None:
    written = ROOT / "docs/openapi.json"
    assert run_command("openapi").stdout == written.read_text(encoding="utf-8")
    done = run_command("openapi", "--since", str(written))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    document = json.loads(written.read_text(encoding="utf-8"))
    document["paths"]["/v1/mood"] = {"post": {"responses": {}}}
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(document), encoding="utf-8")
    done = run_command("openapi", "--since", str(earlier))
    assert (done.returncode, done.stderr.splitlines()[1:]) == (1, ["POST /v1/mood is gone"])
    document["info"]["version"] = "0.0.9"
    earlier.write_text(json.dumps(document), encoding="utf-8")
    assert run_command("openapi", "--since", str(earlier)).returncode == 0


def test_the_help_tells_each_command_in_a_line() -> None:
    lines = run_command("--help").stdout.splitlines()
    commands = lines[lines.index("Commands:") + 1 :]
    assert {"serve", "doctor", "bundle"} <= {line.split()[0] for line in commands}
    assert [line for line in commands if not line.endswith(".") or line.endswith("...")] == []
