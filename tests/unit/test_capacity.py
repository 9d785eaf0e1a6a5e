import pytest

from loadtest.capacity import BENCHMARK, PAGE, Replica, Traffic, answering_alone, read_replica, render

REPLICA = Replica(texts_per_s=100, batch_texts_per_s=200, remembered_per_s=1_000, utilisation=0.5)


def test_the_page_has_what_follows_from_the_benchmark() -> None:
    tables = render(read_replica(BENCHMARK.read_text(encoding="utf-8")))
    assert f"<!-- capacity -->\n{tables}\n<!-- /capacity -->" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(("hit_rate", "replicas"), [(0, 20), (0.5, 11), (1, 2)])
def test_remembered_answers_take_the_time_that_they_take(hit_rate: float, replicas: int) -> None:
    assert REPLICA.for_messages(1_000, hit_rate) == replicas


def test_a_job_is_spread_over_its_time() -> None:
    assert REPLICA.for_job(360_000, 3_600) == 1
    assert REPLICA.for_job(360_001, 3_600) == 2


def test_messages_that_never_repeat_are_never_found() -> None:
    hits, held = Traffic(100, repeating=0).hit_rate(ttl_s=10, room=5_000)
    assert (hits, held) == (0, 1_000)


def test_one_message_is_found_but_when_its_answer_has_expired() -> None:
    hits, held = Traffic(1, repeating=1, messages=1).hit_rate(ttl_s=99, room=5_000)
    assert (hits, held) == pytest.approx((0.99, 0.99))


def test_little_room_holds_what_fits_and_finds_less() -> None:
    traffic = Traffic(1_000, messages=10_000)
    ample, _ = traffic.hit_rate(ttl_s=3_600, room=10_000_000)
    scant, held = traffic.hit_rate(ttl_s=3_600, room=1_000)
    assert held == pytest.approx(1_000, rel=0.01)
    assert scant < ample <= 0.5


def test_replicas_that_remember_are_fewer() -> None:
    hits, replicas = answering_alone(REPLICA, 10_000)
    assert 0 < hits < 0.5
    assert replicas < REPLICA.for_messages(10_000, 0)
