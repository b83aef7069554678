"""Print events as the code of the kernel does: stacks, trace_printk(), strings, probes."""

import struct
from pathlib import Path

import pytest

from lttd.abi.ftrace_format import Encoding, parse_format
from lttd.view.addresses import Symbols
from lttd.view.commands.formats import share_text
from lttd.view.filters import Where
from lttd.view.ftrace.render import Renderer, why_inexpressible
from tests.ftraced import format_text
from tests.print_fmts import event_rows, lines_of

KALLSYMS = b"""\
0000000000000000 A fixed_percpu_data
0000000000001000 A cpu_debug_store
ffffffff81000000 T _text
ffffffff81000000 T startup_64
ffffffff81000040 t alpha
ffffffff81000100 D beta
ffffffff81000180 T _end
ffffffffc0000000 t modular\t[a_module]
ffffffffc0000080 t last\t[a_module]
"""
PRINTK_FORMATS = b"""\
0xffffffff82000010 : "Start context switch"
0xffffffff82000040 : "fig: cpu=%d\\n"
0xffffffff82000060 : "tab\\tquote\\"back\\\\slash\\n"
0xffffffff82000080 : "%s %5d|%-4u|%hhd %hx %c|%lld %lu %zu %llx"
0xffffffff820000a0 : "%.3s|%*d|%.*s|%%|%p|%ps|%pS|%pI4|%s"
0xffffffff820000c0 : "%q"
0xc1000040 : "32-bit %ld %lld %s %p\\n"
"""
ALPHA, MODULAR = 0xFFFF_FFFF_8100_0050, 0xFFFF_FFFF_C000_0004


@pytest.fixture
def symbols(tmp_path: Path) -> Symbols:
    (tmp_path / "kallsyms").write_bytes(KALLSYMS)
    (tmp_path / "printk_formats").write_bytes(PRINTK_FORMATS)
    return Symbols(tmp_path)


def shown(
    text: bytes,
    events: list[bytes],
    symbols: Symbols,
    *,
    system: str = "ftrace",
    long_bytes: int = 8,
    byteorder: str = "<",
) -> list[str]:
    """Return the lines of the given events of a format."""
    rows = event_rows(text, events, system, long_bytes, byteorder)
    assert rows.event_type.format is not None
    assert why_inexpressible(rows.event_type.format) is None
    strip = Renderer(rows.event_type.format, symbols).strip(rows)
    return lines_of(strip, len(events))


FRAMES = ", ".join(f"(void *)REC->caller[{n}]" for n in range(8))
STACK_FMT = '"' + "\\t=> %ps\\n" * 8 + f'", {FRAMES}'
KERNEL_STACK = format_text(
    "kernel_stack", 4, ["int size;8;4;1", "unsigned long caller[8];16;64;0"], STACK_FMT
)
USER_STACK = format_text(
    "user_stack", 12, ["unsigned int tgid;8;4;0", "unsigned long caller[8];16;64;0"], STACK_FMT
)


@pytest.mark.parametrize("frames", [0, 1, 4, 8, 10, 60])
def test_a_kernel_stack_prints_every_frame_of_its_event(symbols: Symbols, frames: int) -> None:
    addresses = [ALPHA + 8 * (at % 4) for at in range(frames)]
    made = struct.pack(f"<8xii{frames}Q", frames, 0, *addresses)
    whole = "<stack trace>" + "\n => alpha" * frames
    one = struct.pack("<8xii2Q", 2, 0, MODULAR, 0x1234)
    assert shown(KERNEL_STACK, [made, one, made], symbols) == [
        whole,
        "<stack trace>\n => modular\n => 0x00001234",
        whole,
    ]


def test_a_kernel_stack_ends_at_its_mark_and_its_stated_size(symbols: Symbols) -> None:
    top = (1 << 64) - 1
    marked = struct.pack("<8xii4Q", 4, 0, ALPHA, top, ALPHA, top)
    short = struct.pack("<8xii3Q", 1, 0, ALPHA, 0, 0)
    lies = struct.pack("<8xii1Q", 1 << 30, 0, ALPHA)
    trampoline = struct.pack("<8xii2Q", 2, 0, (1 << 31) - 1, ALPHA)
    rootless = struct.pack("<8xii2Q", 2, 0, ALPHA, 0)  # Linux 5.10 on 32-bit ARM
    one = "<stack trace>\n => alpha"
    assert shown(KERNEL_STACK, [marked, short, lies, trampoline, rootless], symbols) == [
        one, one, one, "<stack trace>\n => [FTRACE TRAMPOLINE]\n => alpha", f"{one}\n => 0",
    ]  # fmt: skip


def test_a_stack_of_a_32_bit_kernel_has_frames_of_4_bytes(tmp_path: Path) -> None:
    (tmp_path / "kallsyms").write_bytes(b"c1000000 T alpha\nc1000100 T omega\n")
    text = format_text(
        "kernel_stack", 4, ["int size;8;4;1", "unsigned long caller[8];12;32;0"], STACK_FMT
    )
    made = struct.pack(">8xi3I", 3, 0xC1000010, 0xC1000020, 0xFFFFFFFF)
    told = shown(text, [made], Symbols(tmp_path), long_bytes=4, byteorder=">")
    assert told == ["<stack trace>\n => alpha\n => alpha"]


def test_a_raw_mark_prints_its_id_and_every_byte(symbols: Symbols) -> None:
    fields = ["unsigned int id;8;4;0", "char buf[];12;0;0"]
    text = format_text("raw_data", 19, fields, '"id:%04x %08x", REC->id, (int)REC->buf[0]')
    made = [struct.pack("<8xI", number) + data for number, data in ((0x17, b"ab\0\xff"), (7, b""))]
    assert shown(text, made, symbols) == ["# 17 buf: 61 62 00 ff", "# 7 buf:"]


def test_a_user_stack_omits_frames_of_zero(symbols: Symbols) -> None:
    made = struct.pack("<8xII8Q", 1, 0, 0x7F00_0000_1234, 0x55, *(6 * [0]))
    assert shown(USER_STACK, [made], symbols) == [
        "<user stack trace>\n =>  <00007f0000001234>\n =>  <0000000000000055>"
    ]


def test_json_and_the_library_give_a_stack_as_a_list() -> None:
    caller = parse_format(KERNEL_STACK, "ftrace").by_name["caller"]
    assert (caller.encoding, caller.element_bytes, caller.size_bytes) == (Encoding.TAIL, 8, 0)


# -- strings by address


def test_a_pointer_in_printk_formats_prints_its_string(symbols: Symbols) -> None:
    text = format_text("rcu_utilization", 7, ["const char * s;8;8;0"], '"%s", REC->s')
    at = [0xFFFF_FFFF_8200_0010, 0xFFFF_FFFF_8200_0060, 0xFFFF_FFFF_8200_0011, 0]
    made = [struct.pack("<8xQ", one) for one in at]
    assert shown(text, made, symbols, system="rcu") == [
        "Start context switch",
        'tab\tquote"back\\slash\\x0a',
        "0xffffffff82000011",
        "(null)",
    ]


def test_a_conditional_between_a_pointer_and_a_text_prints_text(symbols: Symbols) -> None:
    text = format_text("chosen", 7, ["const char * s;8;8;0"], '"<%s>", REC->s ? REC->s : "none"')
    made = [struct.pack("<8xQ", one) for one in (0xFFFF_FFFF_8200_0010, 0, 5)]
    told = shown(text, made, symbols, system="s")
    assert told == ["<Start context switch>", "<none>", "<0x5>"]


def test_bputs_prints_the_function_and_the_string(symbols: Symbols) -> None:
    text = format_text(
        *("bputs", 15, ["unsigned long ip;8;8;0", "const char * str;16;8;0"]),
        '"%ps: %s", (void *)REC->ip, REC->str',
    )
    made = [struct.pack("<8xQQ", ALPHA, at) for at in (0xFFFF_FFFF_8200_0010, 6)]
    assert shown(text, made, symbols) == ["alpha: Start context switch", "alpha: 0x6"]


@pytest.mark.parametrize(
    ("address", "told"),
    [
        (0xFFFF_FFFF_8100_0000, "_text+0x0/0x40 _text"),
        (0xFFFF_FFFF_8100_00FF, "alpha+0xbf/0xc0 alpha"),
        (MODULAR, "modular+0x4/0x80 [a_module] modular [a_module]"),
        (0xFFFF_FFFF_9000_0000, "0xffffffff90000000 0xffffffff90000000"),
        (0xFFFF_FFFF_D000_0000, "0xffffffffd0000000 0xffffffffd0000000"),
        (0x7FFF_0000_0000, "0x7fff00000000 0x7fff00000000"),
        (0x1004, "0x1004 0x1004"),
        (0, "0x0 0x0"),
    ],
)
def test_a_symbol_has_the_size_and_module_that_the_kernel_prints(
    symbols: Symbols, address: int, told: str
) -> None:
    text = format_text("at", 7, ["void * p;8;8;0"], '"%pS %ps", REC->p, REC->p')
    assert shown(text, [struct.pack("<8xQ", address)], symbols, system="s") == [told]


KALLSYMS_OF_TEXT = """\
ffffffff81000000 T _stext
ffffffff81000100 t alpha
ffffffff81000200 T _etext
ffffffff81400000 D __start_rodata
ffffffff81600000 T _sinittext
ffffffff81600010 t early
ffffffff81600100 T _einittext
ffffffffa0000000 d data_of_module\t[a_module]
"""


@pytest.mark.parametrize(
    ("address", "of_text", "of_all"),
    [
        (0xFFFF_FFFF_8100_01FF, "alpha", "alpha"),
        (0xFFFF_FFFF_8140_1000, "0xffffffff81401000", "__start_rodata"),
        (0xFFFF_FFFF_8160_0020, "early", "early"),
        (0xFFFF_FFFF_A000_0010, "data_of_module [a_module]", "data_of_module [a_module]"),
    ],
)
def test_only_a_kernel_that_lists_its_data_names_addresses_of_data(
    tmp_path: Path, address: int, of_text: str, of_all: str
) -> None:
    """Linux kernel/kallsyms.c, is_ksym_addr(): without CONFIG_KALLSYMS_ALL only functions."""
    text = format_text("at", 7, ["void * p;8;8;0"], '"%ps", REC->p')
    for more, told in (("", of_text), ("ffffffff81500000 d a_static_variable\n", of_all)):
        (tmp_path / "kallsyms").write_text(KALLSYMS_OF_TEXT + more)
        made = struct.pack("<8xQ", address)
        assert shown(text, [made], Symbols(tmp_path), system="s") == [told]


@pytest.mark.parametrize(
    ("long_bytes", "told"),
    [(8, "ffff888100000000 0000000000000000 -ENOMEM"), (4, "c1000000 00000000 -ENOMEM")],
)
def test_a_pointer_is_as_wide_as_the_kernels_long(
    symbols: Symbols, long_bytes: int, told: str
) -> None:
    size = long_bytes
    fields = [f"void * {name};{8 + at * size};{size};0" for at, name in enumerate("abc")]
    text = format_text("p", 7, fields, '"%p %px %pe", REC->a, REC->b, REC->c')
    values = (0xFFFF_8881_0000_0000 if size == 8 else 0xC100_0000, 0, (1 << 8 * size) - 12)
    made = struct.pack("<8x3Q" if size == 8 else "<8x3I", *values)
    assert shown(text, [made], symbols, system="s", long_bytes=size) == [told]


# -- trace_printk(): arguments as vbin_printf() packs them


class Packed:
    """Arguments as Linux lib/vsprintf.c, vbin_printf(), lays them into words."""

    def __init__(self, byteorder: str = "<") -> None:
        self.data = b""
        self._order = byteorder

    def number(self, value: int, size: int) -> "Packed":
        aligned = min(size, 4)
        self.data += bytes(-len(self.data) % aligned)
        code = {1: "B", 2: "H", 4: "I", 8: "Q"}[size]
        self.data += struct.pack(self._order + code, value & ((1 << 8 * size) - 1))
        return self

    def text(self, value: bytes) -> "Packed":
        self.data += value + b"\0"
        return self


def bprint(packed: Packed, fmt: int, ip: int = ALPHA, *, order: str = "<", size: int = 8) -> bytes:
    head = struct.pack(f"{order}8x{'QQ' if size == 8 else 'II'}", ip, fmt)
    return head + packed.data + bytes(-len(packed.data) % 4)


BPRINT_FMT = '"%ps: %s", (void *)REC->ip, REC->fmt'
BPRINT = format_text(
    *("bprint", 6, ["unsigned long ip;8;8;0", "const char * fmt;16;8;0", "u32 buf[];24;0;0"]),
    BPRINT_FMT,
)


def test_bprint_is_formatted_from_its_binary_arguments(symbols: Symbols) -> None:
    plain = Packed().number(-3, 4)
    numbers = Packed().text(b"abc").number(-42, 4).number(7, 4).number(-1, 1).number(0xBEEF, 2)
    numbers.number(ord("Z"), 1).number(-5, 8).number(1 << 63, 8).number(9, 8).number(-1, 8)
    widths = Packed().text(b"abcdef").number(6, 4).number(-7, 4).number(2, 4).text(b"xyz")
    widths.number(0xFFFF_8881_0000_0000, 8).number(ALPHA, 8).number(MODULAR, 8)
    widths.text(b"10.0.0.1").text(b"end")
    made = [
        bprint(plain, 0xFFFF_FFFF_8200_0040),
        bprint(numbers, 0xFFFF_FFFF_8200_0080),
        bprint(widths, 0xFFFF_FFFF_8200_00A0),
        bprint(Packed(), 0xFFFF_FFFF_8200_0010, 0x99),
    ]
    assert shown(BPRINT, made, symbols) == [
        "alpha: fig: cpu=-3",
        "alpha: abc   -42|7   |-1 beef Z|-5 9223372036854775808 9 ffffffffffffffff",
        "alpha: abc|    -7|xy|%|ffff888100000000|alpha|modular+0x4/0x80 [a_module]|10.0.0.1|end",
        "0x00000099: Start context switch",
    ]


def test_flexible_arrays_that_are_declared_without_brackets_are_printed(symbols: Symbols) -> None:
    """Linux 3.10 to 4.14, as their format files are."""
    text = BPRINT.replace(b"u32 buf[]", b"u32 buf").replace(b"%ps", b"%pf")
    made = [bprint(Packed().number(-3, 4), 0xFFFF_FFFF_8200_0040)]
    assert shown(text, made, symbols) == ["alpha: fig: cpu=-3"]
    fields = ["unsigned long ip;8;8;0", "char buf;16;0;0"]
    text = format_text("print", 5, fields, '"%pf: %s", (void *)REC->ip, REC->buf')
    made = [struct.pack("<8xQ", ALPHA) + b"a marker\n\0\0\0"]
    assert shown(text, made, symbols) == ["alpha: a marker"]


def test_bprint_of_a_32_bit_big_endian_kernel_is_formatted(tmp_path: Path) -> None:
    (tmp_path / "printk_formats").write_bytes(PRINTK_FORMATS)
    text = format_text(
        *("bprint", 6, ["unsigned long ip;8;4;0", "const char * fmt;12;4;0", "u32 buf[];16;0;0"]),
        BPRINT_FMT,
    )
    packed = Packed(">").number(-6, 4).number(1 << 40, 8).text(b"s").number(0xC1000010, 4)
    made = bprint(packed, 0xC1000040, 0xC1000099, order=">", size=4)
    told = shown(text, [made], Symbols(tmp_path), long_bytes=4, byteorder=">")
    assert told == [f"0xc1000099: 32-bit -6 {1 << 40} s c1000010"]


def test_bprint_without_format_or_arguments_shows_its_data(
    symbols: Symbols,
) -> None:
    made = [
        bprint(Packed().number(1, 4), 0xFFFF_FFFF_8200_0099),
        bprint(Packed().number(1, 4), 0xFFFF_FFFF_820000C0),
        bprint(Packed(), 0xFFFF_FFFF_8200_0040),
        bprint(Packed().number(0x61616161, 4), 0xFFFF_FFFF_8200_0080),
    ]
    assert shown(BPRINT, made, symbols) == [
        "alpha: 0xffffffff82000099 01000000",
        "alpha: 0xffffffff820000c0 01000000",
        "alpha: fig: cpu=[...]",
        "alpha: [...]",
    ]


# -- probes, and strings at other addresses


STRINGS = format_text(
    *("up", 9, ["unsigned long __probe_ip;8;8;0", "__data_loc char[][2] v;16;8;1"]),
    '"(%lx) v={\\"%s\\",\\"%s\\"}", REC->__probe_ip, __get_str(v[0]), __get_str(v[1])',
)


def strings(*texts: bytes | None, ip: int = 0x5555_1129) -> bytes:
    """Return an event of a uprobe with ustring[2]; None stands for a fault."""
    locs, tail = [], b""
    for text in texts:
        told = b"" if text is None else text + b"\0"
        locs.append(len(told) << 16 | 24 + len(tail))
        tail += told
    return struct.pack(f"<8xQ{len(locs)}I", ip, *locs) + tail


def test_an_array_of_strings_prints_each_string_and_marks_faults(
    symbols: Symbols,
) -> None:
    made = [strings(b"first", b"second one"), strings(None, b""), strings(b"x", None, ip=ALPHA)]
    assert shown(STRINGS, made, symbols, system="uprobes") == [
        '(0x55551129) v={"first","second one"}',
        '(0x55551129) v={(fault),""}',
        '(alpha+0x10/0xc0) v={"x",(fault)}',
    ]


def test_each_string_of_an_array_is_a_field() -> None:
    fields = parse_format(STRINGS, "uprobes").own
    assert [(one.name, one.encoding, one.offset_bytes) for one in fields[1:]] == [
        ("v[0]", Encoding.STRING, 16), ("v[1]", Encoding.STRING, 20),
    ]  # fmt: skip


def test_an_expression_names_a_string_of_an_array_as_its_element() -> None:
    rows = event_rows(STRINGS, [strings(b"a", b"b"), strings(b"b", None)], "uprobes")
    assert Where('v[0] == "b"').mask(rows).tolist() == [False, True]
    assert Where('"b" in v[1]').mask(rows).tolist() == [True, False]


def test_a_return_probe_prints_its_return_address_first(symbols: Symbols) -> None:
    text = format_text(
        "r",
        9,
        [
            "unsigned long __probe_func;8;8;0",
            "unsigned long __probe_ret_ip;16;8;0",
            "__data_loc char[] a;24;4;1",
        ],
        '"(%lx <- %lx) a=\\"%s\\"", REC->__probe_func, REC->__probe_ret_ip, __get_str(a)',
    )
    made = [struct.pack("<8xQQI", *two, 28) for two in ((ALPHA, MODULAR), (MODULAR, ALPHA))]
    made.append(struct.pack("<8xQQI", 0x40_1129, 0x40_1160, 28))
    assert shown(text, made, symbols, system="kprobes") == [
        "(modular+0x4/0x80 [a_module] <- alpha) a=(fault)",
        "(alpha+0x10/0xc0 <- modular) a=(fault)",
        "(0x401160 <- 0x401129) a=(fault)",
    ]


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_data_loc_of_two_bytes_is_an_offset_and_reaches_to_the_events_end(
    symbols: Symbols, order: str
) -> None:
    """Such fields exist in Linux 2.6.31."""
    text = format_text(
        "old",
        9,
        ["__data_loc char[] a;8;2;0", "__data_loc char[] b;10;2;0", "int n;12;4;1"],
        '"%s %s %d", __get_str(a), __get_str(b), REC->n',
    )
    made = struct.pack(f"{order}8xHHi", 16, 22, -1) + b"hello\0world\0"
    assert shown(text, [made], symbols, system="s", byteorder=order) == ["hello world -1"]


def test_lttv_formats_counts_conversions_and_names_those_left_out(tmp_path: Path) -> None:
    texts = {
        "kmem/alloc": ('"page=%p n=%d", vmemmap_base + REC->n, REC->n', ["int n;8;4;1"]),
        "sched/plain": ('"%d of %d", REC->n, REC->n', ["int n;8;4;1"]),
        "other/none": ('"%d", jiffies', ["int n;8;4;1"]),
    }
    for number, (name, (printed, fields)) in enumerate(texts.items(), 1):
        path = tmp_path / "events" / name / "format"
        path.parent.mkdir(parents=True)
        path.write_bytes(format_text(name.partition("/")[2], number, fields, printed))
    assert share_text(tmp_path).splitlines() == [
        "kmem:alloc: page= unknown name 'vmemmap_base'",
        "other:none: unknown name 'jiffies'",
        "3 of 5 conversions print as in the kernel (60.00%)",
        "1 of 3 event types print as their print fmt says (33.3%)",
    ]


def test_a_string_and_a_number_of_one_name_are_two_fields(symbols: Symbols) -> None:
    """Linux 3.4 to 5.10, regcache_sync and nvhost_cdma_push_gather."""
    text = format_text(
        "twice",
        9,
        ["__data_loc char[] type;8;4;0", "int type;12;4;1"],
        '"type=%s %d", __get_str(type), REC->type',
    )
    made = struct.pack("<8xIi", 5 << 16 | 16, -3) + b"drop\0"
    assert shown(text, [made], symbols, system="regmap") == ["type=drop -3"]
    assert [one.name for one in parse_format(text).own] == ["__data_loc_type", "type"]


def test_the_number_and_an_argument_of_a_system_call_may_both_be_named_nr(
    symbols: Symbols,
) -> None:
    """Linux 3.9 to 3.18, at least: sys_enter_io_submit and sys_enter_io_getevents."""
    text = format_text(
        "sys_enter_io_submit",
        9,
        ["int nr;8;4;1", "aio_context_t ctx_id;16;8;0", "long nr;24;8;0"],
        '"ctx_id: 0x%08lx, nr: 0x%08lx", ((unsigned long)(REC->ctx_id)),'
        " ((unsigned long)(REC->nr))",
    )
    made = struct.pack("<8xi4xQq", 209, 0x7F00, 3)
    assert shown(text, [made], symbols, system="syscalls") == ["ctx_id: 0x00007f00, nr: 0x00000003"]
    assert [one.name for one in parse_format(text).own] == ["__syscall_nr", "ctx_id", "nr"]


def test_a_synthetic_event_has_blanks_between_its_fields(symbols: Symbols) -> None:
    text = (
        b"name: lat\nID: 9\nformat:\n"
        b"\tfield:pid_t pid;\toffset:8;\tsize:4;\tsigned:1;\n"
        b"\tfield:pid_t old;\toffset:12;\tsize:4;\tsigned:1;\n\n"
        b'print fmt: "pid=%d, old=%d", REC->pid, REC->old\n'
    )
    made = [bytes(8) + (7).to_bytes(4, "little") + (9).to_bytes(4, "little")]
    assert shown(text, made, symbols, system="synthetic") == ["pid=7 old=9"]
    assert shown(text, made, symbols, system="lttd") == ["pid=7, old=9"]
