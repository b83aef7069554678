"""Tracers on a kernel that has them: what lttv prints is what the kernel's trace file has."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.kernel.guest import Guest

pytestmark = [pytest.mark.guest, pytest.mark.slow]

PROLOGUE = """
cd $CHECKOUT
lttd="$PYTHON -m lttd" lttv="$PYTHON -m lttd.view" top=/sys/kernel/tracing
dump() {
    cd $top; tail -n +1 current_tracer set_ftrace_filter set_ftrace_notrace max_graph_depth \
        tracing_on set_event > "$1"; ls instances >> "$1"; cd $CHECKOUT
}
rm -rf /tmp/[a-z] && trap 'rm -rf /tmp/[a-z]' EXIT
dump "$OUT/before"
"""
# With abstime a line of the kernel is: ` 6.501546 |   1)               |  schedule() {`
KERNELS = re.compile(r" *(\d+\.\d+) \| +(\d+)\) (.*)")
OURS = re.compile(r".{16,}-\d+ +\[(\d+)\] (\S+) +(\d+\.\d+): (\w+): (.*)")
COMMENT = re.compile(r" +\|  +/\* (\w+: .*) \*/")


def of_kernel(lines: Iterable[str]) -> dict[int, list[str]]:
    """Return the records of each CPU in the kernel's trace file."""
    found = defaultdict(list)
    for line in lines:
        if match := KERNELS.fullmatch(line):
            comment = COMMENT.fullmatch(match[3])
            found[int(match[2])].append(comment[1] if comment else match[3])
    return found


def of_lttv(lines: Iterable[str]) -> dict[int, list[str]]:
    found = defaultdict(list)
    for line in lines:
        match = OURS.fullmatch(line)
        assert match, line
        graph = match[4].startswith("funcgraph")
        text = match[5].removeprefix(" ") if match[4] == "funcgraph_exit" else match[5]
        found[int(match[1])].append(text if graph else f"{match[4]}: {text}")
    return found


def test_function_graph_is_printed_as_in_the_kernels_trace_file(each_guest: Guest) -> None:
    result = each_guest.run(
        f"""
        {PROLOGUE}
        for each in 'vfs_*' do_filp_open schedule 'ksys_*'; do
            echo "$each" >> $top/set_ftrace_filter
        done
        echo 4096 > $top/buffer_size_kb
        echo 1 > $top/options/funcgraph-abstime
        echo 1 > $top/events/sched/sched_switch/enable
        echo function_graph > $top/current_tracer
        for _ in 1 2 3 4 5; do cat /proc/self/stat > /dev/null; ls / > /dev/null; done
        echo 0 > $top/tracing_on
        cp $top/trace "$OUT/kernel"
        # The tracer of somebody else: what is in the ring is recorded, and stays set.
        $lttd -t /tmp/a --source ftrace:/ --duration 300ms --summary none
        cat $top/current_tracer
        $lttv text /tmp/a > "$OUT/lttv"
        $lttv check --events /tmp/a >&2
        echo 0 > $top/events/sched/sched_switch/enable
        echo nop > $top/current_tracer
        echo > $top/set_ftrace_filter
        echo 0 > $top/options/funcgraph-abstime
        echo 1408 > $top/buffer_size_kb
        echo 1 > $top/tracing_on
        dump "$OUT/after"
    """,
        timeout_s=400,
    )
    result.expect(0)
    assert "function_graph" in result.output
    kernel = of_kernel((result.out_dir / "kernel").read_text().splitlines())
    ours = of_lttv((result.out_dir / "lttv").read_text().splitlines())
    assert sum(map(len, kernel.values())) > 1000
    assert any("();" in line for lines in kernel.values() for line in lines)
    assert any(line.endswith("}") for lines in kernel.values() for line in lines)
    for cpu, lines in kernel.items():
        # lttd turned tracing on, so there is more than the file has.
        assert ours[cpu][: len(lines)] == lines
    assert_same(result.out_dir, "after")


def assert_same(directory: Path, *names: str) -> None:
    before = (directory / "before").read_text()
    assert {(directory / name).read_text() for name in names} == {before}


def test_a_tracer_is_set_with_its_functions_and_everything_is_put_back(each_guest: Guest) -> None:
    result = each_guest.run(
        f"""
        {PROLOGUE}
        $lttd -t /tmp/b --source ftrace:/ --tracer function_graph --summary none \
            --function 'vfs_*,do_filp_open' --function do_sys_openat2 --notrace vfs_write \
            --graph-depth 2 -- tail -n +1 $top/max_graph_depth $top/set_ftrace_notrace > "$OUT/set"
        dump "$OUT/after_b"
        $lttv text /tmp/b > "$OUT/graph"
        $lttd -t /tmp/c --tracer function --function 'vfs_*' --summary none \
            -- cat /proc/self/stat > /dev/null
        $lttv text /tmp/c > "$OUT/calls"
        dump "$OUT/after_c"
    """,
        timeout_s=400,
    )
    result.expect(0)
    assert re.search(r"max_graph_depth <==\n2\n.*\nvfs_write$", settings(result.out_dir), re.DOTALL)
    graph = (result.out_dir / "graph").read_text()
    assert re.search(r"funcgraph_entry: +\|  do_sys_openat2\(\) \{\n", graph)
    assert re.search(r"funcgraph_entry: .* us +\|    do_filp_open\(\);\n", graph)
    assert "vfs_write(" not in graph
    calls = (result.out_dir / "calls").read_text().splitlines()
    assert all(": function: vfs_" in line for line in calls)
    reads = [line for line in calls if line.endswith("function: vfs_read <-ksys_read")]
    assert reads, (len(calls), Counter(line.split(": function: ")[1] for line in calls))
    assert_same(result.out_dir, "after_b", "after_c")


def settings(directory: Path) -> str:
    return (directory / "set").read_text().strip()


@pytest.mark.nightly
def test_linux_6_1_has_function_graph_at_the_top_level_only(guest: Guest) -> None:
    script = 'cd $CHECKOUT; "$PYTHON" -m lttd -t /tmp/d --duration 1s --tracer function_graph'
    assert (
        "lttd: tracer function_graph: this kernel has it at the top level only; record that:"
        " --source ftrace:/\n"
    ) in guest.run(script, 120).expect(77).output


@pytest.mark.nightly
def test_refusals_are_one_line_and_leave_nothing(each_guest: Guest) -> None:
    result = each_guest.run(
        f"""
        {PROLOGUE}
        try() {{ $lttd -t /tmp/d --duration 1s "$@"; echo "status $?"; }}
        exec 2>&1
        try --tracer function --function vfs_read,vfs_raed
        try --source ftrace:/ --tracer function --function vfs_read,vfs_raed
        sleep 100 < $top/per_cpu/cpu0/trace_pipe_raw &
        sleep 0.3
        echo unread > $top/trace_marker
        try --source ftrace:/ --tracer function --function vfs_read
        kill $!
        dump "$OUT/after"
    """,
        timeout_s=400,
    )
    result.expect(0)
    unknown = (
        "lttd: no function of this kernel that can be traced matches 'vfs_raed'; did you mean"
        " vfs_read?"
    )
    lines = [re.sub(r"\(pid \d+\)", "(pid N)", line) for line in result.output.splitlines()]
    assert [line for line in lines if line.startswith(("lttd: ", "status "))] == [
        *(unknown, "status 2") * 2,
        "lttd: /sys/kernel/tracing/current_tracer: sleep (pid N) reads this instance: end that",
        "status 1",
    ]
    assert_same(result.out_dir, "after")


@pytest.mark.nightly
def test_after_a_kill_the_next_start_puts_back_the_tracer(each_guest: Guest) -> None:
    result = each_guest.run(
        f"""
        {PROLOGUE}
        $lttd -t /tmp/e --source ftrace:/ --tracer function_graph --function 'vfs_*' \
            --graph-depth 2 --duration 100s &
        for _ in $(seq 300); do
            [ "$(cat $top/current_tracer)" = function_graph ] && break
            sleep 0.1
        done
        sleep 1
        kill -9 $!
        wait
        cat $top/current_tracer $top/max_graph_depth
        # A recording of something else leaves what is in the ring, and the functions chosen.
        $lttd -t /tmp/f --duration 300ms --events sched:sched_process_hang --summary none
        wc -l < $top/set_ftrace_filter
        $lttd -t /tmp/e --append --source ftrace:/ --duration 300ms --summary none
        dump "$OUT/after"
        $lttv text /tmp/e | grep -c 'vfs_.*();'
    """,
        timeout_s=400,
    )
    result.expect(0)
    assert "function_graph\n2\n" in result.output
    assert "would lose its" in result.output
    numbers = [int(line) for line in result.output.splitlines() if line.isdigit()]
    assert numbers[1] > 10
    assert numbers[-1] > 0
    assert_same(result.out_dir, "after")


@pytest.mark.nightly
def test_symbols_of_a_module_that_comes_while_recording_are_saved(each_guest: Guest) -> None:
    result = each_guest.run(
        """
        cd $CHECKOUT
        modprobe -r null_blk
        $PYTHON -m lttd -t /tmp/m --tracer function --function vfs_open --summary none \
            -- modprobe null_blk
        grep -c '\\[null_blk\\]' /tmp/m/*/tracefs/kallsyms /proc/kallsyms | sed 's/.*://'
        modprobe -r null_blk
    """,
        timeout_s=300,
    )
    result.expect(0)
    saved, there = map(int, result.output.split()[-2:])
    assert saved == there > 0


@pytest.mark.nightly
def test_trace_cmd_and_lttd_record_the_same_calls(each_guest: Guest) -> None:
    result = each_guest.run(
        """
        cd $CHECKOUT
        work="dd if=/dev/zero of=/dev/null bs=1 count=500 status=none"
        for round in 1 2 3; do
            [ $round = 3 ] && theirs="--max-graph-depth 1" ours="--graph-depth 1"
            trace-cmd record -q -b 4096 -o /tmp/cmd.dat -p function_graph -l vfs_read \\
                -l 'ksys_*' $theirs $work
            trace-cmd report /tmp/cmd.dat > "$OUT/trace-cmd$round"
            rm -rf /tmp/n
            $PYTHON -m lttd -t /tmp/n --source ftrace:/ --tracer function_graph --summary none \
                --buffer-size 4M --function 'vfs_read,ksys_*' $ours -- $work
            $PYTHON -m lttd.view text /tmp/n > "$OUT/lttd$round"
        done
        echo 0 > /sys/kernel/tracing/max_graph_depth
    """,
        timeout_s=400,
    )
    result.expect(0)
    for number in (1, 2, 3):
        theirs, ours = (
            Counter(calls_of((result.out_dir / f"{name}{number}").read_text()))
            for name in ("trace-cmd", "lttd")
        )
        # lttd's child calls others, too, before it becomes dd.
        assert ours["ksys_write"] == theirs["ksys_write"] == 500
        assert theirs.keys() <= ours.keys()
        if number < 3:
            assert ours["vfs_read"] >= theirs["vfs_read"] >= 500
        else:  # calls of system calls only
            assert ours["vfs_read"] < 100 > theirs["vfs_read"]
            assert ours["ksys_read"] >= theirs["ksys_read"] >= 500


def calls_of(text: str) -> list[str]:
    """Return the functions that the task which wrote most called, once for each entry."""
    entries = re.findall(r"-(\d+) +\[.*funcgraph_entry:.*\|\s+(\w+)\(\)", text)
    ((writer, _),) = Counter(pid for pid, name in entries if name == "ksys_write").most_common(1)
    return [name for pid, name in entries if pid == writer]
