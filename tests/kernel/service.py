"""Install lttd.service in a guest with systemd, and run scripts against it."""

import re
import textwrap
from pathlib import Path

from lttd.tracedir import SegmentPaths, segments
from lttd.view.verify import check
from tests.kernel.guest import Guest, GuestResult

# The unit hides /tmp and /root, so the interpreter of the tests is bound to /opt/lttd.
# The shipped unit and configuration, with other events and a shorter watchdog.
INSTALL = r"""
set -e
read -r base site version <<< "$("$PYTHON" -c '
import sys, sysconfig
print(sys.base_prefix, sysconfig.get_path("purelib"), "%d.%d" % sys.version_info[:2])
')"
mkdir -p /opt/lttd/{bin,base,site,checkout} /etc/lttd /run/systemd/system/lttd.service.d
mount --bind "$base" /opt/lttd/base
mount --bind "$site" /opt/lttd/site
mount --bind "$CHECKOUT" /opt/lttd/checkout
cat > /opt/lttd/bin/lttd <<U
#!/bin/sh
export PYTHONHOME=/opt/lttd/base LD_LIBRARY_PATH=/opt/lttd/base/lib
export PYTHONPATH=/opt/lttd/checkout:/opt/lttd/site
exec /opt/lttd/base/bin/python$version -m lttd "\$@"
U
chmod +x /opt/lttd/bin/lttd
# A busy machine starts lttd in half a minute, in which a ring of 4M laps; and the disk is small.
sed 's/^buffer-size.*/buffer-size = "32M"/; s/^min-free.*//' "$CHECKOUT/systemd/lttd.toml" \
    > /opt/lttd/lttd.toml
cp /opt/lttd/lttd.toml /etc/lttd/
cp "$CHECKOUT"/systemd/lttd{,@}.service "$CHECKOUT/systemd/lttd.socket" /run/systemd/system/
systemd-sysusers "$CHECKOUT/systemd/lttd.sysusers"
systemd-tmpfiles --create "$CHECKOUT/systemd/lttd.tmpfiles"
printf '[Service]\nWatchdogSec=8\n' > /run/systemd/system/lttd.service.d/test.conf
systemctl daemon-reload
"""
# A guest on a busy machine answers systemctl later than in its 25 s.
PRELUDE = r"""
export SYSTEMD_BUS_TIMEOUT=300
instances=/sys/kernel/tracing/instances
show() { systemctl show --value --property "$1" lttd; }
cat > /tmp/marks.py <<'P'
import os, sys, time
fd = os.open(sys.argv[1] + "/trace_marker", os.O_WRONLY)
for n in range(int(sys.argv[2]), int(sys.argv[3])):
    os.write(fd, b"mark %08d\n" % n)
P
marks() { "$PYTHON" -IS /tmp/marks.py $instances/lttd-* "$@"; }  # FIRST END
fresh() {
    systemctl stop lttd
    systemctl reset-failed lttd 2> /dev/null || true  # not loaded, most of the time
    rm -rf /var/lib/lttd/trace
}
restarted() {  # PID: wait until the service runs under another
    for _ in $(seq 600); do
        now=$(show MainPID)
        [ "$(show ActiveState)" = active ] && [ "$now" != "$1" ] && [ "$now" != 0 ] && return
        sleep 0.1
    done
    systemctl status lttd --no-pager
    return 1
}
bring() { cp -r /var/lib/lttd/trace "$OUT/trace"; journalctl -u lttd --no-pager > "$OUT/journal"; }
"""


def run(guest: Guest, script: str, timeout_s: float = 600.0) -> GuestResult:
    return guest.run(PRELUDE + "set -e; fresh\n" + textwrap.dedent(script), timeout_s).expect(0)


def whole_segments(out_dir: Path) -> list[SegmentPaths]:
    found = segments(out_dir / "trace")
    for segment in found:
        report = check(segment, events=True)
        assert [str(finding) for finding in report.findings] == []
        assert report.state == "closed"
    return found


def marks_of(found: list[SegmentPaths]) -> list[int]:
    data = b"".join(path.read_bytes() for each in found for path in each.streams.glob("ftrace_*"))
    return sorted(int(number) for number in re.findall(rb"mark (\d{8})\n", data))
