"""Where the time of one request went. Knows moments, on the clock of the event loop; not who asks for them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from app.inference.batcher import Ran


class Step(NamedTuple):
    """A part of a request's time; of several at once, `items` is how many texts shared it."""

    name: str
    begun_s: float
    ended_s: float
    items: int | None = None


@dataclass(slots=True)
class Timeline:
    """What the classifier did for a request; a step that was not taken has no moments."""

    cache: tuple[float, float] | None = None
    tokenise: tuple[float, float] | None = None
    runs: dict[float, Ran] = field(default_factory=dict)  # by their beginning, with the item that waited longest

    def add(self, ran: Ran) -> None:
        """Note that one of the request's texts came back from the model."""
        known = self.runs.get(ran.started_s)
        if known is None or ran.queued_s < known.queued_s:
            self.runs[ran.started_s] = ran

    def steps(self) -> Iterator[Step]:
        """Return every step, the runs of several batches one by one."""
        if self.cache is not None:
            yield Step("cache", *self.cache)
        if self.tokenise is not None:
            yield Step("tokenise", *self.tokenise)
        for ran in self.runs.values():
            yield Step("queue", ran.queued_s, ran.started_s)
            yield Step("infer", ran.started_s, ran.ended_s, ran.items)

    def server_timing(self) -> str:
        """Return the steps as the header Server-Timing has them: the longest of each name, in milliseconds."""
        taken_s: dict[str, float] = {}
        if self.cache is not None:
            taken_s["cache"] = self.cache[1] - self.cache[0]
        if self.tokenise is not None:
            taken_s["tokenise"] = self.tokenise[1] - self.tokenise[0]
        if self.runs:
            taken_s["queue"] = max(ran.started_s - ran.queued_s for ran in self.runs.values())
            taken_s["infer"] = max(ran.ended_s - ran.started_s for ran in self.runs.values())
        return ", ".join([f"{name};dur={step_s * 1e3:.2f}" for name, step_s in taken_s.items()])
