"""The metadata of a session: read from its stream as it grows, and written whole.

A reader of the trace that meets half a declaration fails, and babeltrace reads a file that is cut
in its last packet for ever.

Rule: only metadata up to a point where it can be parsed is written, by replacing the file.
Rule: each segment has all of it.
"""

import re
import struct
import threading
from collections.abc import Iterator
from typing import Final

from lttd.abi.ctf import PacketLayout
from lttd.abi.ctf_classes import MetadataError, Trace
from lttd.abi.ctf_metadata import read_metadata, text_of
from lttd.errors import SourceError
from lttd.sources.base import Attachment, Attachments, Nothing, When
from lttd.sources.lttng.packets import NEEDED
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


_EVENT: Final = re.compile(r"^event \{", re.MULTILINE)
_NS: Final = 1_000_000_000


class Layouts:
    """Where the fields of packets are, by the number of their channel."""

    def __init__(self, metadata: bytes) -> None:
        """Read *metadata* up to its first event; there may be thousands of them.

        Raises:
            SourceError: it cannot be parsed.
        """
        try:
            text = text_of(metadata)
            event = _EVENT.search(text)
            head = text if event is None else text[: event.start()]
            self._trace: Trace = read_metadata(head.encode())
        except MetadataError as error:
            raise SourceError(f"lttng: the session's metadata: {error}") from error

    def of(self, number: int) -> PacketLayout:
        """Return the layout of the packets of a channel.

        Raises:
            SourceError: they lack a field that lttd needs, or the clock does not count ns.
        """
        where = f"lttng: the packets of channel {number}"
        try:
            layout = PacketLayout.of(self._trace, number)
        except MetadataError as error:
            raise SourceError(f"{where}: {error}") from error
        if missing := NEEDED - layout.fields.keys():
            raise SourceError(f"{where} have no {min(missing)}: load lttng-modules 2.8 or later")
        if layout.frequency_hz != _NS:
            rate = f"a clock of {layout.frequency_hz} Hz"
            raise SourceError(f"{where} have {rate}, and lttd needs ns: unload the clock plug-in")
        return layout


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
