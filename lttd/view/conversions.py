"""Convert columns of values to strips by ``%d``, ``%s``, ``%pI4`` and other conversions.

A value is a column of integers in the dtype in which C computes, a column of strings (dtype S), or
a Buffer.  A value that is the same for every row has length one.

Source of the kernel's own conversions: Linux lib/vsprintf.c, Documentation/core-api/printk-formats.
Plain pointers are not hashed, as in the kernel with options/hash-ptr off.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from lttd.abi.gather import gather
from lttd.abi.print_fmt_nodes import Conversion, PrintFmt
from lttd.terminal import printable_bytes
from lttd.view.addresses import Symbols
from lttd.view.columns import EventRows
from lttd.view.glyphs import (
    decimal,
    distinct_rows,
    hexadecimal,
    per_distinct,
    printable_strings,
)
from lttd.view.strips import Strip, right_aligned, strings_of, words_of

Column = npt.NDArray[Any]
_MOST_HEX_BYTES: Final = 64
BARE_NAME: Final = "s bare"
"""The extension of a %p that the kernel does not have: a function without offset and module."""
_UUID_GROUPS: Final = (4, 2, 2, 2, 6)
# Contents up to this size (addresses, masks) are compared as columns, without an object per row.
_MOST_ALIKE_BYTES: Final = 64
INTS: Final = {
    (bits, signed): np.dtype(f"{'i' if signed else 'u'}{bits // 8}")
    for bits in (8, 16, 32, 64)
    for signed in (True, False)
}


class Inexpressible(ValueError):  # noqa: N818  (not a fault: the caller falls back)
    """A print fmt needs data that only the kernel has, or a function that lttv lacks."""


@dataclass(frozen=True)
class Buffer:
    """Bytes for each row: an array field, or the result of ``__get_dynamic_array``."""

    data: memoryview
    begin: npt.NDArray[np.int64]
    """The begin of each row's bytes in the data."""
    end: npt.NDArray[np.int64]
    """The end of each row's bytes in the data."""
    element_bytes: int
    signed: bool
    byteorder: str

    @classmethod
    def of(cls, rows: EventRows, name: str, element_bytes: int, byteorder: str) -> "Buffer":
        """Return the Buffer of a field."""
        return cls(
            rows.batch.data, *rows.spans(name), element_bytes, rows.field(name).signed, byteorder
        )

    @cached_property
    def pieces(self) -> list[bytes]:
        """The bytes of each row as objects, for functions that cannot work on columns."""
        spans = zip(self.begin.tolist(), self.end.tolist(), strict=True)
        return [bytes(self.data[a:b]) for a, b in spans]

    def told(self, how: Callable[[bytes], bytes]) -> Column:
        """Return strings (dtype S), made once for each distinct content."""
        size = self.end - self.begin
        width = int(size[0]) if len(size) else 0
        if 0 < width <= _MOST_ALIKE_BYTES and (size == width).all():
            held = gather(self.data, self.begin, np.dtype(f"V{width}"))
            first, which = distinct_rows(held.view(np.uint8).reshape(-1, width))
            alike: Column = strings_of([how(one) for one in held[first].tolist()])[which]
            return alike
        made = {piece: how(piece) for piece in set(self.pieces)}
        return strings_of([made[piece] for piece in self.pieces])

    def element(self, number: Column) -> Column:
        """Return each row's element *number*; 0 if it has fewer."""
        size = self.element_bytes
        if (8 * size, self.signed) not in INTS:
            raise Inexpressible(f"an element of {size} bytes")
        native = INTS[8 * size, self.signed]
        inside = (number >= 0) & (number < (self.end - self.begin) // size)
        if not inside.any():
            return np.zeros(len(inside), native)
        at = np.where(inside, self.begin + np.where(inside, number, 0).astype(np.int64) * size, 0)
        stored = np.dtype(f"{self.byteorder}{native.kind}{size}")
        found = gather(self.data, at, stored).astype(native)
        return np.where(inside, found, native.type(0))


Value = Column | Buffer


def converted(conversion: Conversion, value: Value, count: int, context: "Context") -> Strip:
    """Return the text of one conversion, for each row.

    Raises:
        Inexpressible: the conversion cannot print this value.
    """
    letter = conversion.letter
    if letter == "p":
        return _pointer(conversion, value, count, context)
    if isinstance(value, Buffer):
        if letter == "s":
            return [words_of(value.told(lambda piece: printable_bytes(piece.partition(b"\0")[0])))]
        raise Inexpressible(f"%{letter} of an array")
    if letter == "s":
        return _string(conversion, value, context)
    if value.dtype.kind == "S":
        raise Inexpressible(f"%{letter} of a string")
    if letter == "c":
        return [words_of(per_distinct(value, _character))]
    if letter == "n":
        raise Inexpressible("%n")
    return _number(conversion, _sized(conversion, value, context.long_bytes), count)


class Context:
    """The properties of a kernel that conversions need besides values."""

    def __init__(self, long_bytes: int, byteorder: str, symbols: Symbols) -> None:
        self.long_bytes = long_bytes
        self.byteorder = byteorder
        self.symbols = symbols
        self.width: int | None = None
        """Of a ``*``, where it is the same for all rows; likewise:"""
        self.precision: int | None = None

    def pointed_to(self, address: int) -> bytes:
        """Return the string at an address of the kernel, if the trace has it."""
        address &= (1 << 8 * self.long_bytes) - 1
        if not address:
            return b"(null)"
        told = self.symbols.text(address)
        return b"0x%x" % address if told is None else told


def _sized(conversion: Conversion, value: Column, long_bytes: int) -> Column:
    """Return the value as C reads a vararg of the conversion's length."""
    signed = conversion.letter in "di"
    size = {"hh": 1, "h": 2, "": 4, "l": long_bytes, "z": long_bytes, "Z": long_bytes}.get(
        conversion.length, 8
    )
    if conversion.length == "t":
        size = long_bytes
    return value.astype(f"{'i' if signed else 'u'}{size}", copy=False)


def _number(conversion: Conversion, value: Column, count: int) -> Strip:
    flags, width = conversion.flags, conversion.width
    letter, least = conversion.letter, conversion.precision
    if letter == "o" or set(flags) - {"0", "#"} or not isinstance(width, int | None):
        return _slowly(conversion, value)
    prefix: Strip = []
    if "#" in flags:
        if letter not in "xX" or width or least is not None:
            return _slowly(conversion, value)
        prefix = [b"0" + letter.encode()]
    if least is not None or (value.dtype.kind == "i" and "0" in flags and (value < 0).any()):
        return _slowly(conversion, value)
    zeros = width if width and "0" in flags else 0
    if letter in "xX":
        strip = hexadecimal(value, zeros, upper=letter == "X")
    else:
        strip = decimal(value, zeros)
    if width and not zeros:
        strip = right_aligned(strip, len(value), width)
    return [*prefix, *strip]


def _slowly(conversion: Conversion, value: Column) -> Strip:
    """Format each distinct value by Python, which agrees with C on the kernel's conversions."""
    if not isinstance(conversion.width, int | None) or not isinstance(
        conversion.precision, int | None
    ):
        raise Inexpressible("a number as wide as another says")
    letter = "d" if conversion.letter in "diu" else conversion.letter
    # Linux lib/vsprintf.c, number(): unlike C, 0x also before 0; one 0 before octal digits.
    spec = "%" + conversion.flags
    spec += str(conversion.width) if conversion.width else ""
    spec += f".{conversion.precision}" if conversion.precision is not None else ""
    plain = (spec + letter).encode()
    bare = plain.replace(b"#", b"")

    def told(number: int) -> bytes:
        if letter == "o" and b"#" in plain:
            return bare % number if not number else (b"0" + bare % number)
        return plain % number

    return [words_of(per_distinct(value, told))]


def printable_literals(parsed: PrintFmt) -> PrintFmt:
    """Escape the text between conversions; drop line breaks at the end."""
    *before, last = parsed.pieces or (b"",)
    pieces = [*before, last.rstrip(b"\n") if isinstance(last, bytes) else last]
    return PrintFmt(
        tuple(printable_bytes(one) if isinstance(one, bytes) else one for one in pieces)
    )


def _character(code: int) -> bytes:
    return printable_bytes(bytes((code & 0xFF,))) if code & 0xFF else b""


def _string(conversion: Conversion, value: Column, context: Context) -> Strip:
    width = context.width if not isinstance(conversion.width, int) else conversion.width
    most = context.precision if not isinstance(conversion.precision, int) else conversion.precision
    if value.dtype.kind != "S":
        value = per_distinct(value, context.pointed_to)
    if most is not None:
        value = value.astype(f"S{most}") if most > 0 else np.array([b""], "S1")
    value = printable_strings(value)
    if width:
        justify = np.char.ljust if "-" in conversion.flags else np.char.rjust
        value = justify(value, abs(width))
    return [words_of(value)]


# -- %p and its extensions


def _pointer(conversion: Conversion, value: Value, count: int, context: Context) -> Strip:
    extension = conversion.extension
    if extension and extension[0] in "sSfFB":
        return _symbol(extension, value, context)
    if extension in ("", "x", "K", "e"):
        if isinstance(value, Buffer) or value.dtype.kind == "S":
            raise Inexpressible("the address of an event's own bytes")
        if extension == "e":
            return [words_of(per_distinct(value, partial(_error_pointer, context)))]
        return hexadecimal(value.astype(f"u{context.long_bytes}"), 2 * context.long_bytes)
    if extension in ("bl", "l"):
        return _bit_list(value, context)
    if extension[:1] in ("a", "h") and isinstance(value, Buffer):
        how = _address_at if extension[0] == "a" else _hex_bytes
        return [words_of(value.told(partial(how, extension, context)))]
    told = _teller(extension)
    if told is None or not isinstance(value, Buffer):
        raise Inexpressible(f"%p{extension}")
    return [words_of(value.told(told))]


def _error_pointer(context: "Context", address: int) -> bytes:
    """Linux lib/vsprintf.c, err_ptr: the last 4095 addresses are errors."""
    number = (1 << 8 * context.long_bytes) - (address & (1 << 8 * context.long_bytes) - 1)
    if number in errno.errorcode:
        return f"-{errno.errorcode[number]}".encode()
    return b"%0*x" % (2 * context.long_bytes, address & (1 << 8 * context.long_bytes) - 1)


def _address_at(_extension: str, context: "Context", raw: bytes) -> bytes:
    """Linux lib/vsprintf.c, address_val: %pa and %pad take the address of an address."""
    order: Literal["little", "big"] = "little" if context.byteorder == "<" else "big"
    return b"0x%0*x" % (2 * len(raw), int.from_bytes(raw, order))


def _hex_bytes(extension: str, context: "Context", raw: bytes) -> bytes:
    """Linux lib/vsprintf.c, hex_string: %*ph prints as many bytes as its width says."""
    if context.width == 0:
        return b""
    most = min(context.width, _MOST_HEX_BYTES) if context.width and context.width > 0 else 1
    between = {"hC": ":", "hD": "-", "hN": ""}.get(extension, " ")
    return between.join(f"{byte:02x}" for byte in raw[:most]).encode()


def _symbol(extension: str, value: Value, context: Context) -> Strip:
    if isinstance(value, Buffer) or value.dtype.kind == "S":
        raise Inexpressible(f"%p{extension} of a value that is not an address")
    mask = (1 << 8 * context.long_bytes) - 1
    symbols = context.symbols
    if extension == BARE_NAME:
        return [words_of(per_distinct(value, lambda at: symbols.name(at & mask, digits=1)))]
    offset = extension[0] in "SB"
    return [words_of(per_distinct(value, lambda at: symbols.told(at & mask, offset=offset)))]


def _bit_list(value: Value, context: Context) -> Strip:
    if not isinstance(value, Buffer):
        raise Inexpressible("a bit list of a number")
    bits = context.width

    def told(piece: bytes) -> bytes:
        number = int.from_bytes(piece, "little" if context.byteorder == "<" else "big")
        return _ranges(
            [at for at in range(min(8 * len(piece), bits or 1 << 16)) if number >> at & 1]
        )

    return [words_of(value.told(told))]


def _ranges(held: list[int]) -> bytes:
    runs: list[list[int]] = []
    for at in held:
        if runs and runs[-1][1] == at - 1:
            runs[-1][1] = at
        else:
            runs.append([at, at])
    return b",".join(b"%d" % a if a == b else b"%d-%d" % (a, b) for a, b in runs)


def _teller(extension: str) -> Callable[[bytes], bytes] | None:
    protocol = extension[:2]
    if protocol in ("I4", "i4"):
        return lambda raw: ".".join(str(byte) for byte in raw[:4]).encode()
    if protocol in ("I6", "i6"):
        return lambda raw: _ipv6(raw, compressed="c" in extension)
    if extension.startswith("IS"):
        return lambda raw: _socket_address(raw, extension)
    if extension[:1] in ("M", "m"):
        between = "" if extension[0] == "m" else "-" if "F" in extension else ":"
        return lambda raw: between.join(f"{byte:02x}" for byte in raw[:6]).encode()
    if extension[:1] == "U":
        return lambda raw: _uuid(raw, extension[1:] or "b")
    return None


def _ipv6(raw: bytes, *, compressed: bool) -> bytes:
    if len(raw) < 16:
        return b"?"
    if not compressed:
        return ":".join(raw[at : at + 2].hex() for at in range(0, 16, 2)).encode()
    import ipaddress  # noqa: PLC0415  (for those who trace the network)

    address = ipaddress.IPv6Address(raw[:16])
    mapped = address.ipv4_mapped
    return (f"::ffff:{mapped}" if mapped else str(address)).encode()


def _socket_address(raw: bytes, extension: str) -> bytes:
    family = int.from_bytes(raw[:2], "little")
    port = int.from_bytes(raw[2:4], "big")
    if family == 2 and len(raw) >= 8:
        told = ".".join(str(byte) for byte in raw[4:8])
    elif family == 10 and len(raw) >= 24:
        inside = _ipv6(raw[8:24], compressed="c" in extension).decode()
        told = f"[{inside}]" if "p" in extension else inside
    else:
        return b"(unknown family %d)" % family
    return (f"{told}:{port}" if "p" in extension else told).encode()


def _uuid(raw: bytes, order: str) -> bytes:
    if len(raw) < 16:
        return b"?"
    groups, at = [], 0
    for number, size in enumerate(_UUID_GROUPS):
        group = raw[at : at + size]
        swapped = order in ("l", "L") and number < 3
        groups.append((group[::-1] if swapped else group).hex())
        at += size
    told = "-".join(groups)
    return (told.upper() if order in ("B", "L") else told).encode()
