import hashlib
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from app.domain.errors import CannotProceed, StartupError
from app.security.keys import KeyRing, add_key, read_keys
from app.security.limits import RateLimit


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def _entry(key: str, name: str = "shop") -> str:
    return f'[{name}]\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n'


def _add(file: Path, name: str, *, scopes: tuple[str, ...] = ("classify",), rate_limits: str | None = None) -> bytes:
    return add_key(file, name, scopes=scopes, rate_limits=rate_limits).encode()


def test_a_key_is_found_by_itself_and_by_nothing_else(file: Path) -> None:
    shop, bank = _add(file, "shop"), _add(file, "bank")
    keys = KeyRing(file)
    names = [found.name for key in (shop, bank) if (found := keys.find(key)) is not None]
    assert names == ["shop", "bank"]
    digest = hashlib.sha256(shop).hexdigest().encode()
    for other in (b"", shop[:-1], shop + b"a", shop.upper(), b"shop", digest, b"\xff\x00"):
        assert keys.find(other) is None


def test_no_two_keys_are_alike_and_none_can_be_guessed(file: Path) -> None:
    made = {_add(file, f"key-{number}") for number in range(50)}
    assert len(made) == 50
    assert min(map(len, made)) >= 43  # 32 bytes in base64


def test_a_key_stands_nowhere_in_the_file(file: Path) -> None:
    key = _add(file, "shop").decode()
    assert key.removeprefix("sentiment_") not in file.read_text()


def test_a_new_file_is_for_its_owner_alone(file: Path) -> None:
    _add(file, "shop")
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_key_may_classify_and_has_the_limits_of_the_settings_unless_told_otherwise(file: Path) -> None:
    file.write_text(_entry("secret"))
    found = KeyRing(file).find(b"secret")
    assert found is not None
    assert found.scopes == {"classify"}
    assert found.rate_limits is None


def test_what_a_new_key_may_do_stands_in_the_file(file: Path) -> None:
    key = _add(file, "watch", scopes=("metrics", "admin"), rate_limits="60/minute, 1000/day")
    found = KeyRing(file).find(key)
    assert found is not None
    assert found.scopes == {"metrics", "admin"}
    assert found.rate_limits == (RateLimit("minute", 60), RateLimit("day", 1_000))


def test_a_key_may_be_freed_of_the_limits_of_the_settings(file: Path) -> None:
    key = _add(file, "batch", rate_limits="")
    found = KeyRing(file).find(key)
    assert found is not None
    assert found.rate_limits == ()


def test_what_stood_in_the_file_stays_when_a_key_is_added(file: Path) -> None:
    before = f"# Ask Wang before you change this.\n{_entry('secret')}".rstrip()
    file.write_text(before)
    _add(file, "bank")
    assert file.read_text().startswith(before)
    assert list(tomllib.loads(file.read_text())) == ["shop", "bank"]


def test_a_name_that_is_taken_is_refused_and_the_file_stays_as_it_is(file: Path) -> None:
    _add(file, "shop")
    before = file.read_bytes()
    with pytest.raises(CannotProceed, match="has a key 'shop'"):
        _add(file, "shop")
    assert file.read_bytes() == before


@pytest.mark.parametrize("name", ["", "a b", "a.b", 'a"', "[a]", "a\nb", "好", "a" * 65])
def test_a_name_that_is_no_plain_word_is_refused(file: Path, name: str) -> None:
    with pytest.raises(CannotProceed, match="is no name for a key"):
        _add(file, name)
    assert not file.exists()


def test_a_scope_or_a_limit_that_does_not_exist_is_refused_and_nothing_written(file: Path) -> None:
    with pytest.raises(CannotProceed, match="no scope root; the scopes are classify, metrics, admin"):
        _add(file, "shop", scopes=("root",))
    with pytest.raises(CannotProceed, match="'fast' is no rate limit"):
        _add(file, "shop", rate_limits="fast")
    assert not file.exists()


def test_no_key_is_added_to_a_file_that_is_broken(file: Path) -> None:
    file.write_text("[shop")
    with pytest.raises(StartupError):
        _add(file, "bank")
    assert file.read_text() == "[shop"


_HASH = hashlib.sha256(b"secret").hexdigest()
_BROKEN = {
    "no TOML": ("[shop", "is not TOML"),
    "no UTF-8": ("[shop]\nsha256 = '\udcff'", "is not TOML"),
    "no table": ("shop = 5", "shop: "),
    "no hash": ("[shop]", "shop.sha256: Field required"),
    "a key for a hash": ("[shop]\nsha256 = 'sentiment_hunter2'", "shop.sha256: "),
    "half a hash": (f"[shop]\nsha256 = '{_HASH[:63]}'", "shop.sha256: "),
    "a misspelt option": (f"[shop]\nsha256 = '{_HASH}'\nscope = ['admin']", "shop.scope: "),
    "an unknown scope": (f"[shop]\nsha256 = '{_HASH}'\nscopes = ['root']", "shop.scopes.0: "),
    "a bad limit": (f"[shop]\nsha256 = '{_HASH}'\nrate_limits = '5/fortnight'", "'5/fortnight' is no rate limit"),
    "a bad name": (f"['a b']\nsha256 = '{_HASH}'", "a b"),
    "one key twice": (_entry("secret") + _entry("secret", "bank"), "one key under two names: shop and bank"),
}


@pytest.mark.parametrize(("content", "reason"), _BROKEN.values(), ids=_BROKEN)
def test_a_broken_file_stops_the_start_with_the_reason_and_no_secret(file: Path, content: str, reason: str) -> None:
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(StartupError) as refusal:
        KeyRing(file)
    assert reason in str(refusal.value)
    assert str(file) in str(refusal.value)
    assert not any(part in str(refusal.value) for part in (_HASH[:20], "hunter2"))


def test_a_missing_file_stops_the_start_with_what_to_do(file: Path) -> None:
    with pytest.raises(StartupError, match=rf"python -m app keys new NAME --file {file}"):
        KeyRing(file)


def test_a_file_without_keys_knows_none(file: Path) -> None:
    file.write_text("# none yet\n")
    assert read_keys(file) == {}


def test_a_file_that_changed_is_read_anew(file: Path) -> None:
    shop = _add(file, "shop")
    keys = KeyRing(file)
    bank = _add(file, "bank")
    assert keys.find(bank) is None
    with capture_logs() as lines:
        keys.refresh()
        keys.refresh()
    assert [line["keys"] for line in lines] == [2]
    assert keys.find(shop) is not None
    assert keys.find(bank) is not None


def test_a_key_that_was_taken_out_is_known_no_more(file: Path) -> None:
    shop = _add(file, "shop")
    keys = KeyRing(file)
    file.write_text(_entry("another"))
    keys.refresh()
    assert keys.find(shop) is None


def _put_another(file: Path) -> None:
    file.with_suffix(".new").write_text("[shop")
    file.with_suffix(".new").replace(file)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda file: file.write_text("[shop"),
        Path.unlink,
        _put_another,
        lambda file: file.write_text(_BROKEN["no hash"][0]),
    ],
    ids=["broken", "gone", "replaced", "incomplete"],
)
def test_a_file_that_breaks_leaves_the_keys_as_they_were_and_says_why_once(
    file: Path, break_it: Callable[[Path], object]
) -> None:
    shop = _add(file, "shop")
    sound = file.read_text()
    keys = KeyRing(file)
    break_it(file)
    with capture_logs() as lines:
        keys.refresh()
        keys.refresh()
    (line,) = lines
    assert line["log_level"] == "error"
    assert str(file) in line["reason"]
    assert keys.find(shop) is not None
    file.write_text(sound + _entry("bank", "bank"))
    keys.refresh()
    assert keys.find(b"bank") is not None
