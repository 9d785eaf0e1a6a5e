"""Keys, limits and ports of servers as their users run them."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.live.served import RunningServer, run_command, running_server
from tests.redis_server import RedisServer, free_port, running_redis

_PATIENCE_S = 20.0  # far above what it takes, for a processor that others use, too


@pytest.fixture
def tiny(tiny_bundle: Path) -> dict[str, str]:
    return {"MODEL__PATH": str(tiny_bundle), "MODEL__PROVIDER": "cpu"}


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path) as server:
        yield server


def _new_key(file: Path, name: str, *options: str) -> str:
    done = run_command("keys", "new", name, "--file", str(file), *options)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _ask(server: RunningServer, key: str | None = None, texts: int = 1) -> httpx.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    body = {"texts": ["好"] * texts}
    return httpx.post(f"{server.address}/v1/sentiment/batch", json=body, headers=headers, timeout=_PATIENCE_S)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "service.example"])  # noqa: S104 (refused)
def test_a_server_that_others_reach_does_not_start_without_keys_and_says_what_to_do(host: str) -> None:
    done = run_command("serve", "--host", host, "--port", "0")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {host} can be reached from other machines")
    for way_out in ("python -m app keys new", "SECURITY__KEYS_FILE=", "SECURITY__ALLOW_ANONYMOUS=true", "--host 127"):
        assert way_out in done.stderr


def test_a_server_that_others_reach_starts_without_keys_if_that_is_meant(tmp_path: Path, tiny: dict[str, str]) -> None:
    settings = {**tiny, "SERVER__HOST": "0.0.0.0", "SECURITY__ALLOW_ANONYMOUS": "true"}  # noqa: S104 (the test)
    with running_server(tmp_path, **settings) as server:
        assert _ask(server).status_code == 200


def test_a_file_of_keys_that_is_not_there_stops_the_start(tmp_path: Path, tiny: dict[str, str]) -> None:
    done = run_command("serve", "--port", "0", **tiny, SECURITY__KEYS_FILE=str(tmp_path / "keys.toml"))
    assert done.returncode != 0
    assert "make a first key with: python -m app keys new" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_the_command_prints_a_key_once_and_wants_to_know_where_it_belongs(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    done = run_command("keys", "new", "shop", SECURITY__KEYS_FILE=str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() not in file.read_text()
    again = run_command("keys", "new", "shop", SECURITY__KEYS_FILE=str(file))
    assert (again.returncode, again.stdout) == (1, "")
    assert "has a key 'shop'" in again.stderr
    nowhere = run_command("keys", "new", "shop")
    assert nowhere.returncode == 1
    assert nowhere.stderr == "error: say where the keys are: --file keys.toml, or SENTIMENT_SECURITY__KEYS_FILE\n"


def test_keys_come_and_go_without_a_restart(tmp_path: Path, tiny: dict[str, str]) -> None:
    file = tmp_path / "keys.toml"
    shop = _new_key(file, "shop")
    with running_server(tmp_path, **tiny, SECURITY__KEYS_FILE=str(file)) as server:
        assert [_ask(server, key).status_code for key in (shop, None, "wrong")] == [200, 401, 401]
        bank = _new_key(file, "bank", "--rate-limits", "5/day")
        _until(lambda: _ask(server, bank).status_code == 200)
        sound = file.read_text()
        file.write_text("[shop")
        _until(lambda: "keys left as they were" in server.output())
        assert _ask(server, shop).status_code == 200
        file.write_text(sound[sound.index("[bank]") :])
        _until(lambda: _ask(server, shop).status_code == 401)
        assert _ask(server, bank).status_code == 200
        assert not any(key in server.output() for key in (shop, bank))


def test_metrics_have_a_port_of_their_own_that_lives_as_long_as_the_server(
    tmp_path: Path, tiny: dict[str, str]
) -> None:
    port = free_port()
    with running_server(tmp_path, **tiny, SERVER__ADMIN_PORT=str(port), SERVER__MAX_CONNECTIONS="1") as server:
        with httpx.Client(base_url=server.address) as client:
            assert client.get("/metrics").status_code == 404
            # Though the other port has all the connections that it takes.
            assert "sentiment_model_info" in httpx.get(f"http://127.0.0.1:{port}/metrics").text
            assert httpx.get(f"http://127.0.0.1:{port}/health/ready").status_code == 200
            assert httpx.post(f"http://127.0.0.1:{port}/v1/sentiment", json={"text": "好"}).status_code == 404
        assert server.stop() == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/metrics")


def test_an_admin_port_that_is_taken_stops_the_start(tmp_path: Path, tiny: dict[str, str]) -> None:
    with running_server(tmp_path, **tiny) as server:
        taken = str(httpx.URL(server.address).port)
        done = run_command("serve", "--port", "0", **tiny, SERVER__ADMIN_PORT=taken, LOG__FORMAT="json")
    assert done.returncode != 0
    assert '"reason":"the admin port: ' in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_two_servers_limit_a_key_together_and_each_by_itself_while_redis_is_away(
    tmp_path: Path, tiny: dict[str, str], redis: RedisServer
) -> None:
    file = tmp_path / "keys.toml"
    shop = _new_key(file, "shop", "--rate-limits", "10/day")
    redis_settings = {"CACHE__REDIS_URL": redis.url, "CACHE__REDIS_TIMEOUT_S": str(_PATIENCE_S)}
    settings = {**tiny, **redis_settings, "SECURITY__KEYS_FILE": str(file)}
    with ExitStack() as stack:
        servers = []
        for name in ("one", "other"):
            directory = tmp_path / name
            directory.mkdir()
            servers.append(stack.enter_context(running_server(directory, **settings)))
        one, other = servers
        assert [_ask(server, shop, 5).status_code for server in (one, other, one, other)] == [200, 200, 429, 429]
        redis.kill()
        assert [_ask(server, shop, 10).status_code for server in (one, other)] == [200, 200]
        assert [_ask(server, shop).status_code for server in (one, other)] == [429, 429]
        redis.start()  # empty: who is limited was known to the one that was killed
        _until(lambda: _ask(one, shop, 10).status_code == 200)
        _until(lambda: "shared again" in other.output() or _ask(other, shop).status_code != 429)
        assert _ask(other, shop).status_code == 429
        for server in servers:
            assert server.output().count("while Redis is away") == 1


def test_a_redis_that_hangs_holds_no_request_up(tmp_path: Path, tiny: dict[str, str], redis: RedisServer) -> None:
    settings = {**tiny, "SECURITY__RATE_LIMITS": "3/day", "CACHE__REDIS_URL": redis.url}
    with running_server(tmp_path, **settings) as server:
        assert _ask(server).status_code == 200
        redis.pause()
        started = time.monotonic()
        statuses = [_ask(server).status_code for _ in range(20)]
        assert time.monotonic() - started < _PATIENCE_S / 4  # a timeout that hangs would be hit twenty times
        assert statuses == [200] * 3 + [429] * 17
