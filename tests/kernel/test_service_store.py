"""Run the service with a small store, compression and a trigger; measure what the unit takes."""

import json
import re
from itertools import pairwise

import pytest

from tests.kernel.guest import Guest
from tests.kernel.service import run, whole_segments
from tests.running import lttv

pytestmark = [pytest.mark.guest, pytest.mark.slow]

# A sample: processes, tasks, the peak of memory, and memory that is not cache.
LIMITS = r"""
sample() {
    local group=/sys/fs/cgroup/system.slice/lttd.service
    while sleep 0.2; do
        echo $(wc -l < $group/cgroup.procs) $(cat $group/pids.current $group/memory.peak) \
            $(awk '/^anon / { print $2 }' $group/memory.stat)
    done > /tmp/samples 2> /dev/null
}
"""


def test_a_loaded_store_stays_within_its_bound_and_the_unit_within_its_limits(
    service_guest: Guest,
) -> None:
    told = run(
        service_guest,
        LIMITS
        + """
        trap 'systemctl stop lttd; cp /opt/lttd/lttd.toml /etc/lttd/' EXIT
        sed -i 's/^#compress/compress/; s/^max-size.*/max-size = "8M"\\nsegment-size = "1M"/' \
            /etc/lttd/lttd.toml
        systemctl start lttd
        sample & sampling=$!
        marks 0 60000
        /opt/lttd/bin/lttd trigger --json --reason slow --before 2s --after 1s > $OUT/trigger
        state() { /opt/lttd/bin/lttd status --json > $OUT/state; }
        at=60000
        for _ in $(seq 60); do
            marks $at $((at + 30000)); at=$((at + 30000))
            state; "$PYTHON" -IS -c 'import json, sys
store = json.load(open(sys.argv[1]))["store"]
sys.exit(not store["deletions"].get("size"))' $OUT/state && break
        done
        ls /var/lib/lttd/trace/*/compressed/*.zst | wc -l
        du -B1 -s /var/lib/lttd/trace | cut -f1
        kill $sampling
        for column in 1 2 3 4; do cut -d' ' -f$column /tmp/samples | sort -n | tail -1; done
        show TasksCurrent; show MemoryCurrent
        systemctl stop lttd
        show Result; show TasksMax; show MemoryMax
        bring
        """,
        900,
    )
    *numbers, result, most_tasks, most_memory = told.output.splitlines()
    compressed, stored, processes, tasks, memory, anonymous, *current = map(int, numbers)
    state = json.loads((told.out_dir / "state").read_text())["store"]
    print(
        f"{processes} processes, {tasks} tasks, {memory} bytes, without cache {anonymous}", current
    )
    print(f"{stored} bytes stored, {compressed} files compressed, {state['deletions']} deleted")
    assert result == "success"
    assert compressed > 0
    assert state["deletions"]["size"] > 0
    assert stored <= state["limit_bytes"] + state["kept_bytes"] + (2 << 20)
    assert processes == 2
    assert 2 * tasks <= int(most_tasks)
    assert memory <= int(most_memory)
    assert anonymous <= 200 << 20
    whole_segments(told.out_dir)
    text = lttv("text", told.out_dir / "trace", "--event", "print").stdout
    marks = [int(number) for number in re.findall(r"mark (\d{8})$", text, re.MULTILINE)]
    # Deletion leaves one hole: between the window that is kept and the newest segments.
    assert sum(after != before + 1 for before, after in pairwise(marks)) <= 1
    assert marks == sorted(set(marks))
    assert len(marks) > 10_000
    trigger = json.loads((told.out_dir / "trigger").read_text())["trigger"]
    assert trigger["complete"]
