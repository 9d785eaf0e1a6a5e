"""What a PromQL expression asks for, and what a scrape gives."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import promql_parser
from prometheus_client.openmetrics.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Series:
    name: str
    labels: Mapping[str, str]


def read_scrape(openmetrics: str) -> list[Series]:
    """Return every series of a scrape in OpenMetrics' format."""
    families = text_string_to_metric_families(openmetrics)  # type: ignore[no-untyped-call]
    return [Series(sample.name, sample.labels) for family in families for sample in family.samples]


@dataclass(frozen=True)
class Selector:
    """A metric's name, and what its labels must be."""

    name: str
    matchers: tuple[promql_parser.Matcher, ...]

    def selects(self, series: Series) -> bool:
        """Return whether `series` is among what is asked for; an absent label is an empty one."""
        return series.name == self.name and all(
            _matches(matcher, series.labels.get(matcher.name, "")) for matcher in self.matchers
        )

    def without(self, labels: Iterable[str]) -> "Selector":
        """Return this selector, whatever the `labels` are."""
        return Selector(self.name, tuple(matcher for matcher in self.matchers if matcher.name not in set(labels)))


def _matches(matcher: promql_parser.Matcher, value: str) -> bool:
    pattern = matcher.op in (promql_parser.MatchOp.Re, promql_parser.MatchOp.NotRe)
    equal = re.fullmatch(matcher.value, value) is not None if pattern else matcher.value == value
    return equal == (matcher.op in (promql_parser.MatchOp.Equal, promql_parser.MatchOp.Re))


def selectors(expression: str) -> list[Selector]:
    """Return every selector in `expression`.

    Raises:
        ValueError: it is not PromQL.
    """
    found: list[Selector] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):  # one in a range is visited, too
            found.append(Selector(node.name or "", tuple(node.matchers.matchers)))

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found
