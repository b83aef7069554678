"""The ioctls and structures of /proc/lttng: lttng-modules 2.8 and later.

Rule: arguments are bytearrays: fcntl.ioctl() hides the return value, which may be a new descriptor,
if it gets bytes.
Rule: structures are packed, in the machine's byte order.

Source: lttng-modules include/lttng/abi.h, include/ringbuffer/vfs.h; ``lttd.abi.declared`` has the
layouts.
"""

import fcntl
import struct
from collections.abc import Callable
from typing import Final

from lttd.sources.ioctls import NONE, READ, WRITE, request

_KIND: Final = 0xF6
_WORD: Final = struct.Struct("@L")
_U64: Final = struct.Struct("=Q")

CHANNEL: Final = struct.Struct("=QQIIIi288s")
"""subbuf_size, num_subbuf, switch_timer_us, read_timer_us, output, overwrite, padding."""
EVENT: Final = struct.Struct("=256sIQ8s288s")
"""name, instrumentation, token, padding, and one of the two below."""
KPROBE: Final = struct.Struct("=QQ256s")
"""addr, offset, symbol."""
SYSCALL: Final = struct.Struct("=BBBBI")
"""entry or exit, abi, match, padding, number: all 0 means both, any, by name."""
CONTEXT: Final = struct.Struct("=I16s288s")
"""context, padding, and a union that only performance counters use."""
VERSION: Final = struct.Struct("=II")
"""major, minor."""
NAME_BYTES: Final = 256
TIME_BYTES: Final = 26
"""Of the session's creation time, in the form YYYYmmddTHHMMSS+HHMM."""
OUTPUT_MMAP: Final = 1

# Kinds of instrumentation.
TRACEPOINT: Final = 0
KPROBE_EVENT: Final = 1
SYSCALL_EVENT: Final = 5

# On /proc/lttng.
SESSION: Final = request(NONE, _KIND, 0x45)
TRACEPOINT_LIST: Final = request(NONE, _KIND, 0x47)
SYSCALL_LIST: Final = request(NONE, _KIND, 0x4A)
ABI_VERSION: Final = request(READ, _KIND, 0x4B, VERSION.size)
# On a session.
NEW_METADATA: Final = request(WRITE, _KIND, 0x54, CHANNEL.size)
NEW_CHANNEL: Final = request(WRITE, _KIND, 0x55, CHANNEL.size)
START: Final = request(NONE, _KIND, 0x56)
STOP: Final = request(NONE, _KIND, 0x57)
STATEDUMP: Final = request(NONE, _KIND, 0x5C)
SET_NAME: Final = request(WRITE, _KIND, 0x5D, NAME_BYTES)
SET_CREATION_TIME: Final = request(WRITE, _KIND, 0x5E, TIME_BYTES)
# On a channel.
STREAM: Final = request(NONE, _KIND, 0x62)
NEW_EVENT: Final = request(WRITE, _KIND, 0x63, EVENT.size)
ADD_CONTEXT: Final = request(WRITE, _KIND, 0x71, CONTEXT.size)
# On a channel or an event.
ENABLE: Final = request(NONE, _KIND, 0x82)
DISABLE: Final = request(NONE, _KIND, 0x83)
# On a stream.
GET_NEXT: Final = request(NONE, _KIND, 0x05)
PUT_NEXT: Final = request(NONE, _KIND, 0x06)
SUBBUFFER_BYTES: Final = request(READ, _KIND, 0x07, _WORD.size)
"""Of the sub-buffer that is held, without padding."""
PADDED_BYTES: Final = request(READ, _KIND, 0x08, _WORD.size)
MOST_BYTES: Final = request(READ, _KIND, 0x09, _WORD.size)
MAPPING_BYTES: Final = request(READ, _KIND, 0x0A, _WORD.size)
MAPPING_OFFSET: Final = request(READ, _KIND, 0x0B, _WORD.size)
"""Where in the mapping the sub-buffer is that is held."""
FLUSH: Final = request(NONE, _KIND, 0x0C)
"""Finish the sub-buffer that is being written, if it has events."""
FLUSH_EMPTY: Final = request(NONE, _KIND, 0x0F)
"""The same, also without events; since 2.10."""
GET_NEXT_METADATA: Final = request(READ, _KIND, 0x12, 4)
"""GET_NEXT; also says whether the text can be parsed up to its end; since 2.13."""
CONTENT_BITS: Final = request(READ, _KIND, 0x23, _U64.size)
PACKET_BITS: Final = request(READ, _KIND, 0x24, _U64.size)
CHANNEL_NUMBER: Final = request(READ, _KIND, 0x25, _U64.size)
NOW: Final = request(READ, _KIND, 0x26, _U64.size)
CPU: Final = request(READ, _KIND, 0x28, _U64.size)

CONTEXTS: Final = {
    "pid": 0,
    "procname": 2,
    "prio": 3,
    "nice": 4,
    "vpid": 5,
    "tid": 6,
    "vtid": 7,
    "ppid": 8,
    "vppid": 9,
    "hostname": 10,
    "cpu_id": 11,
    "interruptible": 12,
    "preemptible": 13,
    "need_reschedule": 14,
    "migratable": 15,
    "callstack-kernel": 16,
    "callstack-user": 17,
    "cgroup_ns": 18,
    "ipc_ns": 19,
    "mnt_ns": 20,
    "net_ns": 21,
    "pid_ns": 22,
    "user_ns": 23,
    "uts_ns": 24,
    "uid": 25,
    "euid": 26,
    "suid": 27,
    "gid": 28,
    "egid": 29,
    "sgid": 30,
    "vuid": 31,
    "veuid": 32,
    "vsuid": 33,
    "vgid": 34,
    "vegid": 35,
    "vsgid": 36,
    "time_ns": 37,
}
"""The contexts by the names that ``lttng add-context`` has for them; those of performance counters
are left out."""


Ask = Callable[[int, int], int]
"""Returns the answer to a request on a descriptor."""


def call(fd: int, number: int) -> int:
    """Make a request without an argument; return its value, which may be a new descriptor."""
    return fcntl.ioctl(fd, number, 0)


def give(fd: int, number: int, argument: bytes) -> int:
    """Make a request that reads *argument*; return its value, which may be a new descriptor."""
    value: int = fcntl.ioctl(fd, number, bytearray(argument))
    return value


def ask_word(fd: int, number: int) -> int:
    """Return the answer to a request for an unsigned long."""
    return _asked(fd, number, _WORD)


def ask_u64(fd: int, number: int) -> int:
    """Return the answer to a request for a u64."""
    return _asked(fd, number, _U64)


def ask_version(fd: int) -> tuple[int, int]:
    """Return major and minor version of the ABI."""
    answer = bytearray(VERSION.size)
    fcntl.ioctl(fd, ABI_VERSION, answer)
    major, minor = VERSION.unpack(answer)
    return major, minor


def _asked(fd: int, number: int, form: struct.Struct) -> int:
    answer = bytearray(form.size)
    fcntl.ioctl(fd, number, answer)
    value: int = form.unpack(answer)[0]
    return value
