"""The texts that a trace.dat has before its data: headers, formats, symbols, names of tasks.

Versions 6 and 7 have the same layouts; version 6 has them one after the other, and version 7 in
sections of their own:

    headers  := "header_page" NUL size:u64 text "header_event" NUL size:u64 text
    own      := count:u32 (size:u64 format){count}
    events   := systems:u32 (name NUL count:u32 (size:u64 format){count}){systems}
    kallsyms, printk_formats := size:u32 text
    commands := size:u64 text

Source: trace-cmd Documentation/trace-cmd/trace-cmd.dat.v6.5.txt, trace-cmd.dat.v7.5.txt and
lib/trace-cmd/trace-input.c.

Rule: a text beyond its limit is passed over, with a note, and the rest is read.
"""

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from lttd.abi.ftrace import OWN_SYSTEM
from lttd.abi.saved_cmdlines import commands_of
from lttd.limits import (
    COMMANDS,
    EVENT_TYPES,
    FORMAT,
    FORMATS,
    HEADER_PAGE,
    KALLSYMS,
    PRINTK_FORMATS,
    Limit,
)
from lttd.view.foreign.cursor import Cursor

if TYPE_CHECKING:
    from lttd.abi.formats_file import Key

_NAME: Final = re.compile(rb"name: ([^\s/]{1,255})\n")
_MOST_SYSTEMS: Final = 65_536


class Texts:
    """What is known of the traced kernel."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        """Files by their names below tracefs."""
        self.formats: dict[Key, bytes] = {}
        self.notes: list[str] = []
        self._left_bytes = FORMATS.most

    def take(self, name: str, text: bytes | None, limit: Limit, cursor: Cursor) -> None:
        """Keep a file; None: it is too large."""
        if text is None:
            self.notes.append(f"{cursor.path}: {limit}; left out")
        elif text:
            self.files[name] = text

    def take_format(self, system: str, text: bytes | None, cursor: Cursor) -> None:
        """Keep the format of an event."""
        named = _NAME.match(text or b"")
        if text is None or named is None:
            why = str(FORMAT) if text is None else "a format without a name"
            self.note(f"{cursor.path}: {why}; events of its type are shown as bytes")
            return
        self._left_bytes -= len(text)
        if self._left_bytes < 0 or len(self.formats) >= EVENT_TYPES.most:
            limit = FORMATS if self._left_bytes < 0 else EVENT_TYPES
            self.note(f"{cursor.path}: {limit}; other events are shown as bytes")
            return
        self.formats[system, named[1].decode("utf-8", "surrogateescape")] = text

    def note(self, line: str) -> None:
        """Add a line, once."""
        if line not in self.notes:
            self.notes.append(line)


def read_headers(cursor: Cursor, texts: Texts) -> None:
    """Read ``header_page`` and ``header_event``.

    Raises:
        TraceDamagedError: they are not there, or cut.
    """
    for name in ("header_page", "header_event"):
        if cursor.take(len(name) + 1, name) != name.encode() + b"\0":
            cursor.at -= len(name) + 1
            raise cursor.damaged(f"not {name}, which has to be here")
        texts.take(f"events/{name}", cursor.sized("Q", HEADER_PAGE), HEADER_PAGE, cursor)


def read_own_formats(cursor: Cursor, texts: Texts) -> None:
    """Read the formats of ftrace's own events.

    Raises:
        TraceDamagedError: they are cut.
    """
    for _ in range(_counted(cursor, "ftrace's events")):
        texts.take_format(OWN_SYSTEM, cursor.sized("Q", FORMAT), cursor)


def read_formats(cursor: Cursor, texts: Texts) -> None:
    """Read the formats of all other events.

    Raises:
        TraceDamagedError: they are cut.
    """
    for _ in range(_counted(cursor, "systems")):
        system = _system(cursor.string("the name of a system"))
        for _ in range(_counted(cursor, f"events of {system}")):
            texts.take_format(system, cursor.sized("Q", FORMAT), cursor)


def read_symbols(cursor: Cursor, texts: Texts) -> None:
    """Read ``/proc/kallsyms``.

    Raises:
        TraceDamagedError: it is cut.
    """
    texts.take("kallsyms", cursor.sized("I", KALLSYMS), KALLSYMS, cursor)


def read_printk_formats(cursor: Cursor, texts: Texts) -> None:
    """Read the strings of trace_printk().

    Raises:
        TraceDamagedError: they are cut.
    """
    texts.take("printk_formats", cursor.sized("I", PRINTK_FORMATS), PRINTK_FORMATS, cursor)


def read_commands(cursor: Cursor, texts: Texts) -> None:
    """Read the names of tasks.

    Raises:
        TraceDamagedError: they are cut.
    """
    text = cursor.sized("Q", COMMANDS)
    made = None if text is None else commands_of(text.replace(b"\0", b""))
    texts.take("commands", made, COMMANDS, cursor)


IN_ORDER: Final[tuple[Callable[[Cursor, Texts], None], ...]] = (
    read_headers,
    read_own_formats,
    read_formats,
    read_symbols,
    read_printk_formats,
    read_commands,
)
"""As version 6 has them."""

BY_SECTION: Final[Mapping[int, Callable[[Cursor, Texts], None]]] = {
    16: read_headers,
    17: read_own_formats,
    18: read_formats,
    19: read_symbols,
    20: read_printk_formats,
    21: read_commands,
}
"""By the id of an option of version 7, which has the place of the section."""


def _counted(cursor: Cursor, what: str) -> int:
    """Return a number of texts, of which each has a size at least.

    Raises:
        TraceDamagedError: the bytes have no room for so many.
    """
    count = cursor.number("I", f"the number of {what}")
    if count > min(cursor.left_bytes // 5, _MOST_SYSTEMS):
        cursor.at -= 4
        raise cursor.damaged(f"{count:,} {what}, more than there can be")
    return count


def _system(name: bytes) -> str:
    text = name.decode("utf-8", "surrogateescape")
    return text.replace("/", "_").replace("\n", "_") or "unknown"
