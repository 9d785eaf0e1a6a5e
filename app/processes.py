"""Several server processes on one machine, and a supervisor that hands them their connections and replaces the dead.

Knows processes and connections; nothing of HTTP or models.
"""

import asyncio
import os
import signal
import socket
import sys
from asyncio.trsock import TransportSocket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import structlog

from app.domain.errors import StartupError
from app.inference.processor import processor_share, usable_threads
from app.settings import Settings
from app.telemetry.logging import configure_logging
from app.telemetry.siblings import Siblings

_STOPS: Final = (signal.SIGTERM, signal.SIGINT)
_BACKLOG: Final = 2048  # uvicorn's
_SILENT_S: Final = 3.0  # a process says something every second
_MOST_SILENCES: Final = 10  # of that length
_STEADY_S: Final = 60.0  # one that lives as long has started well
_LONGEST_PAUSE_S: Final = 30.0

_log = structlog.get_logger(__name__)


def supervise(settings: Settings) -> bool:
    """Serve with several processes until SIGTERM or SIGINT; return whether they started and stopped in order.

    Raises:
        StartupError: there is no directory for the sockets between the processes.
    """
    count = settings.server.processes
    threads = settings.model.threads or max(1, usable_threads() // count)
    shared = settings.replace("model", {"threads": threads})
    context = get_context("spawn")  # a fork would copy locks, and threads hold them
    try:
        directory = TemporaryDirectory(prefix="sentiment-")
    except OSError as error:
        raise StartupError(f"no directory for the processes' sockets, TMPDIR may name one: {error}") from error

    def start(number: int, channel: socket.socket) -> BaseProcess:
        siblings = Siblings(Path(directory.name), number, count)
        process = context.Process(target=_serve, args=(shared, siblings, channel))
        # Terminals and service managers send these to all, and the supervisor decides. To ignore them is inherited.
        handlers = {kind: signal.signal(kind, signal.SIG_IGN) for kind in (*_STOPS, signal.SIGHUP)}
        process.start()
        for kind, handler in handlers.items():
            signal.signal(kind, handler)
        return process

    with directory:
        configure_logging(level=settings.log.level, style=settings.log.format, stream=sys.stdout)
        supervisor = Supervisor(start, count=count, host=settings.server.host, port=settings.server.port)
        return asyncio.run(supervisor.run())


def _serve(settings: Settings, siblings: Siblings, channel: socket.socket) -> None:
    """Be one of the processes."""
    processors = processor_share(siblings.number, siblings.count)
    if processors is not None:
        os.sched_setaffinity(0, processors)
    structlog.contextvars.bind_contextvars(process=siblings.number)
    from app.serving import serve  # noqa: PLC0415 (the supervisor needs neither ONNX Runtime nor FastAPI)

    if not serve(settings, channel=channel, siblings=siblings):
        sys.exit(1)


@dataclass(eq=False, slots=True)
class _Child:
    """A process, as its supervisor sees it."""

    process: BaseProcess
    channel: socket.socket
    ready: bool = False
    outdated: bool = False  # was told to reload before it could
    silences: int = 0  # since it last said something
    handed: int = 0  # connections that it was given
    over: int = 0  # of these, by its own word

    @property
    def connections(self) -> int:
        """Return how many it has open, by the latest that is known."""
        return self.handed - self.over

    def reload(self) -> None:
        """Have it serve what the model's path leads to now; it may have begun to load something else."""
        self.outdated = not self.ready
        if self.ready and self.process.pid is not None:
            os.kill(self.process.pid, signal.SIGHUP)

    def dismiss(self) -> None:
        """Give it no more connections: it answers what it has, and ends."""
        with suppress(OSError):
            self.channel.shutdown(socket.SHUT_WR)


class Supervisor:
    """Keeps `count` processes, and hands each new connection to the one that has the fewest.

    It listens once all of them are ready. `start` starts one, given its number and its end of a channel; for what goes
    over the channel see `app.server.HandedServer`.
    """

    def __init__(self, start: Callable[[int, socket.socket], BaseProcess], *, count: int, host: str, port: int) -> None:
        self._start = start
        self._count = count
        self._host = host
        self._port = port
        self._children: set[_Child] = set()
        self._taking: list[_Child] = []
        self._listening = False
        self._stopping = asyncio.Event()
        self._failed = False

    async def run(self) -> bool:
        """Serve until a signal; return whether all processes started, and ended by themselves."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                partial(_Newcomer, self._hand_over), self._host, self._port, backlog=_BACKLOG, start_serving=False
            )
        except OSError as error:
            _log.critical("cannot listen", reason=str(error))
            return False
        for stop in _STOPS:
            loop.add_signal_handler(stop, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        async with asyncio.TaskGroup() as self._tasks:
            for number in range(self._count):
                self._tasks.create_task(self._keep(number))
        return not self._failed

    async def _keep(self, number: int) -> None:
        """Start a process, and another when it ends, until the supervisor stops."""
        loop = asyncio.get_running_loop()
        pause_s = 0.0
        while not self._stopping.is_set():
            started = loop.time()
            status = await self._live(number)
            if self._stopping.is_set():
                self._failed |= status != 0
            elif not self._listening:
                self._fail("a process did not start", process=number, status=status)
            else:
                if loop.time() - started > _STEADY_S:
                    pause_s = 0.0
                _log.error("a process ended", process=number, status=status, again_in_s=pause_s)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), pause_s)
                pause_s = min(max(1.0, pause_s * 2), _LONGEST_PAUSE_S)

    async def _live(self, number: int) -> int | str | None:
        """Start a process and return its exit status, or why it could not be started."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with ours:
            try:
                with theirs:
                    process = self._start(number, theirs)
            except OSError as error:
                return str(error)
            child = _Child(process, ours)
            ended = asyncio.Event()
            self._children.add(child)
            ours.settimeout(0)
            loop.add_reader(ours, self._hear, child)
            loop.add_reader(process.sentinel, ended.set)
            watch = loop.create_task(self._watch(child))
            try:
                await ended.wait()
            finally:
                watch.cancel()
                loop.remove_reader(process.sentinel)
                self._forget(child)
                self._children.remove(child)
            process.join()
            unneeded = self._stopping.is_set() and not child.ready
            return 0 if unneeded else process.exitcode

    def _hear(self, child: _Child) -> None:
        try:
            said = child.channel.recv(4096)
        except OSError:  # it was killed
            said = b""
        if not said:
            self._forget(child)
            return
        child.over = int.from_bytes(said[-8:], "big")
        child.silences = 0
        if not child.ready:
            child.ready = True
            if child.outdated:
                child.reload()
            self._taking.append(child)
            if len(self._taking) == self._count and not self._listening:
                self._listening = True
                self._tasks.create_task(self._listen())

    async def _watch(self, child: _Child) -> None:
        """Kill a process that takes connections and does not say anything any more."""
        while child.silences < _MOST_SILENCES:
            await asyncio.sleep(_SILENT_S)
            child.silences = child.silences + 1 if child in self._taking else 0
        _log.error("a process hangs", pid=child.process.pid)
        child.process.kill()

    def _forget(self, child: _Child) -> None:
        """Let a process go that wants no more connections, or is dead."""
        asyncio.get_running_loop().remove_reader(child.channel)
        child.dismiss()
        if child in self._taking:
            self._taking.remove(child)

    async def _listen(self) -> None:
        if self._stopping.is_set():
            return
        try:
            await self._server.start_serving()
        except OSError as error:
            self._fail("cannot listen", reason=str(error))
            return
        host = f"[{self._host}]" if ":" in self._host else self._host
        port = self._server.sockets[0].getsockname()[1]
        _log.info(f"running on http://{host}:{port}", processes=self._count)

    def _hand_over(self, connection: TransportSocket) -> None:
        # One that is silent hangs, perhaps: it comes last.
        for child in sorted(self._taking, key=lambda child: (child.silences > 1, child.connections)):
            with suppress(OSError):  # it has died, or reads no more
                socket.send_fds(child.channel, [b"\0"], [connection.fileno()])
                child.handed += 1
                self._taking.remove(child)
                self._taking.append(child)  # of those with as many, the others come first
                return

    def _reload(self) -> None:
        """Have every process serve what the model's path leads to now."""
        for child in self._children:
            child.reload()

    def _fail(self, what: str, **why: object) -> None:
        _log.critical(what, **why)
        self._failed = True
        self._stop()

    def _stop(self) -> None:
        """Refuse newcomers, and let every process answer what it has."""
        self._stopping.set()
        self._server.close()
        for child in self._children:
            if child.ready:
                child.dismiss()
            else:
                child.process.kill()


class _Newcomer(asyncio.Protocol):
    """A connection before it is handed over."""

    def __init__(self, hand_over: Callable[[TransportSocket], None]) -> None:
        self._hand_over = hand_over

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._hand_over(transport.get_extra_info("socket"))
        transport.close()  # our descriptor alone; the connection lives on in its process
