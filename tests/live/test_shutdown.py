import asyncio
import json
import signal
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.live.served import RunningServer, made_up_texts, running_server

pytestmark = pytest.mark.anyio


class _Request:
    """One request on a connection of its own, whose body is sent when the test wants it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        self._reader = reader
        self._writer = writer
        self._body = body

    @classmethod
    async def begin(cls, server: RunningServer, path: str, body: bytes) -> "_Request":
        """Send the head, and return when the server is known to be reading the body."""
        url = httpx.URL(server.address)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
        )
        writer.write(head.encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        return cls(reader, writer, body)

    def send_body(self) -> None:
        self._writer.write(self._body)

    async def answer(self) -> tuple[int, bytes]:
        """Return status and body; an answer that is cut off is an error."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        body = await self._reader.readexactly(int(headers[b"content-length"]))
        self._writer.close()
        return int(head.split()[1]), body


def _is_answer(status: int, body: bytes) -> bool:
    content = json.loads(body)
    if status == 503:
        return str(content["type"]).startswith("urn:sentiment:problem:")
    return status == 200 and "label" in (content.get("results") or [content])[-1]


async def test_sigterm_under_load_leaves_no_accepted_request_without_an_answer(tmp_path: Path) -> None:
    with running_server(tmp_path, CACHE__MAX_BYTES="0") as server:
        texts = made_up_texts(600)
        bodies = [("/v1/sentiment", {"text": text}) for text in texts[:60]] + [
            ("/v1/sentiment/batch", {"texts": texts[start : start + 30]}) for start in range(60, 600, 30)
        ]
        requests = await asyncio.gather(
            *(_Request.begin(server, path, json.dumps(body).encode()) for path, body in bodies)
        )
        early, late = requests[::2], requests[1::2]
        for request in early:
            request.send_body()
        first = await early[0].answer()  # the load is on
        server.process.send_signal(signal.SIGTERM)
        await server.until_refusing()
        for request in late:
            request.send_body()
        answers = [first, *await asyncio.gather(*(request.answer() for request in (*early[1:], *late)))]
        assert len(answers) == len(bodies)
        assert all(_is_answer(*answer) for answer in answers), Counter(status for status, _ in answers)
        assert server.process.wait(60) == 0
        assert "Traceback" not in server.output()


async def test_a_client_that_goes_on_asking_meets_answers_until_it_is_refused(tmp_path: Path) -> None:
    with running_server(tmp_path, CACHE__MAX_BYTES="0") as server:
        outcomes: list[list[str]] = []

        async def keep_asking(text: str) -> None:
            seen: list[str] = []
            outcomes.append(seen)
            while not seen or seen[-1] == "answered":
                request = None
                try:
                    request = await _Request.begin(server, "/v1/sentiment", json.dumps({"text": text}).encode())
                    request.send_body()
                    seen.append("answered" if _is_answer(*await request.answer()) else "odd")
                except (OSError, EOFError):
                    # Either never accepted, or accepted and cut off.
                    seen.append("refused" if request is None else "cut off")

        asking = [asyncio.create_task(keep_asking(text)) for text in made_up_texts(40)]
        async with asyncio.timeout(60):
            while sum(map(len, outcomes)) < 100:  # noqa: ASYNC110 (two lines beat an event here)
                await asyncio.sleep(0.01)
        assert await asyncio.to_thread(server.stop) == 0
        await asyncio.gather(*asking)
    assert Counter(outcome for seen in outcomes for outcome in seen if outcome != "answered") == {"refused": 40}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_stops_with_success(tmp_path: Path, number: signal.Signals) -> None:
    with running_server(tmp_path) as server:
        assert server.stop(number) == 0
        assert server.log()[-1]["message"].startswith("Finished server process")


async def test_clients_that_keep_their_connections_lose_no_request(tmp_path: Path) -> None:
    with running_server(tmp_path, CACHE__MAX_BYTES="0") as server:
        ended: list[httpx.HTTPError] = []

        async def keep_asking(text: str) -> None:
            async with httpx.AsyncClient(base_url=server.address, timeout=60) as client:
                try:
                    while True:
                        assert (await client.post("/v1/sentiment", json={"text": text})).status_code == 200
                except httpx.HTTPError as error:
                    ended.append(error)

        clients = [asyncio.create_task(keep_asking(text)) for text in made_up_texts(50)]
        await asyncio.sleep(1)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.gather(*clients)
        assert server.process.wait(60) == 0
    # Refused is the one way for it to end: nothing that a connection carried went without its answer.
    assert Counter(map(type, ended)) == {httpx.ConnectError: 50}
