"""What came of all rows: shares of labels, answers to look at, and errors."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from rich.bar import Bar
from rich.console import Console, RenderableType
from rich.table import Table

from app.scoring.output import Answer, error_kind

_BAR: Final = 40  # characters
_NAMED: Final = 5  # rows without an answer


@dataclass(slots=True)
class Tally:
    """Counts rows by what came of them."""

    labels: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    uncertain: int = 0
    truncated: int = 0
    failed: list[str] = field(default_factory=list)  # the first rows without an answer

    @classmethod
    def of(cls, content: dict[str, Any]) -> "Tally":
        """Return the tally whose `content` this is."""
        return cls(**{**content, "labels": Counter(content["labels"]), "errors": Counter(content["errors"])})

    def content(self) -> dict[str, Any]:
        """Return what can be written as JSON."""
        counts = {"labels": dict(self.labels), "errors": dict(self.errors)}
        return {**counts, "uncertain": self.uncertain, "truncated": self.truncated, "failed": self.failed}

    @property
    def rows(self) -> int:
        """How many were counted."""
        return self.labels.total() + self.errors.total()

    def add(self, answer: Answer, name: str) -> None:
        """Count an answer to the row called `name`."""
        if (kind := error_kind(answer)) is not None:
            self.errors[kind] += 1
            if len(self.failed) < _NAMED:
                self.failed.append(f"{name}: {answer['error']['detail']}")
            return
        found = answer["sentiment"]
        self.labels[found["label"]] += 1
        self.uncertain += not found["certain"]
        self.truncated += found["truncated"]

    def merge(self, later: "Tally") -> None:
        """Count what `later` has counted, of rows that follow."""
        self.labels += later.labels
        self.errors += later.errors
        self.uncertain += later.uncertain
        self.truncated += later.truncated
        self.failed = [*self.failed, *later.failed][:_NAMED]

    def show(self, console: Console) -> None:
        """Draw the shares of the labels, and tell what a person may want to look at."""
        answered = self.labels.total()
        table = Table("label", "rows", "share", "", box=None)
        for label, rows in self.labels.most_common():
            bar: RenderableType = Bar(answered, 0, rows, width=_BAR)
            table.add_row(label, f"{rows:,}", f"{rows / answered:.1%}", bar)
        console.print(table)
        if answered:
            console.print(
                f"{self.uncertain:,} not certain ({self.uncertain / answered:.1%}), "
                f"{self.truncated:,} longer than the model's window"
            )
        if self.errors:
            kinds = ", ".join(f"{rows:,} {kind}" for kind, rows in self.errors.most_common())
            console.print(f"{self.errors.total():,} without an answer: {kinds}; the first:")
            for each in self.failed:
                console.print(f"  {each}", markup=False, highlight=False)
