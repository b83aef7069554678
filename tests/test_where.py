"""``--where`` compares numbers up to 2^64 - 1, arrays and text."""

import struct

import numpy as np
import pytest

from lttd.errors import UsageError
from lttd.view.columns import EventRows
from lttd.view.filters import Where
from tests.ftraced import format_text
from tests.print_fmts import event_rows

FIELDS = [
    "unsigned long ip;8;8;0",
    "long ret;16;8;1",
    "unsigned long args[2];24;16;0",
    "char comm[16];40;16;0",
    "char buf[];56;0;0",
]
HIGH, TOP = 1 << 63, (1 << 64) - 1


def made(*events: tuple[int, int, tuple[int, int], bytes, bytes]) -> EventRows:
    records = [
        struct.pack("<8xQqQQ16s", ip, ret, *args, comm) + buf for ip, ret, args, comm, buf in events
    ]
    return event_rows(format_text("made", 9, FIELDS, '""'), records)


ROWS = made(
    (0xFFFF_FFFF_8100_0000, -22, (3, TOP - 99), b"sshd", b"begin of it\n\0"),
    (HIGH, 0, (4, 1), b"bash", b"x\n\0"),
    (TOP, HIGH - 1, (5, HIGH), b"sh", b"x\0"),
    (5, -HIGH, (6, 7), b"sshd-session", b"\0"),
)


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        (f"ip == {TOP}", [2]), (f"ip >= {HIGH}", [0, 1, 2]), ("ip > 5", [0, 1, 2]),
        (f"ip & {0xFFFF_FFFF_0000_0000} == {0xFFFF_FFFF_0000_0000}", [0, 2]),
        ("ip & -4096 == ip", [0, 1]), ("ip - 1 == 4", [3]), ("ip >> 63 == 1", [0, 1, 2]),
        (f"ret & {HIGH} == {HIGH}", [0, 3]), (f"ret & {TOP} == {TOP - 21}", [0]),
        (f"ret < {HIGH}", [0, 1, 2, 3]), (f"ret == {HIGH}", []), (f"ret >= -{HIGH}", [0, 1, 2, 3]),
        ("ret == -22", [0]), ("ret > ip", []), ("ip > ret", [0, 1, 2, 3]),
        ("args[1] == -100", [0]), ("args[1] < 0", []), (f"args[1] == {HIGH}", [2]),
        ("args[0] in (3, 6)", [0, 3]), ("args[0] not in (3, 6)", [1, 2]),
    ],
)  # fmt: skip
def test_conditions_compare_numbers_up_to_the_largest_exactly(text: str, chosen: list[int]) -> None:
    assert np.flatnonzero(Where(text).mask(ROWS)).tolist() == chosen


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ('"sh" in comm', [0, 1, 2, 3]), ('"ssh" in comm', [0, 3]), ('"ssh" not in comm', [1, 2]),
        ('comm in ("bash", "sh")', [1, 2]), ('comm in ("sh")', [2]), ('comm == "sh"', [2]),
        ('buf == "x"', [1, 2]), ('buf in ("x", "")', [1, 2, 3]), ('"of" in buf', [0]),
        ('buf == ""', [3]), ("buf", [0, 1, 2]),
        ('"sshd" in event', []), ('event == "made"', [0, 1, 2, 3]),
    ],
)  # fmt: skip
def test_a_condition_finds_text_and_ignores_a_final_newline(text: str, chosen: list[int]) -> None:
    assert np.flatnonzero(Where(text).mask(ROWS)).tolist() == chosen


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ('comm =~ "^s"', [0, 2, 3]), ('comm !~ "^s"', [1]), ('comm=~"sh(d|$)"', [0, 1, 2, 3]),
        (r'comm =~ "\Ash\b"', [2]), (r"buf =~ 'x\Z' and comm !~ 'b[a]'", [2]),
        ('not comm =~ "a" and ret == 0 or comm =~ "session"', [3]),
        ('event =~ "^ma"', [0, 1, 2, 3]), ('nosuch =~ "."', []), ('nosuch !~ "."', []),
        ('comm == "=~" or comm =~ "^bash"', [1]),
    ],
)  # fmt: skip
def test_a_condition_finds_a_regular_expression_anywhere_in_a_text(
    text: str, chosen: list[int]
) -> None:
    assert np.flatnonzero(Where(text).mask(ROWS)).tolist() == chosen


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('comm =~ "("', "'(' is not a regular expression: missing ), unterminated subpattern"),
        ("comm =~ bash", "a regular expression in quotes belongs after =~: name =~"),
        ("comm !~ 3", "a regular expression in quotes belongs after !~: name !~"),
        ("comm =~", "a regular expression in quotes belongs after =~"),
        ('comm is "bash"', "is has no meaning here; equal is =="),
        ('comm =~ "a" )', "unmatched ')' at character 13"),
        ('comm =~ "a" "b" x', "invalid syntax"),
        ('comm =~ ("a", "b")', "in quotes belongs after"),
    ],
)
def test_a_bad_regular_expression_is_refused_in_one_line(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=r"^--where") as refused:
        Where(text)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ret =~ '3'", "=~ and !~ are for texts"), ("args !~ '3'", "=~ and !~ are for texts"),
        ("args == 3", "name an element, from [0] to [1]"),
        ("args + 1 == 3", "name an element, from [0] to [1]"),
        ("args[2] == 3", "no element 2"),
        ("event[0] == 1", "a string has no elements"),
        ("3 in args", "in is for a list or a text"),
        ("3 in comm", "only a constant"),
        ("comm == 3", "a string is compared with a number"),
        ("-comm == 1", "a string is not a number"), ("~buf == 1", "a string is not a number"),
        ("+comm == 1", "a string is not a number"),
        ("()", "a list is for: in"), ("ret == 0 or (1,)", "a list is for: in"),
        (f"ip == {HIGH} + {HIGH}", "beyond 64 bits"),
        (f"ret + -{TOP} == 1", "beyond 64 bits"),
    ],
)  # fmt: skip
def test_a_meaningless_condition_is_refused_in_plain_words(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=r"^--where .*made: ") as refused:
        Where(text).mask(ROWS)
    assert told in str(refused.value)


def test_the_error_about_a_hidden_name_says_how_to_write_the_event_s_own() -> None:
    record = struct.pack("<8xQ", 5)
    rows = event_rows(format_text("epoll", 9, ["unsigned long event;8;8;0"], '""'), [record])
    with pytest.raises(UsageError, match=r"event is a field of it: try common_event$"):
        Where('event == "epoll"').mask(rows)
    assert Where('common_event == "epoll"').mask(rows).tolist() == [True]
