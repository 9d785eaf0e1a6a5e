"""API keys: named, hashed in a TOML file, which is read anew when it changes."""

import asyncio
import hashlib
import hmac
import json
import os
import re
import secrets
import tomllib
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias, get_args

import structlog
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from app.domain.errors import CannotProceed, StartupError
from app.security.limits import RateLimit, RateLimits, parse_rate_limits

Scope: TypeAlias = Literal["classify", "metrics", "admin"]

_PREFIX: Final = "sentiment_"  # tells scanners of leaked secrets, and people, what it is
_BYTES: Final = 32  # too many to guess, so that a plain hash protects them: no salt, no slow function
_INDEXED: Final = 8
_LOOK_S: Final = 1.0
_NAME: Final = r"[A-Za-z0-9_-]{1,64}"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key: everything but the key."""

    name: str
    digest: bytes
    scopes: frozenset[str]
    rate_limits: tuple[RateLimit, ...] | None  # None: those of the settings


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    scopes: list[Scope] = ["classify"]
    rate_limits: RateLimits | None = None


_ENTRIES: Final = TypeAdapter(dict[Annotated[str, Field(pattern=f"^{_NAME}$")], _Entry])


class KeyRing:
    """The keys of one file.

    Raises:
        StartupError: at the start; later a broken file leaves the keys as they are, and the log says why.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen = self._signature()
        self._keys = read_keys(file)

    def find(self, presented: bytes) -> Key | None:
        """Return the key that was presented, if it is known.

        The index is by a part of the digest, whose time tells nothing of a key; all of it is compared in constant time.
        """
        digest = hashlib.sha256(presented).digest()
        found = self._keys.get(digest[:_INDEXED])
        return found if found is not None and hmac.compare_digest(found.digest, digest) else None

    def named(self, name: str) -> Key | None:
        """Return the key of this name, if there is one."""
        return next((key for key in self._keys.values() if key.name == name), None)

    def refresh(self) -> None:
        """Read the file anew if it has changed."""
        signature = self._signature()
        if signature == self._seen:
            return
        self._seen = signature
        try:
            self._keys = read_keys(self._file)
        except StartupError as error:
            _log.error("keys left as they were", reason=str(error))
        else:
            _log.info("keys read", keys=len(self._keys))

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Look after the file every second."""
        watch = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            await asyncio.to_thread(self.refresh)  # a network's file system may make it wait

    def _signature(self) -> tuple[int, ...] | None:
        try:
            status = self._file.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


def read_keys(file: Path) -> Mapping[bytes, Key]:
    """Return the keys in `file` by the first bytes of their digests.

    Raises:
        StartupError: it cannot be read, or does not hold keys.
    """
    try:
        with file.open("rb") as content:
            entries = _ENTRIES.validate_python(tomllib.load(content))
    except OSError as error:
        absent = isinstance(error, FileNotFoundError)
        hint = f"; make a first key with: python -m app keys new NAME --file {file}" if absent else ""
        raise StartupError(f"the keys file {file} cannot be read: {error.strerror}{hint}") from None
    except ValidationError as error:
        parts = [f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors(include_input=False)]
        raise StartupError(f"the keys file {file} is not as it should be: {'; '.join(parts)}") from None
    except ValueError as error:  # neither TOML nor UTF-8
        raise StartupError(f"the keys file {file} is not TOML: {error}") from None
    keys: dict[bytes, Key] = {}
    for name, entry in entries.items():
        digest = bytes.fromhex(entry.sha256)
        if other := keys.get(digest[:_INDEXED]):
            raise StartupError(f"the keys file {file} has one key under two names: {other.name} and {name}")
        limits = None if entry.rate_limits is None else parse_rate_limits(entry.rate_limits)
        keys[digest[:_INDEXED]] = Key(name, digest, frozenset(entry.scopes), limits)
    return keys


def add_key(file: Path, name: str, *, scopes: Collection[str], rate_limits: str | None) -> str:
    """Make a key, append its hash to `file`, which is made if it is missing, and return the key.

    Raises:
        CannotProceed: the name is taken or no plain word, or scopes or rate limits make no sense.
        StartupError: there is a file, and it cannot be read or written.
    """
    if not re.fullmatch(_NAME, name):
        raise CannotProceed(f"{name!r} is no name for a key: up to 64 letters, digits, - and _ are")
    if file.exists() and name in {key.name for key in read_keys(file).values()}:
        raise CannotProceed(f"{file} has a key {name!r}; choose another name, or remove its table first")
    if unknown := set(scopes) - set(get_args(Scope)):
        raise CannotProceed(f"there is no scope {', '.join(unknown)}; the scopes are {', '.join(get_args(Scope))}")
    key = _PREFIX + secrets.token_urlsafe(_BYTES)
    lines = [
        f"[{name}]",
        f'sha256 = "{hashlib.sha256(key.encode()).hexdigest()}"',
        f"scopes = {json.dumps(sorted(scopes))}",
    ]
    if rate_limits is not None:
        try:
            parse_rate_limits(rate_limits)
        except ValueError as error:
            raise CannotProceed(str(error)) from None
        lines.append(f'rate_limits = "{rate_limits}"')
    try:
        # One write to the end of the file: a server that reads it sees all of the key or nothing.
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "ab", buffering=0) as end:
            end.write(("\n" * (end.tell() > 0) + "\n".join(lines) + "\n").encode())
    except OSError as error:
        raise StartupError(f"the keys file {file} cannot be written: {error.strerror}") from None
    return key
