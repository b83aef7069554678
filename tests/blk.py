"""Make blktrace records as the kernel writes them."""

import struct

from lttd.abi.blktrace import CATEGORIES, MAGIC

# Categories by name, as bits of an action: c["fs"] | c["write"].
c = {name: 1 << 16 + bit for bit, name in enumerate(CATEGORIES)}
SDA1 = 8 << 20 | 1


def record(
    time: int = 0,
    action: int = 1 | c["fs"],
    pdu: bytes = b"",
    *,
    sequence: int = 1,
    sector: int = 100,
    size: int = 4096,
    pid: int = 10,
    device: int = SDA1,
    cpu: int = 0,
    error: int = 0,
    order: str = "<",
    version: int = 7,
) -> bytes:
    """Return a record in one of the two versions of its layout."""
    head = (MAGIC | version, sequence, time, sector, size)
    tail = (device, cpu, error, len(pdu))
    if version == 7:
        return struct.pack(f"{order}IIQQIIIIIHH", *head, action, pid, *tail) + pdu
    return struct.pack(f"{order}IIQQIIQIIHH12x", *head, pid, action, *tail) + pdu


def process(time: int, pid: int, comm: str, cpu: int = 0) -> bytes:
    """Return the note that names a process."""
    return record(
        time, c["notify"], comm.encode().ljust(16, b"\0"), pid=pid, cpu=cpu, sector=0, size=0
    )


def timestamp(time: int, seconds: int, cpu: int = 0) -> bytes:
    """Return the note of a wall-clock time."""
    return record(time, 1 | c["notify"], struct.pack("<II", seconds, 0), pid=0, cpu=cpu)


def message(time: int, text: bytes, cpu: int = 0) -> bytes:
    """Return the note of a message that user space wrote."""
    return record(time, 2 | c["notify"], text, pid=0, cpu=cpu)
