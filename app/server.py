"""A uvicorn alone in its process, or in each of several. Closes slow connections; stops without cutting anybody off.

Knows connections; nothing of what is served on them.
"""

import asyncio
import gc
import signal
import socket
import sys
import time
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from typing import Any, Final, cast

import structlog
import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE

from app.connection import BoundedConnection, Bounds
from app.security.gate import Gate
from app.services import Services
from app.settings import Security, Server

_SPARE_FILES: Final = 256  # beside those of connections
_POLL_S: Final = 0.02
_TICKS: Final = 10  # of uvicorn's main loop, a second
_SLOW_TICKS: Final = 5  # between two looks for slow connections
_SWITCH_INTERVAL_S: Final = 0.0005  # a model's thread that has its batch waits for the event loop no longer

_log = structlog.get_logger(__name__)


def server_of(
    app: FastAPI, admin: FastAPI | None, settings: Server, *, channel: socket.socket | None = None
) -> "DrainingServer":
    """Return a server of `app`, and of `admin`, if there is one, on the ports in the settings.

    With a `channel` it does not listen, and takes the connections that come there.
    """
    _allow_open_files(settings.max_connections + _SPARE_FILES)

    def config(app: FastAPI, port: int, max_connections: int | None) -> uvicorn.Config:
        bounds = Bounds(settings.receive_timeout_s, max_connections)
        return uvicorn.Config(
            app,
            host=settings.host,
            port=port,
            loop="auto",  # uvloop where it exists
            http=cast(type[asyncio.Protocol], partial(BoundedConnection, bounds)),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=settings.shutdown_timeout_s,
        )

    public = config(app, settings.port, settings.max_connections)
    if channel is not None:
        return HandedServer(app, public, drain_s=settings.drain_s, channel=channel)
    return DrainingServer(
        app,
        public,
        drain_s=settings.drain_s,
        admin=None if admin is None else config(admin, settings.admin_port, None),
    )


def may_listen(host: str, security: Security) -> bool:
    """Return whether the settings allow to listen on `host`: strangers must show a key, unless told otherwise."""
    return bool(security.keys_file) or security.allow_anonymous or _is_loopback(host)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _allow_open_files(needed: int) -> None:
    """Raise this process's own limit of open files, as far as the system lets it."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415 (Windows has none)

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < needed:
        _log.warning("fewer connections than the settings allow", open_files=most)


class DrainingServer(uvicorn.Server):
    """Refuses newcomers at once, and gives open connections `drain_s` to end with an answer of their own.

    uvicorn closes a connection that is idle when it stops, and a request that is on its way there is lost with it. Here
    each answer says `Connection: close` while draining, so that a busy client leaves by itself.
    """

    def __init__(
        self, app: FastAPI, config: uvicorn.Config, *, drain_s: float, admin: uvicorn.Config | None = None
    ) -> None:
        super().__init__(config)
        self._app = app
        self._admin = admin
        self._drain_s = drain_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as uvicorn does, then settle: what stands now stays, and need not be searched for garbage again."""
        await super().startup(sockets)
        if self._admin is not None:
            await self._listen_for_admins(self._admin)
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
        gate: Gate | None = self.lifespan.state["gate"]
        if gate is not None and gate.keys is not None:
            gate.keys.refresh()

    async def _listen_for_admins(self, config: uvicorn.Config) -> None:
        """Listen on a second port; what connects there lives and ends with the others."""
        config.load()
        connection: Any = config.http_protocol_class  # uvicorn's own type is less than what it calls
        connect = partial(connection, config=config, server_state=self.server_state, app_state=self.lifespan.state)
        try:
            listener = await asyncio.get_running_loop().create_server(connect, config.host, config.port)
        except OSError as error:
            _log.critical("cannot start", reason=f"the admin port: {error}")
            await self.lifespan.shutdown()
            sys.exit(STARTUP_FAILURE)
        self.servers.append(listener)
        _log.info("admin port open", host=config.host, port=config.port)

    async def on_tick(self, counter: int) -> bool:
        """Close slow connections, beside what uvicorn does ten times a second."""
        if counter % _SLOW_TICKS == 0:
            now = asyncio.get_running_loop().time()
            for connection in tuple(self.server_state.connections):
                if isinstance(connection, BoundedConnection):
                    connection.close_if_slow(now)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, drain, then stop as uvicorn does."""
        self._app.state.draining.set()
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
