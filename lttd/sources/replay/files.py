"""The base of all replays: regular files as streams, and a source of such files.

Rule: the directory is opened once, and the files below it are reached through its descriptor; no
symbolic link below it is followed, neither to a file nor to a directory.
Rule: a file is always ready and never urgent, and reports no losses beside those in its bytes.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from lttd.beneath import OpenDirectory, Place
from lttd.errors import SourceError, TraceDamagedError, UsageError
from lttd.limits import HOLE
from lttd.readfile import refuse_hole
from lttd.sources.at_rest import SourceAtRest, StreamAtRest
from lttd.sources.base import Nothing, SourceInfo
from lttd.subbuffer import Batch, BufferPool, StreamInfo


def open_directory(directory: Path) -> OpenDirectory:
    """Open the directory that a SPEC names.

    Raises:
        UsageError: there is none.
        SourceError: this user may not read it.
    """
    try:
        return OpenDirectory.open(directory)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{directory} is not a directory") from None
    except OSError as error:
        raise SourceError(f"{directory}: {error.strerror}") from None


class FileBytes:
    """The bytes of a file, read in parts: a mapped file that somebody cuts would end lttd."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size_bytes = os.fstat(fd).st_size

    def __len__(self) -> int:
        return self._size_bytes

    def __getitem__(self, part: slice) -> bytes:
        begin, end, _ = part.indices(self._size_bytes)
        return os.pread(self._fd, end - begin, begin)


@contextmanager
def bytes_of(place: Place) -> Iterator[FileBytes]:
    """Open a file that is walked as a whole.

    Raises:
        SourceError: it cannot be read, or has a hole.
    """
    path = Path(place.path)
    try:
        with os.fdopen(place.open(), "rb") as file:
            refuse_hole(path, file.fileno(), HOLE)
            yield FileBytes(file.fileno())
    except TraceDamagedError as error:
        raise SourceError(str(error)) from None
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from None


class FileStream(StreamAtRest):
    """A file as a ``lttd.sources.base.Stream``; a subclass defines take()."""

    def __init__(self, info: StreamInfo, place: Place, pool: BufferPool) -> None:
        """Open the file.

        Raises:
            SourceError: it cannot be opened.
        """
        self.info = info
        self.pool = pool
        self.path = Path(place.path)
        self._fd = -1
        self.reopen(place)

    def reopen(self, place: Place) -> None:
        """Go on with another file.

        Raises:
            SourceError: it cannot be opened.
        """
        self.close()
        self.path = Path(place.path)
        try:
            self._fd = place.open()
        except OSError as error:
            raise SourceError(f"{self.path}: {error.strerror}") from error
        try:
            refuse_hole(self.path, self._fd, HOLE)
        except (OSError, TraceDamagedError) as error:
            self.close()
            raise SourceError(str(error)) from None

    @property
    def closed(self) -> bool:
        """Tell whether the file was read to its end, or given up."""
        return self._fd < 0

    @property
    def size_bytes(self) -> int:
        """The size of the file."""
        return 0 if self.closed else os.fstat(self._fd).st_size

    @property
    def latest(self) -> int:
        """The trace-clock time at the end of the taken data."""
        raise NotImplementedError

    def take(self, flush: bool) -> Batch | Nothing:
        """Read the next sub-buffers; see Stream.take()."""
        raise NotImplementedError

    def read_into(self, buffer: memoryview, offset_bytes: int) -> int:
        """Fill *buffer* from *offset_bytes* of the file on; return the number of bytes read.

        Raises:
            SourceError: the file cannot be read.
        """
        used = 0
        try:
            while used < len(buffer):
                got = os.preadv(self._fd, [buffer[used:]], offset_bytes + used)
                if not got:
                    break
                used += got
        except OSError as error:
            raise SourceError(f"{self.path}: {error.strerror}") from error
        return used

    def close(self) -> None:
        """Close the descriptor."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


StreamT = TypeVar("StreamT", bound=FileStream)


class FileSource(SourceAtRest, Generic[StreamT]):
    """Files as a ``lttd.sources.base.Source``; a subclass adds its info, and attachments."""

    info: SourceInfo

    def __init__(self, streams: Iterable[StreamT], notes: Iterable[str] = ()) -> None:
        """Take over *streams*; the iterable opens them one by one."""
        self.streams: list[StreamT] = []
        super().__init__(notes)
        try:
            self.streams += streams
        except BaseException:
            self.close()
            raise

    def now(self) -> int:
        """Return the latest time of the taken data, which is the clock of a replay."""
        return max(stream.latest for stream in self.streams)

    def note(self, line: str) -> None:
        """Add a line to the lines of notes()."""
        self._notes.append(line)

    def close(self) -> None:
        """Close the files."""
        for stream in self.streams:
            stream.close()


class Replay(NamedTuple):
    """Reads the files of one ABI; a module that ``SourceRow.replays`` names has it as REPLAY."""

    find: Callable[[Path], Path | None]
    """Returns the first file of a directory that is of this ABI by its name or first bytes."""
    open: Callable[[Path, BufferPool, int | None], FileSource[Any]]
    """Opens a directory; the number is the size of a sub-buffer, if the user states it."""
    states_sizes: bool
    """Whether sub-buffers state their size, so that the user cannot."""
    open_one: Callable[[Path, BufferPool, str], FileSource[Any]] | None = None
    """Opens one of several traces in a directory, by its name; None: they are of one trace."""
