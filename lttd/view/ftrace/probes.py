"""Print events of dynamic probes as the kernel does, which their print fmt does not describe.

    kprobe:  (do_sys_openat2+0x4/0x150) name="/etc/passwd"
    return:  (ksys_read+0xc3/0xe0 <- vfs_read) count=4096
    synthetic:  pid=309 old=309
    of a program:  (0x55bfc115a160 <- 0x55bfc115a129) text=(fault)

Source: Linux kernel/trace/trace_kprobe.c, print_kprobe_event() and print_kretprobe_event();
kernel/trace/trace_uprobe.c, print_uprobe_event(); trace_probe.c, print_type_string();
trace_events_synth.c, print_synth_event().

An eprobe's format does not name the event to which it is attached, which the kernel prints in
parentheses.
"""

import re
from typing import Final

from lttd.abi.ftrace import OWN_SYSTEM
from lttd.abi.ftrace_format import Format
from lttd.abi.print_fmt_nodes import Call, Conversion, FieldRef, PrintFmt
from lttd.view.conversions import BARE_NAME
from lttd.view.ftrace.kernel_functions import PROBED_STR

_FUNCTION: Final = "__probe_func"
_WHERE: Final = ("__probe_ip", _FUNCTION, "__probe_ret_ip")
_SYNTHETIC: Final = "synthetic"
_GET_STR: Final = ("__get_str", "__get_rel_str")
_QUOTE: Final = b'"'


def as_probes_print(parsed: PrintFmt, format_: Format) -> PrintFmt:
    """Return the print fmt with which the kernel prints a probe's event; others unchanged."""
    if format_.system == _SYNTHETIC:
        return PrintFmt(tuple(_without_commas(piece) for piece in parsed.pieces))
    names = format_.by_name
    if not any(name in names for name in _WHERE) or format_.system == OWN_SYSTEM:
        return parsed
    pieces = [_place(piece) for piece in parsed.pieces]
    if "__probe_ret_ip" in names:  # the kernel prints the return address first
        at = [n for n, piece in enumerate(pieces) if _field_of(piece) in _WHERE]
        if len(at) == 2:
            pieces[at[0]], pieces[at[1]] = pieces[at[1]], pieces[at[0]]
    for number in range(1, len(pieces) - 1):
        before, piece, behind = pieces[number - 1 : number + 2]
        if not (isinstance(before, bytes) and isinstance(behind, bytes)):
            continue
        if _prints_string(piece) and before.endswith(_QUOTE) and behind.startswith(_QUOTE):
            assert isinstance(piece, Conversion)
            assert isinstance(piece.argument, Call)
            told = Call(PROBED_STR, piece.argument.arguments)
            pieces[number - 1 : number + 2] = before[:-1], piece._replace(argument=told), behind[1:]
    return PrintFmt(tuple(piece for piece in pieces if piece != b""))


def _place(piece: bytes | Conversion) -> bytes | Conversion:
    """Print an address of code as a symbol, and 0x before one that has none."""
    if isinstance(piece, Conversion) and (name := _field_of(piece)) in _WHERE:
        extension = BARE_NAME if name == _FUNCTION else "S"
        return piece._replace(letter="p", extension=extension, length="")
    return piece


def _without_commas(piece: bytes | Conversion) -> bytes | Conversion:
    """Separate the fields of a synthetic event by blanks, as the kernel does."""
    return re.sub(rb"^, (?=\w+=)", b" ", piece) if isinstance(piece, bytes) else piece


def _field_of(piece: bytes | Conversion) -> str | None:
    found = piece.argument if isinstance(piece, Conversion) else None
    return found.name if isinstance(found, FieldRef) else None


def _prints_string(piece: bytes | Conversion) -> bool:
    found = piece.argument if isinstance(piece, Conversion) else None
    return isinstance(found, Call) and found.name in _GET_STR
