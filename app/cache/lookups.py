"""How often a level of the cache could tell."""

from dataclasses import dataclass


@dataclass(slots=True)
class Lookups:
    """Texts looked up so far, by outcome."""

    hits: int = 0
    misses: int = 0
    unanswered: int = 0  # the level could not be asked, or did not answer in time
