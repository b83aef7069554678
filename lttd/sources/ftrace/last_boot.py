"""Parse ``last_boot_info`` of an instance in reserved memory, whose ring survives a warm reboot.

Linux 6.12 tells how far this boot's kernel lies behind the previous one's; later kernels tell where
the previous one lay.  With either, symbols of this boot give those of the previous one.
Source: Linux kernel/trace/trace.c, show_last_boot_header() and the file's reader in 6.12.
"""

import re
from typing import Final, NamedTuple

# "text delta:\t-423624704", decimal; 0 without data of a previous boot.
_DELTA: Final = re.compile(rb"text delta:\s*(-?\d{1,20})")
# "39000000\t[kernel]", hexadecimal; "# Current" without data of a previous boot.
_OFFSET: Final = re.compile(rb"^([0-9a-f]{1,16})\s+\[kernel\]", re.MULTILINE)
_TEXT: Final = re.compile(rb"^([0-9a-f]{16}) . _text$", re.MULTILINE)
# Kernel symbols have no fourth column; those of modules, which lie elsewhere after a boot, do.
_SYMBOL: Final = re.compile(rb"^([0-9a-f]{16}) (. \S+)$", re.MULTILINE)
# Where an x86-64 kernel without KASLR begins: __START_KERNEL in asm/page_64_types.h.
LINKED_AT: Final = 0xFFFFFFFF81000000
_ADDRESSES: Final = 1 << 64


class LastBoot(NamedTuple):
    """What the kernel knows of the boot that filled a ring."""

    delta: int | None = None
    """Address in this boot less address in the previous one; None: the file tells an offset."""
    offset: int | None = None
    """The previous kernel's distance from LINKED_AT."""

    @property
    def has_data(self) -> bool:
        """Whether the kernel says that the ring holds data of a previous boot.

        Linux 6.12 cannot say so of a boot at the same address, without KASLR.
        """
        return self.offset is not None or bool(self.delta)

    def symbols_of(self, kallsyms: bytes) -> bytes:
        """Return the previous boot's symbols, made of this boot's; empty if that is impossible.

        Symbols of modules are left out.
        """
        delta = self.delta
        if self.offset is not None:
            text = _TEXT.search(kallsyms)
            delta = int(text[1], 16) - LINKED_AT - self.offset if text else None
        if delta is None:
            return b""

        def moved(symbol: re.Match[bytes]) -> bytes:
            return b"%016x %b\n" % ((int(symbol[1], 16) - delta) % _ADDRESSES, symbol[2])

        return b"".join(map(moved, _SYMBOL.finditer(kallsyms)))


def parse_last_boot(content: bytes) -> LastBoot:
    """Parse the content of ``last_boot_info``."""
    if found := _DELTA.search(content):
        return LastBoot(delta=int(found[1]))
    if found := _OFFSET.search(content):
        return LastBoot(offset=int(found[1], 16))
    return LastBoot()
