"""Our own server, and the least of all servers, as processes to put load on."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import psutil


@contextmanager
def serving(**settings: str) -> Iterator[tuple[int, Callable[[], list[psutil.Process]]]]:
    """Run the service with these environment variables; yield its port and what returns its processes."""
    variables = {"SENTIMENT_LOG__FORMAT": "json", "SENTIMENT_LOG__REQUESTS": "false", **settings}
    with _running([sys.executable, "-m", "app", "serve", "--port", "0"], variables) as found:
        yield found


@contextmanager
def serving_empty() -> Iterator[int]:
    """Run an application with one empty route; yield its port."""
    command = [sys.executable, "-m", "uvicorn", "loadtest.empty:app", "--port", "0", "--no-access-log"]
    with _running(command, {}) as (port, _):
        yield port


@contextmanager
def _running(
    command: Sequence[str], variables: Mapping[str, str]
) -> Iterator[tuple[int, Callable[[], list[psutil.Process]]]]:
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **variables}
    )
    if process.stdout is None:
        raise RuntimeError("the server has no standard output")
    for line in process.stdout:
        if found := re.search(r"running on http://127.0.0.1:(\d+)", line):
            break
    else:
        raise RuntimeError("the server did not start")
    own = psutil.Process(process.pid)
    try:
        yield int(found[1]), lambda: [own, *own.children(recursive=True)]
    finally:
        process.terminate()
        process.wait()
