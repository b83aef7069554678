"""Common parts of the tests that record in a guest: functions of the shell, and the files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lttd.tracedir import SegmentPaths, segments
from tests.kernel.guest import Guest

# A busy host lets lttd take a minute to start.
SHELL = r"""
export PYTHONPATH=$CHECKOUT
start_lttd() {  # OPTION...: $pid is lttd's
    "$PYTHON" -m lttd -t /tmp/trace --summary json:"$OUT/summary" "$@" 2> "$OUT/stderr" &
    pid=$!
}
until_lttd() {  # TEST...: waits for this; if lttd ends before, prints its lines and fails
    for _ in $(seq 1200); do
        "$@" && return
        kill -0 $pid 2> /dev/null || break
        sleep 0.1
    done
    cat "$OUT/stderr"
    return 1
}
end_recording() {
    kill -TERM $pid
    wait $pid
    local status=$?
    cat "$OUT/stderr"
    cp -r /tmp/trace "$OUT/trace"
    return $status
}
"""


@dataclass
class Recording:
    """The files of a recording, copied from the guest."""

    output: str
    out_dir: Path

    @classmethod
    def by(cls, guest: Guest, script: str, timeout_s: float, *, status: int = 0) -> Self:
        """Run a script that records; assert its status."""
        result = guest.run(script, timeout_s).expect(status)
        return cls(result.output, result.out_dir)

    @property
    def segments(self) -> list[SegmentPaths]:
        return segments(self.out_dir / "trace")

    @property
    def summary(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.out_dir / "summary").read_text())
        return value
