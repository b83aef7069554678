"""Read the trace.dat files of trace-cmd, as far as tests need it."""

import struct
from pathlib import Path


def cpu_data(path: Path) -> tuple[int, dict[int, bytes]]:
    """Return page size and pages per CPU of an uncompressed trace.dat, version 7."""
    raw = path.read_bytes()
    assert raw[:10] == b"\x17\x08\x44tracing"
    assert raw[10:14] == b"7\0\0\x08"
    _, _, after = raw[18:].partition(b"none\0")
    at = len(raw) - len(after) + 1
    (options,) = struct.unpack_from("<Q", raw, at)
    at = options + 16
    while True:
        option, size = struct.unpack_from("<HI", raw, at)
        if option == 3:
            break
        if option == 0:
            at = struct.unpack_from("<Q", raw, at + 6)[0] + 16
        else:
            at += 6 + size
    body = raw[at + 14 : at + 6 + size].split(b"\0", 2)[2]
    page_bytes, cpus = struct.unpack_from("<II", body)
    found = {}
    for number in range(cpus):
        cpu, offset, length = struct.unpack_from("<IQQ", body, 8 + 20 * number)
        found[cpu] = raw[offset : offset + length]
    return page_bytes, found
