"""Read a segment's format files from ``formats.gz``, or from their own paths below ``events/``.

A recording packs them.  A copied tracefs tree, a replayed one, the kernel's own and recordings of
lttd before formats.gz have them at their own paths.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from typing import Final

from lttd.abi import formats_file
from lttd.abi.formats_file import Key, Unpacked
from lttd.beneath import Place
from lttd.errors import TraceDamagedError
from lttd.limits import EVENT_TYPES, FORMAT, FORMAT_MEMBERS, FORMATS
from lttd.openat import close_fd
from lttd.readfile import read_limited
from lttd.view.notes import TakesNotes

_NONE: Final = Unpacked({}, None)


@lru_cache(maxsize=4)
def _unpacked(data: bytes) -> Unpacked:
    """Unpack a formats.gz; those of many segments of a trace are equal, and are kept once."""
    return formats_file.unpack(data, FORMATS.most)


class FormatFiles:
    """The format files below one ``tracefs/``."""

    def __init__(self, tracefs: Place, notes: TakesNotes) -> None:
        """*notes* gets a line for each file that cannot be read."""
        self._events = tracefs / "events"
        self._packed = tracefs / formats_file.NAME
        self._notes = notes

    def __str__(self) -> str:
        return str(self._packed if self._texts else self._events)

    def __iter__(self) -> Iterator[Key]:
        """Yield (system, event) of each file, up to as many as a segment can have."""
        for number, key in enumerate(self._found(), 1):
            if number > EVENT_TYPES.most:
                self._notes.add(f"{self}: {EVENT_TYPES}; the others are left out")
                return
            yield key

    def path(self, key: Key) -> str:
        """Return the place of a file, for messages."""
        system, event = key
        if key in self._texts:
            return f"{self._packed}: events/{system}/{event}/format"
        # Plain strings: a thousand Path objects would be a tenth of the time to the first line.
        return f"{self._events}/{system}/{event}/format"

    def head(self, key: Key, most_bytes: int) -> bytes:
        """Return the first bytes of a file.

        Raises:
            OSError: it cannot be read.
        """
        if key in self._texts:
            return self._texts[key][:most_bytes]
        fd = self._events.directory.open_file(self.path(key))
        try:
            return os.read(fd, most_bytes)
        finally:
            close_fd(fd)

    def text(self, key: Key) -> bytes:
        """Return a file's content.

        Raises:
            OSError: it cannot be read.
            TraceDamagedError: it is too large.
        """
        if key in self._texts:
            return self._texts[key]
        return read_limited(self._events.directory.place(self.path(key)), FORMAT)

    @property
    def earlier(self) -> Sequence[tuple[Key, bytes]]:
        """Formats that events of the segment had before those of text(), the oldest first."""
        earlier = self._unpacked.earlier if self._texts else ()
        return [(key, text) for key, text in earlier if len(text) <= FORMAT.most]

    @cached_property
    def _unpacked(self) -> Unpacked:
        """The packed files; none if there is no formats.gz."""
        try:
            data = read_limited(self._packed, FORMATS)
        except FileNotFoundError:
            return _NONE
        except OSError as error:
            self._notes.add(f"{self._packed}: {error.strerror}")
            return _NONE
        except TraceDamagedError as error:
            self._notes.add(str(error))
            return _NONE
        found = _unpacked(data)
        if found.damaged_at is not None:
            limits = f"{FORMATS}; {FORMAT_MEMBERS}"
            reason = f"formats from here on cannot be read: damaged, or beyond a limit ({limits})"
            self._notes.add(f"{self._packed}: byte {found.damaged_at}: {reason}")
        return found

    @cached_property
    def _texts(self) -> dict[Key, bytes]:
        """The packed files that are not too large."""
        found = self._unpacked
        large = [key for key, text in found.formats.items() if len(text) > FORMAT.most]
        for key in large:
            self._notes.add(f"{self._packed}: events/{'/'.join(key)}/format: {FORMAT}; left out")
        if not large:
            return found.formats
        return {key: text for key, text in found.formats.items() if key not in large}

    def _found(self) -> Iterator[Key]:
        yield from self._texts
        directories = self._events.directory.directories
        with suppress(OSError):  # absent
            for system in directories(self._events.path):
                with suppress(OSError):
                    for event in directories((self._events / system).path):
                        if (system, event) not in self._texts:
                            yield system, event
