"""Find the function (``kallsyms``) or the string (``printk_formats``) at a kernel address.

    ffffffff812a4d10 T __fput                    # also with [module]
    ffffffff81498b1a ffffffff81498b1b tracing_mark_write    # mark_symbols: begin and end
    0xffffffff8281a424 : "Start context switch"  # newlines, tabs, quotes and backslashes escaped

Source: Linux kernel/kallsyms.c, get_symbol_pos() and __sprint_symbol(); kernel/trace/
trace_printk.c, t_show().

Rule: an address that is in no file stays a number; lttd does not guess.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import islice
from operator import le
from pathlib import Path
from typing import Final, NamedTuple

from lttd.beneath import Place
from lttd.errors import TraceDamagedError
from lttd.limits import KALLSYMS, PRINTK_FORMATS, SYMBOLS, Limit
from lttd.readfile import read_head, read_limited, size_bytes
from lttd.terminal import printable_bytes
from lttd.view.notes import TakesNotes

MARKS: Final = "mark_symbols"
MOST_MARKS_BYTES: Final = 4096
# No function or variable of a kernel is this large: a farther address is in no symbol.
MOST_SYMBOL_BYTES: Final = 64 << 20
LAST_SYMBOL_BYTES: Final = 4096
# Linux include/linux/kallsyms.h: KSYM_NAME_LEN.
MOST_NAME_BYTES: Final = 512
# Absolute symbols (A) are not addresses of the kernel.
_SYMBOL: Final = re.compile(
    rb"^([0-9a-fA-F]{1,16})[ \t]+[^aA\s][ \t]++(\S++)(?:[ \t]++(\[[^\s]*+))?", re.MULTILINE
)
# With CONFIG_KALLSYMS_ALL the list has static data of the kernel, too.
_STATIC_DATA: Final = re.compile(rb" [bdr] [^\t\n]++\n")
_TEXT: Final = ((b"_stext", b"_etext"), (b"_sinittext", b"_einittext"))
_BOUNDS: Final = frozenset(name for names in _TEXT for name in names)
_OF_MARKS: Final = re.compile(rb"^([0-9a-f]{1,16}) ([0-9a-f]{1,16}) (\S{1,511})$", re.MULTILINE)
_FORMAT: Final = re.compile(rb'^0x([0-9a-f]{1,16}) : "(.*)"$', re.MULTILINE)
_ESCAPE: Final = re.compile(rb'\\([nt"\\])')
_ESCAPES: Final = {b"n": b"\n", b"t": b"\t", b'"': b'"', b"\\": b"\\"}


class Symbol(NamedTuple):
    """The symbol at an address."""

    name: bytes
    offset_bytes: int
    size_bytes: int | None
    """The distance to the next symbol; None: there is none near."""
    module: bytes
    """``[name]``, or empty."""


class _Table(NamedTuple):
    """The symbols of a kernel in the order of their addresses."""

    addresses: list[int]
    words: list[tuple[bytes, bytes, bytes]]
    """Address, name and module; aliases in the order of the list."""
    text: Sequence[range]
    """Where the kernel looks addresses up, if not everywhere."""

    def has(self, address: int, module: bytes) -> bool:
        """Tell whether the kernel looks an address up: Linux kernel/kallsyms.c, is_ksym_addr()."""
        return not self.text or bool(module) or any(address in part for part in self.text)


class Symbols:
    """Functions and strings of one kernel by address; a file is read on first use."""

    def __init__(
        self, tracefs: Place | Path | None = None, notes: TakesNotes | None = None
    ) -> None:
        """*tracefs* is the segment's directory of these files; all is unknown without them.

        *notes* gets a line for each file that is too large to be read.
        """
        self._tracefs = tracefs
        self._table: _Table | None = None
        self._strings: dict[int, bytes] | None = None
        self._marks: list[tuple[range, Symbol]] | None = None
        for limit in (KALLSYMS, PRINTK_FORMATS) if tracefs and notes is not None else ():
            path = tracefs / limit.what  # type: ignore[operator]
            if size_bytes(path) > limit.most:
                notes.add(f"{path}: byte {limit.most}: {limit}; addresses stay numbers")  # type: ignore[union-attr]

    def find(self, address: int) -> Symbol | None:
        """Return the symbol at *address*; of several the first in the kernel's list."""
        table = self._loaded()
        addresses = table.addresses
        behind = bisect_right(addresses, address)
        if not addresses:
            return next((one for where, one in self._of_marks() if address in where), None)
        if not behind:
            return None
        begin = addresses[behind - 1]
        size = addresses[behind] - begin if behind < len(addresses) else None
        if size is None or size > MOST_SYMBOL_BYTES:  # the last symbol of all, or of the kernel
            size = None
            if address - begin >= LAST_SYMBOL_BYTES:
                return None
        _, name, module = table.words[bisect_left(addresses, begin)]
        if not table.has(address, module):
            return None
        return Symbol(name[:MOST_NAME_BYTES], address - begin, size, module[:MOST_NAME_BYTES])

    def told(self, address: int, *, offset: bool) -> bytes:
        """Return ``name+0x12/0x34 [module]`` as %pS does, or the name only as %ps does."""
        found = self.find(address)
        if found is None:
            return b"0x%x" % address
        where = b"+0x%x" % found.offset_bytes if offset else b""
        if offset and found.size_bytes is not None:
            where += b"/0x%x" % found.size_bytes
        return printable_bytes(found.name + where + (b" " + found.module if found.module else b""))

    def name(self, address: int, *, digits: int = 8) -> bytes:
        """Return the bare name, as the kernel's stacks have it; else the address.

        *digits*: the least number of digits of an address.
        """
        if not address:  # Linux kernel/trace/trace_output.c, seq_print_ip_sym
            return b"0"
        found = self.find(address)
        return printable_bytes(found.name) if found else b"0x%0*x" % (digits, address)

    def text(self, address: int) -> bytes | None:
        """Return the string at *address*; None if the kernel did not list it."""
        if self._strings is None:
            self._strings = {
                int(at, 16): _ESCAPE.sub(_unescaped, told)
                for at, told in _FORMAT.findall(self._read(PRINTK_FORMATS))
            }
        return self._strings.get(address)

    def _of_marks(self) -> list[tuple[range, Symbol]]:
        """Return the addresses from which the kernel writes marks."""
        if self._marks is None:
            self._marks = [
                (range(int(begin, 16), int(end, 16)), Symbol(name, 0, None, b""))
                for begin, end, name in _OF_MARKS.findall(self._read_marks())
            ]
        return self._marks

    def _read_marks(self) -> bytes:
        try:
            return read_head(self._tracefs / MARKS, MOST_MARKS_BYTES) if self._tracefs else b""
        except OSError:
            return b""  # of an earlier lttd, or another source

    def _loaded(self) -> _Table:
        if self._table is None:
            self._table = _parsed(self._read(KALLSYMS))
        return self._table

    def _read(self, limit: Limit) -> bytes:
        """Read the file of a limit; return nothing if it is too large (there is a note then)."""
        if self._tracefs is None:
            return b""
        try:
            return read_limited(self._tracefs / limit.what, limit)
        except (OSError, TraceDamagedError):
            return b""


def _unescaped(found: re.Match[bytes]) -> bytes:
    return _ESCAPES[found[1]]


def _parsed(kallsyms: bytes) -> _Table:
    found = _SYMBOL.findall(kallsyms)[: SYMBOLS.most]
    addresses = [int(words[0], 16) for words in found]
    if all(map(le, addresses, islice(addresses, 1, None))):
        order = list(range(len(found)))
    else:
        order = sorted(range(len(found)), key=addresses.__getitem__)
    # The kernel shows zeros to a reader who may not see addresses.
    begin = next((at for at, number in enumerate(order) if addresses[number]), len(found))
    order = order[begin:]
    text = [] if _STATIC_DATA.search(kallsyms) else _text_of(found)
    return _Table([addresses[at] for at in order], [found[at] for at in order], text)


def _text_of(found: list[tuple[bytes, bytes, bytes]]) -> list[range]:
    """Return the ranges of the kernel's functions, whose last address counts."""
    bounds = {name: int(at, 16) for at, name, _ in found if name in _BOUNDS}
    return [
        range(bounds[one], bounds[end] + 1) for one, end in _TEXT if {one, end} <= bounds.keys()
    ]
