"""A real HTTP server that answers as it was told to."""

import gzip
import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from chinese_sentiment_client import Retries

ANSWER: Final[dict[str, Any]] = {
    "label": "positive",
    "confidence": 0.9,
    "probabilities": {"negative": 0.05, "neutral": 0.05, "positive": 0.9},
    "certain": True,
    "emotion": {"label": "happy", "probabilities": {"happy": 1.0}},
    "truncated": False,
    "cached": False,
    "model": {"name": "tiny", "version": "0.0.1"},
}


@dataclass(frozen=True)
class Reply:
    """An answer; without a body the connection is reset, and a `cut` one ends before it should."""

    status: int = 200
    body: bytes | None = json.dumps(ANSWER).encode()
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


RESET: Final = Reply(body=None)
QUICK: Final = Retries(first_pause_s=0.001)


@dataclass
class Scripted:
    """Gives `replies` in order, and keeps what was asked."""

    address: str
    replies: list[Reply]
    asked: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)  # path, headers, and JSON or its lines


@contextmanager
def scripted(*replies: Reply) -> Iterator[Scripted]:
    """Serve `replies`."""
    script = Scripted("", list(replies))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Encoding") == "gzip":
                body: Any = [json.loads(line) for line in gzip.decompress(content).splitlines()]
            else:
                body = json.loads(content) if content else None
            script.asked.append((f"{self.command} {self.path}", dict(self.headers), body))
            reply = script.replies.pop(0)
            if reply.body is None:
                self.close_connection = True
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.close()
                return
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(reply.body) + reply.cut), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)
            self.close_connection = reply.cut

        do_GET = do_DELETE = do_POST  # noqa: N815 (what the base class calls)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        script.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield script
        finally:
            server.shutdown()
            thread.join()
