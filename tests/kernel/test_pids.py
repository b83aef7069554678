"""Record by process, and write marks, on another real kernel."""

import re

import pytest

from tests.kernel.guest import Guest, GuestResult

pytestmark = [pytest.mark.guest, pytest.mark.slow]

BEGIN = r"""
export PYTHONPATH=$CHECKOUT
lttd() { "$PYTHON" -m lttd "$@"; }
lttv() { "$PYTHON" -m lttd.view "$@"; }
cd /tmp && rm -rf t && unset RUNTIME_DIRECTORY
"""
# A tree of three levels, beside a neighbour that forks all the time.
TREE = r"""
(while :; do /bin/true; done) & neighbour=$!
events='sched:sched_process_exec,sched:sched_process_fork,syscalls:sys_enter_openat,sched:sched_switch'
lttd -t t --buffer-size 8M --summary none --events "$events" --only-command -- \
    sh -c 'sh -c "sleep 0; sleep 0" & sleep 0; wait'
kill $neighbour
lttv text t > "$OUT/text"
"""
MARKS = r"""
"$PYTHON" -m lttd -t t --markers --events sched:sched_process_hang --summary none \
    > /dev/null 2> "$OUT/stderr" & pid=$!
for _ in $(seq 600); do lttd status -t t > /dev/null 2>&1 && break; sleep 0.1; done
lttd mark -t t 'from the client'
lttd mark -t t "$(printf '%5000s' x)" 2> "$OUT/long"; echo "status $?"
echo 'from the top' > /sys/kernel/tracing/trace_marker
kill $pid; wait $pid
lttv text t | grep -o 'from the .*' > "$OUT/text"
ls /sys/kernel/tracing/instances > "$OUT/instances"
"""
# The same of functions, by --pid with children at the top level, and without lttd's own threads.
PREPARE = r"""
top=/sys/kernel/tracing
dump() {
    (cd $top; tail -n +1 set_ftrace_pid set_ftrace_notrace_pid set_event_pid current_tracer \
        set_ftrace_filter tracing_on options/{function,event}-fork; ls instances) > "$OUT/$1"
}
callers() {
    lttv text $1 | grep -E ': func(tion|graph_entry):' | sed 's/ *\[.*//' | sort | uniq -c
}
function='--function vfs_read,vfs_open --buffer-size 4M --summary none'
dump before
(while sleep 0.3; do /bin/cat /etc/hostname > /dev/null; done) & neighbour=$!
sh -c 'while sleep 0.3; do /bin/true; done' & loop=$!
"""
FUNCTIONS = r"""
lttd -t t/a --tracer function $function --only-command -- sh -c '/bin/ls / > /dev/null; :'
dump after_a
lttd -t t/b --source ftrace:/ --tracer function_graph $function --pid $loop --follow-fork \
    --duration 1s
dump after_b
lttd -t t/c --tracer function $function --no-trace-self --duration 1s
kill $neighbour $loop
for each in a b c; do callers t/$each > "$OUT/callers_$each"; done
"""
KILLED = r"""
(exec "$PYTHON" -m lttd -t t/d --source ftrace:/ --tracer function $function --pid $loop \
    --follow-fork) & killed=$!
until grep -q function $top/current_tracer; do sleep 0.2; done
for _ in $(seq 100); do [ -s t/d/*/trace.json ] && break; sleep 0.2; done
sleep 1; kill -9 $killed; wait $killed
dump killed
# With the ring unread, the tracer and its list stay; whoever records it puts both back.
lttd -t t/e --duration 100ms --events sched:sched_process_hang --summary none
dump unread
lttd -t t/d --append --source ftrace:/ --duration 100ms --summary none
dump recovered
kill $neighbour $loop
callers t/d > "$OUT/callers_d"
"""


@pytest.mark.nightly
def test_functions_are_limited_to_the_same_tasks_and_everything_is_put_back(guest: Guest) -> None:
    read = files_of(guest.run(BEGIN + PREPARE + FUNCTIONS, 400).expect(0))
    assert read["after_a"] == read["after_b"] == read["before"]
    for name, there in (("a", "ls"), ("b", "true")):
        callers = callers_in(read[f"callers_{name}"])
        assert there in callers, callers
        assert "cat" not in callers, callers
    callers = callers_in(read["callers_c"])
    assert "cat" in callers, callers
    assert "python3" not in callers, callers


@pytest.mark.nightly
def test_after_a_kill_the_list_of_functions_stays_with_its_tracer_and_goes_with_it(
    guest: Guest,
) -> None:
    read = files_of(guest.run(BEGIN + PREPARE + KILLED, 400).expect(0))
    for name in ("killed", "unread"):  # the ring held events
        assert "no pid" not in read[name].partition("==> set_ftrace_notrace_pid")[0], name
        assert "\nfunction\n" in read[name], name
    assert read["recovered"] == read["before"]
    callers = callers_in(read["callers_d"])
    assert "true" in callers, callers
    assert "cat" not in callers, callers


def files_of(result: GuestResult) -> dict[str, str]:
    return {path.name: path.read_text() for path in result.out_dir.iterdir() if path.is_file()}


def callers_in(text: str) -> list[str]:
    return re.findall(r"\d+ +(\S.*)-\d+$", text, re.MULTILINE)


@pytest.mark.nightly
def test_only_command_has_its_tree_and_others_in_scheduler_lines_only(each_guest: Guest) -> None:
    result = each_guest.run(BEGIN + TREE, 240).expect(0)
    lines = (result.out_dir / "text").read_text().splitlines()
    execs = [line for line in lines if "sched_process_exec:" in line]
    assert sum("/sleep" in line for line in execs) == 3, execs
    assert all("/true" not in line for line in execs)
    tree = {int(each) for line in execs for each in re.findall(r" pid=(\d+)", line)}
    tree |= {int(each) for line in lines for each in re.findall(r"child_pid=(\d+)", line)}
    for line in lines:
        if int(re.findall(r"-(\d+) +\[", line)[0]) not in tree:
            (next_pid,) = re.findall(r"sched_switch: .*next_pid=(\d+)", line)
            assert int(next_pid) in tree, line


@pytest.mark.nightly
def test_marks_are_taken_as_far_as_this_kernel_can(each_guest: Guest) -> None:
    result = each_guest.run(BEGIN + MARKS, 240).expect(0)
    copies = each_guest.run("test -e /sys/kernel/tracing/options/copy_trace_marker").status == 0
    expected = ["from the client", *(["from the top"] if copies else [])]
    assert (result.out_dir / "text").read_text().splitlines() == expected
    stderr = (result.out_dir / "stderr").read_text()
    assert copies or "this kernel cannot copy marks of the top level into an instance" in stderr
    assert "status 1" in result.output
    # Linux 6.1 takes 1,024 bytes, 6.12 takes 4,054.
    assert re.search(r"cut after [14],0.4 of its 5,000", (result.out_dir / "long").read_text())
    assert (result.out_dir / "instances").read_text() == ""
