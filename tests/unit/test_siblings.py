import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf, isnan, nan
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from app.telemetry import siblings
from app.telemetry.siblings import Siblings

pytestmark = pytest.mark.anyio


def _registry(scale: int) -> CollectorRegistry:
    registry = CollectorRegistry()
    texts = Counter("texts", "Texts.", ["label"], registry=registry)
    texts.labels("good").inc(scale)
    texts.labels('bad "\\\n').inc(2 * scale)
    Gauge("waiting", "Waiting.", registry=registry).set_function(lambda: 10 * scale)
    Histogram("seconds", "Seconds.", buckets=(1, 5), registry=registry).observe(scale)
    Info("model", "Model.", registry=registry).info({"name": f"m{scale}"})
    return registry


@asynccontextmanager
async def _three(directory: Path) -> AsyncIterator[list[tuple[Siblings, CollectorRegistry]]]:
    """Yield three processes in one, of which the first two tell the others what they have."""
    processes = [(Siblings(directory, number, 3), _registry(number + 1)) for number in range(3)]
    (first, firsts), (second, seconds), _ = processes
    async with first.telling(firsts), second.telling(seconds):
        yield processes


def _value(collector: Collector, sample: str, **labels: str) -> float:
    (value,) = [
        found.value
        for family in collector.collect()
        for found in family.samples
        if found.name == sample and found.labels == labels
    ]
    return value


async def test_every_sample_of_every_process_is_there_with_its_process(tmp_path: Path) -> None:
    async with _three(tmp_path) as processes, processes[2][0].telling(processes[2][1]):
        gathered = await processes[1][0].gather(processes[1][1])
    for number in range(3):
        process = str(number)
        assert _value(gathered, "texts_total", process=process, label="good") == number + 1
        assert _value(gathered, "texts_total", process=process, label='bad "\\\n') == 2 * (number + 1)
        assert _value(gathered, "waiting", process=process) == 10 * (number + 1)
        assert _value(gathered, "seconds_bucket", process=process, le="1.0") == (number == 0)
        assert _value(gathered, "seconds_sum", process=process) == number + 1
        assert _value(gathered, "model_info", process=process, name=f"m{number + 1}") == 1
        assert _value(gathered, "sentiment_process_up", process=process) == 1


async def test_a_scrape_is_the_same_whichever_process_answers(tmp_path: Path) -> None:
    async with _three(tmp_path) as processes:
        scrapes = [generate_latest(await siblings.gather(own)) for siblings, own in processes[:2]]
    assert scrapes[0] == scrapes[1]


async def test_the_merged_metrics_are_valid_openmetrics(tmp_path: Path) -> None:
    async with _three(tmp_path) as processes:
        encode, _ = choose_encoder("application/openmetrics-text")
        text = encode(await processes[0][0].gather(processes[0][1])).decode()
    parsed = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    families = {family.name: family for family in parsed}  # the parser refuses one that is not in one piece
    assert families.keys() == {"texts", "waiting", "seconds", "model", "sentiment_process_up"}
    assert families["texts"].documentation == "Texts."


async def test_numbers_that_are_not_finite_arrive_as_they_are(tmp_path: Path) -> None:
    async with _three(tmp_path) as processes:
        gauge = Gauge("odd", "Odd.", ["kind"], registry=processes[1][1])
        gauge.labels("nan").set(nan)
        gauge.labels("inf").set(inf)
        gathered = await processes[0][0].gather(processes[0][1])
    assert isnan(_value(gathered, "odd", process="1", kind="nan"))
    assert _value(gathered, "odd", process="1", kind="inf") == inf


async def test_a_process_that_is_gone_is_left_out_and_said_to_be_down(tmp_path: Path) -> None:
    async with _three(tmp_path) as processes:
        gathered = await processes[0][0].gather(processes[0][1])
    assert [_value(gathered, "sentiment_process_up", process=number) for number in "012"] == [1, 1, 0]
    others = [family for family in gathered.collect() if family.name != "sentiment_process_up"]
    assert {sample.labels["process"] for family in others for sample in family.samples} == {"0", "1"}


@pytest.mark.parametrize("said", [b"", b'[["texts", "Te', None], ids=["nothing", "half of it", "not a word"])
async def test_a_process_that_does_not_tell_all_is_said_to_be_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes | None
) -> None:
    monkeypatch.setattr(siblings, "_ANSWER_S", 0.1)
    gone = asyncio.Event()

    async def tell(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if said is None:
            await gone.wait()
        else:
            writer.write(said)
        writer.close()

    async with _three(tmp_path) as processes, await asyncio.start_unix_server(tell, tmp_path / "2"):
        gathered = await processes[0][0].gather(processes[0][1])
        gone.set()
    assert [_value(gathered, "sentiment_process_up", process=number) for number in "012"] == [1, 1, 0]


async def test_a_process_that_follows_one_that_was_killed_takes_its_place(tmp_path: Path) -> None:
    async with _three(tmp_path) as processes:
        successor, own = Siblings(tmp_path, 1, 3), _registry(7)
        async with successor.telling(own):
            gathered = await processes[0][0].gather(processes[0][1])
    assert _value(gathered, "waiting", process="1") == 70
