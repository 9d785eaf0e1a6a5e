"""A uvicorn that has the process to itself, alone or as one of several, and stops without cutting anybody off.

Knows connections; nothing of what is served on them.
"""

import asyncio
import gc
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Final

import uvicorn
from fastapi import FastAPI

from app.services import Services

_POLL_S: Final = 0.02
_TICKS: Final = 10  # of uvicorn's main loop, a second
_SWITCH_INTERVAL_S: Final = 0.0005  # a model's thread that has its batch waits for the event loop no longer


class DrainingServer(uvicorn.Server):
    """Refuses newcomers at once, and gives open connections `drain_s` to end with an answer of their own.

    uvicorn closes a connection that is idle when it stops, and a request that is on its way there is lost with it. Here
    each answer says `Connection: close` while draining, so that a busy client leaves by itself.
    """

    def __init__(self, app: FastAPI, config: uvicorn.Config, *, drain_s: float) -> None:
        super().__init__(config)
        self._app = app
        self._drain_s = drain_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as uvicorn does, then settle: what stands now stays, and need not be searched for garbage again."""
        await super().startup(sockets)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        gc.collect()
        gc.freeze()

    @property
    def _services(self) -> Services:
        services: Services = self.lifespan.state["services"]
        return services

    def _reload(self) -> None:
        self._services.models.reload()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, drain, then stop as uvicorn does."""
        self._app.state.draining = True
        for server in self.servers:
            server.close()
        deadline = time.monotonic() + self._drain_s
        while self.server_state.connections and time.monotonic() < deadline:  # noqa: ASYNC110 (uvicorn has no event)
            await asyncio.sleep(_POLL_S)
        await super().shutdown(sockets)


class HandedServer(DrainingServer):
    """Does not listen: its connections come over `channel`, each as a byte with a descriptor (see `app.processes`).

    What it sends back is the number of connections that are over, in eight bytes: when it is ready, when the number
    changes, and once a second as a sign of life; when only a restart helps, it falls silent. Either side closes its
    half to stop, and the other follows; what was handed over before is served.
    """

    def __init__(self, app: FastAPI, config: uvicorn.Config, *, drain_s: float, channel: socket.socket) -> None:
        super().__init__(app, config, drain_s=drain_s)
        self._channel = channel
        self._ended = asyncio.Event()
        self._taken = 0
        self._told = 0
        self._adopting: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 (uvicorn's)
        """Start without a socket to listen on, then take connections."""
        await super().startup([])
        self._channel.settimeout(0)
        asyncio.get_running_loop().add_reader(self._channel, self._take)

    async def on_tick(self, counter: int) -> bool:
        """Tell how many connections are over, then do as uvicorn does."""
        over = self._taken - len(self.server_state.connections)
        if (over != self._told or counter % _TICKS == 0) and self._services.reason_to_restart() is None:
            with suppress(OSError):  # the other side is slow, or gone
                self._channel.send(over.to_bytes(8, "big"))
                self._told = over
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ask for no more connections, take those that are on their way, then stop."""
        with suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)
        await self._ended.wait()
        await asyncio.gather(*self._adopting)
        await super().shutdown(sockets)

    def _take(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            data, descriptors, *_ = socket.recv_fds(self._channel, 1, 1)
        except BlockingIOError:
            return
        except OSError:  # the other side was killed
            data, descriptors = b"", []
        if not data:
            loop.remove_reader(self._channel)
            self._ended.set()
            self.should_exit = True
            return
        self._taken += 1
        for descriptor in descriptors:  # there is none if this process may open no more
            task = loop.create_task(self._adopt(socket.socket(fileno=descriptor)))
            self._adopting.add(task)
            task.add_done_callback(self._adopting.discard)

    async def _adopt(self, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)
        except OSError:  # the client has left
            connection.close()

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]  # as uvicorn makes it
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
