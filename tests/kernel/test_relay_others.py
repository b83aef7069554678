"""Another process reads the files of relay channels on a real kernel while lttd records them."""

import re

import pytest

from lttd.subbuffer import Reason, Unit
from tests.kernel.guest import Guest
from tests.kernel.test_relay import FRAMED, numbers_in, record
from tests.running import lttv

pytestmark = [pytest.mark.guest, pytest.mark.slow]


@pytest.mark.nightly
def test_the_bytes_that_another_process_takes_from_a_relay_file_are_counted(
    each_relay_guest: Guest,
) -> None:
    recorded = record(
        each_relay_guest,
        f"""
        load n_subbufs=64
        begin_recording {FRAMED}
        order write 0 0 50 0 100 0
        order flush 0
        sleep 1
        kill -STOP $pid
        order write 0 0 200 100 100 0
        order flush 0
        dd if=$RELAY/first0 of=/dev/null bs=2480 count=1 2> /dev/null
        kill -CONT $pid
        sleep 1
        order write 0 0 50 0 100 0
        order flush 0
        sleep 0.3
        end_recording
        """,
    )
    recorded.expect_whole()
    made, data = recorded.made("first_0"), recorded.data("first_0")
    assert recorded.lost("first_0", Reason.FOREIGN_READ, Unit.BYTES) == 2480
    assert recorded.lost("first_0", Reason.FOREIGN_READ, Unit.EVENTS) == 20
    assert made["stored_bytes"] == len(data) + 2480
    assert numbers_in(data) == [*range(50), *range(70, 300)]
    assert recorded.lost("first_1", Reason.FOREIGN_READ, Unit.BYTES) == 0
    assert "/sys/kernel/debug/relaytest: another process opened a file" in recorded.output


@pytest.mark.nightly
def test_a_reader_that_was_there_first_is_named(each_relay_guest: Guest) -> None:
    recorded = record(
        each_relay_guest,
        """
        load n_subbufs=64
        sleep 1000 < $RELAY/first1 & reader=$!
        begin_recording ""
        sleep 1
        order write 0 0 50 0 100 0
        order flush 0
        kill $reader
        echo "reader $reader" > "$OUT/reader"
        sleep 1
        end_recording
        """,
    )
    recorded.expect_whole()
    (pid,) = re.findall(r"\d+", (recorded.out_dir / "reader").read_text())
    assert f"relaytest: sleep (pid {pid}) can take data of these files, too" in recorded.output
    assert "no other process reads these files now; 0 bytes went to others" in recorded.output
    shown = lttv("text", str(recorded.out_dir / "trace")).stdout
    assert shown.count(": first: entry=") == shown.count("\n") >= 1
