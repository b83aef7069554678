"""Build trace.dat files of both versions, of machines of any byte order and size of a long."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from lttd.zstd import ZstdCompressor

MAGIC: Final = b"\x17\x08\x44tracing"
NAMES: Final = b"7 worker\n8 a name\n"
EVENT_ID: Final = 300


@dataclass(frozen=True)
class Machine:
    """The properties of a machine that its pages have."""

    byteorder: str = "<"
    long_bytes: int = 8
    page_bytes: int = 4096

    def pack(self, form: str, *values: object) -> bytes:
        return struct.pack(self.byteorder + form, *values)

    @property
    def long_code(self) -> str:
        return "Q" if self.long_bytes == 8 else "I"

    def record(self, delta: int, payload: bytes) -> bytes:
        """Return an event of 4 to 112 bytes, *delta* after the one before."""
        words = len(payload) // 4
        head = delta << 5 | words if self.byteorder == "<" else words << 27 | delta
        return self.pack("I", head) + payload

    def event(self, value: int, name: bytes, text: bytes, pid: int = 7) -> bytes:
        """Return the payload of an event of ``format()``."""
        head = self.pack("HBBi", EVENT_ID, 0, 0, pid)
        fixed = head + self.pack(self.long_code, value) + name.ljust(8, b"\0")
        tail = text + b"\0"
        at = len(fixed) + 4
        whole = fixed + self.pack("I", len(tail) << 16 | at) + tail
        return whole.ljust(-(-len(whole) // 4) * 4, b"\0")

    def page(self, begin: int, records: bytes, missed: int | None = None) -> bytes:
        """Return a page; *missed*: so many events were lost before it."""
        word, behind = len(records), b""
        if missed is not None:
            word |= 1 << 31 | 1 << 30
            behind = self.pack(self.long_code, missed)
        head = self.pack("Q", begin) + self.pack(self.long_code, word)
        return (head + records + behind).ljust(self.page_bytes, b"\0")

    def header_page(self) -> bytes:
        long_bytes, at = self.long_bytes, 8 + self.long_bytes
        return (
            "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n"
            f"\tfield: local_t commit;\toffset:8;\tsize:{long_bytes};\tsigned:1;\n"
            "\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;\n"
            f"\tfield: char data;\toffset:{at};\tsize:{self.page_bytes - at};\tsigned:1;\n"
        ).encode()

    def format(self) -> bytes:
        """Return the format of the event ``test:thing``."""
        long_bytes = self.long_bytes
        loc = 16 + long_bytes
        return (
            f"name: thing\nID: {EVENT_ID}\nformat:\n"
            "\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n"
            "\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;\n"
            "\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;\n"
            "\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n"
            f"\tfield:unsigned long value;\toffset:8;\tsize:{long_bytes};\tsigned:0;\n"
            f"\tfield:char name[8];\toffset:{8 + long_bytes};\tsize:8;\tsigned:0;\n"
            f"\tfield:__data_loc char[] text;\toffset:{loc};\tsize:4;\tsigned:0;\n\n"
            'print fmt: "value=%lu name=%s text=%s", REC->value, REC->name, __get_str(text)\n'
        ).encode()


HEADER_EVENT: Final = (
    b"# compressed entry header\n\ttype_len    :    5 bits\n\ttime_delta  :   27 bits\n"
    b"\tarray       :   32 bits\n\n\tpadding     : type == 29\n\ttime_extend : type == 30\n"
    b"\tdata max type_len  == 28\n"
)
Pages = Mapping[int, Sequence[bytes]]


@dataclass
class File:
    """The content of a trace.dat."""

    machine: Machine = Machine()
    version: int = 6
    rings: dict[str, Pages] = field(default_factory=dict)
    """The pages of each CPU, by the name of the ring; the top one has none."""
    clock: bytes = b"local [mono] global\n"
    options: Sequence[tuple[int, bytes]] = ()
    compression: str = "none"
    names: bytes = NAMES
    chunk_pages: int = 2

    def write(self, path: Path) -> Path:
        path.write_bytes(self.made_6() if self.version == 6 else self.made_7())
        return path

    def _sized(self, code: str, text: bytes) -> bytes:
        return self.machine.pack(code, len(text)) + text

    def _texts(self) -> dict[int, bytes]:
        """Return the texts, by the ids of their sections."""
        machine = self.machine
        one = machine.pack("I", 1)
        return {
            16: b"header_page\0" + self._sized("Q", machine.header_page())
            + b"header_event\0" + self._sized("Q", HEADER_EVENT),
            17: machine.pack("I", 0),
            18: one + b"test\0" + one + self._sized("Q", machine.format()),
            19: self._sized("I", b""),
            20: self._sized("I", b""),
            21: self._sized("Q", self.names),
        }  # fmt: skip

    def _option(self, number: int, data: bytes) -> bytes:
        return self.machine.pack("HI", number, len(data)) + data

    def _head(self) -> bytes:
        machine = self.machine
        version = f"{self.version}".encode() + b"\0"
        kind = bytes([machine.byteorder == ">", machine.long_bytes])
        return MAGIC + version + kind + machine.pack("I", machine.page_bytes)

    def made_6(self) -> bytes:
        pack, size = self.machine.pack, self.machine.page_bytes
        cpus = max((max(pages) for pages in self.rings.values()), default=0) + 1
        clock = self._sized("Q", self.clock)
        table_bytes = 10 + 16 * cpus + len(clock)
        head = self._head() + b"".join(self._texts().values()) + pack("I", cpus)
        others = [name for name in self.rings if name]
        options = [(4, self.clock + b"\0"), *self.options]
        told = b"".join(self._option(*each) for each in options)
        room = sum(6 + 8 + len(name) + 1 for name in others)
        tables_at = len(head) + 10 + len(told) + room + 2
        order = ["", *others]
        told += b"".join(
            self._option(3, pack("Q", tables_at + place * table_bytes) + name.encode() + b"\0")
            for place, name in enumerate(others, 1)
        )
        at = -(-(tables_at + table_bytes * len(order)) // size) * size
        tables, data = b"", b""
        for name in order:
            tables += b"flyrecord\0"
            for cpu in range(cpus):
                pages = b"".join(self.rings.get(name, {}).get(cpu, ()))
                tables += pack("QQ", at + len(data), len(pages))
                data += pages
            tables += clock
        return (head + b"options  \0" + told + pack("H", 0) + tables).ljust(at, b"\0") + data

    def _packed(self, content: bytes) -> bytes:
        if self.compression == "zlib":
            return zlib.compress(content)
        return ZstdCompressor().compress(content, ZstdCompressor.FLUSH_FRAME)

    def _section(self, number: int, content: bytes) -> bytes:
        if self.compression != "none":
            packed = self._packed(content)
            content = self.machine.pack("II", len(packed), len(content)) + packed
        flags = int(self.compression != "none")
        return self.machine.pack("HHIQ", number, flags, 0, len(content)) + content

    def _data(self, pages: Sequence[bytes]) -> bytes:
        if self.compression == "none":
            return b"".join(pages)
        step = self.chunk_pages
        chunks = [b"".join(pages[at : at + step]) for at in range(0, len(pages), step)]
        packed = [(self._packed(one), len(one)) for one in chunks]
        pack = self.machine.pack
        return pack("I", len(chunks)) + b"".join(
            pack("II", len(data), size) + data for data, size in packed
        )

    def made_7(self) -> bytes:
        pack, size = self.machine.pack, self.machine.page_bytes
        head = self._head() + self.compression.encode() + b"\0" + b"1\0"
        body = bytearray(head + bytes(8))
        options = [(4, self.clock + b"\0"), *self.options]
        for number, text in self._texts().items():
            options.append((number, pack("Q", len(body))))
            body += self._section(number, text)
        flags = int(self.compression != "none")
        for name, cpus in self.rings.items():
            section_at = len(body)
            body += pack("HHIQ", 3, flags, 0, 0)
            told = pack("Q", section_at) + name.encode() + b"\0mono\0" + pack("II", size, len(cpus))
            for cpu, pages in cpus.items():
                body += bytes(-len(body) % size)
                data = self._data(pages)
                told += pack("IQQ", cpu, len(body), len(data))
                body += data
            struct.pack_into(
                f"{self.machine.byteorder}Q", body, section_at + 8, len(body) - section_at - 16
            )
            options.append((3, told))
        struct.pack_into(f"{self.machine.byteorder}Q", body, len(head), len(body))
        content = b"".join(self._option(*each) for each in options)
        body += self._section(0, content + self._option(0, pack("Q", 0)))
        return bytes(body)
