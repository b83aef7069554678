"""Values of enum constants come from the kernel's type information, and name what is printed."""

import json
import struct
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import pytest

from lttd.abi.btf import Btf, Enum
from lttd.sources.base import When
from lttd.sources.ftrace.enums import BTF, EnumNames, names_in
from lttd.sources.ftrace.source import open_ftrace
from lttd.subbuffer import BufferPool
from lttd.view.addresses import Symbols
from lttd.view.enums import Enums
from lttd.view.ftrace.render import Renderer
from tests.ftrace_sources import QUIET
from tests.ftraced import Traced, common, format_text, pages_of
from tests.print_fmts import event_rows, lines_of
from tests.running import needs_kernel
from tests.viewer import run

STATE = '"state=%s", __print_flags(REC->state, "|", { I_NEW, "NEW" }, { I_DIRTY, "DIRTY" })'
FIELDS = ["unsigned int state;8;4;0", "enum lru_list lru;12;4;0"]
SAVED = {"values": {"I_NEW": 8, "I_DIRTY": 16}, "enums": {"lru_list": {"COLD": 0, "HOT": 1}}}


class Types:
    """Makes BTF."""

    def __init__(self, first: int = 1) -> None:
        self._strings = b"" if first > 1 else b"\0"
        self._types = b""
        self._first = first
        self._names: dict[str, int] = {}

    def name(self, text: str) -> int:
        if text not in self._names:
            self._names[text] = len(self._strings) + (self._first if self._first > 1 else 0)
            self._strings += text.encode() + b"\0"
        return self._names[text]

    def add(self, kind: int, count: int, rest: bytes = b"", name: int = 0, flag: int = 0) -> None:
        self._types += struct.pack("=III", name, flag << 31 | kind << 24 | count, 4) + rest

    def enum(self, name: str, members: Mapping[str, int], *, signed: bool = False) -> None:
        words = [struct.pack("=II", self.name(m), v & 0xFFFFFFFF) for m, v in members.items()]
        self.add(6, len(members), b"".join(words), self.name(name) if name else 0, signed)

    def enum64(self, name: str, members: Sequence[tuple[str, int]]) -> None:
        words = [struct.pack("=IQ", self.name(m), v) for m, v in members]
        self.add(19, len(members), b"".join(words), self.name(name))

    @property
    def data(self) -> bytes:
        sizes = (24, 0, len(self._types), len(self._types), len(self._strings))
        return struct.pack("=HBBIIIII", 0xEB9F, 1, 0, *sizes) + self._types + self._strings


def types() -> Types:
    made = Types()
    made.add(1, 0, bytes(4))  # an int
    made.add(4, 2, bytes(24))  # a struct of two members
    made.enum("zone", {"DMA": 0, "NORMAL": 2})
    made.add(13, 3, bytes(24))  # a prototype
    made.enum("", {"BELOW": -3}, signed=True)
    made.add(14, 0, bytes(4))
    made.enum64("wide", [("HUGE", 1 << 40 | 7)])
    return made


def test_enums_are_found_among_all_kinds_of_types() -> None:
    zone, below, wide = (
        Enum("zone", (("DMA", 0), ("NORMAL", 2))),
        Enum("", (("BELOW", -3),)),
        Enum("wide", (("HUGE", 1 << 40 | 7),)),
    )
    found = Btf(types().data)
    assert list(found.enums({"zone", "NONE"}, {"BELOW", "HUGE"})) == [zone, below, wide]
    assert list(found.enums({"wide"}, {"NORMAL", "wide", "M"})) == [zone, wide]
    assert list(found.enums({"HUGE", ""}, set())) == []


@pytest.mark.parametrize("end", range(0, len(types().data), 3))
def test_cut_type_information_is_refused_or_has_fewer_enums(end: int) -> None:
    try:
        found = list(Btf(types().data[:end]).enums({"zone"}, {"BELOW", "HUGE"}))
    except ValueError:
        return
    assert len(found) <= 3


def test_a_type_of_an_unknown_kind_is_refused() -> None:
    made = types()
    made.add(31, 0)
    with pytest.raises(ValueError, match="a type of kind 31"):
        list(Btf(made.data).enums(set(), set()))


def test_a_format_names_values_and_enums() -> None:
    flags = '__print_flags(REC->a, "|", { (1 << BIT), "Y" })'
    printed = f'"%d FOO %s", REC->BAR > MOST ? 10UL : sizeof(x), {flags}'
    text = format_text("made", 1, ["const enum rule r;8;4;0", "int a;12;4;1"], printed)
    assert names_in(text) == ({"MOST", "BIT"}, {"rule"})


def test_only_what_formats_need_is_saved_and_what_is_ambiguous_is_left_out(tmp_path: Path) -> None:
    kernel = types()
    kernel.enum("one", {"TWICE": 1, "I_NEW": 8})
    kernel.enum("two", {"TWICE": 2, "I_NEW": 8})
    (tmp_path / "vmlinux").write_bytes(kernel.data)
    (tmp_path / "ext4").write_bytes(b"damaged")
    names = EnumNames(str(tmp_path))
    assert names.content() == b""
    printed = '"%d", __print_flags(REC->a, "|", { TWICE, "" }, { I_NEW, "" }, { NONE, "" })'
    names.note(format_text("made", 1, ["enum zone z;8;4;0"], printed))
    wanted = {"values": {"I_NEW": 8}, "enums": {"zone": {"DMA": 0, "NORMAL": 2}}}
    assert json.loads(names.content()) == wanted
    assert json.loads(names.content()) == wanted


def test_names_that_the_kernel_lacks_come_from_its_modules(tmp_path: Path) -> None:
    kernel = types()
    (tmp_path / "vmlinux").write_bytes(kernel.data)
    module = Types(Btf(kernel.data).strings_bytes)
    module.enum("", {"IN_MODULE": 5})
    (tmp_path / "btrfs").write_bytes(module.data)
    names = EnumNames(str(tmp_path))
    names.note(format_text("made", 1, [], '"%d", REC->a == IN_MODULE'))
    assert json.loads(names.content())["values"] == {"IN_MODULE": 5}


def test_without_type_information_nothing_is_saved(tmp_path: Path) -> None:
    names = EnumNames(str(tmp_path / "none"))
    names.note(format_text("made", 1, ["enum zone z;8;4;0"], '"%d", FOO'))
    assert names.content() == b""


def printed_by(printed: str, *, naming: bool, fields: Sequence[str] | None = None) -> list[str]:
    events = [common(9, 7) + struct.pack("<II", *each) for each in ((24, 1), (1, 7))]
    rows = event_rows(format_text("made", 9, FIELDS, printed), events)
    enums = Enums(json.dumps(SAVED).encode(), naming=naming)
    renderer = Renderer(rows.event_type.format, Symbols(), fields, enums)
    return lines_of(renderer.strip(rows), len(rows))


def test_constants_of_a_print_fmt_have_their_saved_values() -> None:
    assert printed_by(STATE, naming=False) == ["state=NEW|DIRTY", "state=0x1"]


def test_numbers_of_enums_get_names_only_where_asked() -> None:
    printed = '"lru=%d of %u", REC->lru, REC->state'
    assert printed_by(printed, naming=False) == ["lru=1 of 24", "lru=7 of 1"]
    assert printed_by(printed, naming=True) == ["lru=HOT of 24", "lru=0x7 of 1"]
    assert printed_by(printed, naming=True, fields=["lru"]) == ["lru=HOT", "lru=7"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"[" * 100_000, b'{"values": 3}', b'{"values": {"A": "1", "B": 1e9}}',
     b'{"values": {"A": 18446744073709551616, "B": -9223372036854775809, "C": true}}'],
)  # fmt: skip
def test_a_damaged_file_names_nothing(content: bytes) -> None:
    assert Enums(content).values == {}
    assert Enums(content).of_field("enum lru_list") == {}


def test_text_uses_the_values_that_the_segment_keeps(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    made = Traced(tmp_path / "t")
    made.add_format("made/made", format_text("made", 9, FIELDS, STATE))
    (made.tracefs / "enums.json").write_text(json.dumps(SAVED))
    made.append([pages_of(0, [common(9, 7) + struct.pack("<II", 8, 1)])])
    made.finish()
    _, out, err = run(capfdbinary, "text", tmp_path / "t")
    assert (out.split(b"made: ")[1], err) == (b"state=NEW\n", "")


class TestThisKernel:
    """With the type information of the kernel that runs."""

    pytestmark: ClassVar = [
        *needs_kernel(),
        pytest.mark.usefixtures("instances"),
        pytest.mark.skipif(not Path(BTF, "vmlinux").exists(), reason="no BTF here"),
    ]

    def test_a_source_saves_the_constants_of_its_events(self) -> None:
        with closing(open_ftrace(QUIET._replace(events=("writeback:*",)), BufferPool())) as source:
            files = source.attachments()
            assert "tracefs/enums.json" not in {one.name for one in files(When.OPEN)}
            saved = {one.name: one.data for one in files(When.PERIODIC)}
            values = json.loads(saved["tracefs/enums.json"])["values"]
            assert values["I_DIRTY_SYNC"] > 0
            assert "tracefs/enums.json" not in {one.name for one in files(When.CLOSE)}

    def test_nothing_is_read_for_events_that_need_no_constants(self) -> None:
        with closing(
            open_ftrace(QUIET._replace(events=("irq:*", "raw_syscalls:*")), BufferPool())
        ) as source:
            files = source.attachments()
            named = [one.name for when in (When.OPEN, When.CLOSE) for one in files(when)]
            assert "tracefs/enums.json" not in named
