import json
from pathlib import Path
from typing import Any

import pytest

from app.domain.cleaning import CLEANING_VERSION
from app.domain.errors import StartupError
from app.domain.labels import LABELS, Heads
from app.inference.bundle import GOLDEN, MANIFEST, MODEL, TOKENIZER, open_bundle
from tests.tiny_bundle import HEADS, THRESHOLD, seal, write_tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "bundle")


def test_a_sound_bundle_opens(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.manifest.name == "tiny"
    assert opened.model_file.is_file()
    assert opened.tokenizer_file.is_file()
    assert [row.text for row in opened.golden][:2] == ["好", "这家店差"]


def test_a_bundle_names_both_heads_and_the_threshold(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    assert manifest.heads == HEADS
    assert manifest.calibration is not None
    assert manifest.calibration.threshold == THRESHOLD


def test_a_bundle_without_emotions_or_calibration_opens(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path, heads=Heads(LABELS))
    manifest = json.loads((bundle / MANIFEST).read_text())
    del manifest["emotions"], manifest["calibration"]
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    opened = open_bundle(bundle).manifest
    assert opened.heads == Heads(LABELS)
    assert opened.calibration is None


@pytest.mark.parametrize("threshold", [-0.1, 1.1, "high", None])
def test_a_threshold_that_is_no_probability_is_refused(bundle: Path, threshold: object) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["calibration"]["threshold"] = threshold
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(StartupError, match=r"calibration\.threshold"):
        open_bundle(bundle)


def test_a_directory_that_is_absent_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=f"absent is not a bundle: its {MANIFEST} cannot be read"):
        open_bundle(tmp_path / "absent")


def test_a_file_in_the_place_of_the_directory_is_not_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match="is not a bundle"):
        open_bundle(tmp_path / "file")


@pytest.mark.parametrize("name", [MODEL, TOKENIZER, GOLDEN])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(StartupError, match=f"{name} is missing"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", [MODEL, TOKENIZER, GOLDEN])
def test_one_flipped_bit_is_found(bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(StartupError, match=f"{name} is damaged"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", [MODEL, TOKENIZER, GOLDEN])
def test_a_truncated_file_is_found(bundle: Path, name: str) -> None:
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[:-1])
    with pytest.raises(StartupError, match=f"{name} is damaged: {len(content) - 1} bytes"):
        open_bundle(bundle)


def test_text_cleaned_otherwise_is_not_served(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path, cleaning_version=CLEANING_VERSION + 1)
    with pytest.raises(StartupError, match=f"version {CLEANING_VERSION + 1}, this program .* train it again"):
        open_bundle(bundle)


@pytest.mark.parametrize("change", [{"colour": "red"}, {"format": 2}, {"labels": ["one"]}, {"max_tokens": "many"}])
def test_a_manifest_with_an_odd_field_is_refused_by_name(tmp_path: Path, change: dict[str, Any]) -> None:
    bundle = write_tiny_bundle(tmp_path, **change)
    with pytest.raises(StartupError, match=next(iter(change))):
        open_bundle(bundle)


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_manifest_that_is_no_json_object_is_refused(bundle: Path, content: str) -> None:
    (bundle / MANIFEST).write_text(content)
    with pytest.raises(StartupError, match="not a valid bundle manifest"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "..", ".", "a/b", "a\\b", "", ".hidden"])
def test_a_manifest_cannot_name_a_file_elsewhere(bundle: Path, name: str) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["files"][name] = manifest["files"][GOLDEN]
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(StartupError, match="not a valid bundle manifest"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", [MODEL, TOKENIZER, GOLDEN])
def test_a_manifest_must_name_what_serving_needs(bundle: Path, name: str) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    del manifest["files"][name]
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(StartupError, match=f"names no {name}"):
        open_bundle(bundle)


@pytest.mark.parametrize("content", ["", "{", "{}", '{"text": "好"}', "5", "null", "[1]", '[{"text": "好"}]', "[]"])
def test_golden_texts_must_be_a_list_of_some(bundle: Path, content: str) -> None:
    (bundle / GOLDEN).write_text(content, encoding="utf-8")
    with pytest.raises(StartupError, match=GOLDEN):
        open_bundle(seal(bundle))


def test_golden_texts_must_record_every_label(bundle: Path) -> None:
    (bundle / GOLDEN).write_text('[{"text": "好", "probabilities": {"positive": 1}}]', encoding="utf-8")
    with pytest.raises(StartupError, match="each label"):
        open_bundle(seal(bundle))


@pytest.mark.parametrize("column", HEADS.columns)
def test_a_golden_text_that_lacks_one_column_is_refused(bundle: Path, column: str) -> None:
    golden = json.loads((bundle / GOLDEN).read_text(encoding="utf-8"))
    del golden[-1]["probabilities"][column]
    (bundle / GOLDEN).write_text(json.dumps(golden), encoding="utf-8")
    with pytest.raises(StartupError, match="each label"):
        open_bundle(seal(bundle))


@pytest.mark.parametrize("emotions", [(), ("angry", "happy"), ("angry", "happy", "calm")])
def test_golden_texts_of_other_emotions_than_the_manifests_are_refused(bundle: Path, emotions: tuple[str, ...]) -> None:
    with pytest.raises(StartupError, match="each label"):
        open_bundle(seal(bundle, emotions=emotions))


def test_the_fingerprint_changes_with_every_file_and_with_nothing_else(bundle: Path) -> None:
    fingerprints = [open_bundle(bundle).fingerprint]
    assert open_bundle(bundle).fingerprint == fingerprints[0]
    for name in (MODEL, TOKENIZER, GOLDEN):
        with (bundle / name).open("ab") as file:
            file.write(b" ")
        fingerprints.append(open_bundle(seal(bundle)).fingerprint)
    fingerprints.append(open_bundle(seal(bundle, version="0.0.2")).fingerprint)
    assert len(set(fingerprints)) == 5
