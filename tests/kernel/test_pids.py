"""Record by process, and write marks, on another real kernel."""

import re

import pytest

from tests.kernel.guest import Guest

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
lttd mark -t t "$(printf '%2000s' x)" 2> "$OUT/long"; echo "status $?"
echo 'from the top' > /sys/kernel/tracing/trace_marker
kill $pid; wait $pid
lttv text t | grep -o 'from the .*' > "$OUT/text"
ls /sys/kernel/tracing/instances > "$OUT/instances"
"""


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
    if not copies:
        assert "status 1" in result.output
        assert "cut after 1,024 of its 2,000 bytes" in (result.out_dir / "long").read_text()
    assert (result.out_dir / "instances").read_text() == ""
