import asyncio
import json
import signal
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.live.served import Request, is_answer, made_up_texts, running_server

pytestmark = pytest.mark.anyio


async def test_sigterm_under_load_leaves_no_accepted_request_without_an_answer(tmp_path: Path) -> None:
    with running_server(tmp_path, CACHE__MAX_BYTES="0") as server:
        texts = made_up_texts(600)
        bodies = [("/v1/sentiment", {"text": text}) for text in texts[:60]] + [
            ("/v1/sentiment/batch", {"texts": texts[start : start + 30]}) for start in range(60, 600, 30)
        ]
        requests = await asyncio.gather(
            *(Request.begin(server, path, json.dumps(body).encode()) for path, body in bodies)
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
        assert all(is_answer(*answer) for answer in answers), Counter(status for status, _ in answers)
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
                    request = await Request.begin(server, "/v1/sentiment", json.dumps({"text": text}).encode())
                    request.send_body()
                    seen.append("answered" if is_answer(*await request.answer()) else "odd")
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
