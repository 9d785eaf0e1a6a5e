"""Our own server, as a process to put load on."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil


@contextmanager
def serving(**settings: str) -> Iterator[tuple[int, psutil.Process]]:
    """Run the service with these environment variables; yield its port and process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "SENTIMENT_LOG__FORMAT": "json", "SENTIMENT_LOG__REQUESTS": "false", **settings},
    )
    if process.stdout is None:
        raise RuntimeError("the server has no standard output")
    for line in process.stdout:
        if found := re.search(r"running on http://127.0.0.1:(\d+)", line):
            break
    else:
        raise RuntimeError("the server did not start")
    try:
        yield int(found[1]), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()
