"""Find the symbols of kernel modules that were loaded while lttd recorded.

Rule: /proc/kallsyms is read again only if a module has come: to print it takes the kernel a while.
"""

from collections.abc import Mapping
from typing import Final

from lttd.errors import LttdError
from lttd.sources.tracefs import read_bytes

MODULES: Final = "/proc/modules"
KALLSYMS: Final = "/proc/kallsyms"
_TRIED_BYTES: Final = 1 << 16


def loaded_modules(path: str = MODULES) -> dict[bytes, bytes]:
    """Return the address of each loaded module by its name; nothing if that cannot be read."""
    try:
        lines = read_bytes(path).splitlines()
    except LttdError:
        return {}
    words = [line.split() for line in lines]
    return {each[0]: each[5] for each in words if len(each) > 5}


def symbols_since(
    known: Mapping[bytes, bytes], modules: str = MODULES, kallsyms: str = KALLSYMS
) -> bytes:
    """Return the lines of kallsyms of modules that are not *known*, or have moved since."""
    new = {name for name, at in loaded_modules(modules).items() if known.get(name) != at}
    if not new:
        return b""
    try:
        lines = read_bytes(kallsyms).splitlines(keepends=True)
    except LttdError:
        return b""
    marks = tuple(b"\t[%b]" % name for name in new)
    return b"".join(line for line in lines if line.rstrip().endswith(marks))


def hides_symbols(kallsyms: str = KALLSYMS) -> bool:
    """Tell whether the kernel does not tell this process the addresses of its functions."""
    try:
        with open(kallsyms, "rb", buffering=0) as file:
            lines = file.read(_TRIED_BYTES).splitlines()
    except OSError:
        return True
    return not any(line.strip(b"0")[:1] not in (b"", b" ") for line in lines)
