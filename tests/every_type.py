"""Events with a field of every type, and segments of them."""

import struct
from pathlib import Path

from lttd.view.trace import Trace
from tests.fakes import page
from tests.segment_builder import Made

COMMON = """\
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:unsigned char common_flags;	offset:2;	size:1;	signed:0;
	field:unsigned char common_preempt_count;	offset:3;	size:1;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

"""
EVERY_TYPE = f"""\
name: every_type
ID: 300
format:
{COMMON}\
	field:s8 small;	offset:8;	size:1;	signed:1;
	field:u64 large;	offset:16;	size:8;	signed:0;
	field:void * pointer;	offset:24;	size:8;	signed:0;
	field:char comm[8];	offset:32;	size:8;	signed:0;
	field:short list[3];	offset:40;	size:6;	signed:1;
	field:struct thing thing;	offset:46;	size:3;	signed:0;
	field:__data_loc char[] text;	offset:52;	size:4;	signed:0;
	field:__data_loc u32[] numbers;	offset:56;	size:4;	signed:0;
	field:__data_loc cpumask_t mask;	offset:60;	size:4;	signed:0;
	field:__rel_loc char[] near;	offset:64;	size:4;	signed:0;

print fmt: "%d", REC->small
"""
PRINTED = f"""\
name: printed
ID: 301
format:
{COMMON}\
	field:unsigned int event;	offset:8;	size:4;	signed:0;
	field:char buf[];	offset:12;	size:0;	signed:0;

print fmt: "%s", REC->buf
"""


def common(of_type: int, pid: int = 42) -> bytes:
    return struct.pack("<HBBi", of_type, 1, 2, pid)


def every_type(text: bytes, numbers: list[int], mask: int, near: bytes) -> bytes:
    """Return an event of 68 fixed bytes, followed by the dynamic fields in this order."""
    packed = struct.pack(f"<{len(numbers)}I", *numbers)
    at = 68
    locs = []
    for data in (text, packed, struct.pack("<Q", mask)):
        locs.append(len(data) << 16 | at)
        at += len(data)
    fixed = struct.pack(
        "<bxxxxxxxQQ8s3h3sxxx", -5, 1 << 63, 0xFFFF800000001000, b"bash\0zz", -1, 0, 7, b"\1\2\3"
    )
    locs.append(len(near) << 16 | (at - 68))
    tail = text + packed + struct.pack("<Q", mask) + near
    event = common(300) + fixed + struct.pack("<4I", *locs) + tail
    return event.ljust(-(-len(event) // 4) * 4, b"\0")


def long_record(delta: int, payload: bytes) -> bytes:
    assert len(payload) % 4 == 0
    return struct.pack("<II", delta << 5, len(payload) + 4) + payload


def made_of(directory: Path, events: list[bytes]) -> Trace:
    made = Made(directory / "t")
    for name, text in (("every_type", EVERY_TYPE), ("printed", PRINTED)):
        path = made.paths.directory / "tracefs/events/made" / name / "format"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    made.append([page(5000, b"".join(long_record(10, one) for one in events))])
    made.finish()
    return Trace(directory / "t")
