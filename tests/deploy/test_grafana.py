"""Dashboards: each panel asks for what a server exposes, and a real Prometheus answers it."""

import json
import re
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any, Final, NamedTuple

import httpx
import pytest
import yaml

from tests.deploy.conftest import visit
from tests.deploy.prometheus_server import ask, running_prometheus, until
from tests.deploy.promql import Series, selectors
from tests.deploy.test_prometheus import RECORDED, RULES, unmet
from tests.live.served import ROOT, RunningServer

GRAFANA: Final = ROOT / "deploy" / "grafana"
DASHBOARDS: Final = {
    file.name: json.loads(file.read_text(encoding="utf-8")) for file in GRAFANA.glob("dashboards/*.json")
}
_VARIABLES: Final = {"$__rate_interval": "1m", "$job": ".*", "$instance": ".*"}


class Query(NamedTuple):
    panel: str
    expression: str
    legend: str


def _filled(expression: str) -> str:
    """Return `expression` with Grafana's variables replaced, as Grafana does with all instances chosen."""
    for variable, value in _VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression
    return expression


QUERIES: Final = [
    Query(panel["title"], _filled(target["expr"]), target["legendFormat"])
    for dashboard in DASHBOARDS.values()
    for panel in dashboard["panels"]
    for target in panel.get("targets", ())
]


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: f"{query.panel}: {query.legend}")
def test_a_panel_asks_for_series_that_a_server_exposes(query: Query, exposed: list[Series]) -> None:
    assert unmet(query.expression, exposed) == []


def test_annotations_and_variables_ask_for_series_that_a_server_exposes(exposed: list[Series]) -> None:
    names = {series.name for series in exposed}
    for dashboard in DASHBOARDS.values():
        for annotation in dashboard["annotations"]["list"]:
            assert unmet(_filled(annotation["expr"]), exposed) == []
        queries = [each["definition"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
        assert len(queries) == 2
        for query in queries:
            found = re.fullmatch(r"label_values\((\w+)(?:{.*})?, (\w+)\)", query)
            assert found is not None
            assert found[1] in names


def test_every_recorded_series_is_used() -> None:
    expressions = [rule["expr"] for rule in RULES] + [query.expression for query in QUERIES]
    assert {selector.name for expression in expressions for selector in selectors(expression)} >= RECORDED


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_have_a_place_of_their_own_and_the_chosen_data_source(name: str) -> None:
    panels = DASHBOARDS[name]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above
    for panel in panels:
        for each in (panel, *panel["targets"]) if panel["type"] != "row" else ():
            assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_dashboards_are_told_apart() -> None:
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS) == 2


def test_the_data_source_chosen_at_first_is_the_provisioned_one() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    for dashboard in DASHBOARDS.values():
        assert dashboard["templating"]["list"][0]["current"]["value"] == source["uid"]


@pytest.fixture(scope="module")
def prometheus(
    visited: RunningServer, program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    with running_prometheus(program("prometheus"), tmp_path_factory.mktemp("prometheus"), visited) as client:
        yield client


def test_prometheus_answers_every_panel_with_the_labels_of_its_legend(
    prometheus: httpx.Client, visited: RunningServer
) -> None:
    answers: dict[Query, list[dict[str, Any]]] = {}

    def all_answered() -> bool:
        visit(visited)
        for query in QUERIES:
            if not answers.get(query):
                answers[query] = ask(prometheus, query.expression)
        return all(answers.values())

    until(all_answered, lambda: str([query for query, series in answers.items() if not series]))
    for query, series in answers.items():
        for label in re.findall(r"{{(\w+)}}", query.legend):
            assert all(each["metric"].get(label) for each in series), query


def test_prometheus_evaluates_every_rule(prometheus: httpx.Client) -> None:
    def rules() -> list[dict[str, Any]]:
        groups = prometheus.get("/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    until(lambda: all(rule["health"] != "unknown" for rule in rules()), lambda: str(rules()))
    assert [rule for rule in rules() if rule["health"] != "ok"] == []
    assert len(rules()) == len(RULES)
