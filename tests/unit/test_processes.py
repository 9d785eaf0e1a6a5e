import asyncio
import os
import signal
import socket
import tempfile
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from app import processes
from app.domain.errors import StartupError
from app.processes import Supervisor, supervise
from app.settings import Settings


def _be_silent(channel: socket.socket) -> None:
    """Be a process that becomes ready and says nothing more, but stops when it is told to."""
    channel.send(bytes(8))
    channel.recv(1)


@pytest.mark.anyio
async def test_a_process_that_says_nothing_any_more_is_killed_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_SILENT_S", 0.01)
    context = get_context("spawn")
    started: list[BaseProcess] = []
    replaced = asyncio.Event()

    def start(_: int, channel: socket.socket) -> BaseProcess:
        process = context.Process(target=_be_silent, args=(channel,))
        process.start()
        started.append(process)
        if len(started) == 2:
            replaced.set()
        return process

    async with asyncio.timeout(60):
        running = asyncio.create_task(Supervisor(start, count=1, host="127.0.0.1", port=0).run())
        await replaced.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await running
    assert started[0].exitcode == -signal.SIGKILL


def test_without_a_directory_for_their_sockets_the_processes_do_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(StartupError, match="TMPDIR"):
        supervise(Settings().replace("server", {"processes": 2}))
