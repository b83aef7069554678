"""Texts of files are parsed in linear time, and their nesting is limited.

Each text is as long as a format may be; a quadratic parser needs minutes for it.
"""

import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from lttd.abi.ftrace import parse_header_page
from lttd.abi.ftrace_format import id_of, parse_format
from lttd.abi.print_fmt import parse_print_fmt
from lttd.abi.print_fmt_nodes import Conversion, Number, Text, Unparsed
from lttd.limits import FORMAT, HEADER_PAGE
from tests.ftraced import FORMATS

MOST_SECONDS = 3.0
TICK = FORMATS["clock/tick"].decode()
FIELD = "\tfield:int count;\toffset:8;\tsize:4;\tsigned:1;\n"
assert FIELD in TICK


def long(pattern: str, most: int = FORMAT.most) -> str:
    """Return *pattern*, repeated to the largest size of a format."""
    return pattern * ((most - 2000) // len(pattern))


def field(declared: str) -> str:
    return TICK.replace(FIELD, f"\tfield:{declared};\toffset:8;\tsize:4;\tsigned:1;\n")


@pytest.mark.parametrize(
    "text",
    [
        field("int " + " " * 4000 + "count $"),
        field(long(" ") + "$"),
        field(long("a ") + "[ $"),
        field(long("a[") + "]$"),
        field(long("_") + "$"),
        field("__data_loc " + long("[")),
        field(long("9")),
        TICK.replace("offset:8;", "offset:" + long("9") + ";"),
        TICK.replace("offset:8;", long(" ") + "offset:8;"),
        TICK.replace("ID: 1", "ID: " + long(" ")),
        TICK.replace("ID: 1", "ID: " + long("9")),
        TICK.replace("name: tick", "name: " + long(" ")),
        TICK.replace("int count", "int count[" + long("9") + "]"),
        TICK.replace("int count", "int count[\u00b2]"),
        long("\n") + TICK,
        long("\nfield:") + TICK,
        long("name: ID: ") + TICK,
        TICK + long("\nprint fmt:"),
        TICK.replace(FIELD, long(FIELD)),
    ],
    ids=lambda text: text[-24:].strip(),
)
def test_a_format_is_parsed_in_linear_time(text: str) -> None:
    quickly(lambda: parse_format(text.encode()))
    id_of(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        '"%' + long("0") + '$"',
        '"%' + long("-") + '"',
        '"' + long("%0") + '"',
        '"%' + long("9") + 'd", 1',
        '"%.' + long("9") + 'd", 1',
        '"%pIS' + long("p") + '$", 1',
        '"' + long("a"),
        '"' + long("\\\\"),
        '"%d",' + long(" ") + "$",
        '"%d", ' + long("("),
        '"%d", ' + long("(1?"),
        '"%d", ' + long("1?"),
        '"%d", ' + long("-") + "1",
        '"%d", ' + long("(int)") + "1",
        '"%d", 1' + long("+1"),
        '"%d", 1' + long("<<1+1"),
        '"%d", REC->a' + long("[0]"),
        '"%d", f(' + long("(a * "),
        '"%d", ' + long("f("),
        '"%d", f(' + long("{ 1, "),
        '"%d", ' + long("9"),
        '"%d", 0x' + long("f"),
        '"%d", \'' + long("\\"),
        '"' + long("%d", FORMAT.most // 4) + '"' + long(", REC->a", FORMAT.most // 2),
    ],
    ids=lambda text: text[:24],
)
def test_a_print_fmt_is_parsed_in_linear_time(text: str) -> None:
    quickly(lambda: parse_print_fmt(text))


@pytest.mark.parametrize(
    "text",
    ["field:" + "a" * 8000, "field:" * 2000, "\tfield: a;\toffset:" + "9" * 8000, "\n" * 8000],
)
def test_a_header_page_is_parsed_in_linear_time(text: str) -> None:
    assert len(text) <= HEADER_PAGE.most
    quickly(lambda: parse_header_page(text.encode()))


def quickly(parse: Callable[[], object]) -> None:
    begun = time.process_time()
    with suppress(ValueError):
        parse()
    assert time.process_time() - begun < MOST_SECONDS


@pytest.mark.parametrize("depth", [13, 40])
def test_the_nesting_that_kernels_use_is_parsed(depth: int) -> None:
    for argument in ("(" * depth + "REC->a" + ")" * depth, "REC->a" + "+1" * depth):
        (conversion,) = parse_print_fmt(f'"%d", {argument}').pieces
        assert isinstance(conversion, Conversion)
        assert not isinstance(conversion.argument, Unparsed)


def test_operators_group_as_in_c() -> None:
    def tree(text: str) -> str:
        conversion = parse_print_fmt(f'"%d", {text}').pieces[0]
        return str(conversion)

    assert tree("1 + 2 * 3 - 4") == tree("(1 + (2 * 3)) - 4")
    assert tree("1 | 2 ^ 3 & 4 == 5 < 6 << 7 + 8") == tree(
        "1 | (2 ^ (3 & (4 == (5 < (6 << (7 + 8))))))"
    )
    assert tree("1 - 2 - 3") == tree("(1 - 2) - 3")
    assert tree("1 && 2 || 3 && 4") == tree("(1 && 2) || (3 && 4)")


@pytest.mark.parametrize(
    ("escaped", "byte"),
    [
        (r"\x110000000", b"\0"),
        (r"\xd800", b"\0"),
        (r"\xff", b"\xff"),
        (r"\400", b"\0"),
        (r"\x", b"x"),
    ],
)
def test_an_octal_or_hex_escape_is_one_byte(escaped: str, byte: bytes) -> None:
    assert parse_print_fmt(f'"{escaped}"').pieces == (byte,)
    parse_print_fmt(f"\"%d\", '{escaped}'")
    (conversion,) = parse_print_fmt(f'"%s", "{escaped}"').pieces
    assert not isinstance(conversion, bytes)
    assert conversion.argument == Text(byte)


def test_an_argument_nested_too_deeply_is_reported_and_others_are_parsed() -> None:
    parsed = parse_print_fmt('"%d %d", ' + "(" * 100 + "1" + ")" * 100 + ", 2")
    deep, _, plain = parsed.pieces
    assert isinstance(deep, Conversion)
    assert deep.argument == Unparsed("nested too deeply", ())
    assert isinstance(plain, Conversion)
    assert plain.argument == Number(2, bits=32, signed=True)
