"""Files at a URL that fsspec can write to: all of them stay, or none does.

Rule: only what this export has made is removed; a directory only if it was not there before.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, Final

from lttd.errors import LttdError, UsageError, reason_of


class Remote:
    """The files of one export below a URL, which no file is below yet."""

    def __init__(self, url: str) -> None:
        """Connect to the storage.

        Raises:
            UsageError: fsspec is missing, does not know the URL, or the URL exists already.
        """
        try:
            import fsspec  # noqa: PLC0415

            self._files, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UsageError(
                f"{url}: {error}; pip install 'lttd[parquet]', or that package"
            ) from None
        self._url: Final = url
        self._root: Final = root.rstrip("/")
        self._was_there = self._files.exists(root)
        if self._was_there and self._files.ls(root):
            raise UsageError(f"{url}: exists already; name another, or remove it")
        self._made: dict[str, Any] = {}

    def create(self, name: str) -> IO[bytes]:
        """Open a new file below the URL."""
        path = f"{self._root}/{name}"
        self._made[path] = None
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        opened: IO[bytes] = self._files.open(path, "wb")
        self._made[path] = opened
        return opened

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Remove all files if the block fails.

        Raises:
            LttdError: it failed; the text names the files that could not be removed.
        """
        try:
            yield
        except BaseException as error:
            left = [path for path in self._made if not self._is_removed(path)]
            self._remove_directories()
            if not isinstance(error, Exception) or (isinstance(error, LttdError) and not left):
                raise
            reason = reason_of(error) if isinstance(error, OSError) else str(error)
            more = f"; {len(left)} unfinished files stay, {left[0]} and others" if left else ""
            raise LttdError(f"{self._url}: {reason}{more}") from error

    def _is_removed(self, path: str) -> bool:
        """Remove a file; tell whether it is gone."""
        file = self._made[path]
        with suppress(Exception):  # whatever kept the export from writing it
            if file is not None:
                file.close()  # some storages make the object only now
        with suppress(Exception):
            self._files.rm_file(path)
        try:
            self._files.invalidate_cache()
            return not self._files.exists(path)
        except Exception:  # noqa: BLE001  (fsspec has as many kinds as storages)
            return False

    def _remove_directories(self) -> None:
        """Remove the directories of the files, which are empty now; where there are such."""
        made: set[str] = set()
        for path in self._made:
            names = path.removeprefix(self._root).split("/")[:-1]
            made |= {self._root + "/".join(names[:count]) for count in range(1, len(names) + 1)}
        if self._was_there:
            made.discard(self._root)
        for path in sorted(made, key=len, reverse=True):
            with suppress(Exception):
                self._files.rmdir(path)
