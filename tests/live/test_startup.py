import json
import re
import socket
from pathlib import Path

import pytest

from app.inference.bundle import GOLDEN, MODEL, TOKENIZER
from app.inference.session import Provider
from tests.live.served import run_command
from tests.providers import is_built_in
from tests.tiny_bundle import HEADS, seal, tiny_onnx, write_tiny_bundle


def test_a_misspelt_setting_stops_the_start_with_one_clear_line() -> None:
    done = run_command("serve", "--port", "0", MODEL__PTAH="models")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "error: unknown setting SENTIMENT_MODEL__PTAH: did you mean SENTIMENT_MODEL__PATH?\n"


@pytest.mark.parametrize(
    ("setting", "value"),
    [("SERVER__PORT", "many"), ("LIMITS__TIMEOUT_S", "-1"), ("MODEL__PROVIDER", "tpu"), ("CACHE__MAX_BYTES", "")],
)
def test_a_value_that_does_not_fit_stops_the_start_with_one_clear_line(setting: str, value: str) -> None:
    done = run_command("serve", "--port", "0", **{setting: value})
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: SENTIMENT_{setting}: ")
    assert done.stderr.count("\n") == 1


def _reason(path: Path, **settings: str) -> str:
    """Return why the server does not start on the bundle at `path`; it must say so once, and without a traceback."""
    done = run_command("serve", "--port", "0", MODEL__PATH=str(path), LOG__FORMAT="json", **settings)
    assert done.returncode != 0
    assert "Traceback" not in done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    (reason,) = [line["reason"] for line in lines if line["message"] == "cannot start"]
    assert isinstance(reason, str)
    return reason


def test_a_missing_bundle_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "absent") in _reason(tmp_path / "absent")


def test_a_bundle_whose_answers_are_not_as_recorded_is_not_served(tmp_path: Path) -> None:
    golden = [{"text": "好", "probabilities": dict.fromkeys(HEADS.columns, 1 / 3)}]
    (write_tiny_bundle(tmp_path) / GOLDEN).write_text(json.dumps(golden))
    assert "does not answer as recorded" in _reason(seal(tmp_path))


def test_a_bundle_whose_window_has_no_room_for_a_tail_is_not_served(tmp_path: Path) -> None:
    assert "head_tokens" in _reason(write_tiny_bundle(tmp_path, head_tokens=500))


def test_a_bundle_with_fewer_labels_than_its_model_is_not_served(tmp_path: Path) -> None:
    assert "each label" in _reason(write_tiny_bundle(tmp_path, labels=["negative", "positive"]))


def test_a_bundle_whose_model_lacks_the_second_head_is_not_served(tmp_path: Path) -> None:
    (write_tiny_bundle(tmp_path) / MODEL).write_bytes(tiny_onnx(columns=3))
    assert re.search(r"answered with shape \(\d+, 3\), not \(\d+, 6\)", _reason(seal(tmp_path)))


def test_a_bundle_with_a_broken_tokenizer_is_not_served(tmp_path: Path) -> None:
    (write_tiny_bundle(tmp_path) / TOKENIZER).write_text("{}")
    assert TOKENIZER in _reason(seal(tmp_path))


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_there_says_what_to_install(tiny_bundle: Path, provider: Provider) -> None:
    # No environment has both: each comes with the extra that excludes the other's.
    if is_built_in(provider):
        assert "install the extra [cpu]" in _reason(tiny_bundle, MODEL__PROVIDER="openvino")
    else:
        assert "install the extra [gpu]" in _reason(tiny_bundle, MODEL__PROVIDER=provider)


def test_a_port_that_is_taken_stops_the_start(tiny_bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run_command("serve", "--port", str(taken.getsockname()[1]), MODEL__PATH=str(tiny_bundle))
    assert done.returncode != 0
    assert "address already in use" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
