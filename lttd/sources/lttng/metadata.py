"""The metadata of a session: read from its stream as it grows, and written whole.

A reader of the trace that meets half a declaration fails, and babeltrace reads a file that is cut
in its last packet for ever.

Rule: only metadata up to a point where it can be parsed is written, by replacing the file.
Rule: each segment has all of it.
"""

import struct
import threading
from collections.abc import Iterator
from typing import Final

from lttd.sources.base import Attachment, Attachments, Nothing, When
from lttd.sources.lttng.ring import MetadataRing

NAME: Final = "streams/metadata"
_SIZES: Final = struct.Struct("=II")
"""content_size and packet_size of a packet, in bits."""
_SIZES_AT: Final = 24


def packed(packet: bytes) -> bytes:
    """Return a packet of metadata that states its size without padding; *packet* has none."""
    content_bits, _ = _SIZES.unpack_from(packet, _SIZES_AT)
    content_bytes = content_bits // 8
    head = bytearray(packet[:content_bytes])
    _SIZES.pack_into(head, _SIZES_AT, content_bits, content_bits)
    return bytes(head)


class Metadata:
    """The metadata so far."""

    def __init__(self, ring: MetadataRing) -> None:
        """Take *ring* over."""
        self._ring = ring
        self._lock = threading.Lock()
        self._data = b""
        """Up to a point where it can be parsed."""
        self._rest: list[bytes] = []
        """Packets after that point."""

    def read(self) -> bytes:
        """Take what the session has added; return all that can be parsed.

        Callable from any thread.

        Raises:
            SourceError: it cannot be read.
        """
        with self._lock:
            while self._ring.fd >= 0:
                taken = self._ring.take_packet()
                if isinstance(taken, Nothing):
                    # Older modules do not say where it can be parsed; it mostly can at the end.
                    if self._rest and not self._ring.says_coherent:
                        self._accept()
                    break
                packet, is_coherent = taken
                self._rest.append(packed(packet))
                if is_coherent:
                    self._accept()
            return self._data

    def _accept(self) -> None:
        self._data += b"".join(self._rest)
        self._rest = []

    def attachments(self) -> Attachments:
        """Return the function that yields one segment's metadata, as often as it grows."""
        written_bytes = 0

        def due(_when: When) -> Iterator[Attachment]:
            nonlocal written_bytes
            data = self.read()
            if len(data) > written_bytes:
                written_bytes = len(data)
                yield Attachment(NAME, data)

        return due

    def close(self) -> None:
        """Close the stream; what was read stays."""
        with self._lock:
            self._ring.close()
