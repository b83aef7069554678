"""Ask lttd.service for everything of docs/CONTROL.md, with the drop-ins of docs/SYSTEMD.md.

Each service is killed once and stopped once; then the kernel's settings are as they were before.
"""

import re

import pytest

from lttd.index import read_gaps
from lttd.subbuffer import Gap, Reason
from lttd.tracedir import SegmentPaths
from tests.kernel.guest import Guest, GuestResult
from tests.kernel.service import run, whole_segments
from tests.running import lttv

pytestmark = [pytest.mark.guest, pytest.mark.slow, pytest.mark.nightly]

CONTROLS = r"""
tracing=/sys/kernel/tracing
lttd=/opt/lttd/bin/lttd
dump() {
    (
        cd $tracing
        ls instances
        for each in dynamic_events set_event current_tracer trace_clock tracing_on buffer_size_kb \
            buffer_percent set_event_pid set_event_notrace_pid trace_options max_graph_depth \
            set_ftrace_filter set_ftrace_notrace set_ftrace_pid; do
            if [ -e $each ]; then echo "== $each"; sed 's/ (expanded.*//' $each; fi
        done
        # A line for each file, and some events have no such file.
        grep . events/*/*/{enable,filter,trigger} 2> /dev/null | grep -v ':#'
    ) > "$1"
}
configure() { cp /opt/lttd/lttd.toml /etc/lttd/; sed -i '/^events/d' /etc/lttd/lttd.toml
    cat >> /etc/lttd/lttd.toml; }
drop_in() { cat > /run/systemd/system/lttd.service.d/controls.conf; systemctl daemon-reload; }
tidy() {
    systemctl stop lttd
    rm -f /run/systemd/system/lttd.service.d/controls.conf /etc/lttd/presets.toml /root/lttdload
    systemctl daemon-reload
    cp /opt/lttd/lttd.toml /etc/lttd/
    kill $(jobs -p)
}
trap 'tidy 2> /dev/null || true' EXIT
errors() { journalctl -u lttd --no-pager -o cat -p err --grep '^lttd: ' | tail -1; }
killed() {  # kill it, and wait until systemd has started it again
    local first=$(show MainPID)
    kill -KILL $first
    restarted $first
}
# A task with a name and children of its own; each line that it reads makes it fork.
cp /bin/bash /tmp/lttdload
mkfifo /tmp/fifo 2> /dev/null || true
begin_load() {
    /tmp/lttdload -c 'while read -r _; do /bin/true; done' <> /tmp/fifo &
    load=$!
}
turn() { for _ in 1 2 3; do echo > /tmp/fifo; done; sleep 2; }
dump "$OUT/before"
"""


def controlled(guest: Guest, script: str) -> GuestResult:
    """Run a script; assert that the settings of tracefs are in the end as they were before."""
    result = run(guest, CONTROLS + script + '\ndump "$OUT/after"; bring\n', 900)
    assert (result.out_dir / "after").read_text() == (result.out_dir / "before").read_text()
    return result


def gaps_of(segment: SegmentPaths) -> list[Gap]:
    return [gap for file in segment.streams.glob("index/*.gaps") for gap in read_gaps(file)]


def text_of(result: GuestResult, *options: str) -> str:
    whole_segments(result.out_dir)
    return lttv("text", result.out_dir / "trace", *options).stdout


ASKED = r"""
asked() {  # EXCLUDE FILTER PID TRIGGER
configure <<U
preset = ["ours"]
events = ["sched:*"]
exclude = ["$1"]
filter = ["sched_switch: $2"]
pid = [$3]
comm = ["lttdload*"]
follow-fork = true
event-trigger = ["$4"]
user-stack = true
option = ["noirq-info"]
tracer = "function"
function = ["vfs_open"]
markers = true
U
}
state() {  # FILE
    (
        cd $instances/lttd-*
        cat events/sched/sched_switch/filter
        grep -v '#' events/sched/sched_process_{exec,fork}/trigger
        cat options/{irq-info,userstacktrace,event-fork} current_tracer | xargs
        for each in first second load; do
            if grep -wq ${!each} set_event_pid; then echo "listed: $each"; fi
        done
        echo "$(grep -c sched_stat_ set_event) of sched_stat_*"
        grep signal: set_event
        cat set_ftrace_filter
    ) > "$1"
}
"""
# Everything that needs no drop-in: a start, a reload, a kill and a stop.
AS_SHIPPED = r"""
printf '[ours]\nevents = ["signal:signal_generate"]\n' > /etc/lttd/presets.toml
begin_load
sleep 1000 & first=$!
sleep 1000 & second=$!
asked 'sched_stat_*' 'prev_pid != 4194303' $first 'sched_process_exec: stacktrace if pid > 1'
systemctl start lttd
state "$OUT/started"
turn
$lttd mark 'of root'
who="setpriv --reuid 64999 --regid 64999"
$who --groups $(getent group lttd | cut -d: -f3) $lttd mark 'of a member'
! $who --clear-groups $lttd mark 'of somebody'
asked 'sched_process_hang' 'prev_pid != 4194302' $second \
    'sched_process_fork: enable_event:sched:sched_kthread_stop if child_pid == 4194303'
systemctl reload lttd
state "$OUT/reloaded"
turn
killed
state "$OUT/again"
turn
$lttd mark 'of the end'
systemctl stop lttd
show Result
"""


def test_everything_that_needs_no_drop_in_is_recorded_reloaded_and_put_back(
    service_guest: Guest,
) -> None:
    result = controlled(service_guest, ASKED + AS_SHIPPED)
    assert result.output.splitlines()[-1] == "success"
    assert "only root and members of the group lttd may use it" in result.output
    started, reloaded, again = (
        (result.out_dir / name).read_text() for name in ("started", "reloaded", "again")
    )
    assert started.splitlines() == [
        "prev_pid != 4194303",
        "events/sched/sched_process_exec/trigger:stacktrace:unlimited if pid > 1",
        *("0 1 1 function", "listed: first", "listed: load", "0 of sched_stat_*"),
        *("signal:signal_generate", "vfs_open"),
    ]
    assert reloaded.splitlines() == [
        "prev_pid != 4194302",
        "events/sched/sched_process_fork/trigger:"
        "enable_event:sched:sched_kthread_stop:unlimited if child_pid == 4194303",
        *("0 1 1 function", "listed: second", "listed: load", "5 of sched_stat_*"),
        *("signal:signal_generate", "vfs_open"),
    ]
    assert again == reloaded
    text = text_of(result)
    marks = re.findall(r": (of .*)$", text, re.MULTILINE)
    assert marks == ["of root", "of a member", "of the end"]
    for part in ("sched_process_exec: filename=/bin/true", ": function: ", "kernel_stack: "):
        assert part in text, part
    # Between two reloads nothing is missing; what a kill loses is counted.
    reasons = {gap.reason for segment in whole_segments(result.out_dir) for gap in gaps_of(segment)}
    assert reasons <= {Reason.KILLED}


# -- with the drop-ins of docs/SYSTEMD.md

PROBES = r"""
kinds=('p:lttdk do_sys_openat2 file=+0($arg2):ustring' 'r:lttdr do_sys_openat2 fd=$retval:s32'
    'p:lttdu /root/lttdload:0x'$entry 'e:lttde sched.sched_process_exec pid=$pid:s32'
    's:lttds pid_t pid')
if grep -q '<func-name>\[%return\]' $tracing/README; then
    kinds+=('f:lttdf vfs_fsync_range' 't:lttdt sched_process_exec')
fi
"""
WITH_PROBES = (
    r"""
cp /bin/true /root/lttdload
entry=$(od -An -tx8 -j24 -N8 /root/lttdload | tr -d ' ')
"""
    + PROBES
    + r"""
echo "probe = [$(printf '"%s", ' "${kinds[@]}")]" | configure
doctor="ExecStartPre=-$lttd doctor --config /etc/lttd/lttd.toml --trace-dir /var/lib/lttd/trace"
printf '[Service]\n%s\n' "$doctor" | drop_in
! systemctl start lttd
show ExecMainStatus; errors
printf '[Service]\nReadWritePaths=-/sys/kernel/tracing/dynamic_events\n' | drop_in
! systemctl start lttd
show ExecMainStatus; errors
drop_in <<U
[Service]
$doctor
ReadWritePaths=-/sys/kernel/tracing/dynamic_events
ProtectHome=tmpfs
BindReadOnlyPaths=/root/lttdload
U
journalctl -u lttd --no-pager -o cat > "$OUT/refused"
systemctl start lttd
grep -c lttd $tracing/dynamic_events
/root/lttdload
killed
grep -c lttd $tracing/dynamic_events
/root/lttdload
systemctl stop lttd
show Result
echo "${#kinds[@]}"
"""
)


def test_probes_need_the_drop_in_that_the_error_names(service_guest: Guest) -> None:
    result = controlled(service_guest, WITH_PROBES)
    *lines, kinds = result.output.splitlines()
    numbers = [line for line in lines if line.isdigit()]
    assert numbers == ["77", "2", kinds, kinds], result.output
    first, second = (line for line in lines if line.startswith("lttd: "))
    assert "ReadWritePaths=/sys/kernel/tracing/dynamic_events" in first
    assert "a service does not see files below /root, see docs/SYSTEMD.md" in second
    assert lines[-1] == "success"
    # The doctor said so before, from within the unit.
    refused = (result.out_dir / "refused").read_text()
    assert re.search(r"note  probes +/sys/kernel/tracing/dynamic_events: Read-only", refused)
    assert re.search(r"note  symbols +/proc/kallsyms hides addresses", refused)
    assert re.search(r"ok    probes +\w", (result.out_dir / "journal").read_text())
    text = text_of(result)
    for name in ("lttdk: (", "lttdr: (", "lttdu: (", "lttde: "):
        assert text.count(f": {name}") >= 2, name
