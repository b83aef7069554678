"""docs/METRICS.md describes exactly the metrics of a scrape; the alerts use no others."""

import re
from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families

from lttd.health import Trouble
from lttd.metrics import FAMILIES, make_render
from lttd.stats import StreamStats
from lttd.subbuffer import StreamId
from tests.scrapes import DOCS, RULES, Numbers, busy_numbers, shown


def rows_of(document: str, columns: int) -> Iterator[list[str]]:
    """Yield the cells of every table row with *columns* columns, without header lines."""
    for line in document.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == columns and cells[0].startswith("`"):
            yield cells


def documented() -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Return type, unit and labels by metric."""
    metrics = {}
    for name, type_, unit, labels, meaning in rows_of((DOCS / "METRICS.md").read_text(), 5):
        assert name.strip("`") not in metrics
        assert meaning.endswith(".")
        metrics[name.strip("`")] = (type_, unit, tuple(filter(None, labels.split(", "))))
    return metrics


def metrics_in(text: str) -> set[str]:
    """Return the names of the metrics in *text*, without those of recording rules."""
    return set(re.findall(r"(?<![:\w])(?:lttd|process)_[a-z_]*[a-z](?![:\w])", text))


def test_the_document_lists_exactly_the_scraped_metrics() -> None:
    found = {}
    render = make_render(busy_numbers(), version="0.1.0")
    for family in text_string_to_metric_families(render().decode()):
        assert family.samples, f"{family.name}: without a sample in the fullest scrape"
        names = {sample.name for sample in family.samples}
        labels = {frozenset(sample.labels) for sample in family.samples}
        assert len(names) == len(labels) == 1
        found[names.pop()] = (family.type, labels.pop())
    told = {name: (type_, frozenset(labels)) for name, (type_, _, labels) in documented().items()}
    assert told == found
    assert {name for name in found if name.startswith("lttd_")} == {f.name for f in FAMILIES}


def test_the_units_of_the_document_match_the_metric_names() -> None:
    for name, (type_, unit, _) in documented().items():
        assert name.endswith("_total") == (type_ == "counter")
        for in_name in ("bytes", "seconds", "ratio"):
            assert (f"_{in_name}" in name) == (unit == in_name), name


def test_the_document_lists_the_label_values_of_the_first_scrape() -> None:
    listed = {
        (name.strip("`"), value.strip("`"))
        for name, value, _ in rows_of((DOCS / "METRICS.md").read_text(), 3)
    }
    first = Numbers(StreamStats(StreamId("sched", 0)))
    first.parts = busy_numbers().parts
    found = {
        (name, value)
        for name, labels in shown(first)
        for label, value in labels
        if label in {"reason", "errno", "by"}
    }
    assert listed == found


def test_the_document_explains_each_trouble_as_the_program_does() -> None:
    explained = {
        value.strip("`"): meaning
        for name, value, meaning in rows_of((DOCS / "METRICS.md").read_text(), 3)
        if name == "`lttd_unhealthy`"
    }
    assert explained == {trouble.value: trouble.meaning for trouble in Trouble}


def test_rules_and_queries_use_only_documented_metrics() -> None:
    known = documented().keys()
    for text in ((DOCS / "METRICS.md").read_text(), RULES.read_text()):
        assert metrics_in(text) <= known
