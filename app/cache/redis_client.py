"""The one place that knows the library `redis`: Redis by its URL, and the few commands that are needed of it.

The library's timeouts, retries, health checks and greetings are off: whoever calls limits the time, and a command
that is cancelled takes its connection with it, so that no late answer meets a later question.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

from redis import exceptions
from redis.asyncio import ConnectionPool, Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from app.cache.entry import CorruptEntry
from app.domain.errors import StartupError

_FORMS: Final = (
    "redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE], unix://[USER:PASSWORD@]/PATH[?db=DATABASE], "
    "redis+sentinel://[USER:PASSWORD@]HOST[:PORT],…/SERVICE[/DATABASE], redis+cluster://[USER:PASSWORD@]HOST[:PORT],… "
    "or the same with rediss for TLS"
)
_URL: Final = re.compile(
    r"(?P<transport>rediss?|unix)(?:\+(?P<topology>sentinel|cluster))?://"
    r"(?:(?P<credentials>[^/?#\s]*)@)?(?P<hosts>[^/?#@\s]*)(?P<path>[^?#\s]*)(?P<query>(?:\?[^#\s]*)?)"
)
_PATHS: Final = {None: r"/?(?P<db>\d*)", "sentinel": r"/(?P<service>[^/]+)(?:/(?P<db>\d*))?", "cluster": r"/?"}
_PORTS: Final = {None: 6379, "sentinel": 26379, "cluster": 6379}
_TLS_OPTIONS: Final = {
    "redis": (),
    "unix": (),
    "rediss": (
        "ssl_ca_certs",
        "ssl_certfile",
        "ssl_keyfile",
        "ssl_cert_reqs",
        "ssl_check_hostname",
        "ssl_min_version",
    ),
}
_SENTINEL_OPTIONS: Final = {None: (), "sentinel": ("sentinel_username", "sentinel_password"), "cluster": ()}
# RESP2 needs no greeting, and no message comes unasked in it.
_OURS: Final[dict[str, Any]] = {
    "protocol": 2,
    "socket_timeout": None,
    "socket_connect_timeout": None,
    "health_check_interval": 0,
    "retry": Retry(NoBackoff(), 0),
    "driver_info": None,
    "maint_notifications_config": MaintNotificationsConfig(enabled=False),
}

# The nearest class in an error's ancestry counts.
_KINDS: Final[dict[type[BaseException], str]] = {
    OSError: "connection",
    exceptions.ConnectionError: "connection",
    TimeoutError: "timeout",
    exceptions.TimeoutError: "timeout",
    exceptions.AuthenticationError: "auth",
    exceptions.AuthorizationError: "auth",
    exceptions.NoPermissionError: "auth",
    exceptions.BusyLoadingError: "loading",
    exceptions.OutOfMemoryError: "full",
    exceptions.ReadOnlyError: "read-only",
    exceptions.RedisClusterException: "cluster",
    exceptions.ClusterError: "cluster",
    exceptions.AskError: "cluster",
    exceptions.TryAgainError: "cluster",
    exceptions.ResponseError: "refused",
    CorruptEntry: "corrupt",
    Exception: "garbage",  # whatever the library trips over in what is no Redis
}


def kind_of(error: Exception) -> str:
    """Return in a word what kind of failure `error` is; there are a dozen kinds."""
    return next(_KINDS[ancestor] for ancestor in type(error).__mro__ if ancestor in _KINDS)


def reason_of(error: Exception) -> str:
    """Return the kind of `error`, and what the operating system said of it, if that is at its root.

    What a server replied is withheld: it may repeat what it was sent, passwords included.
    """
    root: BaseException | None = error
    while root is not None and not (isinstance(root, OSError) and root.strerror):
        root = root.__cause__ or root.__context__
    return f"{kind_of(error)}: {root.strerror}" if isinstance(root, OSError) else kind_of(error)


class RedisClient:
    """A Redis, the master that Sentinels know, or a Cluster; what tells them apart ends here."""

    def __init__(self, client: Redis | RedisCluster, sentinel: Sentinel | None = None) -> None:
        self._client = client
        self._sentinel = sentinel

    async def connect(self) -> None:
        """Let every connection go and find Redis anew: another may be master by now, or hold the slots."""
        await self._disconnect()
        if isinstance(self._client, RedisCluster):
            await self._client.initialize()
        else:
            pool = self._client.connection_pool
            await pool.release(await pool.get_connection())  # type: ignore[no-untyped-call]

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return what stands at each of `keys`; it takes one command, or in a Cluster one for each slot."""
        client = self._client
        values: object = await (client.mget_nonatomic(keys) if isinstance(client, RedisCluster) else client.mget(keys))
        if not isinstance(values, list) or len(values) != len(keys):
            raise ValueError("not one answer for each key")
        return values

    async def write(self, entries: Mapping[bytes, tuple[bytes, int]]) -> None:
        """Write `entries` in one go, each with the milliseconds for which it is kept."""
        client = self._client
        pipeline = client.pipeline() if isinstance(client, RedisCluster) else client.pipeline(transaction=False)
        for key, (entry, ttl_ms) in entries.items():
            pipeline.set(key, entry, px=ttl_ms)
        if not all(await pipeline.execute()):
            raise ValueError("not one OK for each entry")

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[float]) -> Sequence[int]:
        """Run a script (Lua) that answers with whole numbers; Redis keeps it, so that it is sent once."""
        client: Any = self._client  # the library's types know no number as an argument
        digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        try:
            found: object = await client.evalsha(digest, len(keys), *keys, *arguments)
        except exceptions.NoScriptError:
            found = await client.eval(script, len(keys), *keys, *arguments)
        if not (isinstance(found, list) and all(isinstance(number, int) for number in found)):
            raise ValueError("no list of numbers")
        return found

    async def drop_idle(self) -> None:
        """Let idle connections go: they may hold what answers no question of ours."""
        if isinstance(self._client, RedisCluster):
            for node in self._client.get_nodes():
                await node.disconnect_free_connections()
        else:
            await self._client.connection_pool.disconnect(inuse_connections=False)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._disconnect()
        if self._sentinel is not None:
            await self._sentinel.aclose()

    async def _disconnect(self) -> None:
        await self._client.aclose()
        if isinstance(self._client, RedisCluster):
            # Its own method leaves connections open where it means to learn the slots anew.
            await self._client.nodes_manager.aclose()
            await self._client.nodes_manager.aclose("startup_nodes")


def open_client(url: str, *, connections: int, timeout_s: float) -> RedisClient:
    """Return a client of the Redis at `url` with up to `connections` connections (in a Cluster, to each node).

    It connects when it is used. A Sentinel that hangs is passed over early enough to ask the others within `timeout_s`.

    Raises:
        StartupError: `url` names no Redis. The message repeats none of it, for it may hold a password.
    """
    try:
        return _open(url, connections, timeout_s)
    except Exception:  # noqa: BLE001 (each part of a URL is wrong in a way of its own, and told with its content)
        raise StartupError(
            f"SENTIMENT_CACHE__REDIS_URL must be {_FORMS}. It is not, or an option in it is unknown or wrong, or a "
            "file named in it cannot be read (it is not shown here, for it may hold a password)"
        ) from None


def _open(url: str, connections: int, timeout_s: float) -> RedisClient:
    place = _parse(url.strip())
    if place.topology is None:
        return RedisClient(Redis.from_pool(ConnectionPool(**place.options, **_OURS, max_connections=connections)))
    ssl = place.options.pop("connection_class", None) is SSLConnection  # these have connections of their own kinds
    options = {**place.options, "ssl": ssl}
    if place.topology == "cluster":
        nodes = [ClusterNode(*address) for address in place.addresses]
        return RedisClient(RedisCluster(startup_nodes=nodes, max_connections=connections, **options, **_OURS))
    patience_s = timeout_s / (len(place.addresses) + 1)
    limits = {"socket_timeout": patience_s, "socket_connect_timeout": patience_s}
    tls = {name: option for name, option in options.items() if name.startswith("ssl")}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        place.addresses, sentinel_kwargs={**_OURS, **limits, **tls, **place.sentinel_login}
    )
    return RedisClient(sentinel.master_for(place.service, max_connections=connections, **options, **_OURS), sentinel)


@dataclass(frozen=True, slots=True)
class _Place:
    """What a URL says."""

    topology: str | None
    options: dict[str, Any]  # of a connection
    addresses: Sequence[tuple[str, int]] = ()
    service: str = ""
    sentinel_login: Mapping[str, str | None] = field(default_factory=dict)


def _parse(url: str) -> _Place:
    parts = _matched(_URL, url)
    transport, topology, query = parts["transport"], parts["topology"], parts["query"]
    known = {"db", *_TLS_OPTIONS[transport], *_SENTINEL_OPTIONS[topology]}
    if {name for name, _ in parse_qsl(query[1:], keep_blank_values=True)} - known:
        raise ValueError
    if transport == "unix":
        if topology or parts["hosts"] or not parts["path"]:
            raise ValueError
        return _Place(None, _tried(dict(parse_url(url))))
    below = _matched(_PATHS[topology], parts["path"])
    login = "" if parts["credentials"] is None else f"{parts['credentials']}@"
    nodes: list[dict[str, Any]] = [
        dict(parse_url(f"{transport}://{login}{host}{query}")) for host in parts["hosts"].split(",")
    ]
    addresses = [(node.pop("host"), node.pop("port", _PORTS[topology])) for node in nodes]
    options = nodes[0]
    if below.get("db"):
        options["db"] = int(below["db"])
    sentinel_login = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    if topology is None:
        ((options["host"], options["port"]),) = addresses
    return _Place(topology, _tried(options), addresses, unquote(below.get("service", "")), sentinel_login)


def _tried(options: dict[str, Any]) -> dict[str, Any]:
    """Return `options` after making a connection of them, which opens nothing but the files that they name."""
    connection = ConnectionPool(**options, **_OURS).make_connection()  # type: ignore[no-untyped-call]
    if isinstance(connection, SSLConnection):
        connection.ssl_context.get()
    return options


def _matched(pattern: str | re.Pattern[str], text: str) -> dict[str, Any]:
    found = re.fullmatch(pattern, text)
    if found is None:
        raise ValueError
    return found.groupdict()
