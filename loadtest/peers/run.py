"""Make a peer's virtual environment and run the peer in it."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final

import psutil

from loadtest.peers import Peer

_HERE: Final = Path(__file__).parent
_ROOT: Final = _HERE.parents[1]
_START_S: Final = 180.0
_MARK: Final = "PEER_RUN"


def environment(peer: Peer) -> Path:
    """Return the directory of the peer's virtual environment; make it if there is none with these requirements."""
    directory = _ROOT / ".venv" / "peers" / peer.name
    stamp = directory / "requirements.txt"
    wanted = "".join(f"{requirement}\n" for requirement in peer.requirements)
    if stamp.is_file() and stamp.read_text() == wanted:
        return directory
    subprocess.run([sys.executable, "-m", "venv", "--clear", directory], check=True)
    subprocess.run([directory / "bin" / "python", "-m", "pip", "install", "--quiet", *peer.requirements], check=True)
    stamp.write_text(wanted)
    return directory


@contextmanager
def serving(peer: Peer, bundle: Path, session: str) -> Iterator[tuple[int, Callable[[], list[psutil.Process]]]]:
    """Run `peer` with the model of `bundle`; yield its port, once it answers, and what returns its processes.

    `session` is "documented" (ONNX Runtime as it comes) or "ours" (the OpenVINO provider as this service sets it up).

    Raises:
        RuntimeError: it ended, or answered nothing in time; the message has the tail of its log.
    """
    binaries = environment(peer) / "bin"
    port = _free_port()
    places = {"python": binaries / "python", "bin": binaries, "port": port, "here": _HERE}
    log = _ROOT / "build" / "peers" / f"{peer.name}-{session}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(8)
    variables = {
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": str(_ROOT),
        "PEER_MODEL": str(bundle.resolve()),
        "PEER_SESSION": session,
        _MARK: mark,
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [part.format(**places) for part in peer.command],
            cwd=_ROOT,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait(peer, port, process, log)
        yield port, lambda: _members(mark)
    finally:
        _stop(process, mark)


def ask(peer: Peer, port: int, text: str) -> Any:
    """Return the peer's decoded answer to `text`.

    Raises:
        OSError: nothing listens, or the answer is not a 200.
    """
    body = json.dumps(peer.body(text), ensure_ascii=False).encode()
    return json.loads(_request(port, "POST", peer.path, body))


def _request(port: int, method: str, path: str, body: bytes | None = None) -> bytes:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise OSError(f"{method} {path}: {response.status} {content[:500]!r}")
    return content


def _wait(peer: Peer, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_S
    reason = "it ended"
    while process.poll() is None and time.monotonic() < end:
        try:
            if peer.ready:
                _request(port, "GET", peer.ready)
            peer.label(ask(peer, port, "很好"))
        except (OSError, HTTPException, LookupError) as error:
            reason = str(error)
            time.sleep(0.2)
        else:
            return
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
    raise RuntimeError(f"{peer.name} did not start ({reason}):\n{tail}")


def _stop(process: subprocess.Popen[bytes], mark: str) -> None:
    """End the process and all that came of it: some leave the process group (Ray's daemons), the mark stays."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
    left = _members(mark)
    for found in left:
        try:
            found.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=10)
    process.wait()


def _members(mark: str) -> list[psutil.Process]:
    return [found for found in psutil.process_iter() if _marked(found, mark)]


def _marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(_MARK) == mark
    except psutil.Error:
        return False


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
