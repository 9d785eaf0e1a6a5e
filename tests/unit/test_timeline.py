from app.inference.batcher import Ran
from app.inference.timeline import Step, Timeline


def test_a_timeline_without_steps_tells_nothing() -> None:
    assert Timeline().server_timing() == ""
    assert list(Timeline().steps()) == []


def test_only_steps_that_were_taken_are_told() -> None:
    assert Timeline(cache=(1.0, 1.00025)).server_timing() == "cache;dur=0.25"


def test_of_several_batches_the_longest_wait_and_run_are_told() -> None:
    timeline = Timeline((0.0, 0.001), (0.001, 0.003))
    for ran in (
        Ran(0.003, 0.005, 0.025, items=4),
        Ran(0.004, 0.005, 0.025, items=4),
        Ran(0.003, 0.013, 0.023, items=2),
    ):
        timeline.add(ran)
    assert timeline.server_timing() == "cache;dur=1.00, tokenise;dur=2.00, queue;dur=10.00, infer;dur=20.00"


def test_a_batch_is_a_step_once_with_the_item_that_waited_longest() -> None:
    timeline = Timeline()
    for ran in (Ran(2.0, 5.0, 6.0, items=3), Ran(1.0, 5.0, 6.0, items=3), Ran(3.0, 5.0, 6.0, items=3)):
        timeline.add(ran)
    assert list(timeline.steps()) == [Step("queue", 1.0, 5.0), Step("infer", 5.0, 6.0, items=3)]
