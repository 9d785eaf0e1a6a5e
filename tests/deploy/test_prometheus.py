"""Rules and alerts: they ask for what a server exposes, fire when they should, and say what to do."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, get_args

import pytest
import yaml

from app.inference.session import Provider
from tests.deploy.promql import Selector, Series, selectors
from tests.live.served import ROOT

PROMETHEUS: Final = ROOT / "deploy" / "prometheus"
RUNBOOK: Final = ROOT.joinpath("docs", "runbook.md").read_text(encoding="utf-8")
ENTRIES: Final = re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE)

# Only a server of several processes has it.
EXPECTED: Final = {"sentiment_process_up"}
# Values that this server does not have and another may.
ELSEWHERE: Final = {"provider": set(get_args(Provider)), "requested": {*get_args(Provider), "auto"}}


def _load(name: str) -> Any:
    return yaml.safe_load((PROMETHEUS / name).read_text(encoding="utf-8"))


RULES: Final = [
    rule for name in ("recording.yml", "alerts.yml") for group in _load(name)["groups"] for rule in group["rules"]
]
RECORDED: Final = {rule["record"] for rule in RULES if "record" in rule}
ALERTS: Final = {rule["alert"]: rule for rule in RULES if "alert" in rule}


def unmet(expression: str, exposed: list[Series]) -> list[str]:
    """Return what `expression` asks for and neither the server nor a rule gives."""
    return [str(selector) for selector in selectors(expression) if not _is_met(selector, exposed)]


def _is_met(selector: Selector, exposed: list[Series]) -> bool:
    if selector.name in RECORDED | EXPECTED | {"up", "ALERTS"}:  # the last two are made by Prometheus
        return True
    excused = [matcher.name for matcher in selector.matchers if matcher.value in ELSEWHERE.get(matcher.name, ())]
    # Prometheus adds these to whatever it scrapes.
    return any(map(selector.without([*excused, "job", "instance"]).selects, exposed))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("record") or rule["alert"])
def test_a_rule_asks_for_series_that_a_server_exposes(rule: dict[str, Any], exposed: list[Series]) -> None:
    assert unmet(rule["expr"], exposed) == []


@pytest.mark.parametrize(
    "expression",
    [
        "rate(sentiment_requests_total[5m])",
        'rate(sentiment_http_requests_total{route="/v2/sentiment"}[5m])',
        'sentiment_http_request_duration_seconds_bucket{le="3.0"}',
        'sum(sentiment_http_requests_total{path=~".+"})',
        'sentiment_model_info{provider="tpu"}',
    ],
)
def test_what_no_server_exposes_is_noticed(expression: str, exposed: list[Series]) -> None:
    assert len(unmet(expression, exposed)) == 1


def test_what_is_excused_is_truly_not_exposed(exposed: list[Series]) -> None:
    assert {series.name for series in exposed} & EXPECTED == set()


@pytest.mark.parametrize("alert", ALERTS.values(), ids=ALERTS)
def test_an_alert_says_how_grave_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
    anchors = [entry.lower() for entry in ENTRIES]
    assert alert["annotations"]["runbook_url"].removeprefix("{{ $externalLabels.runbooks }}#") in anchors


def test_the_runbook_has_no_entry_for_an_alert_that_is_gone() -> None:
    assert set(ENTRIES) == ALERTS.keys()


def test_every_alert_is_seen_firing_in_a_test() -> None:
    tests = [test for file in PROMETHEUS.glob("*.test.yml") for test in _load(file.name)["tests"]]
    cases = [case for test in tests for case in test.get("alert_rule_test", ())]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == ALERTS.keys()


@pytest.mark.parametrize("check", [("config", "prometheus.yml"), ("rules", "recording.yml"), ("rules", "alerts.yml")])
def test_promtool_finds_no_fault(check: tuple[str, str], program: Callable[[str], str]) -> None:
    _promtool(program("promtool"), "check", *check)


def test_promtool_finds_no_fault_in_the_configuration_for_a_cluster(
    program: Callable[[str], str], tmp_path: Path
) -> None:
    config = _load("kubernetes.yml")
    # Debian's build knows no Kubernetes: what finds the pods is left out.
    assert config["scrape_configs"][0].pop("kubernetes_sd_configs")
    config["rule_files"] = [str(PROMETHEUS / name) for name in config["rule_files"]]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    _promtool(program("promtool"), "check", "config", str(tmp_path / "prometheus.yml"))


@pytest.mark.parametrize("file", sorted(PROMETHEUS.glob("*.test.yml")), ids=lambda file: file.name)
def test_alerts_fire_when_they_should(file: str, program: Callable[[str], str]) -> None:
    _promtool(program("promtool"), "test", "rules", str(file))


def _promtool(*command: str) -> None:
    done = subprocess.run(command, cwd=PROMETHEUS, capture_output=True, encoding="utf-8", check=False)  # noqa: S603
    assert done.returncode == 0, done.stdout + done.stderr
