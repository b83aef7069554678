"""trace_printk() of a kernel module is recorded where the kernel can send it."""

import re
import shutil

import pytest

from tests.kernel.guest import Guest
from tests.kernel.image import CHECKOUT, GuestUnavailableError
from tests.kernel.modules import build_module

pytestmark = [pytest.mark.guest, pytest.mark.slow, pytest.mark.nightly]

MESSAGES = [*(f"number {number} of printktest" for number in (1, 2, 3)), "a constant text"]
SCRIPT = """
cd $CHECKOUT
record() {  # NAME OPTION...
    local name=$1; shift
    "$PYTHON" -m lttd -t /tmp/$name --events sched:sched_process_hang --summary none "$@" \
        -- insmod /out/printktest.ko 2> "$OUT/stderr-$name"
    rmmod printktest
    "$PYTHON" -m lttd.view text /tmp/$name > "$OUT/$name"
    rm -rf /tmp/$name
}
record own --markers
record plain
echo > /sys/kernel/tracing/trace
record top --source ftrace:/
cat /sys/kernel/tracing/options/trace_printk_dest 2> /dev/null || true
"""


def test_trace_printk_goes_to_the_instance_that_asks_for_it(each_guest: Guest) -> None:
    assert each_guest.kernel is not None
    try:
        built = build_module(each_guest.kernel, CHECKOUT / "tests/kernel/printktest")
    except GuestUnavailableError as error:
        pytest.skip(f"no module: {error}")
    shutil.copy(built, each_guest.share)
    result = each_guest.run(SCRIPT, 900).expect(0)
    found = {
        name: re.findall(r"b(?:print|puts): \S+: (.*)", (result.out_dir / name).read_text())
        for name in ("own", "plain", "top")
    }
    has_choice = result.output.endswith("1\n")
    told = (result.out_dir / "stderr-own").read_text()
    assert has_choice or "this kernel's trace_printk stays at the top level" in told
    expected = {"own": MESSAGES if has_choice else [], "plain": [], "top": MESSAGES}
    assert found == expected, result.output
