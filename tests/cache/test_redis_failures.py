"""A cache whose Redis is unwell: every failure is a miss, soon nobody waits any more, and it comes back by itself."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from app.cache.breaker import State
from app.cache.entry import EntryFormat
from app.cache.events import BreakerChanged, CommandFinished, Operation
from app.cache.redis import CONNECTIONS, RedisCache
from app.cache.redis_client import open_client
from tests.cache.caches import (
    HEADS,
    Happened,
    answer_of,
    answers,
    fill,
    key_of,
    keys_of,
    redis_cache,
    until_disconnected,
)
from tests.cache.proxies import fake_server, holding_proxy
from tests.redis_server import RedisServer, free_port, running_redis

pytestmark = pytest.mark.anyio

_SHORT_S = 0.1
_PREFIX = b"sentiment:01234567:"


def _answer_at_once(cache: RedisCache, number: int) -> dict[bytes, object]:
    """Return what the cache answers without waiting for anything at all."""
    with pytest.raises(StopIteration) as returned:
        cache.get_many(keys_of(number)).send(None)
    found: dict[bytes, object] = returned.value.value
    return found


async def _ask_until_open(cache: RedisCache, happened: Happened) -> None:
    while happened.states(Operation.READ)[-1:] != [State.OPEN]:
        assert await cache.get_many(keys_of(1)) == {}


async def test_a_killed_redis_is_a_miss_and_is_used_again_when_it_is_back(own_redis: RedisServer) -> None:
    happened = Happened()
    async with redis_cache(own_redis.url, happened) as cache:
        await fill(cache, 1)
        own_redis.kill()
        await _ask_until_open(cache, happened)
        assert happened.errors(Operation.READ)[:3] == ["connection"] * 3
        assert _answer_at_once(cache, 1) == {}
        own_redis.start()
        await happened.until_state(Operation.READ, State.CLOSED)
        assert await cache.get_many(keys_of(1)) == {}  # its data is lost
        await fill(cache, 1)
        assert await cache.get_many(keys_of(1)) == answers(1)


async def test_a_restart_that_loses_the_data_is_a_miss_and_nothing_else(own_redis: RedisServer) -> None:
    happened = Happened()
    async with redis_cache(own_redis.url, happened) as cache:
        await fill(cache, 1)
        own_redis.kill()
        await asyncio.to_thread(own_redis.start)  # while the loop hears that the connection has ended
        assert await cache.get_many(keys_of(1)) == {}
        assert cache.lookups.misses == 1
        assert happened.errors(Operation.READ) == []
        assert happened.of(BreakerChanged) == []


async def test_for_a_hung_redis_a_few_wait_and_then_nobody(own_redis: RedisServer) -> None:
    happened = Happened()
    async with redis_cache(own_redis.url, happened, timeout_s=_SHORT_S) as cache:
        await fill(cache, 1)
        own_redis.pause()
        assert await asyncio.gather(*(cache.get_many(keys_of(1)) for _ in range(64))) == [{}] * 64
        await _ask_until_open(cache, happened)
        assert happened.errors(Operation.READ) == ["timeout"] * 3
        for _ in range(1_000):
            assert _answer_at_once(cache, 1) == {}
        assert cache.lookups.unanswered >= 1_064
        own_redis.resume()
        await happened.until_state(Operation.READ, State.CLOSED)
        assert await cache.get_many(keys_of(1)) == answers(1)


async def test_opening_lets_everybody_go_who_still_waits(own_redis: RedisServer) -> None:
    happened = Happened()
    async with redis_cache(own_redis.url, happened, timeout_s=30) as cache:
        own_redis.pause()
        waiting = []
        for number in range(100):  # the first commands are under way, what comes then waits for one of them to end
            waiting.append(asyncio.create_task(cache.get_many(keys_of(number))))
            await asyncio.sleep(0)
        for _ in range(3):
            cache.breakers[Operation.READ].failed("timeout")
        async with asyncio.timeout(5):
            assert await asyncio.gather(*waiting) == [{}] * 100


async def test_probes_of_a_hung_redis_come_one_at_a_time_in_the_background(own_redis: RedisServer) -> None:
    happened = Happened()
    own_redis.pause()
    async with redis_cache(own_redis.url, happened, timeout_s=_SHORT_S) as cache:
        await happened.until(lambda: happened.states(Operation.READ).count(State.HALF_OPEN) == 2)
        assert happened.states(Operation.READ)[:4] == [State.OPEN, State.HALF_OPEN, State.OPEN, State.HALF_OPEN]
        assert cache.breakers[Operation.READ].state is State.HALF_OPEN
        assert _answer_at_once(cache, 1) == {}
        own_redis.resume()
        await happened.until_state(Operation.READ, State.CLOSED)


async def test_a_redis_that_is_not_there_keeps_nothing_from_starting(tmp_path: Path) -> None:
    happened, port = Happened(), free_port()
    async with redis_cache(f"redis://127.0.0.1:{port}", happened) as cache:
        (opened,) = [event for event in happened.of(BreakerChanged) if event.before is State.CLOSED]
        assert opened.reason is not None
        assert opened.reason.startswith("connection: ")
        assert _answer_at_once(cache, 1) == {}
        cache.put_many(answers(1))
        assert happened.dropped() == 1
        with running_redis(tmp_path, port=port):
            await happened.until_state(Operation.READ, State.CLOSED)
            await fill(cache, 1)
            assert await cache.get_many(keys_of(1)) == answers(1)


async def test_a_full_redis_still_tells_what_it_knows(own_redis: RedisServer) -> None:
    happened = Happened()
    async with redis_cache(own_redis.url, happened) as cache:
        await fill(cache, 1)
        own_redis.admin.config_set("maxmemory", 1)
        for number in (2, 3, 4, 5):
            await fill(cache, number)
        assert happened.errors(Operation.WRITE)[:3] == ["full"] * 3
        assert happened.states(Operation.WRITE)[0] is State.OPEN
        assert happened.states(Operation.READ) == []
        assert await cache.get_many(keys_of(1, 5)) == answers(1)
        own_redis.admin.config_set("maxmemory", 0)
        await happened.until_state(Operation.WRITE, State.CLOSED)
        await fill(cache, 5)
        assert await cache.get_many(keys_of(1, 4, 5)) == answers(1, 4, 5)  # the probe repeats what failed last


async def test_a_read_only_redis_still_tells_what_it_knows(own_redis: RedisServer) -> None:
    happened = Happened()
    async with redis_cache(own_redis.url, happened) as cache:
        await fill(cache, 1)
        own_redis.admin.replicaof("127.0.0.1", free_port())
        for number in (2, 3, 4):
            await fill(cache, number)
        assert happened.errors(Operation.WRITE)[:3] == ["read-only"] * 3
        assert happened.states(Operation.WRITE)[0] is State.OPEN
        assert await cache.get_many(keys_of(1)) == answers(1)
        own_redis.admin.replicaof("NO", "ONE")
        await happened.until_state(Operation.WRITE, State.CLOSED)


@pytest.mark.parametrize("login", ["", ":wrong@", "nobody:wrong@"])
async def test_a_redis_that_wants_another_password_is_a_miss(tmp_path: Path, login: str) -> None:
    happened = Happened()
    with running_redis(tmp_path, "--requirepass", "right") as server:
        async with redis_cache(f"redis://{login}{server.address}", happened) as cache:
            assert await cache.get_many(keys_of(1)) == {}
        (opened,) = [event for event in happened.of(BreakerChanged) if event.before is State.CLOSED]
        assert opened.reason == "auth"


@pytest.mark.parametrize("login", [":right@", "default:right@"])
async def test_the_right_password_opens_redis(tmp_path: Path, login: str) -> None:
    with running_redis(tmp_path, "--requirepass", "right") as server:
        async with redis_cache(f"redis://{login}{server.address}/3") as cache:
            await fill(cache, 1)
            assert await cache.get_many(keys_of(1)) == answers(1)


_NONSENSE: dict[str, Callable[[bytes], bytes | None]] = {
    "a web server": lambda _: b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "bytes": lambda _: bytes(range(256)),
    "one word": lambda _: b"+PONG\r\n",
    "a number": lambda _: b":1\r\n",
    "no number": lambda _: b":one\r\n",
    "too little": lambda _: b"*0\r\n",
    "too much": lambda _: b"*2\r\n$-1\r\n$-1\r\n",
    "numbers": lambda _: b"*1\r\n:1\r\n",
    "another's entry": lambda _: b"*1\r\n$5\r\nhello\r\n",
    "lists": lambda _: b"*1\r\n" * 50 + b"$-1\r\n",
    "an endless list": lambda _: b"*1000000000\r\n",
    "an endless text": lambda _: b"*1\r\n$1000000000\r\nab",
    "half an answer": lambda _: b"*1\r\n$42\r\n0123",
    "an error": lambda _: b"-ERR unknown command 'secret'\r\n",
    "an odd error": lambda _: b"-MOVED somewhere\r\n",
    "a redirection": lambda _: b"-MOVED 1 127.0.0.1:1\r\n",
    "an error inside": lambda _: b"*1\r\n-ERR inside\r\n",
    "an empty line": lambda _: b"\r\n",
    "nothing": lambda _: b"",
    "a closed door": lambda _: None,
}


@pytest.mark.parametrize("reply", _NONSENSE.values(), ids=_NONSENSE.keys())
async def test_nonsense_is_a_miss(reply: Callable[[bytes], bytes | None]) -> None:
    happened = Happened()
    async with fake_server(reply) as server, redis_cache(server.url, happened, timeout_s=_SHORT_S) as cache:
        assert happened.states(Operation.READ)[0] is State.OPEN
        assert await cache.get_many(keys_of(1)) == {}
        # As if it had begun after the start:
        cache.breakers[Operation.READ].state = State.CLOSED
        for _ in range(5):
            assert await cache.get_many(keys_of(1)) == {}
        assert len(happened.errors(Operation.READ)) >= 3


async def test_a_command_is_tried_once() -> None:
    async with fake_server(lambda _: None) as server, redis_cache(server.url) as cache:
        cache.breakers[Operation.READ].state = State.CLOSED
        before = server.connections
        assert await cache.get_many(keys_of(1)) == {}
        assert server.connections == before + 1


@pytest.mark.parametrize("reply", _NONSENSE.values(), ids=_NONSENSE.keys())
async def test_nonsense_for_a_write_is_counted_and_does_no_harm(reply: Callable[[bytes], bytes | None]) -> None:
    happened = Happened()

    def to_writes(data: bytes) -> bytes | None:
        return reply(data) if b"SET" in data else b"*1\r\n$-1\r\n"

    async with fake_server(to_writes) as server, redis_cache(server.url, happened, timeout_s=_SHORT_S) as cache:
        await fill(cache, 1)
        assert len(happened.errors(Operation.WRITE)) == 1
        assert await cache.get_many(keys_of(1)) == {}


async def test_an_answer_to_another_question_is_never_given_and_its_connection_never_used_again() -> None:
    happened = Happened()
    entry = EntryFormat(HEADS).encode(key_of(1), answer_of(1))

    async with (
        fake_server(
            lambda data: b"*1\r\n$-1\r\n" if bytes(16) in data else b"*1\r\n$42\r\n" + entry + b"\r\n"
        ) as server,
        redis_cache(server.url, happened) as cache,
    ):
        assert await cache.get_many(keys_of(1)) == answers(1)
        before = server.connections
        assert await cache.get_many(keys_of(2)) == {}
        assert happened.errors(Operation.READ) == ["corrupt"]
        assert await cache.get_many(keys_of(1)) == answers(1)
        assert server.connections == before + 1


async def test_an_answer_that_comes_late_meets_no_later_question(redis: RedisServer) -> None:
    happened = Happened()
    async with holding_proxy(redis.port) as proxy, redis_cache(proxy.url, happened, timeout_s=_SHORT_S) as cache:
        await fill(cache, 1, 2)
        assert await cache.get_many(keys_of(1)) == answers(1)
        for _ in range(5):
            proxy.hold()
            before = proxy.connections
            assert await cache.get_many(keys_of(1)) == {}
            proxy.release()
            async with asyncio.timeout(10):
                while not (found := await cache.get_many(keys_of(2))):  # a busy machine may be late once more
                    pass
            assert found == answers(2)
            assert proxy.connections > before  # what timed out is closed
        assert set(happened.errors(Operation.READ)) == {"timeout"}


async def test_a_command_cancelled_at_any_moment_leaves_no_answer_behind(redis: RedisServer) -> None:
    async with redis_cache(redis.url) as cache:
        await fill(cache, 1, 2)
    client = open_client(redis.url, connections=1, timeout_s=5)
    first, second = (_PREFIX + key_of(number) for number in (1, 2))
    (expected,) = await client.read([second])
    for turns in range(60):
        cancelled = asyncio.create_task(client.read([first]))
        for _ in range(turns // 2):
            await asyncio.sleep(0.0002 if turns % 2 else 0)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        assert await client.read([second]) == [expected], turns
    assert redis.clients() <= 1
    await client.aclose()
    await until_disconnected(redis)


async def test_callers_that_leave_disturb_nobody_and_leak_nothing(redis: RedisServer) -> None:
    async with holding_proxy(redis.port) as proxy, redis_cache(proxy.url) as cache:
        await fill(cache, *range(100))
        for number in range(100):
            proxy.hold()
            leaving = asyncio.create_task(cache.get_many(keys_of(number)))
            staying = asyncio.create_task(cache.get_many(keys_of(number)))
            await asyncio.sleep(0)
            leaving.cancel()
            proxy.release()
            assert await staying == answers(number)
        assert redis.clients() <= CONNECTIONS
        assert proxy.open <= CONNECTIONS


async def test_a_hung_redis_delays_no_write_and_holds_no_more_than_the_bound(own_redis: RedisServer) -> None:
    happened = Happened()
    async with redis_cache(own_redis.url, happened) as cache:
        own_redis.pause()
        for start in range(0, 12_000, 1_000):
            cache.put_many(answers(*range(start, start + 1_000)))
        assert cache.waiting == 8_192
        assert happened.dropped() == 12_000 - 8_192
        own_redis.resume()
        await cache.flush()
        assert len(own_redis.stored()) == 8_192


async def test_leaving_a_cache_on_a_hung_redis_takes_a_moment_at_most(own_redis: RedisServer) -> None:
    happened = Happened()
    async with asyncio.timeout(10):
        async with redis_cache(own_redis.url, happened, timeout_s=60) as cache:
            own_redis.pause()
            cache.put_many(answers(*range(300)))
            asking = asyncio.create_task(cache.get_many(keys_of(1)))
            await asyncio.sleep(0)
        assert await asking == {}
    written = sum(
        event.entries for event in happened.of(CommandFinished) if event.operation is Operation.WRITE and event.error
    )
    assert written + happened.dropped() == 300
    own_redis.resume()
    await until_disconnected(own_redis)
