"""``lttv check``: report the damage of a trace; with ``--repair``, repair it first."""

from typing import Any

from lttd.errors import StorageError, TraceDamagedError
from lttd.files import Disk
from lttd.held import held_alone
from lttd.occurrence_maker import remove_occurrences
from lttd.recover import StreamRecovery, recover
from lttd.stats import counted
from lttd.terminal import printable
from lttd.tracedir import SegmentPaths, deletion_note
from lttd.view.finding import Finding
from lttd.view.verify import Report, check
from lttd.view.verify_killed import compare_killed


def repair(segment: SegmentPaths) -> list[str]:
    """Recover one segment; return a line for each stream that changed.

    Raises:
        LockedError: it is being recorded.
    """
    name = segment.directory.name
    found = recover(segment, Disk())
    return [f"{name}: {_told(one)}" for one in found if one.changed] or [f"{name}: closed"]


def _forget_occurrences(segment: SegmentPaths) -> list[str]:
    disk = Disk()
    with held_alone(segment, disk) as own:
        remove_occurrences(own, disk)
    return [f"{segment.directory.name}: occurrences removed; lttv index makes them again"]


def _told(one: StreamRecovery) -> str:
    parts = [counted(one.entries, "sub-buffer")]
    if one.rebuilt_entries:
        parts.append(f"{one.rebuilt_entries:,} of them indexed again")
    if one.torn_bytes:
        parts.append(f"{counted(one.torn_bytes, 'torn byte')} cut and counted")
    if one.ring_freed:
        parts.append("a gap for the events that were in its ring")
    return f"{one.name}: repaired: {', '.join(parts)}"


def check_all(
    found: list[SegmentPaths], *, events: bool, repairing: bool
) -> tuple[list[Report], list[str]]:
    """Check every segment; return reports and, when *repairing*, lines on the repairs.

    A segment that cannot be read or repaired is a finding; the others are still checked.

    Raises:
        LockedError: a segment to be repaired is being recorded.
    """
    reports: list[Report] = []
    repaired: list[str] = []
    for segment in found:
        try:
            report = check(segment, events=events)
            if repairing and report.state == "empty":
                recover(segment, Disk())  # of the room that was reserved, nothing stays
            elif repairing and (report.findings or report.state == "live"):
                if any(one.path == segment.occurrences for one in report.findings):
                    repaired += _forget_occurrences(segment)
                repaired += repair(segment)
                report = check(segment, events=events)
        except TraceDamagedError as error:
            report = _unusable(segment, Finding(error.path, error.offset_bytes, error.reason))
        except StorageError as error:
            report = _unusable(segment, Finding(error.path, 0, error.reason))
        if segment.is_gone():
            notes = [deletion_note(segment.directory)]
            report = Report(segment.directory, "deleted", notes=notes)
        reports.append(report)
    if events:
        compare_killed(reports)
    return reports, repaired


def _unusable(segment: SegmentPaths, finding: Finding) -> Report:
    return Report(segment.directory, "unreadable", findings=[finding])


def report_json(reports: list[Report], repaired: list[str]) -> dict[str, Any]:
    """Return all findings as a JSON object."""
    return {
        "whole": all(report.whole for report in reports),
        "findings": [one.to_json() for report in reports for one in report.findings],
        "notes": [note for report in reports for note in report.notes],
        "repaired": repaired,
        "segments": [
            {
                "path": str(report.segment),
                "state": report.state,
                "streams": [
                    {name: getattr(stream, name) for name in stream.__slots__}
                    for stream in report.streams
                ],
            }
            for report in reports
        ],
    }


def report_text(reports: list[Report], repaired: list[str]) -> str:
    """Return a line per finding, and a last one with the result."""
    findings = [str(one) for report in reports for one in report.findings]
    notes = [note for report in reports for note in report.notes]
    streams = [stream for report in reports for stream in report.streams]
    subbuffers = sum(stream.subbuffers for stream in streams)
    totals = [(len(reports), "segment"), (len(streams), "stream"), (subbuffers, "sub-buffer")]
    events = [stream.events for stream in streams if stream.events is not None]
    if events:
        totals.append((sum(events), "event"))
    total = ", ".join(counted(number, noun) for number, noun in totals)
    verdict = "whole" if not findings else f"damaged, {counted(len(findings), 'finding')}"
    return "\n".join(map(printable, [*repaired, *findings, *notes, f"{verdict}: {total}"]))
