"""A uvicorn that has the process to itself, and stops without cutting anybody off.

Knows connections; nothing of what is served on them.
"""

import asyncio
import gc
import signal
import socket
import sys
import time
from typing import Final

import uvicorn
from fastapi import FastAPI

from app.services import Services

_POLL_S: Final = 0.02
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

    def _reload(self) -> None:
        services: Services = self.lifespan.state["services"]
        services.models.reload()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, drain, then stop as uvicorn does."""
        self._app.state.draining = True
        for server in self.servers:
            server.close()
        deadline = time.monotonic() + self._drain_s
        while self.server_state.connections and time.monotonic() < deadline:  # noqa: ASYNC110 (uvicorn has no event)
            await asyncio.sleep(_POLL_S)
        await super().shutdown(sockets)
