"""Small real things that stand in for slow ones."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Run(NamedTuple):
    """What the model was given, and when by the loop's clock."""

    at_s: float
    items: list[str]


@dataclass
class FakeModel:
    """Answers "abc" with "abc!". An item is as many tokens as it has letters.

    A run takes `takes_s` and `token_s` for each padded token, then raises `failure` if there is one, and leaves out the
    answers to the last `drops` items.
    """

    takes_s: float = 1.0
    token_s: float = 0.0
    failure: Exception | None = None
    drops: int = 0
    runs: list[Run] = field(default_factory=list)

    async def run(self, items: Sequence[str]) -> list[str]:
        self.runs.append(Run(asyncio.get_running_loop().time(), list(items)))
        await asyncio.sleep(self.takes_s + self.token_s * max(map(len, items)) * len(items))
        if self.failure is not None:
            raise self.failure
        return [f"{item}!" for item in items][: len(items) - self.drops]

    @property
    def items(self) -> list[str]:
        """Every item that was run, in order."""
        return [item for run in self.runs for item in run.items]
