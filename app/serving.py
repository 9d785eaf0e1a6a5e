"""One server process: settings in, a stopped server out."""

import signal
import socket
import sys

from app.main import create_admin_app, create_app
from app.server import server_of
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
    admin = create_admin_app(app, settings) if settings.server.admin_port else None
    server = server_of(app, admin, settings.server, channel=channel)
    server.run()
    return server.started
