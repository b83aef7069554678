"""Find the usual declarations of events in TSDL, which need no grammar: most of a metadata is such.

    event { name = "irq_handler_exit"; id = 3; stream_id = 0; loglevel = 13; fields := struct {
        integer { size = 32; align = 8; signed = 1; encoding = none; base = 10; } _irq;
        string _name; integer { size = 8; align = 8; } _list[ __list_length ]; }; };

lttng's metadata of all system calls has 1,300 of them, and the grammar takes seconds for it.

Rule: a declaration is usual only if it means here what it means by the grammar.  The text of any
other is left to the grammar, at its place and in its line, and so is one that is wrong, or that is
not a statement of its own.
Rule: the time is proportional to the length of the text.
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from lttd.limits import CTF_WORDS

_BLANKS: Final = " \t\r\n\f\v"
_SPACE: Final = rf"[{_BLANKS}]*"
_NUMBER: Final = r"(?:0|[1-9][0-9]{0,8})"
_NAME: Final = r"_[A-Za-z0-9_]*"  # which is not a keyword
_LENGTHS: Final = rf"(?:{_SPACE}\[{_SPACE}(?:{_NUMBER}|{_NAME}){_SPACE}\])*"
_ATTRIBUTE: Final = rf"{_SPACE}[a-z_]+{_SPACE}={_SPACE}(?:{_NUMBER}|[A-Za-z][\w.]*){_SPACE};"
_CLASS: Final = rf"integer[ \t]*\{{(?:{_ATTRIBUTE})*{_SPACE}\}}|string(?=[ \t])"
_FIELD: Final = rf"(?:{_CLASS})[ \t]*{_NAME}{_LENGTHS}{_SPACE};"
_FIELDS: Final = re.compile(rf"({_CLASS})[ \t]*({_NAME})({_LENGTHS}){_SPACE};")
_ASSIGNED: Final = rf"{_SPACE}={_SPACE}"
_LENGTH: Final = re.compile(rf"{_NUMBER}|{_NAME}")
_EVENT: Final = (
    rf"(?<!\w)event{_SPACE}\{{{_SPACE}"
    rf'name{_ASSIGNED}"(?P<name>[^"\\\n]+)"{_SPACE};{_SPACE}'
    rf"id{_ASSIGNED}(?P<id>{_NUMBER}){_SPACE};{_SPACE}"
    rf"stream_id{_ASSIGNED}(?P<stream_id>{_NUMBER}){_SPACE};{_SPACE}"
    rf"(?:loglevel{_ASSIGNED}(?P<loglevel>{_NUMBER}){_SPACE};{_SPACE})?"
    rf"(?P<place>fields){_SPACE}:={_SPACE}struct{_SPACE}\{{"
    rf"(?P<fields>(?:{_SPACE}{_FIELD})*){_SPACE}\}}{_SPACE};{_SPACE}\}}{_SPACE};"
)
# What a lexer passes over as a whole; what begins such a thing that does not end; braces; the rest.
_PART: Final = re.compile(
    rf"""(?P<event>{_EVENT})|"(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+'|(?P<comment>/\*.*?\*/|//[^\n]*)"""
    r"""|(?P<open>/\*|["'])|(?P<brace>[{}])|(?:[^"'/{}e]|e(?!vent)|/(?![/*]))++|.""",
    re.DOTALL,
)


class UsualField(NamedTuple):
    """``integer { ... } _name[4]``."""

    of: str
    name: str
    lengths: tuple[int | str, ...]
    line: int


class UsualAssign(NamedTuple):
    """``id = 3``; the value of ``name`` is a text."""

    name: str
    value: int | str
    line: int


class UsualEvent(NamedTuple):
    """One declaration."""

    at: int
    """Where it begins in the text."""
    line: int
    assigns: tuple[UsualAssign, ...]
    fields_line: int
    fields: tuple[UsualField, ...]


def without_usual_events(text: str) -> tuple[str, list[UsualEvent]]:
    """Return a text with blanks instead of the usual events, and these events in their order."""
    found: list[UsualEvent] = []
    rest: list[str] = []
    depth, line, counted, kept = 0, 1, 0, 0
    begins = True  # whether a statement may begin here
    others = 0
    for part in _PART.finditer(text):
        # Of two parts that are neither events nor comments, at least one has a word or sign.
        others += not (part["event"] or part["comment"])
        if part["open"] or others > 2 * CTF_WORDS.most:
            break
        if part["brace"]:
            depth += 1 if part["brace"] == "{" else -1
        elif part["event"] and depth == 0 and begins:
            line += text.count("\n", counted, part.start())
            counted = part.start()
            found.append(_event(part, line))
            rest += (text[kept : part.start()], _blank(part[0]))
            kept = part.end()
        if not part["comment"] and (words := part[0].rstrip(_BLANKS)):
            begins = words[-1] == ";"
    return "".join([*rest, text[kept:]]), found


def _blank(text: str) -> str:
    """Return blanks of the same length with as many lines."""
    lines = text.count("\n")
    return "\n" * lines + " " * (len(text) - lines)


def _event(part: re.Match[str], line: int) -> UsualEvent:
    text, begin = part.string, part.start()

    def line_at(place: int) -> int:
        return line + text.count("\n", begin, place)

    values = [(name, part[name]) for name in ("name", "id", "stream_id", "loglevel") if part[name]]
    assigns = [
        UsualAssign(name, value if name == "name" else int(value), line_at(part.start(name)))
        for name, value in values
    ]
    first, end = part.span("fields")
    fields = _fields(text, first, end, line_at(first))
    return UsualEvent(begin, line, tuple(assigns), line_at(part.start("place")), tuple(fields))


def _fields(text: str, begin: int, end: int, line: int) -> Iterator[UsualField]:
    counted = begin
    for field in _FIELDS.finditer(text, begin, end):
        of, name, lengths = field.groups()
        line += text.count("\n", counted, field.start())
        counted = field.start()
        found = _LENGTH.findall(lengths)
        yield UsualField(of, name, tuple(int(one) if one[0] != "_" else one for one in found), line)
