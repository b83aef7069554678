"""Usual declarations of events, which are read without the grammar, mean what they mean by it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lark import Token

from lttd.abi import ctf_tsdl_nodes
from lttd.abi.ctf_classes import MetadataError, Trace
from lttd.abi.ctf_metadata import text_of
from lttd.abi.ctf_tsdl import read_tsdl
from lttd.abi.ctf_tsdl_usual import without_usual_events
from tests.data import SHARED_CTF, needs
from tests.test_linear_parsing import quickly

REAL = sorted(path for path in SHARED_CTF.rglob("metadata"))
BEFORE = """/* CTF 1.8 */
typealias integer { size = 8; align = 8; } := u8;
trace { major = 1; minor = 8; byte_order = le; };
stream { id = 0; };
"""
USUAL = """event {
\tname = "sched_process_fork";
\tid = 3;
\tstream_id = 0;
\tloglevel = 13;
\tfields := struct {
\t\tinteger { size = 8; align = 8; signed = 1; encoding = UTF8; base = 10; } _comm[16];
\t\tinteger { size = 8; align = 8; signed = 0; encoding = none; base = 10; } __vtids_length;
\t\tinteger { size = 32; align = 8; signed = 1; } _vtids[ __vtids_length ];
\t\tstring _name;
\t};
};
"""
OTHERS = [
    USUAL.replace("id = 3", "id = 010"),
    USUAL.replace("_name;", "name;"),
    USUAL.replace("_name;", "int;"),
    USUAL.replace("_name;", "_name; u8 _more;"),
    USUAL.replace("_name;", "_comm;"),
    USUAL.replace("size = 32", "size = 99"),
    USUAL.replace("size = 32; align", "align"),
    USUAL.replace("size = 32", "size = thirty"),
    USUAL.replace("base = 10", "base = 0xa"),
    USUAL.replace("__vtids_length ]", "__nothing ]"),
    USUAL.replace("stream_id = 0", "stream_id = 4"),
    USUAL.replace('fork"', 'fork\\n"'),
    USUAL.replace("loglevel", "/* } */ loglevel"),
    USUAL.replace("event {", "my_event {"),
    USUAL.replace("};\n};", "} align(64);\n};"),
    USUAL.replace("};\n};", "};\n}"),
    USUAL + USUAL,
    f"struct {USUAL} named {{ u8 a; }};",
    f"u8 {USUAL} ;",
    f"typedef u8 v {USUAL} typedef u8 w;",
    f"struct /* ; */ {USUAL} named {{ u8 a; }};",
    f"struct named {{ u8 a; }} // ;\n {USUAL} ;",
    f"; /* struct */ {USUAL} struct named {{ u8 a; }};",
    "const " + USUAL + USUAL.replace("id = 3", "id = 4"),
    f"/* {USUAL} */",
    f"// {USUAL}",
    f'env {{ text = "{USUAL.replace(chr(34), "")}"; }};',
    f"env {{ {USUAL} }};",
    f"env {{ a = '\"'; }}; {USUAL} env {{ b = '\"'; }};",
    f'env {{ a = "x; }};\n{USUAL}',
    f"struct a {{ u8 b; }}; {USUAL} struct a {{ u8 c; u8 c; }};",
    "",
]


def outcome(text: str) -> Trace | str:
    try:
        return read_tsdl(text)
    except MetadataError as error:
        return str(error)


@contextmanager
def grammar_alone() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ctf_tsdl_nodes, "without_usual_events", lambda text: (text, []))
        yield


def lines_in(node: object) -> list[tuple[str, int | None]]:
    """Return the names and kinds of a tree that know their lines."""
    if isinstance(node, Token):
        return [(str(node), node.line)]
    if isinstance(node, tuple):
        return [line for each in node for line in lines_in(each)]
    return []


@pytest.mark.parametrize("text", [USUAL, *OTHERS])
def test_a_declaration_means_the_same_as_by_the_grammar(text: str) -> None:
    ours = outcome(BEFORE + text)
    with grammar_alone():
        assert ours == outcome(BEFORE + text)


def test_usual_declarations_are_found_and_know_their_lines() -> None:
    text = BEFORE + USUAL + "event { id = 9; };\n" + USUAL.replace("= 3", "= 4")
    rest, found = without_usual_events(text)
    assert [event.line for event in found] == [5, 18]
    assert len(rest) == len(text)
    assert rest.count("\n") == text.count("\n")
    ours = ctf_tsdl_nodes.parse(text)
    with grammar_alone():
        theirs = ctf_tsdl_nodes.parse(text)
    assert ours == theirs
    assert lines_in(ours) == lines_in(theirs)


@needs(SHARED_CTF)
@pytest.mark.parametrize("path", REAL, ids=lambda path: str(path.parent.name))
def test_real_metadata_is_the_same_as_by_the_grammar(path: Path) -> None:
    text = text_of(path.read_bytes())
    ours = read_tsdl(text)
    with grammar_alone():
        assert ours == read_tsdl(text)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_declarations_mean_the_same_as_by_the_grammar(data: st.DataObject) -> None:
    text = BEFORE + USUAL + USUAL.replace("= 3", "= 4")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.sampled_from([0, 0, 1, 2, 40]))
        new = data.draw(
            st.sampled_from(["", "{", "}", ";", '"', "'", "/*", "*/", "//", "\\", "0", " x"])
        )
        text = text[:at] + new + text[at + cut :]
    ours = outcome(text)
    with grammar_alone():
        assert ours == outcome(text)


@pytest.mark.parametrize(
    "text",
    [
        "/*",
        '"\\',
        "'\\",
        "//",
        "e",
        "event {",
        USUAL[:-7],
        USUAL[:-9],
        USUAL.replace("=", "= ="),
        "{ ",
    ],
    ids=lambda text: text[-8:].strip(),
)
def test_texts_that_never_end_take_linear_time(text: str) -> None:
    quickly(lambda: without_usual_events(text * (500_000 // len(text))))
    quickly(lambda: without_usual_events(USUAL[:-9] + " " * 500_000 + text))
