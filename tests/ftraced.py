"""Segments of made-up ftrace events with their formats, for tests of the viewer."""

import struct
from collections.abc import Sequence
from pathlib import Path

from tests.segment_builder import Made, page

COMMON = """\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

"""
TICK, OPENED, SWITCH = 1, 2, 3


def format_text(name: str, number: int, fields: Sequence[str], printed: str) -> bytes:
    """Return a format file; each field is given as ``type name;offset;size;signed``."""
    lines = []
    for one in fields:
        declared, offset, size, signed = one.split(";")
        lines.append(f"\tfield:{declared};\toffset:{offset};\tsize:{size};\tsigned:{signed};\n")
    head = f"name: {name}\nID: {number}\nformat:\n{COMMON}"
    return (head + "".join(lines) + f"\nprint fmt: {printed}\n").encode()


FORMATS = {
    "clock/tick": format_text(
        "tick",
        TICK,
        ["int count;8;4;1", "unsigned int flags;12;4;0"],
        '"count=%d flags=%s", REC->count, __print_flags(REC->flags, "|", { 1, "A" }, { 2, "B" })',
    ),
    "files/opened": format_text(
        "opened",
        OPENED,
        ["__data_loc char[] path;8;4;0", "long ret;16;8;1"],
        '"path=%s ret=%ld", __get_str(path), REC->ret',
    ),
    "sched/sched_switch": format_text(
        "sched_switch",
        SWITCH,
        [
            "char prev_comm[16];8;16;0",
            "pid_t prev_pid;24;4;1",
            "char next_comm[16];28;16;0",
            "pid_t next_pid;44;4;1",
        ],
        '"%s:%d ==> %s:%d", REC->prev_comm, REC->prev_pid, REC->next_comm, REC->next_pid',
    ),
}


def common(number: int, pid: int, flags: int = 0, preempt: int = 0) -> bytes:
    return struct.pack("<HBBi", number, flags, preempt, pid)


def tick(count: int, pid: int = 7, flags: int = 0, **head: int) -> bytes:
    return common(TICK, pid, **head) + struct.pack("<iI", count, flags)


def opened(path: str, ret: int, pid: int = 7) -> bytes:
    told = path.encode() + b"\0"
    body = struct.pack("<IIq", len(told) << 16 | 24, 0, ret) + told
    return (common(OPENED, pid) + body).ljust((24 + len(told) + 3) // 4 * 4, b"\0")


def switch(prev: tuple[str, int], following: tuple[str, int]) -> bytes:
    body = struct.pack("<16si16si", prev[0].encode(), prev[1], following[0].encode(), following[1])
    return common(SWITCH, prev[1]) + body


PRINT, WRITER = 5, 0xFFFF_FFFF_8100_0004
PRINT_FORMAT = format_text(
    *("print", PRINT, ["unsigned long ip;8;8;0", "char buf[];16;0;0"]),
    '"%ps: %s", (void *)REC->ip, REC->buf',
)


def marker(text: bytes, ip: int = WRITER, pid: int = 7) -> bytes:
    """Return a write to ``trace_marker``, which was made at *ip*."""
    made = common(PRINT, pid) + struct.pack("<Q", ip) + text + b"\0"
    return made + bytes(-len(made) % 4)


def pages_of(begin: int, payloads: Sequence[bytes], delta: int = 10) -> bytes:
    """Return a sub-buffer whose events are *delta* apart, the first at *begin* + *delta*."""
    records = b"".join(
        struct.pack("<I", delta << 5 | len(payload) // 4) + payload
        if len(payload) <= 112
        else struct.pack("<II", delta << 5, len(payload) + 4) + payload
        for payload in payloads
    )
    return page(begin, records)


class Traced(Made):
    """A segment that also has formats and commands."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.add_formats()

    @property
    def tracefs(self) -> Path:
        return self.paths.directory / "tracefs"

    def add_formats(self) -> None:
        for name, text in FORMATS.items():
            self.add_format(name, text)

    def add_format(self, name: str, text: bytes) -> None:
        """Save the format of an event, named as ``sched/sched_switch``."""
        path = self.tracefs / "events" / name / "format"
        path.parent.mkdir(parents=True)
        path.write_bytes(text)

    def commands(self, *lines: tuple[int, int, str]) -> None:
        told = "".join(f"{time}\t{pid}\t{pid}\t{comm}\n" for time, pid, comm in lines)
        (self.tracefs / "commands").write_text(told)
