"""The dashboard for Grafana can be imported, and uses only metrics and labels that exist."""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from tests.scrapes import DOCS
from tests.test_metrics_document import documented, metrics_in
from tests.test_prometheus import needs_promtool, promtool

DASHBOARD: dict[str, Any] = json.loads((DOCS.parent / "contrib/grafana/lttd.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
# Labels that a scrape adds.
OF_THE_SCRAPE = {"instance", "job"}


def expressions() -> Iterator[str]:
    for panel in PANELS:
        yield from (target["expr"] for target in panel["targets"])
    yield from (each["expr"] for each in DASHBOARD["annotations"]["list"])


def test_the_expressions_use_only_metrics_and_labels_that_exist() -> None:
    known = documented()
    for expression in expressions():
        metrics = metrics_in(expression)
        assert metrics <= known.keys(), expression
        assert metrics or "up{" in expression
        labels = {label for metric in metrics for label in known[metric][2]} | OF_THE_SCRAPE
        grouped = re.findall(r"by \((.*?)\)", expression)
        assert {label for each in grouped for label in each.split(", ")} <= labels, expression
        matched = re.findall(r"[{,](\w+)=~?\"", expression)
        assert set(matched) <= labels, expression


def test_the_dashboard_has_the_shape_that_grafana_imports() -> None:
    assert DASHBOARD["uid"] == "lttd"
    assert DASHBOARD["schemaVersion"] >= 36
    assert "id" not in DASHBOARD, "the id of one Grafana would overwrite a dashboard of another"
    names = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert names == ["datasource", "instance"]
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(numbers) == len(set(numbers))
    for panel in PANELS:
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        refs = [target["refId"] for target in panel["targets"]]
        assert refs == sorted(set(refs))


def test_no_panel_overlaps_another() -> None:
    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        return {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }

    for one, other in combinations(DASHBOARD["panels"], 2):
        assert not cells(one) & cells(other), (one["title"], other["title"])


@needs_promtool
def test_promtool_accepts_every_expression(tmp_path: Path) -> None:
    rules = [
        {"record": f"x:e{number}", "expr": re.sub(r"\$__\w+", "5m", expression)}
        for number, expression in enumerate(expressions())
    ]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(path))
