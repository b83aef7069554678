"""The small files of a foreign trace, as if they were below a segment's directory.

A segment of lttd keeps them beside its streams; a foreign trace has them inside of a file.  So a
foreign segment has a directory that exists in memory alone, and its readers notice no difference: a
file that is opened is an anonymous one (memfd).

Rule: nothing is written below such a directory, and nothing is looked for on the disk.
"""

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from lttd.beneath import OpenDirectory

Content = bytes | Callable[[], bytes]
"""The content of a file, or a function that makes it when somebody opens the file."""


class MemoryFiles(OpenDirectory):
    """The files of one foreign segment."""

    def __init__(self, path: Path, of: Path, files: Mapping[str, Content]) -> None:
        """*path*: the directory; *of*: the foreign trace, whose owner and permissions count.

        *files* have names below the directory.

        Raises:
            OSError: there is no foreign trace any more.
        """
        super().__init__(path, os.open(of, os.O_PATH | os.O_CLOEXEC))
        self._files = dict(files)

    def open_directory(self, path: str | Path) -> int:
        """Raise: there is no such directory on the disk."""
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    def stat(self, path: str | Path) -> os.stat_result:
        """Return the status of the foreign trace, with the size of the file."""
        size_bytes = len(self._content(path))
        words = list(os.fstat(self.fd))
        words[6] = size_bytes
        return os.stat_result(words)

    def is_file(self, path: str | Path) -> bool:
        """Tell whether there is such a file."""
        return self._inside(path) in self._files

    def is_directory(self, path: str | Path) -> bool:
        """Tell whether a file is below *path*."""
        inside = self._inside(path)
        return inside == "." or any(name.startswith(f"{inside}/") for name in self._files)

    def is_missing(self, path: str | Path) -> bool:
        """Tell whether nothing has the name *path*."""
        return not self.is_file(path) and not self.is_directory(path)

    def names(self, path: str | Path) -> list[str]:
        """Return the names in a directory, sorted."""
        return sorted(self._below(path))

    def directories(self, path: str | Path) -> list[str]:
        """Return the names of the directories in a directory, sorted."""
        return sorted(name for name, is_directory in self._below(path).items() if is_directory)

    def walk(self, path: str | Path) -> Iterator[tuple[Path, list[str], list[str]]]:
        """Yield each directory from *path* on with its directories and its files."""
        found = self._below(path)
        below = sorted(name for name, is_directory in found.items() if is_directory)
        yield Path(path), below, sorted(found.keys() - set(below))
        for name in below:
            yield from self.walk(Path(path) / name)

    def open_file(self, path: str | Path) -> int:
        """Return a descriptor of an anonymous file with the content."""
        content = self._content(path)
        fd = os.memfd_create(Path(path).name, os.MFD_CLOEXEC)
        left = memoryview(content)
        while left:
            left = left[os.write(fd, left) :]
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    def _below(self, path: str | Path) -> dict[str, bool]:
        """Return each name in a directory, and whether it is one itself."""
        inside = self._inside(path)
        prefix = "" if inside == "." else f"{inside}/"
        found: dict[str, bool] = {}
        for name in self._files:
            if name.startswith(prefix):
                first, slash, _ = name[len(prefix) :].partition("/")
                found[first] = bool(slash)
        return found

    def _content(self, path: str | Path) -> bytes:
        inside = self._inside(path)
        if inside not in self._files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        content = self._files[inside]
        if callable(content):
            content = self._files[inside] = content()
        return content
