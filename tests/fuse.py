"""A FUSE file system whose files are Python objects, to emulate the files of a kernel.

Rule: it speaks the protocol of include/uapi/linux/fuse.h on /dev/fuse directly. The tests need poll
with any mask, its wake-ups, and an open that fails; libraries hide these.
Invariant: once the serving process ends, every request on its files fails, so that nothing hangs.
"""

import ctypes
import enum
import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol

MOST_BYTES: Final = 1 << 20

_IN_HEADER: Final = struct.Struct("<IIQQIIIHH")
_OUT_HEADER: Final = struct.Struct("<IiQ")
_ATTR: Final = struct.Struct("<6Q10I")
_READ_IN: Final = struct.Struct("<QQI")
_IOCTL_IN: Final = struct.Struct("<QIIQII")
_POLL_IN: Final = struct.Struct("<QQII")
_SCHEDULE_NOTIFY: Final = 1
_NOTIFY_POLL: Final = 1
_NOTIFY_INVALIDATE: Final = 2


class Op(enum.IntEnum):
    """The requests that the server answers; others get ENOSYS, which the kernel remembers."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    OPEN = 14
    READ = 15
    RELEASE = 18
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    INTERRUPT = 36
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    BATCH_FORGET = 42


_UNANSWERED: Final = {Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT}

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Opened(Protocol):
    """An open file; its methods raise OSError to fail a request."""

    def read(self, offset_bytes: int, limit_bytes: int) -> bytes: ...

    def ioctl(self, request: int, argument: bytes) -> bytes:
        """Return the new value of the argument, of the size in *request*; empty for none."""
        ...

    def poll(self) -> int:
        """Return all poll events that hold now, whatever the caller asked for."""
        ...

    def release(self) -> None: ...


class File(Protocol):
    """A file of this file system."""

    size_bytes: int
    """splice() asks for at most this many bytes."""

    def open(self) -> Opened: ...


def why_no_fuse() -> str:
    """Return the reason why FUSE cannot be mounted here; empty if it can."""
    if not os.path.exists("/dev/fuse"):
        return "no /dev/fuse: modprobe fuse"
    if os.geteuid():
        return "mounting FUSE takes root"
    return "" if _may_mount() else "mounting FUSE takes CAP_SYS_ADMIN"


def _may_mount() -> bool:
    lines = Path("/proc/self/status").read_text().splitlines()
    (capabilities,) = [int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")]
    return bool(capabilities >> 21 & 1)


@contextmanager
def mounted(directory: Path) -> Iterator[int]:
    """Mount a file system on *directory*; yield the descriptor to serve it on."""
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        options = f"fd={fd},rootmode=40000,user_id=0,group_id=0"
        if _libc.mount(b"lttd-test", os.fsencode(directory), b"fuse", 0, options.encode()):
            number = ctypes.get_errno()
            raise OSError(number, f"mounting FUSE: {os.strerror(number)}")
        try:
            yield fd
        finally:
            unmount(directory)
    finally:
        os.close(fd)


def unmount(directory: Path) -> None:
    """Unmount *directory*, even if its server has died."""
    _libc.umount2(os.fsencode(directory), 2)  # MNT_DETACH


class Server:
    """Answers one request at a time."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.files: dict[str, File | None] = {"": None}
        """By path below the root; None is a directory."""
        self._paths = [""]  # index: node id - 1
        self._opened: dict[int, Opened] = {}
        self._handles = 0
        self._wakes: dict[int, int] = {}

    def add(self, path: str, file: File) -> None:
        """Add a file and its parent directories."""
        for parent in list(Path(path).parents)[:-1]:
            self.files[str(parent)] = None
        self.files[path] = file

    def remove(self, path: str) -> None:
        """Remove a name; a later file of the same name gets another node."""
        del self.files[path]
        if path in self._paths:  # otherwise the kernel never looked it up
            self._paths[self._paths.index(path)] = "/"

    def wake(self, opened: Opened) -> None:
        """Wake the processes that poll this file."""
        for handle, wake in list(self._wakes.items()):
            if self._opened.get(handle) is opened:
                del self._wakes[handle]
                self._notify(_NOTIFY_POLL, struct.pack("<Q", wake))

    def forget_content(self, path: str) -> None:
        """Drop the file's content from the page cache, which splice() reads."""
        node = self._paths.index(path) + 1
        self._notify(_NOTIFY_INVALIDATE, struct.pack("<Qqq", node, 0, 0))

    def _notify(self, code: int, body: bytes) -> None:
        os.write(self.fd, _OUT_HEADER.pack(_OUT_HEADER.size + len(body), code, 0) + body)

    def serve(self) -> bool:
        """Answer one request if one waits; return whether it did."""
        try:
            request = os.read(self.fd, MOST_BYTES + 4096)
        except BlockingIOError:
            return False
        _, code, unique, node, *_ = _IN_HEADER.unpack_from(request)
        if code in _UNANSWERED:
            return True
        error, answer = 0, b""
        try:
            answer = self._answer(code, node, request[_IN_HEADER.size :])
        except OSError as refused:
            error = -(refused.errno or errno.EIO)
        size = _OUT_HEADER.size + len(answer)
        with suppress(FileNotFoundError):  # the caller was interrupted
            os.write(self.fd, _OUT_HEADER.pack(size, error, unique) + answer)
        return True

    def _answer(self, code: int, node: int, body: bytes) -> bytes:  # noqa: C901  (a table of calls)
        path = self._paths[node - 1] if 0 < node <= len(self._paths) else ""
        match code:
            case Op.INIT:  # protocol 7.31 without options
                return struct.pack("<4I", 7, 31, 128 << 10, 0) + struct.pack(
                    "<2H2I2H8I", 8, 8, 4096, 1, *[0] * 10
                )
            case Op.LOOKUP:
                return self._look_up(path, body.rstrip(b"\0").decode())
            case Op.GETATTR:
                return struct.pack("<QII", 0, 0, 0) + self._attributes(node, path)
            case Op.OPEN:
                return self._open(path)
            case Op.OPENDIR:
                return struct.pack("<QII", 0, 0, 0)
            case Op.READDIR:
                return self._list(path, *_READ_IN.unpack_from(body)[1:])
            case Op.RELEASEDIR | Op.DESTROY:
                return b""
            case Op.READ:
                handle, offset, size = _READ_IN.unpack_from(body)
                return self._opened[handle].read(offset, size)
            case Op.RELEASE:
                (handle,) = struct.unpack_from("<Q", body)
                self._wakes.pop(handle, None)
                self._opened.pop(handle).release()
                return b""
            case Op.IOCTL:
                handle, _, request, _, in_bytes, _ = _IOCTL_IN.unpack_from(body)
                argument = body[_IOCTL_IN.size : _IOCTL_IN.size + in_bytes]
                return struct.pack("<iIII", 0, 0, 0, 0) + self._opened[handle].ioctl(
                    request, argument
                )
            case Op.POLL:
                handle, wake, flags, _ = _POLL_IN.unpack_from(body)
                if flags & _SCHEDULE_NOTIFY:
                    self._wakes[handle] = wake
                return struct.pack("<II", self._opened[handle].poll(), 0)
        raise OSError(errno.ENOSYS, "not here")

    def _look_up(self, parent: str, name: str) -> bytes:
        path = f"{parent}/{name}".lstrip("/")
        if path not in self.files:
            raise OSError(errno.ENOENT, path)
        if path not in self._paths:
            self._paths.append(path)
        node = self._paths.index(path) + 1
        return struct.pack("<4Q2I", node, 0, 0, 0, 0, 0) + self._attributes(node, path)

    def _attributes(self, node: int, path: str) -> bytes:
        file = self.files.get(path)
        mode = stat.S_IFREG | 0o400 if file else stat.S_IFDIR | 0o755
        size = file.size_bytes if file else 0
        return _ATTR.pack(node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _open(self, path: str) -> bytes:
        file = self.files[path]
        assert file is not None
        opened = file.open()
        self._handles += 1
        self._opened[self._handles] = opened
        return struct.pack("<QII", self._handles, 0, 0)

    def _list(self, path: str, offset: int, size: int) -> bytes:
        names = [
            name for name in self.files if name and str(Path(name).parent) in (path, path or ".")
        ]
        entries = b""
        for number, name in list(enumerate(sorted(names), 1))[offset:]:
            file_type = stat.S_IFMT(0o100000 if self.files[name] else 0o040000) >> 12
            encoded = Path(name).name.encode()
            entry = struct.pack("<QQII", number + 1, number, len(encoded), file_type) + encoded
            entry += bytes(-len(entry) % 8)
            if len(entries) + len(entry) > size:
                break
            entries += entry
        return entries
