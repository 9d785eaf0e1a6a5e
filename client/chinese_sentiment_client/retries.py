"""Whether and when to try again."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Retries:
    """A request that was turned away, or did not get through, is sent up to `attempts` times.

    Pauses double from `first_pause_s` on, each cut at random, because all who were turned away together would come
    back together. When the service says how long to wait, that is the least; longer than `longest_pause_s` is not
    waited.
    """

    attempts: int = 4
    first_pause_s: float = 0.2
    longest_pause_s: float = 10.0

    def pause_s(self, attempt: int, retry_after_s: float | None) -> float | None:
        """Return how long to wait after an `attempt`, the first being 1; None if there is no other."""
        if attempt >= self.attempts or (retry_after_s or 0.0) > self.longest_pause_s:
            return None
        longest_s = min(self.first_pause_s * 2 ** (attempt - 1), self.longest_pause_s)
        return (retry_after_s or 0.0) + random.uniform(0.0, longest_s)  # noqa: S311 (no secret)
