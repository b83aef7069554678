"""``lttv text --syscalls`` prints a line for each system call, joined from its begin and end."""

import errno
import fcntl
import mmap
import os
import resource
import select
import signal
import socket
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import lttd
from lttd.view.addresses import Symbols
from lttd.view.ftrace.syscall_table import by_name, by_number, values_of
from lttd.view.ftrace.syscalls import SyscallTexter
from lttd.view.task_names import Names
from tests.ftraced import Traced, common, format_text, pages_of, tick
from tests.viewer import run

ENTER, EXIT, OPENAT, OPENAT_END, WRITE = 20, 21, 22, 23, 24
AT_FDCWD = 0xFFFF_FF9C
READ_NR, OPENAT_NR, MMAP_NR, EXIT_NR = 0, 257, 9, 60
FORMATS = {
    "raw_syscalls/sys_enter": format_text(
        "sys_enter", ENTER, ["long id;8;8;1", "unsigned long args[6];16;48;0"], '"NR %ld", REC->id'
    ),
    "raw_syscalls/sys_exit": format_text(
        "sys_exit", EXIT, ["long id;8;8;1", "long ret;16;8;1"], '"NR %ld = %ld", REC->id, REC->ret'
    ),
    "syscalls/sys_enter_openat": format_text(
        "sys_enter_openat",
        OPENAT,
        [
            "int __syscall_nr;8;4;1",
            "int dfd;16;8;0",
            "const char * filename;24;8;0",
            "int flags;32;8;0",
            "umode_t mode;40;8;0",
            "__data_loc char[] __filename_val;48;4;0",
        ],
        '"dfd: 0x%08lx", ((unsigned long)(REC->dfd))',
    ),
    "syscalls/sys_exit_openat": format_text(
        "sys_exit_openat", OPENAT_END, ["int __syscall_nr;8;4;1", "long ret;16;8;1"],
        '"0x%lx", REC->ret',
    ),
}  # fmt: skip


def enter(number: int, *args: int, pid: int = 7) -> bytes:
    six = [*args, 0, 0, 0, 0, 0, 0][:6]
    return common(ENTER, pid) + struct.pack("<q6Q", number, *six)


def leave(number: int, returned: int, pid: int = 7) -> bytes:
    return common(EXIT, pid) + struct.pack("<qq", number, returned)


def openat(path: bytes, flags: int, pid: int = 7) -> bytes:
    text = path + b"\0"
    fixed = struct.pack("<ixxxxQQQQI", OPENAT_NR, AT_FDCWD, 0x7FFE, flags, 0, len(text) << 16 | 52)
    made = common(OPENAT, pid) + fixed + text
    return made + bytes(-len(made) % 4)


def openat_end(returned: int, pid: int = 7) -> bytes:
    return common(OPENAT_END, pid) + struct.pack("<ixxxxq", OPENAT_NR, returned)


class Syscalls:
    """Prints the calls of a made-up trace."""

    def __init__(self, path: Path, capture: pytest.CaptureFixture[bytes]) -> None:
        self.made = Traced(path / "t")
        self._capture = capture
        for name, text in FORMATS.items():
            self.made.add_format(name, text)
        self.made.commands((0, 7, "cat"), (0, 8, "ls"))

    def add(self, begin: int, events: Sequence[bytes]) -> None:
        self.made.append([pages_of(begin, events)])

    def lines(self, *options: str) -> list[str]:
        self.made.finish()
        status, out, err = run(self._capture, "text", self.made.trace, "--syscalls", *options)
        assert (status, err) == (0, "")
        return without_prefix(out)

    def in_two_pieces(self) -> list[str]:
        """Return the lines where a piece ends after the first event."""
        self.made.finish()
        (group,) = lttd.open(self.made.trace).window().clocks()
        names = Names([self.made.tracefs / "commands"])
        texter = SyscallTexter(names, Symbols())
        texter.machine = "x86_64"
        (whole,) = map(group.batch, group.pieces())
        pieces = [replace(whole.select(slice(1)), losses=()), whole.select(slice(1, None))]
        return without_prefix(b"".join(b"".join(texter.lines(one)) for one in pieces))


def without_prefix(out: bytes) -> list[str]:
    return [line.partition(": ")[2] or line for line in out.decode().splitlines()]


@pytest.fixture
def syscalls(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Syscalls:
    return Syscalls(tmp_path, capfdbinary)


def test_a_call_is_one_line_with_names_of_arguments_result_and_duration(syscalls: Syscalls) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
    syscalls.add(
        1000,
        [
            enter(OPENAT_NR, AT_FDCWD, 0x5500, flags, 0o644),
            tick(1),
            leave(OPENAT_NR, 3),
            enter(MMAP_NR, 0, 8192, 3, 0x22, 0xFFFF_FFFF, 0),
            leave(MMAP_NR, 0x7F00_0000_1000),
            enter(READ_NR, 3, 0x5500, 512),
            leave(READ_NR, -errno.EBADF),
            enter(999, 1, 2),
            leave(999, -512),
        ],
    )
    names = "O_WRONLY|O_CREAT|O_CLOEXEC"
    assert syscalls.lines() == [
        f"openat(dfd: AT_FDCWD, filename: 0x5500, flags: {names}, mode: 0644) = 3 <0.020 us>",
        "mmap(addr: NULL, len: 8192, prot: PROT_READ|PROT_WRITE, flags: MAP_PRIVATE|MAP_ANONYMOUS,"
        " fd: -1, off: 0) = 0x7f0000001000 <0.010 us>",
        "read(fd: 3, buf: 0x5500, count: 512) = -1 EBADF (Bad file descriptor) <0.010 us>",
        "syscall_999(arg0: 0x1, arg1: 0x2, arg2: 0x0, arg3: 0x0, arg4: 0x0, arg5: 0x0)"
        " = ? ERESTARTSYS (To be restarted if SA_RESTART is set) <0.010 us>",
    ]


def test_tasks_are_joined_each_for_itself_and_lines_are_in_the_order_of_begins(
    syscalls: Syscalls,
) -> None:
    one, other = enter(READ_NR, 0, 0x10, 1, pid=7), enter(READ_NR, 1, 0x20, 2, pid=8)
    syscalls.add(0, [one, other, leave(READ_NR, 1, pid=7), leave(READ_NR, 2, pid=8)])
    assert syscalls.lines() == [
        "read(fd: 0, buf: 0x10, count: 1) = 1 <0.020 us>",
        "read(fd: 1, buf: 0x20, count: 2) = 2 <0.020 us>",
    ]


def test_a_call_over_the_edge_of_the_window_has_the_line_of_its_known_end(
    syscalls: Syscalls,
) -> None:
    syscalls.add(0, [leave(READ_NR, 5), enter(EXIT_NR, 0)])
    assert syscalls.lines() == [
        "<... read resumed>) = 5",
        "exit(error_code: 0 <unfinished ...>",
    ]


def test_a_call_that_ends_in_a_later_piece_is_resumed_there_with_its_duration(
    syscalls: Syscalls,
) -> None:
    syscalls.add(0, [enter(READ_NR, 0, 0, 9)])
    syscalls.add(100, [tick(1), leave(READ_NR, 9)])
    assert syscalls.in_two_pieces() == [
        "read(fd: 0, buf: NULL, count: 9 <unfinished ...>",
        "tick: count=1 flags=",
        "<... read resumed>) = 9 <0.110 us>",
    ]


@pytest.mark.parametrize("parted", [False, True])
def test_a_call_in_which_events_were_lost_is_unknown(syscalls: Syscalls, *, parted: bool) -> None:
    syscalls.made.append([pages_of(0, [enter(READ_NR, 0, 0, 9)])], trailing_loss=3)
    syscalls.add(100, [leave(READ_NR, 1)])
    syscalls.add(200, [enter(READ_NR, 4), leave(READ_NR, 2)])
    lines = syscalls.in_two_pieces() if parted else syscalls.lines()
    end = " <unfinished ...>" if parted else ") = ? <events were lost>"
    assert lines == [
        f"read(fd: 0, buf: NULL, count: 9{end}",
        "CPU:0 [LOST 3 EVENTS]",
        "<... read resumed>) = 1",
        "read(fd: 4, buf: NULL, count: 0) = 2 <0.010 us>",
    ]


def test_an_end_without_a_number_is_that_of_the_call_before(syscalls: Syscalls) -> None:
    syscalls.add(0, [enter(15), leave(-1, 0)])
    assert syscalls.lines() == ["rt_sigreturn() = 0 <0.010 us>"]


def test_strings_are_printed_where_the_event_has_them_and_each_call_once(
    syscalls: Syscalls,
) -> None:
    call = [enter(OPENAT_NR, AT_FDCWD, 0x7FFE), openat(b'a\x1b"\n', 0)]
    syscalls.add(0, [*call, openat_end(-2), leave(OPENAT_NR, -2)])
    assert syscalls.lines() == [
        'openat(dfd: AT_FDCWD, filename: "a\\x1b\\"\\x0a", flags: O_RDONLY, mode: 0000)'
        " = -1 ENOENT (No such file or directory) <0.010 us>"
    ]


def test_other_events_are_printed_beside_calls_where_asked(syscalls: Syscalls) -> None:
    syscalls.add(0, [enter(39), tick(5), leave(39, 7)])
    lines = syscalls.lines("--event", "*")
    assert lines == ["getpid() = 7 <0.020 us>", "tick: count=5 flags="]


@pytest.mark.parametrize("option", ["--json", "--fields=a", "--style=babeltrace"])
def test_syscalls_go_with_no_other_form(
    option: str, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    status, _, err = run(capfdbinary, "text", tmp_path, "--syscalls", option)
    assert status == 2
    assert "leave one out" in err


def test_a_trace_without_system_calls_says_which_events_to_record(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    made = Traced(tmp_path / "t")
    made.append([pages_of(0, [tick(1)])])
    made.finish()
    status, out, err = run(capfdbinary, "text", tmp_path / "t", "--syscalls")
    assert (status, out) == (1, b"")
    assert "no system calls" in err
    assert "--events 'syscalls:*'" in err


def constants() -> dict[str, int]:
    """Return the constants that Python has of this machine."""
    found: dict[str, int] = {}
    for module in (os, mmap, signal, socket, fcntl, resource, select):
        for name in dir(module):
            value = getattr(module, name)
            if isinstance(value, int) and not isinstance(value, bool):
                found[name] = int(value)
    return found


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="constants of another architecture")
def test_names_of_values_are_those_of_this_machine() -> None:
    known, compared = constants(), 0
    for table in values_of("x86_64").values():
        for value, name in (*table.named.items(), *table.flags):
            # glibc defines O_LARGEFILE as 0 on 64 bits, and takes two real-time signals.
            if name in known and name not in ("O_LARGEFILE", "SIGRTMIN"):
                assert (name, value) == (name, known[name])
                compared += 1
    assert compared > 150


def test_every_kind_of_argument_has_a_table_and_every_table_is_used() -> None:
    kinds = {one.kind for call in by_name().values() for one in call.arguments or ()}
    assert kinds - {"p", "d", "u", "l", "ul", "x", "o"} == values_of("x86_64").keys()


def test_numbers_depend_on_the_architecture() -> None:
    assert by_number("x86_64")[OPENAT_NR].name == by_number("aarch64")[56].name == "openat"
    assert by_number("x86_64")[56].name == "clone"
    assert by_number("s390x") == {}
    directory = 0o200000
    assert values_of("x86_64")["open"].told(directory) == b"O_RDONLY|O_DIRECTORY"
    assert values_of("aarch64")["open"].told(directory) == b"O_RDONLY|O_DIRECT"
