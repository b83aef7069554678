"""Run systemd/lttd.service under a real systemd: start, stop, kill, starve, roll, hardening."""

import json
import re

import pytest

from lttd.manifest import Manifest
from tests.kernel.guest import Guest
from tests.kernel.service import marks_of, run, whole_segments

pytestmark = [pytest.mark.guest, pytest.mark.slow]


def test_systemd_in_the_guest_accepts_the_unit(service_guest: Guest) -> None:
    result = service_guest.run("systemd-analyze verify /run/systemd/system/lttd.service")
    assert (result.status, result.output) == (0, "")


def test_the_service_is_ready_once_it_records_and_its_status_has_totals(
    service_guest: Guest,
) -> None:
    result = run(
        service_guest,
        """
        systemctl start lttd
        cat $instances/lttd-*/tracing_on
        ls /var/lib/lttd/trace
        for _ in $(seq 100); do
            sleep 0.1; show StatusText | grep -q ' [1-9][0-9]* sub-buffers' && break
        done
        show StatusText
        stat -c %a /var/lib/lttd
        systemctl stop lttd
        """,
    )
    tracing_on, segment, status, mode = result.output.splitlines()
    assert tracing_on == "1"
    assert segment.endswith("-000001-ftrace")
    assert re.fullmatch(
        r"recording to /var/lib/lttd/trace, [1-9]\d* sub-buffers, 0 events lost", status
    )
    assert mode == "750"


def test_a_stop_drains_everything_and_leaves_no_instance(service_guest: Guest) -> None:
    result = run(
        service_guest,
        """
        systemctl start lttd
        marks 0 20000
        systemctl stop lttd
        show Result; show NRestarts; show StatusText
        ! ls -d $instances/lttd-* 2> /dev/null
        bring
        """,
    )
    assert result.output.splitlines()[:2] == ["success", "0"]
    found = whole_segments(result.out_dir)
    assert len(found) == 1
    assert marks_of(found) == list(range(20000))
    counters = [record.counters for record in Manifest.read(found[0].manifest).streams]
    assert sum(each["entries"] for each in counters) == 0


@pytest.mark.parametrize(
    ("signal", "result"), [("KILL", "signal"), ("STOP", "watchdog")], ids=["killed", "starved"]
)
def test_the_service_restarts_and_keeps_the_data_of_the_rings(
    service_guest: Guest, signal: str, result: str
) -> None:
    told = run(
        service_guest,
        f"""
        systemctl start lttd
        first=$(show MainPID)
        marks 0 1000
        sleep 2
        kill -{signal} $first
        marks 1000 3000
        restarted $first
        show NRestarts
        marks 3000 4000
        systemctl stop lttd
        show Result
        ! ls -d $instances/lttd-* 2> /dev/null
        bring
        """,
    )
    assert told.output.splitlines() == ["1", "success"]
    assert f"Failed with result '{result}'" in (told.out_dir / "journal").read_text()
    found = whole_segments(told.out_dir)
    runs = [Manifest.read(each.manifest).source["previous_run"] for each in found]
    assert runs == [False, True, False]
    assert marks_of(found) == list(range(4000))


@pytest.mark.parametrize(
    ("events", "status"), [("no_such:event", "2"), ("sched:*", "77")], ids=["usage", "nothing"]
)
def test_the_service_does_not_retry_a_permanent_error(
    service_guest: Guest, events: str, status: str
) -> None:
    unmount = "umount /sys/kernel/tracing" if status == "77" else "true"
    told = run(
        service_guest,
        f"""
        trap 'cp /opt/lttd/lttd.toml /etc/lttd/
              systemctl unmask --runtime --quiet sys-kernel-tracing.mount
              mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing
              systemctl reset-failed lttd' EXIT
        sed -i 's/sched:\\*/{events}/' /etc/lttd/lttd.toml
        {unmount}
        [ {status} = 2 ] || systemctl mask --runtime --quiet sys-kernel-tracing.mount
        ! systemctl start lttd 2> /dev/null
        sleep 3
        show ExecMainStatus; show NRestarts; show ActiveState
        journalctl -u lttd --no-pager -o cat -p err --grep '^lttd: ' | tail -1
        """,
    )
    lines = told.output.splitlines()
    assert lines[:3] == [status, "0", "failed"]
    assert ("no_such:event" in lines[-1]) == (status == "2")
    assert ("mount -t tracefs" in lines[-1]) == (status == "77")


def test_rolls_lose_nothing_and_the_service_stays(service_guest: Guest) -> None:
    told = run(
        service_guest,
        """
        systemctl start lttd
        first=$(show MainPID)
        for n in 0 1 2; do
            marks ${n}000 ${n}500
            if [ $n = 2 ]; then /opt/lttd/bin/lttd roll > /dev/null
            else systemctl kill --signal=USR1 --kill-who=main lttd; fi
            marks ${n}500 $((n + 1))000
            sleep 3
        done
        [ "$(show MainPID)" = $first ] && show ActiveState
        systemctl stop lttd
        show Result
        bring
        """,
    )
    assert told.output.splitlines() == ["active", "success"]
    found = whole_segments(told.out_dir)
    assert len(found) == 4
    assert marks_of(found) == list(range(3000))


def test_a_reload_takes_over_events_and_a_wrong_one_changes_nothing(service_guest: Guest) -> None:
    told = run(
        service_guest,
        """
        trap 'systemctl stop lttd; cp /opt/lttd/lttd.toml /etc/lttd/' EXIT
        systemctl start lttd
        first=$(show MainPID)
        marks 0 1000
        sed -i 's/^events.*/events = ["sched:*", "irq:*"]/' /etc/lttd/lttd.toml
        systemctl reload lttd
        cat $instances/lttd-*/events/irq/enable
        sed -i 's/^events.*/events = ["no_such:event"]/' /etc/lttd/lttd.toml
        ! systemctl reload lttd 2> /dev/null
        marks 1000 2000
        cat $instances/lttd-*/events/irq/enable
        [ "$(show MainPID)" = $first ] && show ActiveState
        journalctl -u lttd --no-pager -o cat | grep -c 'no_such:event'
        systemctl stop lttd
        show Result
        bring
        """,
    )
    *lines, refusals, result = told.output.splitlines()
    assert lines == ["1", "1", "active"]
    assert int(refusals) >= 1
    assert result == "success"
    assert marks_of(whole_segments(told.out_dir)) == list(range(2000))


def test_recording_goes_on_after_the_disk_was_full(service_guest: Guest) -> None:
    told = run(
        service_guest,
        """
        trap 'systemctl stop lttd; umount /var/lib/lttd
              cp /opt/lttd/lttd.toml /etc/lttd/' EXIT
        mount -t tmpfs -o size=16M,mode=750 tmpfs /var/lib/lttd
        echo 'on-write-error = "continue"' >> /etc/lttd/lttd.toml
        systemctl start lttd
        marks 0 1000
        sleep 3
        dd if=/dev/zero of=/var/lib/lttd/fill bs=64K 2> /dev/null || true
        full() {
            journalctl -u lttd --no-pager -o cat -p warning --since=-100s | grep -c 'no space'
        }
        for _ in $(seq 60); do marks 1000 1100 && sleep 1; [ "$(full)" -gt 0 ] && break; done
        echo full $(($(full) > 0)) $(show ActiveState)
        rm /var/lib/lttd/fill
        sleep 5
        marks 2000 3000
        sleep 3
        show ActiveState
        systemctl stop lttd
        show Result
        cp -r /var/lib/lttd/trace "$OUT/trace"
        """,
    )
    # The losses make the status 1, which is not a crash.
    assert told.output.splitlines() == ["full 1 active", "active", "exit-code"]
    found = whole_segments(told.out_dir)
    marks = marks_of(found)
    assert marks[:1000] == list(range(1000))
    assert marks[-1000:] == list(range(2000, 3000))


SCRAPES = r"""
scrape() {
    "$PYTHON" -IS -c 'import urllib.request as u
try: print(u.urlopen("http://127.0.0.1:9469/healthz", timeout=20).status)
except OSError as error: print(error)'
}
tidy() {
    systemctl disable --runtime --quiet lttd.socket
    systemctl stop lttd lttd.socket
    cp /opt/lttd/lttd.toml /etc/lttd/
    kill %1
    systemctl reset-failed lttd
}
trap 'tidy 2> /dev/null || true' EXIT
systemctl enable --runtime --quiet lttd.socket
socket() { systemctl show --value --property ActiveState lttd.socket; }
"""


def test_the_socket_comes_and_ends_with_the_recorder_and_no_scrape_starts_it(
    service_guest: Guest,
) -> None:
    told = run(
        service_guest,
        SCRAPES
        + """
        systemctl start lttd
        socket; scrape
        first=$(show MainPID)
        kill -KILL $first
        restarted $first
        socket; scrape
        (while :; do scrape; done > /dev/null 2>&1) &
        systemctl stop lttd 2> /dev/null  # it warns that the socket could start it, which ends, too
        sleep 5
        show ActiveState; socket; scrape
        """,
    )
    *lines, refused = told.output.splitlines()
    assert lines == ["active", "200", "active", "200", "inactive", "inactive"]
    assert "Connection refused" in refused


@pytest.mark.parametrize("status", ["2", "77"])
def test_no_scrape_starts_a_recorder_that_cannot_record(service_guest: Guest, status: str) -> None:
    break_it = {
        "2": "sed -i 's/sched:\\*/no_such:event/' /etc/lttd/lttd.toml",
        "77": "umount /sys/kernel/tracing; systemctl mask --runtime -q sys-kernel-tracing.mount",
    }
    told = run(
        service_guest,
        SCRAPES
        + f"""
        mend() {{
            systemctl unmask --runtime --quiet sys-kernel-tracing.mount
            mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing
        }}
        trap 'mend; tidy 2> /dev/null || true' EXIT
        {break_it[status]}
        errors() {{ journalctl -u lttd --no-pager -o cat -p err --grep '^lttd: ' | wc -l; }}
        before=$(errors)
        (while :; do scrape; done > /dev/null 2>&1) &
        ! systemctl start lttd 2> /dev/null
        sleep 5
        show ExecMainStatus; show ActiveState; socket
        echo $(($(errors) - before))
        """,
    )
    assert told.output.splitlines() == [status, "failed", "inactive", "1"]


def test_a_recorder_of_the_template_has_its_own_configuration_and_trace(
    service_guest: Guest,
) -> None:
    told = run(
        service_guest,
        """
        sed 's/9469/9470/; s/sched:/irq:/' /etc/lttd/lttd.toml > /etc/lttd/irq.toml
        trap 'systemctl stop lttd lttd@irq; rm -rf /etc/lttd/irq.toml /var/lib/lttd-irq' EXIT
        systemctl start lttd lttd@irq
        ls -d $instances/lttd-* | wc -l
        ls /run/lttd/*.socket | wc -l
        stat -c '%a %U:%G' /run/lttd /run/lttd/*.socket
        systemctl stop lttd@irq
        show ActiveState
        cp -r /var/lib/lttd-irq/trace "$OUT/trace"
        """,
    )
    assert told.output.splitlines() == [
        *("2", "2", "750 root:lttd", "660 root:lttd", "660 root:lttd", "active")
    ]
    (segment,) = whole_segments(told.out_dir)
    assert Manifest.read(segment.manifest).source["settings"]["events"] == ["irq:*"]


def test_the_hardening_of_the_unit_is_in_force(service_guest: Guest) -> None:
    result = run(
        service_guest,
        """
        systemctl start lttd
        pid=$(show MainPID)
        grep -E '^(CapBnd|CapEff|NoNewPrivs|Seccomp):' /proc/$pid/status | tr -s '\\t' ' '
        inside() { ! nsenter --mount --target $pid sh -c "$1" 2>&1; }
        inside 'echo 0 > /sys/kernel/tracing/tracing_on'
        inside 'echo 0 > /proc/sys/vm/swappiness'
        inside 'touch /etc/x'
        inside 'touch /usr/x'
        inside 'test -n "$(ls -A /root /home | grep -v :)"'
        inside 'test -e /tmp/marks.py'
        inside 'test -e /dev/ttyS0'
        for name in MemoryMax TasksMax LimitCORE IPAddressDeny IPAddressAllow; do
            echo "$name $(show $name)"
        done
        systemd-analyze security --no-pager --json=short lttd > $OUT/security
        systemd-analyze security --no-pager lttd | tail -1
        systemctl stop lttd
        """,
    )
    lines = result.output.splitlines()
    assert lines[:4] == [
        "CapEff: 0000000000000000",
        "CapBnd: 0000000000000000",
        "NoNewPrivs: 1",
        "Seccomp: 2",
    ]
    assert sum("Read-only file system" in line for line in lines) == 4
    limits = {line.split()[0]: line.split()[1:] for line in lines if " " in line}
    assert limits["MemoryMax"] == [str(1 << 30)]
    assert limits["TasksMax"] == ["32"]
    assert limits["LimitCORE"] == ["0"]
    assert sorted(limits["IPAddressDeny"]) == ["0.0.0.0/0", "::/0"]
    assert sorted(limits["IPAddressAllow"]) == ["127.0.0.0/8", "::1/128"]
    assert json.loads((result.out_dir / "security").read_text())
    exposure = re.search(r"exposure level for lttd.service: (\d+\.\d)", lines[-1])
    assert exposure
    assert float(exposure[1]) <= 2.0
