"""After a kill in each configuration, the next start leaves the kernel as it was found."""

import json
from typing import Any

import pytest

from tests.kernel.guest import Guest

pytestmark = [pytest.mark.guest, pytest.mark.slow, pytest.mark.nightly]


# At the top level, one lttd after another is killed: some minutes each.
OF_TOP = (
    *("ring filter", "pid comm", "only-command trigger", "stack option", "probe fprobe"),
    *("function graph", "together"),
)


def reports_of(guest: Guest, where: str, names: str) -> dict[str, dict[str, Any]]:
    """Return the reports of kills.py by the name of the configuration."""
    words = f"{where} /tmp/kills {names}"
    script = f'cd $CHECKOUT; "$PYTHON" -m tests.kernel.kills {words} > "$OUT/report"'
    script += "; status=$?; rm -rf /tmp/kills; exit $status"
    result = guest.run(script, 1800).expect(0)
    found: dict[str, dict[str, Any]] = json.loads((result.out_dir / "report").read_text())
    return found


@pytest.mark.parametrize(
    ("where", "names"), [("own", ""), ("named", ""), *(("top", names) for names in OF_TOP)]
)
def test_no_setting_differs_and_no_event_is_lost_once_the_next_start_ended(
    each_guest: Guest, where: str, names: str
) -> None:
    reports = reports_of(each_guest, where, names)
    assert reports
    for name, report in reports.items():
        told = name, report["told"]
        assert report["statuses"] == [0, 0], told
        assert report["unchanged"] == [], told
        assert report["left"] == {}, told
        assert report["records"] == [], told
        assert report["written"] >= 200, told
        assert report["twice"] == 0, told
        lost, counted = report["lost"], report["counted"]
        assert all(lost[each] <= counted[each] for each in lost), (lost, counted, told)
