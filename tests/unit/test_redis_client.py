import re

import pytest

from app.cache.redis_client import kind_of, open_client, reason_of
from app.domain.errors import StartupError

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "url",
    [
        "redis://cache",
        "redis://cache:6380/2",
        "redis://:secret@cache",
        "redis://me:p%40ss%2Fword@[::1]:6379/0",
        "redis://cache?db=3",
        "rediss://cache",
        "rediss://cache?ssl_cert_reqs=none&ssl_check_hostname=false",
        "unix:///run/redis.sock",
        "unix://:secret@/run/redis.sock?db=1",
        "redis+sentinel://a,b:26380,[::1]:26381/mymaster/1?sentinel_password=other",
        "rediss+sentinel://:secret@a/mymaster",
        "redis+cluster://:secret@a,b:7001",
        "rediss+cluster://a",
        "redis://cache\n",
    ],
)
async def test_a_url_of_each_form_is_taken(url: str) -> None:
    await open_client(url, connections=2, timeout_s=0.1).aclose()


@pytest.mark.parametrize(
    "url",
    [
        "cache:6379",
        "http://cache",
        "redis+other://cache",
        "redis://",
        "redis:///1",
        "redis://cache/one",
        "redis://cache/1/2",
        "redis://cache:port",
        "redis://cache:70000",
        "redis://a,b",
        "redis://cache#1",
        "redis://ca che",
        "redis://cache?db=one",
        "redis://cache?socket_timeout=5",
        "redis://cache?retry_on_timeout=true",
        "redis://cache?ssl_cert_reqs=none",
        "rediss://cache?ssl_cert_reqs=some",
        "rediss://cache?ssl_ca_certs=/absent/ca.pem",
        "redis://:se/cret@cache",
        "redis://:12/34@cache",
        "redis://:se#cret@cache",
        "redis://:se?cret@cache",
        "unix://",
        "unix+cluster:///run/redis.sock",
        "redis+sentinel://a,b",
        "redis+cluster://a/1",
        "redis+cluster://a?db=1",
    ],
)
async def test_any_other_url_stops_the_start_and_is_not_repeated(url: str) -> None:
    with pytest.raises(StartupError, match="SENTIMENT_CACHE__REDIS_URL must be") as caught:
        open_client(url, connections=2, timeout_s=0.1)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    told = str(caught.value)
    assert not any(word in told for word in re.findall(r"\w*cret|1234|socket_timeout|absent", url))


async def test_a_reason_repeats_nothing_that_a_server_said() -> None:
    error = ValueError("ERR unknown command 'AUTH', with args beginning with: 'secret'")
    assert reason_of(error) == kind_of(error) == "garbage"


async def test_a_reason_has_what_the_system_said() -> None:
    error = RuntimeError("wrapped")
    error.__cause__ = ConnectionRefusedError(111, "Connection refused")
    assert reason_of(error) == "garbage: Connection refused"
