"""One server process: settings in, a stopped server out."""

import signal
import socket
import sys

import uvicorn

from app.main import create_app
from app.server import DrainingServer, HandedServer
from app.settings import Settings
from app.telemetry.logging import configure_logging
from app.telemetry.siblings import Siblings


def serve(settings: Settings, *, channel: socket.socket | None = None, siblings: Siblings | None = None) -> bool:
    """Serve until SIGTERM or SIGINT, then answer what was accepted; return whether it came up at all.

    It listens where the settings say, or as one of `siblings` takes its connections from `channel`.
    """
    # When it has stopped, uvicorn raises the signal anew; an orderly stop is a success, not a death by signal.
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: None)
    configure_logging(level=settings.log.level, style=settings.log.format, stream=sys.stdout)
    app = create_app(settings, siblings)
    config = uvicorn.Config(
        app,
        host=settings.server.host,
        port=settings.server.port,
        loop="auto",  # uvloop where it exists
        http="httptools",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.server.keep_alive_s,
        timeout_graceful_shutdown=settings.server.shutdown_timeout_s,
    )
    drain_s = settings.server.drain_s
    if channel is None:
        server = DrainingServer(app, config, drain_s=drain_s)
    else:
        server = HandedServer(app, config, drain_s=drain_s, channel=channel)
    server.run()
    return server.started
