"""Open and map the ring of a relay channel, and its control files."""

import ctypes
import errno
import mmap
import os
import sys
from pathlib import Path
from typing import Final

from lttd.errors import LttdError, NothingToRecordError, SourceError
from lttd.sources.relay.file import OpenFile, Ready, explained
from lttd.sources.relay.mapped import Geometry

_NUMBER_BYTES: Final = 8
MOST_RING_BYTES: Final = 1 << 32
_MAP_FAILED: Final = ctypes.c_void_p(-1).value
_WITHOUT: Final = "without padding= lttd records the channel by read()"
_REMEDIES: Final = {
    errno.ENODEV: f"its module lets nobody map it; {_WITHOUT}",
    errno.EINVAL: "it has another size: write subbuffer-size= and subbuffers= as the module has it",
}

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t),
    *(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long),
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


def is_offered(path: str) -> bool:
    """Tell whether the module of a ring has control files for readers that map it."""
    return os.path.exists(f"{path}.produced") and os.path.exists(f"{path}.consumed")


def geometry_of(
    path: str, head_bytes: int, subbuffer_bytes: int | None, subbuffers: int | None
) -> Geometry:
    """Return the layout of the ring at *path*; the module's control files say what is None.

    Raises:
        NothingToRecordError: it does not say so.
    """
    directory = Path(path).parent
    geometry = Geometry(
        subbuffer_bytes or _number_in(directory / "subbuf_size", "subbuffer-size="),
        subbuffers or _number_in(directory / "n_subbufs", "subbuffers="),
        head_bytes,
    )
    ring_bytes = geometry.subbuffer_bytes * geometry.subbuffers
    if geometry.subbuffer_bytes <= head_bytes or not 0 < ring_bytes <= MOST_RING_BYTES:
        sizes = f"{geometry.subbuffers} sub-buffers of {geometry.subbuffer_bytes} bytes"
        raise NothingToRecordError(f"{path}: {sizes} are not possible", _WITHOUT)
    return geometry


def _number_in(path: Path, key: str) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it holds no number"
        raise NothingToRecordError(f"{path}: {why}", f"write {key} in the SPEC") from None


class KernelRing:
    """See ``lttd.sources.relay.mapped.Ring``."""

    def __init__(self, path: str, opened: OpenFile, geometry: Geometry) -> None:
        """Map the file that *opened* has open, and take it over.

        Raises:
            LttdError: it cannot be mapped, or has no control files.
        """
        self._file = opened
        self._fds: list[int] = []
        self._address = 0
        # relay_mmap_buf() wants exactly the size of the ring, in whole pages.
        self._ring_bytes = geometry.subbuffer_bytes * geometry.subbuffers
        self._ring_bytes += -self._ring_bytes % mmap.PAGESIZE
        self.view = memoryview(b"")
        try:
            self._produced_fd = self._open(f"{path}.produced", os.O_RDONLY)
            self._consumed_fd = self._open(f"{path}.consumed", os.O_RDWR)
            self._map(path)
        except BaseException:
            self.close()
            raise

    def _open(self, path: str, flags: int) -> int:
        try:
            self._fds.append(os.open(path, flags | os.O_CLOEXEC))
        except FileNotFoundError:
            what = f"{path}: {os.strerror(errno.ENOENT)}"
            raise NothingToRecordError(what, f"padding= needs it; {_WITHOUT}") from None
        except OSError as error:
            raise explained(path, error) from error
        return self._fds[-1]

    def _map(self, path: str) -> None:
        fd = self._file.fileno()
        found = _libc.mmap(None, self._ring_bytes, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        if found == _MAP_FAILED:
            raise _refused(path, ctypes.get_errno())
        self._address = found
        array = (ctypes.c_ubyte * self._ring_bytes).from_address(found)
        self.view = memoryview(array).cast("B").toreadonly()

    def fileno(self) -> int:
        """Return the descriptor; -1 when closed."""
        return self._file.fileno()

    def produced(self) -> int:
        """Return how many sub-buffers were closed."""
        return _count_in(self._produced_fd)

    def consumed(self) -> int:
        """Return how many sub-buffers were consumed."""
        return _count_in(self._consumed_fd)

    def consume(self, count: int) -> None:
        """Add *count* to those consumed."""
        os.pwrite(self._consumed_fd, count.to_bytes(_NUMBER_BYTES, sys.byteorder), 0)

    def size_bytes(self) -> int:
        """Return ``st_size``."""
        return self._file.size_bytes()

    def is_closed(self) -> bool:
        """Tell whether the channel was closed or its file removed."""
        return self._file.ready() in (Ready.CLOSED, Ready.GONE)

    def close(self) -> None:
        """Remove the mapping, and close the descriptors."""
        self.view = memoryview(b"")
        if self._address:
            _libc.munmap(self._address, self._ring_bytes)
            self._address = 0
        while self._fds:
            os.close(self._fds.pop())
        self._file.close()


def _count_in(fd: int) -> int:
    raw = os.pread(fd, _NUMBER_BYTES, 0)
    if not raw:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return int.from_bytes(raw, sys.byteorder)


def _refused(path: str, code: int) -> LttdError:
    what = f"{path}: mmap: {os.strerror(code)}"
    if code in _REMEDIES:
        return NothingToRecordError(what, _REMEDIES[code])
    return SourceError(what)
