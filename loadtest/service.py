"""Our own server, and the least of all servers, as processes to put load on."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

_LOGS: Final = Path("build/load")
_START_S: Final = 240  # a processor that others use, too


@contextmanager
def serving(**settings: str) -> Iterator[tuple[int, Callable[[], list[psutil.Process]]]]:
    """Run the service with these environment variables; yield its port and what returns its processes.

    Raises:
        RuntimeError: it did not start; the message names its log.
    """
    variables = {"SENTIMENT_LOG__FORMAT": "json", "SENTIMENT_LOG__REQUESTS": "false", **settings}
    command = [sys.executable, "-m", "app", "serve", "--host", "127.0.0.1", "--port", "0"]
    with _running("service", command, variables) as found:
        yield found


@contextmanager
def serving_empty() -> Iterator[int]:
    """Run an application with one empty route; yield its port."""
    command = [sys.executable, "-m", "uvicorn", "loadtest.empty:app", "--port", "0", "--no-access-log"]
    with _running("empty", command, {}) as (port, _):
        yield port


@contextmanager
def _running(
    name: str, command: Sequence[str], variables: Mapping[str, str]
) -> Iterator[tuple[int, Callable[[], list[psutil.Process]]]]:
    _LOGS.mkdir(parents=True, exist_ok=True)
    log = _LOGS / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **variables})
    try:
        deadline = time.monotonic() + _START_S
        while not (found := re.search(r"running on http://127\.0\.0\.1:(\d+)", log.read_text(encoding="utf-8"))):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start; {log} has the reason")
            time.sleep(0.1)
        own = psutil.Process(process.pid)
        yield int(found[1]), lambda: [own, *own.children(recursive=True)]
    finally:
        process.terminate()
        process.wait()
