"""Filters, triggers of events and stacks on another kernel: set, refused in words, put back."""

import pytest

from tests.kernel.guest import Guest

pytestmark = [pytest.mark.guest, pytest.mark.slow]

PROLOGUE = """
cd $CHECKOUT
lttd="$PYTHON -m lttd" lttv="$PYTHON -m lttd.view" other=/sys/kernel/tracing/instances/other
dump() {
    cd $other/events/sched
    tail -n +1 sched_process_{exec,exit,fork}/{filter,enable} > "$1"
    grep -v '^#' sched_process_{exec,exit,fork}/trigger >> "$1"
    cd $other; tail -n +1 set_event options/{stacktrace,userstacktrace,irq-info} >> "$1"
    cd $CHECKOUT
}
rm -rf /tmp/[abc]
mkdir $other && trap 'rmdir $other; rm -rf /tmp/[abc]' EXIT
echo 'pid != 4194303' > $other/events/sched/sched_process_exit/filter
echo 'stacktrace if child_pid == 4194303' > $other/events/sched/sched_process_fork/trigger
echo 1 > $other/options/stacktrace
dump "$OUT/before"
"""
ASKED = """--source ftrace:other --events sched:sched_process_e* --user-stack --option noirq-info
    --filter 'sched_process_exit: comm == "true" || comm == "cat"'
    --event-trigger 'sched_process_exec: enable_event:sched:sched_kthread_stop'
    --event-trigger 'sched_process_exit: traceoff:1 if comm == "cat"'"""


@pytest.mark.nightly
def test_filters_triggers_and_stacks_are_recorded_and_put_back(each_guest: Guest) -> None:
    asked = " ".join(ASKED.split())
    result = each_guest.run(
        f"""
        {PROLOGUE}
        load='/bin/true; ls / > /dev/null; cat /dev/null; /bin/true; :'
        $lttd -t /tmp/a {asked} --summary none -- sh -c "$load"
        $lttv text /tmp/a > "$OUT/text"
        $lttv info /tmp/a
        $lttv check --events /tmp/a
        dump "$OUT/after"
        (exec $lttd -t /tmp/b {asked} --summary none) & pid=$!
        until grep -q exit $other/set_event; do sleep 0.2; done
        sleep 3; kill -9 $pid; wait $pid; dump "$OUT/killed"
        echo > $other/trace
        $lttd -t /tmp/c --duration 100ms --summary none
        dump "$OUT/recovered"
    """,
        timeout_s=200,
    )
    result.expect(0)
    read = {path.name: path.read_text() for path in result.out_dir.iterdir() if path.is_file()}
    assert read["after"] == read["before"]
    assert read["killed"] != read["before"]
    assert read["recovered"] == read["before"]
    assert "as a traceoff trigger asks for (sched:sched_process_exit)" in result.output
    assert "event-trigger sched_process_exit: traceoff:1" in result.output
    lines = read["text"].splitlines()
    exits = [line for line in lines if ": sched_process_exit: " in line]
    assert exits
    assert all("comm=true" in line or "comm=cat" in line for line in exits)
    assert "comm=cat" in exits[-1], "it stopped the kernel"
    stacks = [line for line in lines if "stack: <" in line]
    assert {line.partition("stack: ")[2] for line in stacks} == {
        "<stack trace>",
        "<user stack trace>",
    }
    assert any(line.startswith(" => do_exit") for line in lines)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--filter 'sched_switch: nofield == 3'", 'sched_switch: Field not found: "nofield == 3"'),
        ("--filter 'sched_switch: (prev_pid == 3'", "sched_switch: Too many '('"),
        ("--filter 'sched_switch: prev_pid == 3 && && next_pid == 4'", "sched_switch: "),
        (
            "--event-trigger 'sched_switch: traceoff if x == 3'",
            "event-trigger sched:sched_switch: ",
        ),
        ("--event-trigger 'sched_switch: snapshot'", "would take the unread events out"),
        ("--option nosuch", "this kernel has none of this name here"),
    ],
)
def test_what_this_kernel_refuses_is_one_line_and_status_2(
    each_guest: Guest, options: str, says: str
) -> None:
    result = each_guest.run(
        f'cd $CHECKOUT; "$PYTHON" -m lttd -t /tmp/refused --duration 1s {options}; status=$?; '
        "ls /sys/kernel/tracing/instances; exit $status",
        timeout_s=60,
    )
    result.expect(2)
    lines = [line for line in result.output.splitlines() if line]
    assert says in lines[0]
    assert [line for line in lines[1:] if line.startswith("lttd")] == []
