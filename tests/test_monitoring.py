"""What docs/ gives to Grafana and Prometheus asks for metrics that there are, by labels that they have."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import yaml
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.test_metrics import Measured, StatedServer, StillApp
from twisted_hook import exposition
from twisted_hook.metrics import Family, Sort
from twisted_hook.model import ServerStatus
from twisted_hook.timings import WORK, Durations

DOCS = Path(__file__).parent.parent / "docs"
DASHBOARD: dict[str, Any] = json.loads((DOCS / "grafana-dashboard.json").read_text())
RULES: list[dict[str, Any]] = yaml.safe_load((DOCS / "alerts.yaml").read_text())["groups"][0]["rules"]
ALIAS = re.compile(r"\b(?:hookdeploy|process)_\w+")


def filled(family: Family) -> Family:
    """One with a value, though nothing has happened yet."""
    value = Durations(WORK) if family.sort is Sort.HISTOGRAM else 1.0
    return Family(family.sort, family.name, family.words, family.labels, {tuple("x" for _ in family.labels): value})


async def labels_by_name(state: Path) -> dict[str, set[str]]:
    """The names of all samples that there can be, with the names of their labels."""
    measured = Measured(StillApp(server=StatedServer(ServerStatus("serving", 0.0))), state)
    families = [filled(family) for family in await measured.metrics.families()]
    measured.metrics.stop()
    text, _ = exposition.text(families)
    samples = [sample for family in parse(text.decode()) for sample in family.samples]
    return {sample.name: set(sample.labels) for sample in samples}


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression, with where it stands."""
    for panel in DASHBOARD["panels"]:
        yield from ((panel["title"], target["expr"]) for target in panel.get("targets", ()))
    yield from (
        (f"${each['name']}", each["query"]) for each in DASHBOARD["templating"]["list"] if each["type"] == "query"
    )
    yield from ((rule["alert"], rule["expr"]) for rule in RULES)


@pytest_twisted.ensureDeferred
async def test_each_expression_names_metrics_and_labels_that_exist(tmp_path: Path) -> None:
    known = await labels_by_name(tmp_path)
    for where, expression in expressions():
        named = ALIAS.findall(expression)
        assert named, where
        assert set(named) <= known.keys(), where
        allowed = {"le", "instance", "job"}.union(*(known[name] for name in named))
        by = {
            label.strip() for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression) for label in group.split(",")
        }
        chosen = {label for group in re.findall(r"\{([^}]*)\}", expression) for label in re.findall(r"(\w+)=~?", group)}
        assert by | chosen <= allowed, where
        assert expression.count("(") == expression.count(")"), where


@pytest_twisted.ensureDeferred
async def test_each_metric_of_ours_is_shown_and_described(tmp_path: Path) -> None:
    names = {re.sub("_(bucket|count|sum)$", "", name) for name in await labels_by_name(tmp_path)}
    ours = {name for name in names if name.startswith("hookdeploy_")}
    shown = " ".join(expression for _, expression in expressions())
    assert {name for name in ours if name not in shown} == set()
    page = (DOCS / "monitoring.md").read_text()
    assert {name for name in ours if f"`{name.removeprefix('hookdeploy_')}`" not in page} == set()


@pytest.mark.skipif(
    not os.environ.get("HOOKDEPLOY_ALL_TESTS") and shutil.which("promtool") is None, reason="promtool is not installed"
)
def test_prometheus_itself_accepts_the_rules() -> None:
    done = subprocess.run(("promtool", "check", "rules", str(DOCS / "alerts.yaml")), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_panels_have_names_and_places_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["annotations"].keys() == {"summary", "description"}
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
