"""Probes of all kinds that Debian 12's kernel takes, printed as its own ``trace`` file prints them.

The kernel of this machine takes uprobes only (tests/test_probes_live.py).
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernel.guest import Guest
from tests.test_probes_live import place_of

pytestmark = [pytest.mark.guest, pytest.mark.slow]

PRELUDE = r"""
export PYTHONPATH=$CHECKOUT TRACING=/sys/kernel/tracing
cp /bin/cat /tmp/prload
begin_recording() {  # OPTION...: $pid is lttd's, $instance its own
    "$PYTHON" -m lttd -t /tmp/trace --summary none --flush-interval 1h "$@" 2> "$OUT/stderr" &
    pid=$!
    instance=$TRACING/instances/lttd-$pid
    for _ in $(seq 1200); do
        [ "$(cat "$instance/tracing_on" 2> /dev/null)" = 1 ] &&
            [ -n "$(cat "$instance/set_event")" ] && return
        kill -0 $pid 2> /dev/null || break
        sleep 0.1
    done
    cat "$OUT/stderr"
    return 1
}
settings() {
    local file
    for file in dynamic_events set_event current_tracer trace_clock tracing_on buffer_size_kb \
        buffer_percent set_event_pid set_event_notrace_pid trace_options; do
        echo "== $file"
        sed 's/ (expanded.*//' $TRACING/$file
    done
    ls $TRACING/instances
}
rm -rf /tmp/trace
echo 'p:mine/keep vfs_fsync' >> $TRACING/dynamic_events
"""
PROBES = (
    "p:opens do_sys_openat2 file=+0($arg2):ustring dfd=$arg1:s32 raw=+0($arg2):x8[4]",
    "r:opened do_sys_openat2 fd=$retval:s64",
    f"p:asks {place_of('getenv')} name=+0(%di):string",
    f"r:asked {place_of('getenv')} value=$retval:x64",
    "e:execs sched.sched_process_exec pid=$pid:s32 file=$filename:string",
    "s:lttdlat pid_t pid; pid_t old",
)
OPTIONS = " ".join(f"--probe '{probe}'" for probe in PROBES)
FILTER = "--filter 'lttd:*: COMM == \"prload\"'"
LINE = re.compile(r" *(?P<comm>\S.*)-(?P<pid>\d+) +(\( *\d+\) )?(?P<rest>\[\d+\] .*)")
# The flags of uprobes are all ones; Linux 6.1 has no name for one of the bits (lazy rescheduling).
UPROBE_FLAGS = (" DNZff ", " DBZff ")
# The format of an eprobe does not name its event, which the kernel prints.
EPROBE = re.compile(r" execs: \(sched\.sched_process_exec\)")


def shown(trace: Path) -> list[str]:
    words = [sys.executable, "-m", "lttd.view", "text", str(trace)]
    printed = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return [found["rest"] for line in printed.splitlines() if (found := LINE.fullmatch(line))]


def printed_by_kernel(file: Path) -> list[str]:
    return [
        EPROBE.sub(" execs: ", found["rest"].rstrip().replace(*UPROBE_FLAGS))
        for line in file.read_text().splitlines()
        if not line.startswith("#") and (found := LINE.fullmatch(line))
    ]


def test_events_of_probes_are_printed_as_the_kernel_prints_them(guest: Guest) -> None:
    result = guest.run(
        f"""{PRELUDE}
        settings > "$OUT/before"
        begin_recording {OPTIONS} {FILTER} || exit 1
        synthetic=events/sched/sched_process_exec/trigger
        hist='hist:keys=pid:p=pid,o=old_pid:onmatch(sched.sched_process_exec)'
        hist+='.trace(lttdlat,$p,$o)'
        echo "$hist" > $TRACING/$synthetic
        /tmp/prload /etc/hostname /no/such/file
        echo "!$hist" > $TRACING/$synthetic
        cat $TRACING/$synthetic
        echo 0 > $instance/tracing_on
        cat $instance/trace > "$OUT/kernel"
        cat $TRACING/dynamic_events
        kill -TERM $pid
        wait $pid; echo status $?
        cat "$OUT/stderr"
        settings > "$OUT/after"
        cp -r /tmp/trace "$OUT/trace"
        rm -rf /tmp/trace
        echo '-:mine/keep' >> $TRACING/dynamic_events
        """,
        300,
    ).expect(0)
    out = result.out_dir
    assert "status 0" in result.output, result.output
    kernels = printed_by_kernel(out / "kernel")
    for name in ("opens", "opened", "asks", "asked", "execs"):
        assert any(f": {name}: " in line for line in kernels), (name, result.output)
    assert shown(out / "trace") == kernels
    assert (out / "after").read_text() == (out / "before").read_text(), result.output


def test_the_start_after_a_kill_drains_and_then_removes_the_probes(guest: Guest) -> None:
    result = guest.run(
        f"""{PRELUDE}
        settings > "$OUT/before"
        begin_recording {OPTIONS} {FILTER} || exit 1
        /tmp/prload /etc/hostname
        kill -KILL $pid
        wait $pid
        cat $instance/trace > "$OUT/kernel"
        "$PYTHON" -m lttd -t /tmp/trace --append --events sched:sched_process_hang \\
            --duration 100ms --summary none
        echo status $?
        settings > "$OUT/after"
        cp -r /tmp/trace "$OUT/trace"
        rm -rf /tmp/trace
        echo '-:mine/keep' >> $TRACING/dynamic_events
        """,
        300,
    ).expect(0)
    out = result.out_dir
    assert "status 0" in result.output, result.output
    kernels = printed_by_kernel(out / "kernel")
    assert any(": opens: " in line for line in kernels)
    assert shown(out / "trace") == kernels
    assert (out / "after").read_text() == (out / "before").read_text(), result.output


@pytest.mark.parametrize(
    ("probe", "status", "says"),
    [
        ("p:bad no_such_symbol_at_all", 2, "Invalid probed address or symbol: "),
        ("p:bad vfs_read+4", 2, "probe lttd:bad: "),
        ("p:bad vfs_read n=%nosuch", 2, "Invalid register name: "),
        ("e:bad sched.no_such_event", 2, "probe lttd:bad: "),
        ("s:bad nosuchtype x", 2, "probe synthetic:bad: "),
        ("f:bad vfs_read", 77, "this kernel has no fprobes (CONFIG_FPROBE_EVENTS)"),
    ],
)
def test_the_probes_before_a_refused_one_are_removed(
    guest: Guest, probe: str, status: int, says: str
) -> None:
    result = guest.run(
        f"""{PRELUDE}
        settings > "$OUT/before"
        "$PYTHON" -m lttd -t /tmp/trace --duration 1s --summary none \\
            --probe 'p:one vfs_write' --probe 's:two u64 lat' --probe '{probe}'
        echo status $?
        settings > "$OUT/after"
        echo '-:mine/keep' >> $TRACING/dynamic_events
        """,
        120,
    ).expect(0)
    assert f"status {status}\n" in result.output
    assert says in result.output
    assert len(result.output.splitlines()) == 2, result.output
    assert (result.out_dir / "after").read_text() == (result.out_dir / "before").read_text()
