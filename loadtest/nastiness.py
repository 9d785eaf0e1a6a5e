"""Requests that a service must survive: each must be answered with 4xx, or with 200 where it is well-formed."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Final

_AT_ONCE: Final = 20
_ANSWER_S: Final = 30.0
_PATHS: Final = ("/v1/sentiment", "/v1/sentiment/batch")


async def nasty_requests(port: int, count: int) -> str:
    """Send `count` of them; return how they were answered, in one line."""
    chance = random.Random(0)  # noqa: S311 (no secret depends on it)
    found: Counter[str] = Counter()
    waiting = iter(range(count))

    async def send() -> None:
        for _ in waiting:
            found[await _send(port, _make(chance), chance)] += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(_AT_ONCE):
            tasks.create_task(send())
    return ", ".join(f"{times} × {outcome}" for outcome, times in sorted(found.items()))


def _make(chance: random.Random) -> bytes:
    """Return a body: broken, deep, huge or odd JSON, or no JSON."""
    text = "".join(chr(chance.choice((chance.randrange(1, 128), chance.randrange(0x4E00, 0x9FFF)))) for _ in range(20))
    value: object = chance.choice(
        [
            text,
            "",
            " ",
            None,
            True,
            [],
            {},
            [text],
            {"text": text},
            1e308,
            -(10**40),
            "\u202e" + text,
            "\x00",
            "😀" * 50,
        ]
    )
    whole = json.dumps({"text": value}).encode()
    makers: list[Callable[[], bytes]] = [
        lambda: whole,
        lambda: whole[: chance.randrange(len(whole))],
        lambda: chance.randbytes(chance.randrange(200)),  # invalid UTF-8, mostly
        lambda: b'{"text": ' + b"[" * chance.randrange(1, 100_000),
        lambda: b'{"text": ' + b"9" * chance.randrange(1, 100_000) + b"}",
        lambda: b'{"text": "\\ud83d"}',
        lambda: json.dumps({"texts": [value] * chance.randrange(1, 300)}).encode(),
        lambda: json.dumps({f"field{number}": value for number in range(chance.randrange(300))}).encode(),
        lambda: json.dumps({"text": text * chance.randrange(1, 2_000)}, ensure_ascii=False).encode(),
    ]
    return chance.choice(makers)()


async def _send(port: int, body: bytes, chance: random.Random) -> str:
    """Return the status of the answer, or what stood in for it."""
    manner = chance.choice(["whole", "whole", "whole", "slowly", "half", "chunked"])
    framing = "Transfer-Encoding: chunked" if manner == "chunked" else f"Content-Length: {len(body)}"
    head = f"POST {chance.choice(_PATHS)} HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\n{framing}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head.encode())
        if manner == "half":
            writer.write(body[: len(body) // 2])
            if writer.can_write_eof():
                writer.write_eof()
            await asyncio.wait_for(reader.read(), _ANSWER_S)
            return "closed half-way"
        if manner == "chunked":
            writer.write(b"".join((f"{len(body):x}\r\n".encode(), body, b"\r\n0\r\n\r\n") if body else (b"0\r\n\r\n",)))
        elif manner == "slowly":
            for start in range(0, min(len(body), 200), 50):
                writer.write(body[start : start + 50])
                await asyncio.sleep(0.01)
            writer.write(body[200:])
        else:
            writer.write(body)
        status = await asyncio.wait_for(reader.readline(), _ANSWER_S)
    except (OSError, TimeoutError) as error:
        return type(error).__name__
    finally:
        writer.close()
    return status.split(b" ", 2)[1].decode() if status.startswith(b"HTTP/1.1 ") else "no answer"
