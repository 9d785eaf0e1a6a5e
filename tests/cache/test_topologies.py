"""A cache on a Redis Cluster, behind Sentinels, over TLS and on a Unix socket."""

import asyncio
import random
import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trustme

from app.cache.breaker import State
from app.cache.events import BreakerChanged, Operation
from app.cache.redis import RedisCache
from tests.cache.caches import Happened, answers, fill, keys_of, redis_cache
from tests.cache.proxies import fake_server, holding_proxy
from tests.redis_server import NotStarted, RedisServer, free_port, running_redis

pytestmark = pytest.mark.anyio

_SLOTS = 16_384
_NUMBERS = range(200)


async def _until_asked_again(cache: RedisCache, happened: Happened) -> None:
    """Ask until Redis has fallen out of use and is back."""
    async with asyncio.timeout(60):
        while happened.states(Operation.READ)[-1:] != [State.CLOSED]:
            await cache.get_many(keys_of(*_NUMBERS))
            await asyncio.sleep(0.01)


def _free_cluster_port() -> int:
    """Return a port that is free together with the one that the nodes speak to each other on."""
    while True:
        port = random.randrange(20_000, 30_000)  # noqa: S311 (no secret)
        try:
            return port if free_port(port) and free_port(port + 10_000) else 0
        except OSError:
            continue


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[RedisServer]]:
    """Three masters, and a replica of the first."""
    with ExitStack() as stack:
        nodes = []
        for _ in range(4):
            port = _free_cluster_port()
            options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"]
            options += ["--cluster-config-file", f"nodes-{port}.conf"]
            nodes.append(stack.enter_context(running_redis(tmp_path, *options, port=port)))
        first, *others = nodes
        for other in others:
            first.admin.execute_command("CLUSTER", "MEET", "127.0.0.1", other.port)
        for part, master in enumerate(nodes[:3]):
            slots = range(_SLOTS * part // 3, _SLOTS * (part + 1) // 3)
            master.admin.execute_command("CLUSTER", "ADDSLOTS", *slots)
        _until(lambda: all(_cluster_info(node)["cluster_known_nodes"] == "4" for node in nodes))
        others[-1].admin.execute_command("CLUSTER", "REPLICATE", first.admin.execute_command("CLUSTER", "MYID"))
        _until(lambda: all(_cluster_info(node)["cluster_state"] == "ok" for node in nodes))
        _until(lambda: bool(first.admin.info("replication")["connected_slaves"] == 1))
        yield nodes


def _cluster_info(node: RedisServer) -> dict[str, str]:
    found = node.admin.execute_command("CLUSTER INFO")
    assert isinstance(found, dict)
    return found


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


async def test_a_cluster_spreads_the_answers_over_its_nodes(cluster: list[RedisServer]) -> None:
    # The second node alone is named, and tells of the others.
    happened = Happened()
    async with redis_cache(f"redis+cluster://{cluster[1].address}", happened) as cache:
        await fill(cache, *_NUMBERS)
        assert happened.errors(Operation.READ) + happened.errors(Operation.WRITE) == []
        assert await cache.get_many(keys_of(*_NUMBERS, 999)) == answers(*_NUMBERS)
        assert sum(len(node.stored()) for node in cluster[:3]) == len(_NUMBERS)
        assert all(len(node.stored()) > 20 for node in cluster[:3])


async def test_a_cluster_whose_master_dies_is_used_again_when_its_replica_takes_over(
    cluster: list[RedisServer],
) -> None:
    happened = Happened()
    addresses = ",".join(node.address for node in cluster)
    async with redis_cache(f"redis+cluster://{addresses}", happened) as cache:
        await fill(cache, *_NUMBERS)
        cluster[0].admin.wait(1, 1_000)
        cluster[0].kill()
        await _until_asked_again(cache, happened)
        assert await cache.get_many(keys_of(*_NUMBERS)) == answers(*_NUMBERS)
        await fill(cache, *range(500, 600))
        assert await cache.get_many(keys_of(*range(500, 600))) == answers(*range(500, 600))


async def test_a_cluster_with_a_hung_node_keeps_nobody_waiting(cluster: list[RedisServer]) -> None:
    happened = Happened()
    async with redis_cache(f"redis+cluster://{cluster[1].address}", happened, timeout_s=0.3) as cache:
        await fill(cache, *_NUMBERS)
        cluster[0].pause()
        await _until_asked_again(cache, happened)
        cluster[0].resume()


async def test_a_single_redis_that_is_part_of_a_cluster_says_so(cluster: list[RedisServer]) -> None:
    happened = Happened()
    async with redis_cache(cluster[0].url, happened) as cache:
        for number in _NUMBERS[:50]:
            await cache.get_many(keys_of(number))
    assert set(happened.errors(Operation.READ)) == {"cluster"}


@pytest.fixture
def replicated(tmp_path: Path) -> Iterator[tuple[RedisServer, RedisServer, RedisServer]]:
    """A master, its replica, and a Sentinel that watches them."""
    config = tmp_path / "sentinel.conf"
    with running_redis(tmp_path) as master, running_redis(tmp_path) as replica:
        replica.admin.replicaof("127.0.0.1", master.port)
        config.write_text(
            f"sentinel monitor mymaster 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds mymaster 300\n"
            "sentinel failover-timeout mymaster 2000\n"
        )
        _until(lambda: bool(replica.admin.info("replication")["master_link_status"] == "up"))
        with running_redis(tmp_path, "--sentinel", config=config) as sentinel:
            _until(lambda: int(sentinel.admin.sentinel_master("mymaster")["num-slaves"]) == 1)
            yield master, replica, sentinel


async def test_behind_sentinels_the_new_master_is_used_when_the_old_one_dies(
    replicated: tuple[RedisServer, RedisServer, RedisServer],
) -> None:
    master, replica, sentinel = replicated
    happened = Happened()
    async with redis_cache(f"redis+sentinel://{sentinel.address}/mymaster", happened) as cache:
        await fill(cache, *_NUMBERS)
        assert len(master.stored()) == len(_NUMBERS)
        master.admin.wait(1, 1_000)
        master.kill()
        await _until_asked_again(cache, happened)
        assert await cache.get_many(keys_of(*_NUMBERS)) == answers(*_NUMBERS)
        await fill(cache, 500)
        assert len(replica.stored()) == len(_NUMBERS) + 1


async def test_a_hung_sentinel_is_passed_over_in_time(
    replicated: tuple[RedisServer, RedisServer, RedisServer],
) -> None:
    _, _, sentinel = replicated
    async with fake_server(lambda _: b"") as hung:
        url = f"redis+sentinel://127.0.0.1:{hung.port},{sentinel.address}/mymaster"
        async with redis_cache(url, timeout_s=1.0) as cache:
            await fill(cache, 1)
            assert await cache.get_many(keys_of(1)) == answers(1)


async def test_a_master_that_sentinels_do_not_know_is_a_miss(
    replicated: tuple[RedisServer, RedisServer, RedisServer],
) -> None:
    happened = Happened()
    async with redis_cache(f"redis+sentinel://{replicated[2].address}/other", happened) as cache:
        assert await cache.get_many(keys_of(1)) == {}
    assert happened.of(BreakerChanged)[0].reason == "connection"


def _tls(directory: Path, authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    return context


async def test_over_tls_answers_come_back(redis: RedisServer, tmp_path: Path) -> None:
    async with holding_proxy(redis.port, _tls(tmp_path, trustme.CA())) as proxy:
        url = f"rediss://localhost:{proxy.port}?ssl_ca_certs={tmp_path}/ca.pem"
        async with redis_cache(url) as cache:
            await fill(cache, *_NUMBERS)
            assert await cache.get_many(keys_of(*_NUMBERS)) == answers(*_NUMBERS)
    assert len(redis.stored()) == len(_NUMBERS)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_a_certificate_of_somebody_else_is_refused(redis: RedisServer, tmp_path: Path, host: str) -> None:
    happened = Happened()
    tls = _tls(tmp_path, trustme.CA())
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    async with holding_proxy(redis.port, tls) as proxy:
        url = f"rediss://{host}:{proxy.port}?ssl_ca_certs={tmp_path}/other.pem"
        async with redis_cache(url, happened) as cache:
            assert await cache.get_many(keys_of(1)) == {}
    reason = happened.of(BreakerChanged)[0].reason or ""
    assert "certificate verify failed" in reason.lower()


async def test_a_hung_redis_behind_tls_is_a_miss(own_redis: RedisServer, tmp_path: Path) -> None:
    happened = Happened()
    async with holding_proxy(own_redis.port, _tls(tmp_path, trustme.CA())) as proxy:
        url = f"rediss://localhost:{proxy.port}?ssl_ca_certs={tmp_path}/ca.pem"
        async with redis_cache(url, happened, timeout_s=0.5) as cache:
            await fill(cache, *_NUMBERS)
            proxy.hold()
            while happened.states(Operation.READ)[-1:] != [State.OPEN]:
                assert await cache.get_many(keys_of(1)) == {}
            proxy.release()
            await happened.until_state(Operation.READ, State.CLOSED)
            assert await cache.get_many(keys_of(1)) == answers(1)


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A directory of an authority, and a certificate and key for this machine; the server must speak TLS."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    try:
        with running_redis(tmp_path, certificates=tmp_path):
            return tmp_path
    except NotStarted as error:
        if re.search("Bad directive|TLS support", str(error)):
            pytest.skip("this server was built without TLS")
        raise


async def test_a_cluster_over_tls_serves_as_well(certificates: Path) -> None:
    port = _free_cluster_port()
    with running_redis(certificates, "--cluster-enabled", "yes", port=port, certificates=certificates) as node:
        node.admin.execute_command("CLUSTER", "ADDSLOTS", *range(_SLOTS))
        _until(lambda: _cluster_info(node)["cluster_state"] == "ok")
        async with redis_cache(f"rediss+cluster://{node.address}?ssl_ca_certs={certificates}/ca.pem") as cache:
            await fill(cache, *_NUMBERS)
            assert await cache.get_many(keys_of(*_NUMBERS)) == answers(*_NUMBERS)


async def test_sentinels_and_their_master_over_tls_serve_as_well(certificates: Path) -> None:
    config = certificates / "sentinel.conf"
    with running_redis(certificates, "--requirepass", "right", certificates=certificates) as master:
        config.write_text(
            f"sentinel monitor mymaster 127.0.0.1 {master.port} 1\n"
            "sentinel auth-pass mymaster right\n"
            "requirepass other\n"
        )
        with running_redis(certificates, "--sentinel", config=config, certificates=certificates) as sentinel:
            url = f"rediss+sentinel://:right@{sentinel.address}/mymaster/2"
            options = f"?ssl_ca_certs={certificates}/ca.pem&sentinel_password=other"
            async with redis_cache(url + options) as cache:
                await fill(cache, 1)
                assert await cache.get_many(keys_of(1)) == answers(1)


async def test_a_unix_socket_serves_as_well() -> None:
    with TemporaryDirectory() as name, running_redis(Path(name), "--unixsocket", f"{name}/redis.sock"):  # a short path
        async with redis_cache(f"unix://{name}/redis.sock?db=2") as cache:
            await fill(cache, 1)
            assert await cache.get_many(keys_of(1)) == answers(1)
