"""A CTF trace's file ``metadata``: text, or packets of text; TSDL, or JSON.

A packet begins with 37 bytes in the tracer's byte order (CTF 1.8.3, section 7.1.2; CTF 2 keeps
them): magic, UUID, checksum, content and packet size in bits, three schemes, version.

Rule: no bytes of a file make this raise anything but MetadataError, and no file takes more than
seconds or than some hundred bytes of memory for each byte of its text.
"""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from lttd.abi.ctf_classes import MetadataError, Trace
from lttd.limits import CTF_METADATA

MAGIC: Final = 0x75D11D57
HEADER_BYTES: Final = 37
_MAGICS: Final = {struct.pack(f"{order}I", MAGIC): order for order in "<>"}
_HEADERS: Final = {order: struct.Struct(f"{order}I16sIIIBBBBB") for order in "<>"}
_PACKET_SIZE_AT: Final = 28
_TEXT: Final = b"/* CTF 1"
_FRAGMENT: Final = b"\x1e"


class Packet(NamedTuple):
    """One packet of a metadata stream."""

    offset_bytes: int
    content_bytes: int
    """Header and text."""
    packet_bytes: int
    """With the padding."""
    uuid: bytes
    version: tuple[int, int]


def is_metadata(head: bytes) -> bool:
    """Tell by its first bytes whether a file is a CTF trace's metadata."""
    return is_packets(head) or head[: len(_TEXT)] == _TEXT or head[:1] == _FRAGMENT


def is_packets(head: bytes) -> bool:
    """Tell whether a metadata consists of packets."""
    return bytes(head[:4]) in _MAGICS


def packets(data: bytes) -> Iterator[Packet]:
    """Walk the packets of a metadata.

    Raises:
        MetadataError: one of them is not whole or not valid.
    """
    at = 0
    while at < len(data):
        order = _MAGICS.get(data[at : at + 4])
        if order is None or len(data) - at < HEADER_BYTES:
            raise MetadataError(f"byte {at}: no metadata packet begins here")
        head = _HEADERS[order].unpack_from(data, at)
        _, uuid, _, content_bits, packet_bits, compression, encryption, _, *version = head
        if compression or encryption:
            raise MetadataError(f"byte {at}: a compressed or encrypted metadata packet")
        if content_bits % 8 or packet_bits % 8:
            raise MetadataError(f"byte {at}: a metadata packet ends within a byte")
        content_bytes, packet_bytes = content_bits // 8, packet_bits // 8
        if not HEADER_BYTES <= content_bytes <= packet_bytes:
            raise MetadataError(f"byte {at}: the sizes of a metadata packet are impossible")
        if content_bytes > len(data) - at:
            raise MetadataError(
                f"byte {at}: a metadata packet of {content_bytes} bytes,"
                f" of which {len(data) - at} are there"
            )
        yield Packet(at, content_bytes, packet_bytes, uuid, (version[0], version[1]))
        at += packet_bytes


def packed_metadata(data: bytes) -> tuple[bytes, int]:
    """Return a metadata as whole packets without padding, and how many bytes at its end are none.

    A text stays as it is.  A reader follows the sizes that packets state; one whose end is missing
    makes babeltrace read for ever.

    Raises:
        MetadataError: not even the first packet is whole.
    """
    if not is_packets(data):
        return data, 0
    kept, at = [], 0
    try:
        for each in packets(data):
            packet = bytearray(data[each.offset_bytes : each.offset_bytes + each.content_bytes])
            order = _MAGICS[bytes(packet[:4])]
            struct.pack_into(f"{order}I", packet, _PACKET_SIZE_AT, each.content_bytes * 8)
            kept.append(bytes(packet))
            at = each.offset_bytes + each.packet_bytes
    except MetadataError:
        if not kept:
            raise
    return b"".join(kept), max(len(data) - at, 0)


def text_of(data: bytes) -> str:
    """Return the text of a metadata, without packet headers.

    Raises:
        MetadataError: a packet is not valid, or the text is too long or not UTF-8.
    """
    if len(data) > CTF_METADATA.most:
        raise MetadataError(str(CTF_METADATA))
    if is_packets(data):
        data = b"".join(
            data[each.offset_bytes + HEADER_BYTES : each.offset_bytes + each.content_bytes]
            for each in packets(data)
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise MetadataError("it is not text (UTF-8)", line) from None


def read_metadata(data: bytes) -> Trace:
    """Read a metadata of CTF 1.8 or 2.

    Raises:
        MetadataError: it is not valid; one line that says where.
    """
    text = text_of(data)
    if text.startswith(_FRAGMENT.decode()):
        from lttd.abi.ctf_json import read_json  # noqa: PLC0415  (a trace is of one version)

        return read_json(text)
    from lttd.abi.ctf_tsdl import read_tsdl  # noqa: PLC0415  (it loads lark)

    return read_tsdl(text)
