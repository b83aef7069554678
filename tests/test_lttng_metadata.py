"""Metadata of lttng-modules is stored whole, up to points where it can be parsed."""

import struct
from collections import deque

import pytest

from lttd.abi import ctf_metadata
from lttd.sources.base import Attachment, Nothing, When
from lttd.sources.lttng.metadata import NAME, Metadata
from lttd.sources.lttng.ring import MetadataRing

HEADER = struct.Struct("<I16sIIIBBBBB")


def packet(text: bytes) -> bytes:
    """Return a packet as the kernel gives it: its padding is not copied, and stated."""
    content_bits = (HEADER.size + len(text)) * 8
    head = HEADER.pack(0x75D11D57, bytes(16), 0, content_bits, 4096 * 8, 0, 0, 0, 1, 8)
    return head + text


class ModelRing(MetadataRing):
    """A metadata stream without a kernel."""

    def __init__(self, *, says_coherent: bool = True) -> None:
        self.fd = 9
        self.says_coherent = says_coherent
        self.packets: deque[tuple[bytes, bool]] = deque()

    def add(self, *texts: bytes, whole: bool = True) -> None:
        self.packets += [(packet(text), False) for text in texts[:-1]]
        self.packets.append((packet(texts[-1]), whole))

    def take_packet(self) -> tuple[bytes, bool | None] | Nothing:
        if not self.packets:
            return Nothing.YET
        data, coherent = self.packets.popleft()
        return data, coherent if self.says_coherent else None

    def close(self) -> None:
        self.fd = -1


def text_in(data: bytes) -> bytes:
    found = ctf_metadata.packets(data)
    return b"".join(
        data[each.offset_bytes + ctf_metadata.HEADER_BYTES :][
            : each.content_bytes - ctf_metadata.HEADER_BYTES
        ]
        for each in found
    )


def test_packets_of_metadata_are_stored_without_padding() -> None:
    ring = ModelRing()
    ring.add(b"typealias ", b"integer;\n")
    data = Metadata(ring).read()
    assert text_in(data) == b"typealias integer;\n"
    assert len(data) == 2 * HEADER.size + 19
    assert [each.packet_bytes for each in ctf_metadata.packets(data)] == [47, 46]


def test_half_a_declaration_waits_for_its_end() -> None:
    ring = ModelRing()
    ring.add(b"trace {};\n")
    metadata = Metadata(ring)
    whole = metadata.read()
    ring.add(b"event { na", whole=False)
    assert metadata.read() == whole
    ring.add(b"me = x; };\n")
    assert text_in(metadata.read()) == b"trace {};\nevent { name = x; };\n"


def test_metadata_of_older_modules_is_taken_to_its_end() -> None:
    ring = ModelRing(says_coherent=False)
    ring.add(b"trace ", b"{};\n")
    assert text_in(Metadata(ring).read()) == b"trace {};\n"


def test_each_segment_gets_all_metadata_and_only_when_it_grows() -> None:
    ring = ModelRing()
    metadata = Metadata(ring)
    first = metadata.attachments()
    assert list(first(When.OPEN)) == []
    ring.add(b"trace {};\n")
    (one,) = first(When.PERIODIC)
    assert isinstance(one, Attachment)
    assert (one.name, one.append) == (NAME, False)
    assert list(first(When.PERIODIC)) == []
    ring.add(b"event {};\n")
    second = metadata.attachments()
    assert [text_in(each.data) for each in second(When.OPEN)] == [b"trace {};\nevent {};\n"]
    assert [text_in(each.data) for each in first(When.CLOSE)] == [b"trace {};\nevent {};\n"]


@pytest.mark.parametrize("when", list(When))
def test_metadata_that_was_read_outlives_its_stream(when: When) -> None:
    ring = ModelRing()
    ring.add(b"trace {};\n")
    metadata = Metadata(ring)
    metadata.read()
    metadata.close()
    (one,) = metadata.attachments()(when)
    assert text_in(one.data) == b"trace {};\n"
