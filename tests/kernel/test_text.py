"""lttv prints stacks, marks and graphs of calls of another kernel as its ``trace`` file does."""

import pytest

from tests.kernel.guest import Guest
from tests.kernel.test_tracers import of_kernel, of_lttv
from tests.test_kernel_agreement import lines_of

pytestmark = [pytest.mark.guest, pytest.mark.slow, pytest.mark.nightly]

BEGIN = """
cd $CHECKOUT
place=/sys/kernel/tracing/instances/mine
rm -rf /tmp/t; mkdir $place && trap 'rm -rf /tmp/t; rmdir $place' EXIT
echo 0 > $place/tracing_on; echo 4096 > $place/buffer_size_kb
"""
END = """
echo 0 > $place/tracing_on
cp $place/trace "$OUT/kernel"
"$PYTHON" -m lttd -t /tmp/t --source ftrace:mine --duration 300ms --summary none
"$PYTHON" -m lttd.view text /tmp/t > "$OUT/lttv"
"$PYTHON" -m lttd.view check --events /tmp/t
"""


def test_stacks_and_marks_are_printed_as_in_the_kernels_trace_file(each_guest: Guest) -> None:
    result = each_guest.run(
        f"""{BEGIN}
        echo 1 > $place/options/stacktrace; echo 1 > $place/options/userstacktrace
        for event in sched_process_exec sched_process_fork sched_switch; do
            echo 1 > $place/events/sched/$event/enable
        done
        echo 'stacktrace:7' > $place/events/sched/sched_waking/trigger
        echo 1 > $place/tracing_on
        for i in 1 2 3; do cat /etc/hostname > /dev/null; echo "mark $i" > $place/trace_marker; done
        printf 'without an end' > $place/trace_marker
        printf 'of two\\nlines \\t\\001' > $place/trace_marker
        printf '%0700d' 7 > $place/trace_marker
        printf '\\007\\0\\0\\0abcde' > $place/trace_marker_raw
        {END}
    """,
        900,
    ).expect(0)
    kernel, ours = (
        lines_of((result.out_dir / name).read_text(errors="replace")) for name in ("kernel", "lttv")
    )
    types = {line.event for lines in kernel.values() for line in lines}
    assert types >= {"kernel_stack", "user_stack", "tracing_mark_write", "raw_data"}, types
    for cpu, lines in kernel.items():
        # lttd turned tracing on, so there is more than the file has.
        assert ours[cpu][: len(lines)] == lines


def test_graphs_of_an_instance_are_printed_as_in_its_trace_file(trixie_guest: Guest) -> None:
    result = trixie_guest.run(
        f"""{BEGIN}
        for each in 'vfs_*' do_filp_open schedule; do echo "$each" >> $place/set_ftrace_filter; done
        echo 1 > $place/options/funcgraph-abstime
        echo function_graph > $place/current_tracer
        echo 1 > $place/tracing_on
        for _ in 1 2 3 4 5; do cat /proc/self/stat > /dev/null; ls / > /dev/null; done
        {END}
    """,
        900,
    ).expect(0)
    kernel = of_kernel((result.out_dir / "kernel").read_text().splitlines())
    ours = of_lttv((result.out_dir / "lttv").read_text().splitlines())
    assert sum(map(len, kernel.values())) > 500
    for cpu, lines in kernel.items():
        assert ours[cpu][: len(lines)] == lines
