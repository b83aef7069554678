"""Compose ioctl requests for the machine's architecture.

The place of the direction in a request differs: Linux include/uapi/asm-generic/ioctl.h, and
arch/{alpha,mips,powerpc,sparc}/include/uapi/asm/ioctl.h, where a direction is 3 bits wide.
"""

import platform
from typing import Final

_THREE_BITS: Final = platform.machine().startswith(("alpha", "mips", "ppc", "sparc"))
NONE: Final = 0x20000000 if _THREE_BITS else 0
READ: Final = 0x40000000 if _THREE_BITS else 0x80000000
WRITE: Final = 0x80000000 if _THREE_BITS else 0x40000000


def request(direction: int, kind: int, number: int, size_bytes: int = 0) -> int:
    """Return the request *number* of *kind*, whose argument has *size_bytes*."""
    return direction | size_bytes << 16 | kind << 8 | number
