"""PostgreSQL as a process of its own, where one is installed."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.redis_server import free_port

_START_S: Final = 120


def find_postgres() -> Path | None:
    """Return the directory of PostgreSQL's programs, or None."""
    if found := shutil.which("postgres"):
        return Path(found).resolve().parent
    return next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


class Postgres:
    """A PostgreSQL that keeps what it holds in `directory`, which has to be open to the user that it runs as."""

    def __init__(self, programs: Path, directory: Path) -> None:
        self._programs = programs
        self._data = directory / "data"
        self._user = "postgres" if os.getuid() == 0 else None  # as root it refuses to run
        if self._user is not None:
            shutil.chown(directory, self._user)
        self._port = free_port()
        self.url = f"postgresql://sentiment@127.0.0.1:{self._port}/postgres"
        self._run("initdb", "-D", str(self._data), "-U", "sentiment", "--auth=trust", "--no-sync")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._control("-o", options, "-l", str(self._data / "log"), "start")

    def stop(self) -> None:
        """Cut every connection off."""
        self._control("-m", "immediate", "stop")

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "-D", str(self._data), "-w", "-t", str(_START_S), *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(  # noqa: S603 (its own programs)
            [str(self._programs / program), *arguments],
            user=self._user,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=_START_S,
        )


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Yield an empty PostgreSQL."""
    programs = find_postgres()
    assert programs is not None
    with TemporaryDirectory() as directory:  # not pytest's, which it keeps to its own user
        postgres = Postgres(programs, Path(directory))
        postgres.start()
        try:
            yield postgres
        finally:
            postgres.stop()
