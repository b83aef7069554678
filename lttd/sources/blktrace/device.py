"""Set up, start, stop and tear down the trace of a block device, and keep track of its owner.

The kernel has one trace per device, and keeps it when the process that set it up is killed.  So a
note in the runtime directory says which trace is lttd's.  Its lttd holds a lock on it while it
lives.  The note names the trace by the inode of a file that the kernel made for it, which no other
trace has.

Rule: lttd tears a trace down only if it is lttd's own.
Source of the ioctls: Linux include/uapi/linux/fs.h and blktrace_api.h; kernel/trace/blktrace.c.
"""

import errno
import fcntl
import json
import os
import stat
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from lttd.abi.blktrace import CATEGORIES
from lttd.errors import LockedError, LttdError, NothingToRecordError, SourceError, UsageError
from lttd.locks import lock_now
from lttd.namespaces import kernel_knows_our_pids
from lttd.runtime import RuntimeDirectory, boot_id
from lttd.sources.mounts import find_debugfs
from lttd.sources.refused import Capability, remedy

SETUP: Final = 0xC0481273
START: Final = 0x1274
STOP: Final = 0x1275
TEARDOWN: Final = 0x1276
SETUP_STRUCT: Final = struct.Struct("<32sH2xII4xQQI4x")
"""struct blk_user_trace_setup: name, act_mask, buf_size, buf_nr, start_lba, end_lba, pid."""

SUBBUFFER_BYTES: Final = 64 << 10
BUFFER_BYTES: Final = 4 << 20
_MOST_SUBBUFFER_BYTES: Final = 16 << 20  # as blktrace has it

_REFUSED: Final = {
    errno.ENOTTY: "use a kernel with CONFIG_BLK_DEV_IO_TRACE",
    errno.ENOENT: "mount -t debugfs debugfs /sys/kernel/debug",
}
_FAILED: Final = {
    errno.EINVAL: "this kernel does not take these settings",
    errno.EIO: "ask for a smaller buffer",
    errno.ENOMEM: "ask for a smaller buffer",
    errno.ENODEV: "the device was removed",
}


@dataclass(frozen=True, slots=True)
class BlktraceSettings:
    """The settings of a ``blktrace`` SPEC."""

    device: str
    actions: tuple[str, ...] = ()
    """Names of categories, as for ``blktrace -a``; empty: all."""
    buffer_bytes: int = BUFFER_BYTES
    """Size of each CPU's ring."""
    subbuffer_bytes: int = SUBBUFFER_BYTES
    sectors: tuple[int, int] | None = None
    """First and last sector to be traced."""
    pid: int = 0
    """0: all processes."""

    @property
    def act_mask(self) -> int:
        """The kernel's bit mask of the actions; 0: all.

        Raises:
            UsageError: there is no action of that name.
        """
        for name in self.actions:
            if name.lower() not in CATEGORIES:
                raise UsageError(
                    f"actions: {name!r} is not an action; write {', '.join(CATEGORIES)}"
                )
        return sum(1 << CATEGORIES.index(name) for name in {one.lower() for one in self.actions})

    @property
    def subbuffers(self) -> int:
        """The number of sub-buffers of a ring."""
        return max(self.buffer_bytes // self.subbuffer_bytes, 2)

    def packed(self) -> bytearray:
        """Return the struct that BLKTRACESETUP takes.

        Raises:
            UsageError: a size or a sector does not fit into it.
        """
        if not 4096 <= self.subbuffer_bytes <= _MOST_SUBBUFFER_BYTES:
            raise UsageError(
                f"sub-buffers of {self.subbuffer_bytes} bytes are not possible; write 4K to 16M"
            )
        first, last = self.sectors or (0, 0)
        try:
            numbers = (self.act_mask, self.subbuffer_bytes, self.subbuffers, first, last, self.pid)
            return bytearray(SETUP_STRUCT.pack(b"", *numbers))
        except struct.error as error:
            raise UsageError(f"{self.device}: {error}") from None


class BlockTrace:
    """The trace of one device, from SETUP to TEARDOWN."""

    def __init__(self, settings: BlktraceSettings, *, debugfs: str | None = None) -> None:
        """Set the trace up; first tear down one that a killed lttd left.

        Raises:
            UsageError: it is not a block device, or the settings are impossible.
            NothingToRecordError: there is no such device, or this process may not trace it.
            LockedError: another process traces it.
            SourceError: the kernel refuses.
        """
        if settings.pid and not kernel_knows_our_pids():
            what = f"pid={settings.pid}: the kernel knows processes by the ids of the initial pid"
            raise UsageError(f"{what} namespace, and lttd runs in another: leave pid out")
        self.notes: list[str] = []
        self._device = settings.device
        request = settings.packed()
        self._fd = _open_device(settings.device)
        self._is_set_up = False
        self._is_marked = False
        self._claim: Claim | None = None
        try:
            debugfs = find_debugfs() if debugfs is None else debugfs
            self._claim = Claim(settings.device, os.fstat(self._fd).st_rdev, debugfs)
            self.name = self._set_up(request)
            self.directory = f"{debugfs}/block/{self.name}"
            self._claim.mark(self.name)
            self._is_marked = True
        except BaseException:
            self.close()
            raise

    def _set_up(self, request: bytearray) -> str:
        assert self._claim is not None
        if self._claim.is_there():
            # EINVAL: it was stopped before, or never started.  Tear it down all the same.
            with suppress(LttdError):
                self._ioctl(STOP, "BLKTRACESTOP")
            self._ioctl(TEARDOWN, "BLKTRACETEARDOWN")
            self.notes.append(
                f"{self._device}: a killed lttd had left its trace set up; it was torn down, and"
                " its unread records are lost"
            )
        try:
            fcntl.ioctl(self._fd, SETUP, request)
        except OSError as error:
            raise self._explained(error, "BLKTRACESETUP") from error
        self._is_set_up = True
        return bytes(request[:32]).partition(b"\0")[0].decode()

    def start(self) -> None:
        """Start tracing."""
        self._ioctl(START, "BLKTRACESTART")

    def stop(self) -> None:
        """Stop tracing; the kernel closes the sub-buffers that it has begun."""
        self._ioctl(STOP, "BLKTRACESTOP")

    def is_ours(self) -> bool:
        """Tell whether lttd's trace is still set up; another tool may have replaced it."""
        return self._claim is not None and self._claim.is_there()

    def close(self) -> None:
        """Tear the trace down, and close the device."""
        if self._fd < 0:
            return
        if self._is_set_up and (not self._is_marked or self.is_ours()):
            with suppress(LttdError):
                self._ioctl(TEARDOWN, "BLKTRACETEARDOWN")
        if self._claim is not None:
            self._claim.release(clear=self._is_set_up)
        os.close(self._fd)
        self._fd = -1

    def _ioctl(self, number: int, name: str) -> None:
        try:
            fcntl.ioctl(self._fd, number)
        except OSError as error:
            raise self._explained(error, name) from error

    def _explained(self, error: OSError, doing: str) -> LttdError:
        what = f"{self._device}: {doing}: {os.strerror(error.errno or 0)}"
        if error.errno == errno.EBUSY:
            return LockedError(
                f"another process traces {self._device}, and the kernel has one trace"
                f" for each device: stop that one (blktrace -d {self._device} -k ends it)"
            )
        if error.errno in (errno.EPERM, errno.EACCES):
            return NothingToRecordError(what, remedy(errno.EPERM, Capability.CAP_SYS_ADMIN))
        if error.errno in _REFUSED:
            return NothingToRecordError(what, _REFUSED[error.errno])
        helps = _FAILED.get(error.errno or 0)
        return SourceError(f"{what}; {helps}" if helps else what)


def _open_device(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        what = f"{path}: {error.strerror}"
        if error.errno in (errno.EACCES, errno.EPERM):
            raise NothingToRecordError(what, remedy(error.errno)) from None
        raise NothingToRecordError(what, "name a block device: blktrace:/dev/X") from None
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        os.close(fd)
        raise UsageError(f"{path} is not a block device; name one: blktrace:/dev/X")
    return fd


class Claim:
    """The file that says which trace of a device is lttd's."""

    def __init__(self, device: str, number: int, debugfs: str) -> None:
        """Lock the file.

        Raises:
            LockedError: a running lttd holds it.
            NothingToRecordError: the directory cannot be written to.
        """
        name = f"blktrace-{os.major(number)}:{os.minor(number)}"
        self._debugfs = debugfs
        with RuntimeDirectory() as directory:
            self.path = f"{directory.path}/{name}"
            self._fd = directory.open_claim(name)
        try:
            lock_now(self._fd, lambda who: f"{device} is being traced by {who}; stop that first")
        except OSError as error:
            os.close(self._fd)
            raise SourceError(f"{self.path}: {error.strerror}") from error
        except BaseException:
            os.close(self._fd)
            raise

    def mark(self, name: str) -> None:
        """Note that the trace called *name*, which is set up now, is lttd's.

        Raises:
            SourceError: the kernel made no files for it, or the note cannot be written.
        """
        try:
            value = {"name": name, "inode": self._inode(name), "boot_id": boot_id()}
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, json.dumps(value).encode(), 0)
        except OSError as error:
            what = f"{error.filename or self.path}: {error.strerror}"
            raise SourceError(
                f"{what}; a trace that cannot be marked as lttd's is torn down"
            ) from None

    def is_there(self) -> bool:
        """Tell whether the trace that was noted last is still set up."""
        try:
            value = json.loads(os.pread(self._fd, 4096, 0))
            marked = value["inode"], value["boot_id"]
            return marked == (self._inode(str(value["name"])), boot_id())
        except (ValueError, KeyError, TypeError, OSError):
            return False

    def release(self, *, clear: bool) -> None:
        """Release the lock; with *clear*, note that no trace is lttd's any more."""
        if clear:
            os.ftruncate(self._fd, 0)
        os.close(self._fd)

    def _inode(self, name: str) -> int:
        # Each SETUP makes the file anew, and debugfs never uses an inode number twice.
        return os.stat(f"{self._debugfs}/block/{name}/dropped").st_ino


def missing_cpus(cpus: Sequence[int]) -> list[int]:
    """Return the CPUs below the highest one that have no file."""
    return sorted(set(range(max(cpus, default=-1) + 1)) - set(cpus))
