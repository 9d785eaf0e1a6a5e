"""``python -m loadtest.outage``: what a Redis that dies or hangs under load does to the service's latency.

The same open loop each time, and no text is answered from a cache: what is measured is the way past Redis. It needs
redis-server and psutil.
"""

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from threading import Timer
from typing import Annotated, Final

import redis
import typer

from app.domain.errors import CannotProceed
from loadtest.corpus import make_texts
from loadtest.load import Load, Request, closed_loop, open_loop
from loadtest.service import serving

_TEXTS: Final = 2_048
# No answer is ever found, but each is asked for and written.
_FORGETFUL: Final = {"SENTIMENT_CACHE__MAX_BYTES": "0", "SENTIMENT_CACHE__REDIS_TTL_S": "0.001"}
_SHARE: Final = 0.6  # of what the service can do

_Outage = Callable[[subprocess.Popen[bytes]], None]
_CASES: Final[dict[str, _Outage | None]] = {
    "without Redis": None,
    "with Redis": lambda _: None,
    "Redis hangs after a third": lambda process: process.send_signal(signal.SIGSTOP),
    "Redis dies after a third": lambda process: process.kill(),
}


@contextmanager
def running_redis() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start a Redis that keeps nothing; yield it and its URL."""
    server = shutil.which("redis-server")
    if server is None:
        raise CannotProceed("redis-server is not installed: apt install redis-server, or brew install redis")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([server, "--port", str(port), "--save", ""], stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port) as admin:
            admin.ping()  # tried again until it answers
        yield process, f"redis://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _measure(outage: _Outage | None, requests: list[Request], *, per_s: float, seconds: float) -> Load:
    with running_redis() as (process, url):
        settings = _FORGETFUL if outage is None else {**_FORGETFUL, "SENTIMENT_CACHE__REDIS_URL": url}
        with serving(**settings) as (port, _):
            closed_loop(port, requests, connections=8, seconds=2)
            begin = Timer(seconds / 3, outage or (lambda _: None), (process,))
            begin.start()
            try:
                return open_loop(port, requests, per_s=per_s, seconds=seconds)
            finally:
                begin.join()


def main(
    rounds: Annotated[int, typer.Option(help="How often each case is measured; medians are reported.")] = 3,
    seconds: Annotated[float, typer.Option(help="Length of each load.")] = 20.0,
) -> None:
    """Measure each case in turn, and print a Markdown table."""
    requests = [Request("/v1/sentiment", {"text": text}) for text in make_texts(_TEXTS)]
    with serving(**_FORGETFUL) as (port, _):
        closed_loop(port, requests, connections=32, seconds=2)
        per_s = _SHARE * closed_loop(port, requests, connections=32, seconds=5).per_s
    loads: dict[str, list[Load]] = {name: [] for name in _CASES}
    for _ in range(rounds):
        for name, outage in _CASES.items():
            loads[name].append(_measure(outage, requests, per_s=per_s, seconds=seconds))
            time.sleep(1)
    print(f"| {per_s:.0f} requests/s | p50 | p99 | errors |\n| --- | --- | --- | --- |")
    for name, found in loads.items():
        p50_ms, p99_ms = median(load.p50_ms for load in found), median(load.p99_ms for load in found)
        print(f"| {name} | {p50_ms:.1f} ms | {p99_ms:.1f} ms | {sum(load.errors for load in found)} |")


if __name__ == "__main__":
    typer.run(main)
