"""Draining lttng-modules beside ``lttng-consumerd``, in a guest; and by mmap beside splice.

The guest (tests/kernel: Debian's kernel under QEMU, two CPUs) records sched, irq and all system
calls with lttd and with stock lttng-sessiond and -consumerd, in turn, with rings of the same size,
onto a tmpfs.  "load": 20 s on busy CPUs.  "burst": the recorder is stopped for 5 s while the CPUs
are busy, and then drains its rings.  CPU seconds are those of all threads of the recorder or of
lttng-consumerd, by the kernel's own account, for 10^9 bytes of what it wrote meanwhile (stock
lttng's with padding).  babeltrace2 reads every trace on the host.

"take": a sub-buffer's way into a file (bench/lttng_takes.py), in one thread, without anything else.
"""

import json
import re
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.common import CannotMeasureError, Options
from bench.report import Cell, Figure, Plot, Report, median, ratio
from lttd.tracedir import segments
from tests.kernel.guest import Guest
from tests.kernel.image import GuestUnavailableError, prepare
from tests.kernel.lttng import put_lttng
from tests.kernel.lttng_recording import PRELUDE, events_in
from tests.kernel.lttng_stock import GROWTH, STOCK

NAME: Final = "lttng"
NEEDED: Final = ("babeltrace2", "lttng", "lttng-sessiond")
OURS, THEIRS = "lttd", "lttng-consumerd"
HOWS: Final = ("load", "burst")
OUR_TAKE, OTHER_TAKES = "copy", ("mapping", "pipe", "patched", "file")
SUBBUFFERS: Final = 128
BURST_S: Final = 5
RECORD: Final = {
    OURS: r"""
rm -rf /tmp/trace
begin_recording --source "$WHAT"
under_load {load_s} lttd $pid /tmp/trace '*/streams/channel0_*'
in_a_burst {burst_s} lttd $pid /tmp/trace '*/streams/channel0_*'
end_recording || exit 5
""",
    THEIRS: r"""
start_stock
rm -rf /tmp/stock
begin_stock /tmp/stock
under_load {load_s} lttng-consumerd $consumerd /tmp/stock '*/kernel/all_*'
in_a_burst {burst_s} lttng-consumerd $consumerd /tmp/stock '*/kernel/all_*'
end_stock
stop_stock
cp -r /tmp/stock $OUT/stock-trace
""",
}


class Used(NamedTuple):
    """The use of a recorder while it wrote."""

    written_bytes: int
    cpu_s: float
    user_s: float
    system_s: float

    @property
    def per_gb(self) -> float:
        """CPU seconds for 10^9 bytes."""
        return self.cpu_s / self.written_bytes * 1e9


Samples = dict[tuple[str, str], list[Used]]
"""By who and how."""


def run(options: Options) -> Report:
    """Boot a guest, measure the ways to take sub-buffers, and then the recorders in turn."""
    if missing := [tool for tool in NEEDED if shutil.which(tool) is None]:
        raise CannotMeasureError(f"no {missing[0]}: apt install babeltrace2 lttng-tools")
    rounds = options.rounds_or(proper=5, quick=1)
    load_s = 5 if options.quick else 20
    try:
        with (
            tempfile.TemporaryDirectory() as share,
            Guest.boot(kernel := prepare(), Path(share)) as guest,
        ):
            put_lttng(guest)
            takes = _takes(guest, rounds)
            samples: Samples = defaultdict(list)
            events = 0
            for number in range(rounds):
                # The order alternates.
                for who in sorted(RECORD, reverse=bool(number % 2)):
                    events += _record(guest, who, load_s, samples)
    except GuestUnavailableError as error:
        raise CannotMeasureError(f"no guest: {error}") from error
    return _report(kernel.release, load_s, takes, samples, events)


def _takes(guest: Guest, rounds: int) -> dict[str, list[dict[str, float]]]:
    script = f"""{PRELUDE}
modprobe -d /out/lttng-modules lttng-ring-buffer-client-discard || exit 8
"$PYTHON" -m bench.lttng_takes {rounds} > $OUT/samples.json
"""
    found = guest.run(script, 60 + 60 * rounds).expect(0)
    samples: dict[str, list[dict[str, float]]] = json.loads(
        (found.out_dir / "samples.json").read_text()
    )
    return samples


def _record(guest: Guest, who: str, load_s: int, samples: Samples) -> int:
    """Add what a recorder used; return the number of events that babeltrace2 reads of it."""
    work = RECORD[who].format(load_s=load_s, burst_s=BURST_S)
    script = f"SUBBUFFERS={SUBBUFFERS}\n{PRELUDE}{STOCK}{GROWTH}{work}"
    found = guest.run(script, 300).expect(0)
    for line in re.findall(r"^used (.*)$", found.output, re.MULTILINE):
        _, how, written, ns, user, system = line.split()
        used = Used(int(written), int(ns) / 1e9, int(user) / 100, int(system) / 100)
        samples[who, how].append(used)
    if who == THEIRS:
        traces = [found.out_dir / "stock-trace/kernel"]
    else:
        traces = [one.directory / "streams" for one in segments(found.out_dir / "trace")]
    events = sum(map(events_in, traces))
    shutil.rmtree(found.out_dir)
    return events


def _report(
    release: str,
    load_s: int,
    takes: dict[str, list[dict[str, float]]],
    samples: Samples,
    events: int,
) -> Report:
    by_take = {
        way: [(one["user_s"] + one["system_s"]) / one["bytes"] * 1e9 for one in some]
        for way, some in takes.items()
    }
    by_how = {
        how: {who: [used.per_gb for used in samples[who, how]] for who in (OURS, THEIRS)}
        for how in HOWS
    }
    figures = [
        Figure(
            f"{how}: CPU s/GB, lttd / lttng-consumerd",
            ratio(median(by_how[how][OURS]), median(by_how[how][THEIRS])),
            "<=",
            1.0,
        )
        for how in HOWS
    ]
    figures += [
        Figure(
            f"take: {OUR_TAKE} / {way}",
            ratio(median(by_take[OUR_TAKE]), median(by_take[way])),
            "<=",
            1.0,
        )
        for way in OTHER_TAKES
    ]
    return Report(
        NAME,
        f"CPU seconds per GB of lttng-modules' rings, Linux {release} under QEMU",
        ["how", "who", "rounds", "MB", "CPU s/GB", "least", "most", "user share"],
        [
            *(_row(how, who, samples[who, how]) for how in HOWS for who in (OURS, THEIRS)),
            *(_take_row(way, some) for way, some in takes.items()),
        ],
        figures,
        notes=[f"babeltrace2 read {events:,} events of all traces without complaint"],
        samples={f"{who}, {how}": some for (who, how), some in samples.items()} | dict(takes),
        settings={"load_s": load_s, "burst_s": BURST_S, "subbuffers": SUBBUFFERS},
        plot=Plot("CPU s/GB", {"recorders": _flat(by_how), "takes": by_take}),
    )


def _flat(by_how: dict[str, dict[str, list[float]]]) -> dict[str, list[float]]:
    return {f"{who}\n{how}": some for how, each in by_how.items() for who, some in each.items()}


def _row(how: str, who: str, some: list[Used]) -> list[Cell]:
    costs = [used.per_gb for used in some]
    ticks = [(used.user_s, used.user_s + used.system_s) for used in some]
    user = sum(user for user, _ in ticks) / max(sum(both for _, both in ticks), 0.01)
    written = median([used.written_bytes / 1e6 for used in some])
    return [how, who, len(some), written, median(costs), min(costs), max(costs), user]


def _take_row(way: str, some: list[dict[str, Any]]) -> list[Cell]:
    costs = [(one["user_s"] + one["system_s"]) / one["bytes"] * 1e9 for one in some]
    user = sum(one["user_s"] for one in some) / sum(one["user_s"] + one["system_s"] for one in some)
    written = median([one["bytes"] / 1e6 for one in some])
    return ["take", way, len(some), written, median(costs), min(costs), max(costs), user]
