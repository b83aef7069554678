"""Compare the segments of killed lttds with the kernel's count of the events that were read."""

from collections.abc import Mapping, Sequence

from lttd.view.finding import Finding
from lttd.view.verify import Report, StreamReport


def compare_killed(reports: Sequence[Report]) -> None:
    """Compare the events that killed lttds stored, plus those in gaps, with the kernel's count.

    Add a finding if they differ.  The events must be decoded.
    """
    by_name = {report.segment.name: report for report in reports}
    continued = {report.continues for report in reports}
    for report in reports:
        if report.continues in by_name and report.segment.name not in continued:
            for stream in report.streams:
                _compare_runs(report, stream, _earlier_runs(report, stream.name, by_name))


def _earlier_runs(last: Report, stream: str, by_name: Mapping[str, Report]) -> list[StreamReport]:
    """Return the stream in each segment of the same ring before *last*, the latest first."""
    found: list[StreamReport] = []
    following = {report.rolled_from: report for report in by_name.values() if report.rolled_from}
    before, left = by_name.get(last.continues), len(by_name)
    while before is not None and left:  # a damaged manifest may lead round
        run = [before]
        while (after := following.get(run[-1].segment.name)) and len(run) < left:
            run.append(after)
        while (earlier := by_name.get(run[0].rolled_from)) and len(run) < left:
            run.insert(0, earlier)
        for report in reversed(run):
            found += [one for one in report.streams if one.name == stream]
        before, left = by_name.get(run[0].continues), left - len(run)
    return found


def _compare_runs(report: Report, last: StreamReport, runs: Sequence[StreamReport]) -> None:
    events = [run.events for run in runs]
    killed = [run.killed for run in (last, *runs)]
    if not runs or None in events or None in killed or any(run.other_losses for run in runs):
        return
    taken = last.read_events_before - runs[-1].read_events_before
    stored, lost = sum(filter(None, events)), sum(filter(None, killed))
    if stored + lost != taken + (runs[-1].killed or 0):
        words = f"{last.name}: killed lttds had taken {taken:,} events; their segments hold"
        words += f" {stored:,}, and {lost:,} are counted as lost with them"
        report.findings.append(Finding(report.segment / "trace.json", 0, words))
