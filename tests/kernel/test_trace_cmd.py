"""With the equivalent options, trace-cmd and lttd record the same at the same time.

trace-cmd records the top level, lttd an instance of its own.  Alternating runs of function_graph,
which Linux 6.1 has at the top level only, are in test_tracers.py.

Rule: the order of events is not compared: an interrupt that comes while the kernel writes an event
into one ring after another has its own event before it in one of them, and after it in another.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.kernel.guest import Guest, GuestResult
from tests.kernel.test_probes import PROBES

pytestmark = [pytest.mark.guest, pytest.mark.slow, pytest.mark.nightly]

BEGIN = r"""
cd $CHECKOUT
lttd="$PYTHON -m lttd" top=/sys/kernel/tracing
clean() { rm -rf /tmp/t /tmp/t.dat /tmp/go /tmp/prload /tmp/load; }
clean; trap clean EXIT; cp /bin/cat /tmp/prload; mkfifo /tmp/go
# A tree of tasks that waits until both record.
echo 'read -r x < /tmp/go
for i in 1 2 3; do /bin/true; done
(/tmp/prload /etc/hostname > /dev/null; /tmp/prload /no/such; exec /bin/true) & wait' > /tmp/load
begin() {  # OPTION... -- OPTION...: of lttd, and of trace-cmd
    local ours=()
    while [ "$1" != -- ]; do ours+=("$1"); shift; done; shift
    $lttd -t /tmp/t --summary none "${ours[@]}" & lttd_pid=$!
    until $lttd status -t /tmp/t > /dev/null 2>&1; do kill -0 $lttd_pid || exit 1; sleep 0.2; done
    echo 0 > $top/tracing_on
    trace-cmd record -q -C mono -o /tmp/t.dat "$@" & trace_cmd_pid=$!
    until [ "$(cat $top/tracing_on)" = 1 ]; do kill -0 $trace_cmd_pid || exit 1; sleep 0.2; done
    sleep 1
}
end() {
    kill -INT $trace_cmd_pid; kill -TERM $lttd_pid; wait $trace_cmd_pid; wait $lttd_pid
    texts
    trace-cmd reset > /dev/null 2>&1
}
texts() {
    trace-cmd report -N /tmp/t.dat > "$OUT/trace-cmd"
    "$PYTHON" -m lttd.view text /tmp/t > "$OUT/lttd"
}
"""
EXEC = "sched_process_exec"
EVENTS = ("sched:sched_switch", "sched:sched_waking", "sched:sched_process_exec")
EVENTS += ("sched:sched_process_fork", "sched:sched_process_exit", "syscalls:sys_enter_openat")
OURS = f"--events {','.join(EVENTS)}"
THEIRS = " ".join(f"-e {event}" for event in EVENTS)
LINE = re.compile(
    r"\s*\S.*?-(?P<pid>\d+)\s+\[(?P<cpu>\d+)\]\s+(?:\S+\s+)?\d+\.\d+: +"
    r"(?P<event>\w+): *(?P<text>.*)"
)


class Event(NamedTuple):
    cpu: int
    pid: int
    name: str
    text: str


def told(file: Path) -> list[Event]:
    """Return the events that are printed, in the order of their time."""
    found = filter(None, map(LINE.fullmatch, file.read_text().splitlines()))
    return [
        Event(int(one["cpu"]), int(one["pid"]), one["event"], bare(one["text"])) for one in found
    ]


def bare(text: str) -> str:
    """Return a text in one spelling.

    trace-cmd writes 0x before pointers, other blanks, ``<--`` before a caller, and no modules.
    """
    text = re.sub(r"\b0x(?=[0-9a-f])", "", " ".join(text.split()))
    return re.sub(r" \[\w+\]", "", text.replace(" <-- ", " <-"))


def both(result: GuestResult) -> tuple[list[Event], list[Event]]:
    """Return the events that lttd recorded, and those that trace-cmd did."""
    return told(result.out_dir / "lttd"), told(result.out_dir / "trace-cmd")


def count_of(events: list[Event], name: str) -> int:
    return sum(event.name == name for event in events)


def assert_same(ours: Iterable[Event], theirs: Iterable[Event]) -> None:
    counts = Counter(ours), Counter(theirs)
    assert (counts[0] - counts[1], counts[1] - counts[0]) == (Counter(), Counter())


def test_a_process_with_its_children_is_the_same_recording(each_guest: Guest) -> None:
    """trace-cmd's -P and -c are lttd's --pid and --follow-fork."""
    result = each_guest.run(
        f"""{BEGIN}
        sh /tmp/load & load=$!
        begin {OURS} --pid $load --follow-fork -- {THEIRS} -P $load -c
        echo > /tmp/go; wait $load; sleep 1
        end
    """,
        900,
    ).expect(0)
    ours, theirs = both(result)
    assert count_of(theirs, EXEC) == 6, result.output
    assert count_of(theirs, "sched_switch") > 6
    assert_same(ours, theirs)


def test_a_command_with_its_children_is_the_same_recording_from_its_exec_on(
    each_guest: Guest,
) -> None:
    """trace-cmd's -F and -c are lttd's --only-command; here lttd's COMMAND is trace-cmd."""
    result = each_guest.run(
        f"""{BEGIN}
        (sleep 20; echo > /tmp/go) &
        $lttd -t /tmp/t --summary none {OURS} --only-command -- \\
            trace-cmd record -q -C mono -o /tmp/t.dat {THEIRS} -F -c sh /tmp/load
        texts
    """,
        900,
    ).expect(0)
    ours, theirs = both(result)
    assert count_of(theirs, EXEC) == 7, result.output
    tree = {event.pid for event in theirs if event.name == EXEC}
    assert_same(*(of_tree_from_exec_on(events, tree) for events in (ours, theirs)))


def of_tree_from_exec_on(events: list[Event], tree: Collection[int]) -> list[Event]:
    """Return the events of a tree of tasks, from the first program that it executes on."""
    its = [event for event in events if event.pid in tree]
    return its[[event.name for event in its].index(EXEC) :]


def test_filters_stacks_and_a_traceoff_are_the_same_recording(each_guest: Guest) -> None:
    """The comparison that this machine's kernel has, too."""
    result = each_guest.run(
        """
        cd $CHECKOUT
        LTTD_NIGHTLY=1 "$PYTHON" -m pytest -q -rs -p no:cacheprovider --basetemp /tmp/beside \\
            tests/test_beside_trace_cmd.py
        status=$?; rm -rf /tmp/beside; exit $status
    """,
        900,
    ).expect(0)
    assert "1 passed" in result.output


def test_excluded_events_and_a_trigger_that_stores_stacks_are_the_same_recording(
    each_guest: Guest,
) -> None:
    """trace-cmd's -v is lttd's --exclude, and -R is --event-trigger."""
    result = each_guest.run(
        f"""{BEGIN}
        begin --events 'sched:sched_process_*' --exclude sched_process_wait \\
            --event-trigger '{EXEC}: stacktrace' -- \\
            -e 'sched:sched_process_*' -e sched:{EXEC} -R stacktrace -v -e sched:sched_process_wait
        sh /tmp/load & load=$!; echo > /tmp/go; wait $load; sleep 1
        end; echo "load $load"
    """,
        900,
    ).expect(0)
    tree = {int(found) for found in re.findall(r"load (\d+)", result.output)}
    ours, theirs = both(result)
    for event in theirs:
        if event.name == "sched_process_fork" and event.pid in tree:
            tree.add(int(event.text.rpartition("child_pid=")[2]))
    ours, theirs = (
        [one._replace(text="") if one.name == "kernel_stack" else one  # its lines follow
         for one in each if one.pid in tree] for each in (ours, theirs)
    )  # fmt: skip
    assert count_of(theirs, EXEC) == count_of(theirs, "kernel_stack") == 7, result.output
    assert not count_of(theirs, "sched_process_wait")
    assert_same(ours, theirs)


def test_probes_are_the_same_recording(each_guest: Guest) -> None:
    """trace-cmd records probes that exist; the same ones are made twice."""
    probes = [probe for probe in PROBES if not probe.startswith("s:")]
    made = "\n".join(
        f"echo '{probe.replace(':', ':tc/', 1)}' >> $top/dynamic_events" for probe in probes
    )
    result = each_guest.run(
        f"""{BEGIN}
        {made}
        begin {" ".join(f"--probe '{probe}'" for probe in probes)} \\
            --filter 'lttd:*: COMM == "prload"' -- -e tc -f 'COMM == "prload"'
        sh /tmp/load & echo > /tmp/go; wait $!; sleep 1
        end  # trace-cmd reset also removes the probes
    """,
        900,
    ).expect(0)
    ours, theirs = both(result)
    for name in ("opens", "opened", "asks", "asked", "execs"):
        assert count_of(theirs, name) >= 2, result.output
    assert_same(*(map(without_place, events) for events in (ours, theirs)))


def without_place(event: Event) -> Event:
    """Return an event without its place, which trace-cmd prints as a number."""
    return event._replace(text=re.sub(r"^\([^)]*\) ", "", event.text))


def test_calls_are_the_same_recording(each_guest: Guest) -> None:
    result = each_guest.run(
        f"""{BEGIN}
        begin --tracer function --function 'vfs_*' --notrace vfs_write -- \\
            -p function -l 'vfs_*' -n vfs_write
        sh /tmp/load & load=$!; echo > /tmp/go; wait $load; sleep 1
        end; echo "load $load"
    """,
        900,
    ).expect(0)
    (load,) = map(int, re.findall(r"load (\d+)", result.output))
    ours, theirs = ([one for one in each if one.pid == load] for each in both(result))
    assert count_of(theirs, "function") > 20
    assert_same(ours, theirs)


def test_graphs_of_calls_are_the_same_recording(trixie_guest: Guest) -> None:
    result = trixie_guest.run(
        f"""{BEGIN}
        begin --tracer function_graph --function 'vfs_*' --function do_sys_openat2 -- \\
            -p function_graph -l 'vfs_*' -l do_sys_openat2
        sh /tmp/load & load=$!; echo > /tmp/go; wait $load; sleep 1
        end; echo "load $load"
    """,
        900,
    ).expect(0)
    (load,) = re.findall(r"load (\d+)", result.output)
    call = re.compile(
        rf".*-{load} +\[(\d+)\].* funcgraph_entry: .*(?:\|  ( *)([\w.]+)\(\)|--> (\S+) \((\d+)\))"
    )
    ours, theirs = (
        Counter(
            (cpu, name or other, int(depth or len(indentation) / 2))
            for line in (result.out_dir / file).read_text().splitlines()
            for cpu, indentation, name, other, depth in call.findall(line)
        )
        for file in ("lttd", "trace-cmd")
    )
    assert sum(theirs.values()) > 20
    assert ours == theirs
