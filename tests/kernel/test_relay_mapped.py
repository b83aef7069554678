"""Record relay channels by mapping them, on a real kernel.

The module offers the control files of relay-apps, and counts what it wrote.
"""

import re
import struct

import pytest

from lttd.index import read_gaps
from lttd.subbuffer import Reason, Unit
from lttd.tracedir import segments
from lttd.view.verify import check
from tests.kernel.guest import Guest
from tests.kernel.test_relay import FRAMED, Recorded, numbers_in, record

pytestmark = [pytest.mark.guest, pytest.mark.slow]

KEEP_COUNTS = """
        for cpu in 0 1; do
            for name in produced consumed; do
                echo "first_$cpu $name $(od -An -td8 $RELAY/first$cpu.$name)"
            done
        done > "$OUT/counts"
"""


def counts(recorded: Recorded, name: str) -> dict[str, int]:
    """Return the kernel's counts of sub-buffers at the end."""
    text = (recorded.out_dir / "counts").read_text()
    return {what: int(n) for what, n in re.findall(rf"^{name} (\w+) +(\d+)$", text, re.MULTILINE)}


def timeless(data: bytes) -> bytes:
    """Return records without their times."""
    raw, at = bytearray(data), 0
    while at < len(raw):
        size = struct.unpack_from("<I", raw, at)[0] + 4
        raw[at + 8 : at + 16] = bytes(8)
        at += size
    return bytes(raw)


@pytest.mark.nightly
def test_a_mapped_channel_gives_the_same_bytes_as_read(each_relay_guest: Guest) -> None:
    load = """
        for cpu in 0 1; do order write 0 $cpu 3000 0 200 20; done
        order flush 0
        sleep 0.3
    """
    mapped = record(
        each_relay_guest,
        f"""
        begin_mapped 4 {FRAMED} n_subbufs=256 hold_us=20
        {load}
        {KEEP_COUNTS}
        end_recording
        """,
    )
    plain = record(
        each_relay_guest, f"load n_subbufs=256\nbegin_recording {FRAMED}\n{load}\nend_recording"
    )
    for recorded in (mapped, plain):
        assert recorded.output == ""
        recorded.expect_whole()
        assert recorded.summary["events_lost"] == 0
        assert all(not stream["lost"] for stream in recorded.summary["streams"])
    for name in ("first_0", "first_1"):
        made, data = mapped.made(name), mapped.data(name)
        assert numbers_in(data) == list(range(3000))
        assert made["stored_bytes"] == len(data)
        assert timeless(data) == timeless(plain.data(name))
        kernels = counts(mapped, name)
        assert kernels["produced"] == kernels["consumed"] > 10


def test_refused_records_of_a_full_mapped_ring_are_counted(each_relay_guest: Guest) -> None:
    recorded = record(
        each_relay_guest,
        f"""
        begin_mapped 8 {FRAMED} n_subbufs=4 hold_us=20
        order write 0 0 3 0 100 0
        order write 0 1 3 0 100 0
        order flush 0
        sleep 0.3
        order write 0 0 3000 0 100 1 & other=$!
        order write 0 1 3000 0 100 1
        wait $other
        kill -STOP $pid
        for cpu in 0 1; do order write 0 $cpu 500 0 100 0; done
        kill -CONT $pid
        sleep 0.3
        for cpu in 0 1; do order write 0 $cpu 50 0 100 200; done
        order flush 0
        sleep 0.3
        end_recording
        """,
    )
    recorded.expect_whole()
    for name in ("first_0", "first_1"):
        made, data = recorded.made(name), recorded.data(name)
        numbers = numbers_in(data)
        print(name, made, "on disk", len(numbers))
        assert numbers == sorted(set(numbers))
        # Unlike by read(), the kernel skips no sub-buffer.
        assert len(numbers) == made["stored"]
        assert len(data) == made["stored_bytes"]
        assert recorded.lost(name, Reason.DROPPED, Unit.EVENTS) == made["refused"] > 0


@pytest.mark.nightly
def test_overwritten_sub_buffers_of_a_mapped_ring_are_counted(each_relay_guest: Guest) -> None:
    recorded = record(
        each_relay_guest,
        f"""
        begin_mapped 4 ,framing=u32le-length,time=8,overwrite=yes n_subbufs=4 overwrite=1
        for round in 1 2 3 4; do
            order write 0 0 5000 0 100 0 & other=$!
            order write 0 1 5000 0 100 0
            wait $other
            order write 0 1 200 0 100 100
        done
        sleep 0.3
        order flush 0
        sleep 0.3
        {KEEP_COUNTS}
        end_recording
        """,
    )
    recorded.expect_whole()
    for name in ("first_0", "first_1"):
        made, data = recorded.made(name), recorded.data(name)
        numbers = numbers_in(data)  # fails at a torn record
        lost = recorded.lost(name, Reason.OVERWRITTEN, Unit.SUBBUFFERS)
        record_ = next(one for one in recorded.manifest.streams if one.name == name)
        read = record_.counters["read subbuffers"]
        print(name, made, "on disk", len(numbers), "sub-buffers read", read, "overwritten", lost)
        assert numbers == sorted(set(numbers))
        assert numbers[-1] == made["made"] - 1
        assert lost > 0
        assert read + lost == counts(recorded, name)["produced"]
        assert counts(recorded, name)["consumed"] == counts(recorded, name)["produced"]
        assert made["stored_bytes"] > len(data)


@pytest.mark.nightly
def test_a_killed_lttd_goes_on_where_it_was_in_a_mapped_ring(each_relay_guest: Guest) -> None:
    recorded = record(
        each_relay_guest,
        f"""
        begin_mapped 4 {FRAMED} n_subbufs=1024 flush_ms=50
        order write 0 0 500 0 100 50
        sleep 0.5
        kill -KILL $pid
        wait $pid || true
        order write 0 0 500 0 100 50
        "$PYTHON" -m lttd -t /tmp/trace --append --source "relay:$RELAY{FRAMED},padding=4" \\
            --summary json:"$OUT/summary" 2> "$OUT/stderr" & pid=$!
        for _ in $(seq 300); do
            [ "$(ls /tmp/trace/*/trace.json | wc -l)" = 2 ] && break
            sleep 0.1
        done
        sleep 0.5
        order write 0 0 500 0 100 50
        sleep 0.5
        {KEEP_COUNTS}
        end_recording
        """,
    )
    found = []
    for segment in segments(recorded.out_dir / "trace"):
        assert [str(finding) for finding in check(segment).findings] == []
        data = segment.stream("first_0").data.read_bytes()
        found.append(numbers_in(data))
        assert read_gaps(segment.stream("first_0").gaps) == []
    assert found[0] == list(range(500))
    assert found[1] == list(range(500, 1500))


@pytest.mark.nightly
def test_what_does_not_fit_a_mapping_is_one_line(each_relay_guest: Guest) -> None:
    recorded = record(
        each_relay_guest,
        """
        tell() {
            local status=0
            "$PYTHON" -m lttd -t /tmp/none --source "relay:$RELAY,$1" || status=$?
            echo "status $status"
        }
        load
        tell padding=4,subbuffer-size=4096,subbuffers=8
        unload
        load head=4
        "$PYTHON" -m lttd -t /tmp/read --source "relay:$RELAY" -- true
        tell padding=4,subbuffers=16
        tell padding=5
        tell padding=4,unfinished=yes
        tell subbuffers=8
        ls -d /tmp/none || echo "nothing is left"
        """,
    )
    assert re.findall(r"^status (\d+)$", recorded.output, re.MULTILINE) == ["77", "77", *3 * ["2"]]
    assert "first0.produced: No such file or directory; padding= needs it" in recorded.output
    assert "first0: mmap: Invalid argument; it has another size" in recorded.output
    assert recorded.output.count("its module lets readers map it; padding=4 or padding=8") == 1
    assert "nothing is left" in recorded.output
