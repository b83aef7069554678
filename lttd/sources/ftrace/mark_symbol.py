"""Find the place in the kernel from which marks are written: ``lttv`` prints its name.

    bash-4242 [001] ..... 89533.400280: print: tracing_mark_write: deploy 4711 begins

A mark holds that place's address.  Its name is in kallsyms, which is large, and which the kernel
shows to few.  But it prints the name and the address of a mark in its own ``trace`` file.

Source: Linux kernel/trace/trace.c, tracing_mark_write(); trace_output.c, seq_print_ip_sym().
"""

import re
from functools import cache
from typing import Final

from lttd.errors import LttdError
from lttd.sources.ftrace.instance import Instance
from lttd.sources.ftrace.markers import MARKER
from lttd.sources.ftrace.modules import KALLSYMS
from lttd.sources.tracefs import read_bytes, read_text, write_text

FUNCTION: Final = b"tracing_mark_write"
_OPTION: Final = "options/sym-addr"
_PRINTED: Final = rb": %b <([0-9a-f]{1,16})>: lttd$" % FUNCTION
_PART_BYTES: Final = 1 << 18
_LINES_BYTES: Final = 1 << 12
# Its line, and that of the next symbol.
_LISTED: Final = rb"^([0-9a-f]{1,16}) \w %b\n(?:\1 .*\n)*([0-9a-f]{1,16}) " % FUNCTION


def by_a_mark(instance: Instance, *, stays_empty: bool) -> bytes:
    """Write a mark into a new instance of lttd's own, which records nothing.

    *stays_empty*: empty it again; that takes some 25 ms, and setting another clock does it, too.
    Return the content of a file ``mark_symbols``; nothing if that is not possible.
    """
    try:
        before = read_text(instance.file(_OPTION))
        write_text(instance.file(_OPTION), "1")
        write_text(instance.file("tracing_on"), "1")
        write_text(instance.file(MARKER), "lttd")
        write_text(instance.file("tracing_on"), "0")
        text = read_bytes(instance.file("trace"))
        if stays_empty:
            write_text(instance.file("trace"), "", truncate=True)
        write_text(instance.file(_OPTION), before)
    except LttdError:
        return b""
    found = re.search(_PRINTED, text, re.MULTILINE)
    return _line(int(found[1], 16), int(found[1], 16) + 1) if found else b""


def _line(begin: int, end: int) -> bytes:
    return b"%016x %016x %b\n" % (begin, end, FUNCTION)


@cache
def by_kallsyms(path: str = KALLSYMS) -> bytes:
    """Return the same content from the kernel's list of symbols; nothing if it hides addresses.

    To print the list takes the kernel a tenth of a second, so it is read as far as needed.
    """
    rest = b""
    try:
        with open(path, "rb", buffering=0) as file:
            while part := file.read(_PART_BYTES):
                found = re.search(_LISTED, rest + part, re.MULTILINE)
                if found:
                    begin, end = (int(each, 16) for each in found.groups())
                    return _line(begin, end) if begin else b""
                rest = part[-_LINES_BYTES:]
    except OSError:
        pass  # then marks are printed with an address
    return b""
