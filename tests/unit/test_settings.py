import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.domain.errors import StartupError
from app.settings import Settings, describe_settings, load_settings, render_settings


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.upper().startswith("SENTIMENT_"):
            monkeypatch.delenv(variable)


def test_without_variables_the_defaults_hold() -> None:
    settings = load_settings()
    assert settings == Settings()
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8000)
    assert settings.model.provider == "auto"
    assert settings.batching.wait_s == 0


@pytest.mark.parametrize(
    ("variable", "value", "read", "expected"),
    [
        ("SENTIMENT_SERVER__PORT", "9000", lambda settings: settings.server.port, 9000),
        ("SENTIMENT_LIMITS__TIMEOUT_S", "2.5", lambda settings: settings.limits.timeout_s, 2.5),
        ("SENTIMENT_MODEL__PATH", "/srv/model", lambda settings: settings.model.path, Path("/srv/model")),
        ("SENTIMENT_MODEL__PROVIDER", "cuda", lambda settings: settings.model.provider, "cuda"),
        ("SENTIMENT_BATCHING__BULK_SHARE", "0.5", lambda settings: settings.batching.bulk_share, 0.5),
        ("SENTIMENT_CACHE__MAX_BYTES", "0", lambda settings: settings.cache.max_bytes, 0),
        ("SENTIMENT_LOG__REQUESTS", "false", lambda settings: settings.log.requests, False),
        ("sentiment_log__level", "debug", lambda settings: settings.log.level, "debug"),
    ],
)
def test_a_variable_sets_its_field_and_no_other_group(
    variable: str, value: str, read: Callable[[Settings], object], expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = load_settings()
    monkeypatch.setenv(variable, value)
    settings = load_settings()
    assert read(settings) == expected
    assert read(defaults) != expected
    assert sum(group != default for group, default in zip(settings, defaults, strict=True)) == 1


def test_every_known_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in describe_settings():
        monkeypatch.setenv(variable, "\x01")
    # These take any text.
    unread = {
        "SENTIMENT_SERVER__HOST",
        "SENTIMENT_SECURITY__KEYS_FILE",
        "SENTIMENT_MODEL__PATH",
        "SENTIMENT_MODEL__ENGINE_CACHE",
        "SENTIMENT_CACHE__REDIS_URL",
        "SENTIMENT_JOBS__URL",
        "SENTIMENT_JOBS__SOURCES",
    }
    with pytest.raises(StartupError) as refusal:
        load_settings()
    assert {line.split(":")[0] for line in str(refusal.value).splitlines()} == describe_settings().keys() - unread


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("SENTIMENT_SERVER_PORT", "SENTIMENT_SERVER__PORT"),
        ("SENTIMENT_BATCHING__MAX_ITEM", "SENTIMENT_BATCHING__MAX_ITEMS"),
        ("sentiment_cache__ttl", "SENTIMENT_CACHE__TTL_S"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_name_that_was_meant(
    misspelt: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(misspelt, "1")
    with pytest.raises(StartupError, match=f"unknown setting {misspelt}: did you mean {meant}?"):
        load_settings()


def test_a_variable_like_no_other_is_refused_with_all_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTIMENT_ZZZZZZZZZZZZZZZZZZZZZZZZZZ", "1")
    with pytest.raises(StartupError) as refusal:
        load_settings()
    assert all(variable in str(refusal.value) for variable in describe_settings())


def test_variables_of_others_are_none_of_our_business(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("PORT", "SENTIMENTAL", "MY_SENTIMENT_SERVER__PORT"):
        monkeypatch.setenv(variable, "x")
    assert load_settings() == Settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SENTIMENT_SERVER__PORT", "http"),
        ("SENTIMENT_SERVER__PORT", "65536"),
        ("SENTIMENT_MODEL__PROVIDER", "tpu"),
        ("SENTIMENT_BATCHING__MAX_ITEMS", "0"),
        ("SENTIMENT_BATCHING__BULK_SHARE", "1"),
        ("SENTIMENT_BATCHING__WAIT_S", "-0.1"),
        ("SENTIMENT_CACHE__TTL_S", "0"),
        ("SENTIMENT_SECURITY__RATE_LIMITS", "60/fortnight"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_the_name_of_its_variable(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(StartupError, match=f"^{variable}: .+"):
        load_settings()


def test_all_the_values_that_do_not_fit_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTIMENT_SERVER__PORT", "http")
    monkeypatch.setenv("SENTIMENT_CACHE__TTL_S", "soon")
    with pytest.raises(StartupError) as refusal:
        load_settings()
    assert [line.split(":")[0] for line in str(refusal.value).splitlines()] == [
        "SENTIMENT_SERVER__PORT",
        "SENTIMENT_CACHE__TTL_S",
    ]


def test_every_setting_has_one_sentence() -> None:
    described = describe_settings()
    assert len(described) == sum(len(type(group).model_fields) for _, group in Settings())
    sentences = [sentence for _, sentence in described.values()]
    assert [sentence for sentence in sentences if not re.fullmatch(r"[A-Z0-9`].+[^.]\.", sentence)] == []
    assert [sentence for sentence in sentences if re.search(r"\.\s", sentence)] == []


def test_every_default_described_may_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, (default, _) in describe_settings().items():
        monkeypatch.setenv(variable, default)
    settings = load_settings()
    for variable in describe_settings():
        monkeypatch.delenv(variable)
    assert settings == load_settings()


def test_the_table_of_settings_has_a_row_for_each() -> None:
    rows = render_settings().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list(describe_settings())
    assert {row.count("|") for row in rows} == {4}


def test_settings_do_not_change() -> None:
    settings = load_settings()
    with pytest.raises(ValidationError):
        settings.server.port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        settings.server = settings.server  # type: ignore[misc]


def test_a_group_is_replaced_in_part_and_the_others_stay() -> None:
    settings = Settings()
    changed = settings.replace("server", {"processes": 4})
    assert (changed.server.processes, changed.server.port) == (4, settings.server.port)
    assert (changed.limits, changed.model) == (settings.limits, settings.model)
    assert settings.server.processes == 1


def test_a_stop_that_would_cut_off_accepted_requests_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTIMENT_SERVER__SHUTDOWN_TIMEOUT_S", "5")
    with pytest.raises(StartupError, match="SHUTDOWN_TIMEOUT_S must be no shorter"):
        load_settings()
