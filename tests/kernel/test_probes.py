"""Probes of all kinds that Debian 12's kernel takes, printed as its own ``trace`` file prints them.

The kernel of this machine takes uprobes only (tests/test_probes_live.py).
"""

import re
import subprocess
import sys
from collections.abc import Sequence
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
FPROBES = (
    "f:enters do_sys_openat2 dfd=dfd name=+0(filename):ustring flags=+0(how):x64[2]",
    "f:leaves do_sys_openat2%return fd=$retval",
    "t:passes sched_process_exec pid=p->pid old=old_pid",
)

# Linux 6.1 has no fprobes.
OPTIONS = f"""options=({" ".join(f"--probe '{probe}'" for probe in PROBES)})
        grep -q 'func-name.*%return' $TRACING/README &&
            options+=({" ".join(f"--probe '{probe}'" for probe in FPROBES)})"""
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


def test_events_of_probes_are_printed_as_the_kernel_prints_them(each_guest: Guest) -> None:
    result = each_guest.run(
        f"""{PRELUDE}
        settings > "$OUT/before"
        {OPTIONS}
        begin_recording "${{options[@]}}" {FILTER} || exit 1
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
    fprobes = ("enters", "leaves", "passes") if "f:lttd/enters" in result.output else ()
    for name in ("opens", "opened", "asks", "asked", "execs", "lttdlat", *fprobes):
        assert any(f": {name}: " in line for line in kernels), (name, result.output)
    assert shown(out / "trace") == kernels
    assert (out / "after").read_text() == (out / "before").read_text(), result.output


def test_the_start_after_a_kill_drains_and_then_removes_the_probes(each_guest: Guest) -> None:
    result = each_guest.run(
        f"""{PRELUDE}
        settings > "$OUT/before"
        {OPTIONS}
        begin_recording "${{options[@]}}" {FILTER} || exit 1
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
    ("probe", "says"),
    [
        ("p:bad no_such_symbol_at_all", "Invalid probed address or symbol: "),
        *(
            pytest.param(*each, marks=pytest.mark.nightly)
            for each in (
                ("p:bad vfs_read+1", "probe lttd:bad: "),
                ("p:bad vfs_read n=%nosuch", "Invalid register name: "),
                ("e:bad sched.no_such_event", "probe lttd:bad: "),
                ("s:bad nosuchtype x", "probe synthetic:bad: "),
            )
        ),
    ],
)
def test_the_probes_before_a_refused_one_are_removed(
    each_guest: Guest, probe: str, says: str
) -> None:
    assert_refused(each_guest, [probe], 2, says)


@pytest.mark.nightly
def test_fprobes_are_refused_before_linux_6_5(guest: Guest) -> None:
    says = "this kernel has no fprobes (CONFIG_FPROBE_EVENTS)"
    assert_refused(guest, ["f:bad vfs_read"], 77, says)


@pytest.mark.nightly
def test_an_fprobe_of_no_function_is_refused(trixie_guest: Guest) -> None:
    assert_refused(trixie_guest, ["f:bad no_such_symbol_at_all"], 2, "probe lttd:bad: ")


@pytest.mark.nightly
def test_linux_6_12_takes_one_probe_of_a_tracepoint(trixie_guest: Guest) -> None:
    probes = ["t:good sched_process_exec", "t:bad sched_process_exec"]
    assert_refused(trixie_guest, probes, 2, "a tracepoint takes one probe, and another has it")


def assert_refused(guest: Guest, probes: Sequence[str], status: int, says: str) -> None:
    options = " ".join(
        f"--probe '{probe}'" for probe in ("p:one vfs_write", "s:two u64 x", *probes)
    )
    result = guest.run(
        f"""{PRELUDE}
        settings > "$OUT/before"
        "$PYTHON" -m lttd -t /tmp/trace --duration 1s --summary none \\
            {options}
        echo status $?
        settings > "$OUT/after"
        echo '-:mine/keep' >> $TRACING/dynamic_events
        """,
        300,
    ).expect(0)
    assert f"status {status}\n" in result.output
    assert says in result.output
    assert len(result.output.splitlines()) == 2, result.output
    assert (result.out_dir / "after").read_text() == (result.out_dir / "before").read_text()
