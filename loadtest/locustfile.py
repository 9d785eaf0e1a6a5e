"""``make load``: the traffic of a customer-service backend, every answer checked, by Locust.

Customers chat, and now and then all at once; jobs score batches; a load balancer and Prometheus look in; some clients
send nonsense, some are slow. The run passes when every request got the answer it ought to get, in time; limits are
environment variables (see `_Limits`). With Locust's web page: ``locust -f loadtest/locustfile.py --host http://...``.

Locust makes `time.sleep` and sockets yield to its other users.
"""

import http.client
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from locust import FastHttpUser, User, constant_pacing, events, task
from locust.contrib.fasthttp import LocustBadStatusCode, ResponseContextManager
from locust.env import Environment
from pydantic import BaseModel, Field, ValidationError
from pydantic_settings import BaseSettings

from app.domain.labels import LABELS
from loadtest.corpus import make_texts
from loadtest.service import serving

_SINGLE: Final = "/v1/sentiment"
_BATCH: Final = "/v1/sentiment/batch"
_JSON: Final = "application/json"
_REFUSED: Final = " (refused)"  # ends the name of a request that got 503 with Retry-After
_ROUNDING: Final = 0.5e-4  # of each probability
_SAME: Final = 0.01  # two runs of one text differ by less: its neighbours in a batch change the last bits of bf16

_STORM_EVERY_S: Final = 15
_STORM_BEGINS_S: Final = 3
_STORM_ENDS_S: Final = 6

_BAD: Final = {
    "empty text": (_SINGLE, _JSON, '{"text": ""}', 422, "empty-text"),
    "no JSON": (_SINGLE, _JSON, '{"text": "', 400, "not-json"),
    "unknown field": (_SINGLE, _JSON, '{"text": "好", "language": "zh"}', 422, "invalid-request"),
    "no list": (_BATCH, _JSON, '{"texts": "好"}', 422, "invalid-request"),
    "too long": (_SINGLE, _JSON, json.dumps({"text": "长" * 20_001}, ensure_ascii=False), 422, "text-too-long"),
    "no JSON type": (_SINGLE, "text/plain", '{"text": "好"}', 415, "not-json-type"),
    "half an emoji": (_SINGLE, _JSON, '{"text": "\\ud83d"}', 422, "invalid-text"),
}
_KINDS: Final = (
    "single", "batch", "alive", "ready", "metrics", *(f"bad: {name}" for name in _BAD), "slow to send", "slow to read",
)  # fmt: skip

_POOL: Final = make_texts(2_000)
# Zipf's law: the n-th most frequent message comes 1/n times as often as the first.
_FREQUENCIES: Final = list(itertools.accumulate(1 / rank for rank in range(1, len(_POOL) + 1)))
_numbers = itertools.count()  # of users: each has chances of its own, the same in every run
_started_at = time.monotonic()


class _Limits(BaseSettings, env_prefix="LOAD_"):
    """What a run may show and still pass; `LOAD_SINGLE_P99_MS=500` and so on."""

    max_failures: int = 0
    max_refused_share: float = 0.01
    single_p99_ms: float = 2_000
    batch_p99_ms: float = 10_000
    other_p99_ms: float = 1_000

    def p99_ms(self, kind: str) -> float:
        """Return the limit for one of `_KINDS`; what a slow client does itself is not in its time."""
        if kind in {"single", "slow to send"}:
            return self.single_p99_ms
        return self.batch_p99_ms if kind in {"batch", "slow to read"} else self.other_p99_ms


_limits = _Limits()


class WrongAnswer(Exception):
    """The service answered, and not as it ought to."""


class _Distribution(BaseModel):
    label: str
    probabilities: dict[str, float]

    def check(self) -> None:
        shares = self.probabilities
        if self.label not in shares or shares[self.label] < max(shares.values()):
            raise WrongAnswer("the label is not the most probable one")
        if min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > _ROUNDING * len(shares) + 1e-9:
            raise WrongAnswer("the probabilities do not sum to 1")


class _Answer(_Distribution):
    """Written anew for clients: a mistake in the service's own schemas must not hide itself."""

    confidence: float
    certain: bool
    emotion: _Distribution | None
    truncated: bool
    cached: bool

    def check(self) -> None:
        if self.probabilities.keys() != set(LABELS):
            raise WrongAnswer("the labels are others")
        super().check()
        if self.confidence != self.probabilities[self.label]:
            raise WrongAnswer("the confidence is not the label's probability")
        if self.emotion is not None:
            self.emotion.check()


class _Reason(BaseModel):
    type: str


class _Error(BaseModel):
    error: _Reason


class _Answers(BaseModel):
    results: list[_Answer | _Error]


class _Problem(BaseModel):
    type: str
    title: str = Field(min_length=1)
    detail: str = Field(min_length=1)
    status: int
    request_id: str


class _Health(BaseModel):
    status: str


def _check_single(content: bytes) -> None:
    _Answer.model_validate_json(content).check()


class _Job:
    """Texts to score, among them blank ones and twins: where these come out shows the order of the results."""

    def __init__(self, chance: random.Random, size: int) -> None:
        # Nearly all are new to the service, as a day's orders are.
        self.texts = [f"{text}，订单{chance.randrange(10**9)}" for text in chance.choices(_POOL, k=size)]
        places = chance.sample(range(size), 8)
        self._blank = set(places[:2])
        self._twins = list(zip(places[2:5], places[5:], strict=True))
        for place in self._blank:
            self.texts[place] = ""
        for one, other in self._twins:
            self.texts[other] = self.texts[one]

    def check(self, content: bytes) -> None:
        results = _Answers.model_validate_json(content).results
        if len(results) != len(self.texts):
            raise WrongAnswer("there are more or fewer results than texts")
        for place, result in enumerate(results):
            if isinstance(result, _Error) != (place in self._blank):
                raise WrongAnswer("a result is not in its text's place")
            if isinstance(result, _Answer):
                result.check()
            elif result.error.type != "urn:sentiment:problem:empty-text":
                raise WrongAnswer("a blank text has another error")
        for one, other in (((results[one], results[other])) for one, other in self._twins):
            if not (isinstance(one, _Answer) and isinstance(other, _Answer)) or any(
                abs(one.probabilities[label] - other.probabilities[label]) > _SAME for label in LABELS
            ):
                raise WrongAnswer("one text has two answers")


def _why_wrong(check: Callable[[], None]) -> str | None:
    """Return what is wrong with an answer, in few words: Locust counts equal ones together."""
    try:
        check()
    except WrongAnswer as error:
        return str(error)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join("*" if isinstance(part, int) else part for part in first["loc"])
        return f"the answer does not have the promised form: {place}: {first['msg']}"
    return None


def _pause_asked(status: int, retry_after: str) -> int | None:
    """Return for how many seconds a refused client is asked to stay away; None of any other answer."""
    return int(retry_after) if status == 503 and retry_after.isdecimal() else None


class _Client(FastHttpUser):
    """Checks each answer, and comes back as late as it is asked to when it is refused."""

    abstract = True
    network_timeout = 60.0
    connection_timeout = 10.0

    def on_start(self) -> None:
        self.number = next(_numbers)
        self.chance = random.Random(self.number)  # noqa: S311 (no secret depends on it)

    def ask(
        self,
        kind: str,
        path: str,
        check: Callable[[ResponseContextManager], None],
        body: str | None = None,
        content_type: str = _JSON,
    ) -> None:
        """Ask until not refused: GET without a body, else POST."""
        method, headers = ("GET", {}) if body is None else ("POST", {"Content-Type": content_type})
        pause: int | None = 0
        while pause is not None:
            time.sleep(pause)
            with self.client.request(
                method, path, name=kind, data=body, headers=headers, catch_response=True
            ) as response:
                pause = _pause_asked(response.status_code, _header(response, "retry-after"))
                if pause is not None:
                    response.request_meta["name"] += _REFUSED
                    response.success()
                elif reason := self._why_wrong(response, check):
                    response.failure(reason)
                else:
                    response.success()

    @staticmethod
    def _why_wrong(response: ResponseContextManager, check: Callable[[ResponseContextManager], None]) -> str | None:
        error = response.request_meta["exception"]
        if error is not None and not isinstance(error, LocustBadStatusCode):
            return f"no answer: {type(error).__name__}"
        return _why_wrong(lambda: check(response))


def _header(response: ResponseContextManager, name: str) -> str:
    return str(response.headers.get(name, "")) if response.headers else ""


def _content(response: ResponseContextManager, status: int = 200, content_type: str = _JSON) -> bytes:
    if response.status_code != status:
        raise WrongAnswer(f"status {response.status_code} instead of {status}")
    if _header(response, "content-type").partition(";")[0] != content_type:
        raise WrongAnswer(f"the answer is not {content_type}")
    return bytes(response.content or b"")


class Customer(_Client):
    """Sends one message after another, often one that others sent before; in a storm it hardly waits."""

    weight = 20
    _calm: Final = staticmethod(constant_pacing(1))
    _hasty: Final = staticmethod(constant_pacing(0.15))

    def on_start(self) -> None:
        """Come at a moment of one's own: customers do not walk in step."""
        super().on_start()
        time.sleep(self.chance.random())

    def wait_time(self) -> float:
        """Return how long to wait; users that hurry make a storm without the cost of starting more of them."""
        moment = (time.monotonic() - _started_at) % _STORM_EVERY_S
        return self._hasty(self) if _STORM_BEGINS_S <= moment < _STORM_ENDS_S else self._calm(self)

    @task
    def send_message(self) -> None:
        """Ask about one text."""
        (text,) = self.chance.choices(_POOL, cum_weights=_FREQUENCIES)
        body = json.dumps({"text": text}, ensure_ascii=False)
        self.ask("single", _SINGLE, lambda response: _check_single(_content(response)), body)


class ScoringJob(_Client):
    """Scores 32 to 256 texts a time, most often few."""

    weight = 2
    wait_time = constant_pacing(4)

    @task
    def score(self) -> None:
        """Ask about many texts."""
        job = _Job(self.chance, round(32 * 8 ** self.chance.random()))
        body = json.dumps({"texts": job.texts}, ensure_ascii=False)
        self.ask("batch", _BATCH, lambda response: job.check(_content(response)), body)


class Mistaken(_Client):
    """Sends what must be refused, and takes nothing but the right refusal."""

    weight = 4
    wait_time = constant_pacing(0.5)

    def on_start(self) -> None:
        """Take the mistakes in turn, so that a short run has each, and begin elsewhere than the others."""
        super().on_start()
        first = self.number % len(_BAD)
        self._cases = itertools.islice(itertools.cycle(_BAD), first, None)

    @task
    def send_nonsense(self) -> None:
        """Make the next mistake."""
        name = next(self._cases)
        path, content_type, body, status, problem = _BAD[name]

        def check(response: ResponseContextManager) -> None:
            found = _Problem.model_validate_json(_content(response, status, "application/problem+json"))
            if found.type != f"urn:sentiment:problem:{problem}" or found.status != status:
                raise WrongAnswer(f"another problem than {problem}")
            if found.request_id != _header(response, "x-request-id"):
                raise WrongAnswer("body and header differ in the request's id")

        self.ask(f"bad: {name}", path, check, body, content_type)


class LoadBalancer(_Client):
    """Asks every second whether to send requests here."""

    fixed_count = 1
    wait_time = constant_pacing(1)

    @task
    def look(self) -> None:
        """Ask both: load must neither get the process restarted nor taken out of service."""
        self.ask("alive", "/health/live", lambda response: self._check(response, "alive"))
        self.ask("ready", "/health/ready", lambda response: self._check(response, "ready"))

    @staticmethod
    def _check(response: ResponseContextManager, status: str) -> None:
        if _Health.model_validate_json(_content(response)).status != status:
            raise WrongAnswer(f"not {status}")


class Prometheus(_Client):
    """Reads the metrics as often as Prometheus does when it is asked to watch closely."""

    fixed_count = 1
    wait_time = constant_pacing(5)

    @task
    def scrape(self) -> None:
        """Read all metrics."""
        self.ask("metrics", "/metrics", self._check)

    @staticmethod
    def _check(response: ResponseContextManager) -> None:
        if b"\nsentiment_waiting_texts" not in _content(response, content_type="text/plain"):
            raise WrongAnswer("a metric is missing")


class SlowClient(User):
    """A phone at the edge of its network: it holds a connection for seconds, and must cost nobody else any time.

    Timed is what the service needs, from the last byte sent to the head of the answer.
    """

    weight = 4
    wait_time = constant_pacing(2)
    _pieces: Final = 10
    _pause_s: Final = 0.1

    def on_start(self) -> None:
        """Get chances of one's own, the same in every run."""
        self.chance = random.Random(next(_numbers))  # noqa: S311 (no secret depends on it)

    @task
    def send_slowly(self) -> None:
        """Hold a request open for a second before it is whole."""
        (text,) = self.chance.choices(_POOL, cum_weights=_FREQUENCIES)
        self._talk("slow to send", _SINGLE, {"text": text}, _check_single, slow_to_send=True)

    @task
    def read_slowly(self) -> None:
        """Leave an answer of many results standing in the service's buffers."""
        job = _Job(self.chance, 64)
        self._talk("slow to read", _BATCH, {"texts": job.texts}, job.check, slow_to_send=False)

    def _talk(self, kind: str, path: str, body: object, check: Callable[[bytes], None], *, slow_to_send: bool) -> None:
        content = json.dumps(body, ensure_ascii=False).encode()
        sent = time.perf_counter()

        def pieces() -> Iterator[bytes]:
            nonlocal sent
            size = len(content) // self._pieces + 1 if slow_to_send else len(content)
            for start in range(0, len(content), size):
                yield content[start : start + size]
                sent = time.perf_counter()
                if slow_to_send and start + size < len(content):
                    time.sleep(self._pause_s)

        reason, length, pause, duration_s = None, 0, None, 0.0
        address = urlsplit(self.host or "")
        connect = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        connection = connect(address.hostname or "", address.port, timeout=60)
        try:
            headers = {"Content-Type": _JSON, "Content-Length": str(len(content))}
            connection.request("POST", path, pieces(), headers)
            response = connection.getresponse()
            duration_s = time.perf_counter() - sent
            answer = b""
            while piece := response.read(2_048):
                answer += piece
                if not slow_to_send:
                    time.sleep(self._pause_s)
            length = len(answer)
            pause = _pause_asked(response.status, response.getheader("Retry-After", ""))
            if response.status == 200:
                reason = _why_wrong(lambda: check(answer))
            elif pause is None:
                reason = f"status {response.status} instead of 200"
        except (OSError, http.client.HTTPException) as error:
            reason = f"no answer: {type(error).__name__}"
        finally:
            connection.close()
        self.environment.events.request.fire(
            request_type="POST",
            name=kind if pause is None else kind + _REFUSED,
            response_time=duration_s * 1e3,
            response_length=length,
            exception=None if reason is None else WrongAnswer(reason),
            context={},
        )
        time.sleep(pause or 0)


def _begin(**_: Any) -> None:
    global _started_at, _numbers  # noqa: PLW0603 (from Locust's web page, one process makes many runs)
    _started_at = time.monotonic()
    _numbers = itertools.count()


def _judge(environment: Environment) -> tuple[list[str], list[str]]:
    """Return a table of what happened, and why the run does not pass."""
    table = [f"{'':20}{'requests':>9}{'failed':>9}{'refused':>9}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'limit':>9}"]
    reasons: list[str] = []
    entries = {name: entry for (name, _), entry in environment.stats.entries.items()}
    for kind in _KINDS:
        limit = _limits.p99_ms(kind)
        refused = entries[kind + _REFUSED].num_requests if kind + _REFUSED in entries else 0
        entry = entries.get(kind)
        if entry is None:
            table.append(f"{kind:20}{refused:9}{0:9}{refused:9}")
            reasons.append(f"{kind}: no answer was seen; more users or a longer run show it")
            continue
        p50, p95, p99 = (entry.get_response_time_percentile(share) for share in (0.50, 0.95, 0.99))
        table.append(
            f"{kind:20}{entry.num_requests + refused:9}{entry.num_failures:9}{refused:9}"
            f"{p50:9.0f}{p95:9.0f}{p99:9.0f}{limit:9.0f}"
        )
        if p99 > limit:
            reasons.append(f"{kind}: p99 of {p99:.0f} ms is over {limit:.0f} ms")
    total = environment.stats.total
    refused = sum(entry.num_requests for name, entry in entries.items() if name.endswith(_REFUSED))
    if total.num_failures > _limits.max_failures:
        reasons.append(f"{total.num_failures} failures are more than {_limits.max_failures}")
    if refused > _limits.max_refused_share * total.num_requests:
        reasons.append(f"{refused} refused of {total.num_requests} are more than {_limits.max_refused_share:.1%}")
    if environment.runner is not None and environment.runner.exceptions:
        reasons.append("this load test raised an exception of its own")
    return table, reasons


_verdict: list[str] = []


def _decide(environment: Environment, **_: Any) -> None:
    table, reasons = _judge(environment)
    environment.process_exit_code = 1 if reasons else 0
    errors = [f"{error.occurrences} x {error.name}: {error.error}" for error in environment.stats.errors.values()]
    _verdict[:] = [*table, *errors, *(f"FAILED: {reason}" for reason in reasons)] + ([] if reasons else ["PASSED"])


def _tell(**_: Any) -> None:
    print("\n".join(_verdict))


# Locust's events have no types.
events.test_start.add_listener(_begin)  # type: ignore[no-untyped-call]
events.quitting.add_listener(_decide)  # type: ignore[no-untyped-call]
events.quit.add_listener(_tell)  # type: ignore[no-untyped-call]  # after Locust's own tables


def _run(arguments: Sequence[str]) -> int:
    defaults = {"LOCUST_USERS": "50", "LOCUST_SPAWN_RATE": "50", "LOCUST_RUN_TIME": "60"}
    command = [sys.executable, "-m", "locust", "-f", __file__, "--headless", "--only-summary", *arguments]
    return subprocess.call(command, env={**defaults, **os.environ})


def main(arguments: Sequence[str]) -> int:
    """Run Locust with `arguments`, on a service of its own if they name no host; return the exit status."""
    if "--host" in arguments:
        return _run(arguments)
    with serving() as (port, _):
        return _run([*arguments, "--host", f"http://127.0.0.1:{port}"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
