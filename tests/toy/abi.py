"""The row in ABIS."""

import numpy as np
import numpy.typing as npt

from lttd.abi.base import I64, U64, Buffer, Decoded, Headers
from lttd.subbuffer import StreamInfo

HEAD_BYTES = EVENT_BYTES = 16


class ToyAbi:
    """See ``lttd.abi.base.Abi``."""

    states_ends = True
    needs_context = False

    def __init__(self, info: StreamInfo, byteorder: str) -> None:
        pass

    def headers(self, data: Buffer, entries: npt.NDArray[np.void]) -> Headers:
        return self._at(data, entries["offset_bytes"].astype(np.int64))

    def walk(self, data: Buffer, start_bytes: int, slot_bytes: int = 0) -> Headers:
        offsets, at = [], start_bytes
        while (size := int(self._at(data, np.array([at])).payload_bytes[0])) > 0:
            offsets.append(at)
            at += slot_bytes or size
        return self._at(data, np.array(offsets, np.int64))

    def _at(self, data: Buffer, offsets: I64) -> Headers:
        words = np.frombuffer(data, "<u8", len(data) // 8)
        whole = (offsets >= 0) & (offsets + HEAD_BYTES <= len(data))
        first = np.where(whole, offsets, 0) // 8
        begin = np.where(whole, words[first], 0) if len(words) else np.zeros(len(offsets), "u8")
        size = HEAD_BYTES + EVENT_BYTES * (words[first + 1] if len(words) else first).astype("i8")
        whole &= (size > HEAD_BYTES) & (offsets + size <= len(data))
        return Headers(offsets, np.where(whole, size, 0), size, begin)

    def ends(self, data: Buffer, headers: Headers) -> U64:
        words = np.frombuffer(data, "<u8", len(data) // 8)
        return words[(headers.offset_bytes + headers.content_bytes - EVENT_BYTES) // 8]

    def numbers(self, data: Buffer, headers: Headers) -> None:
        return None

    def decode(self, data: Buffer, headers: Headers, context: object = None) -> Decoded:
        events = (headers.content_bytes - HEAD_BYTES) // EVENT_BYTES
        return Decoded(events, self.ends(data, headers), [])

    def event_ids(self, data: Buffer, headers: Headers) -> None:
        return None

    def describes_others(self, channel: str) -> bool:
        return False


ABI = ToyAbi
