"""Compress the closed segments of a trace beside lttd, in a process of low priority.

``lttd.compression`` starts the process, and gives it one segment after the other.

    python -m lttd.compressor TRACE_DESCRIPTOR TRACE LEVEL

    stdin    {"do": "list"}                      stdout   {"segments": [NAME, ...]}, oldest first
             {"do": "compress", "segment": NAME}          {"segment": NAME, "result": RESULT, ...}

It uses the descriptor of the trace's directory, so it finds the segments after a rename, too.

Rule: it runs only while nobody else wants the CPU or the disk (``lttd.idle``), from its start on.
Rule: when stdin ends, as it does when lttd ends or is killed, it abandons its work and ends.
Rule: it writes nothing to stderr; whatever fails becomes an answer.
"""

import json
import os
import select
import sys
from collections.abc import Iterator
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from lttd.idle import Pauses, give_way, idle_io_counts

if __name__ == "__main__":
    give_way()  # loading the other modules takes 0.2 s of CPU time, beside a busy lttd

from lttd.beneath import OpenDirectory
from lttd.compress import compress, wants_compression
from lttd.errors import LockedError, LttdError, StorageError
from lttd.files import Disk
from lttd.start import unforeseen
from lttd.tracedir import SegmentPaths, segments_below

PROCESS_NAME: Final = "lttd-compress"
_CHUNK_BYTES: Final = 4096


class Result(StrEnum):
    """The outcome for a segment."""

    DONE = "done"
    GONE = "gone"
    """It was deleted."""
    LATER = "later"
    """It cannot be compressed now: the disk is full, or another process uses the segment."""
    NEVER = "never"
    """It is damaged."""


class _StoppedError(Exception):
    """lttd has ended."""


class _Commands:
    """The lines on stdin, and whether it has ended."""

    def __init__(self) -> None:
        self._buffer = b""
        self.ended = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while not self.ended:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                yield json.loads(line)
            else:
                self._take()

    def _take(self) -> None:
        more = os.read(0, _CHUNK_BYTES)
        self._buffer += more
        self.ended = not more

    def look(self) -> None:
        """Take the requests that have come, without waiting."""
        if not self.ended and select.select([0], [], [], 0)[0]:
            self._take()


class _Compressor:
    def __init__(self, trace: OpenDirectory, level: int) -> None:
        self._trace, self._level = trace, level
        self._disk = Disk()
        self._commands = _Commands()
        self._paces = not idle_io_counts(os.fstat(trace.fd).st_dev)
        self._pauses = Pauses()

    def run(self) -> None:
        for command in self._commands:
            if command["do"] == "list":
                answer = {"segments": self._uncompressed()}
            else:
                answer = self._compress(command["segment"])
            os.write(1, json.dumps(answer).encode() + b"\n")

    def _uncompressed(self) -> list[str]:
        found = segments_below(self._trace)
        return [each.directory.name for each in found if wants_compression(each)]

    def _compress(self, name: str) -> dict[str, Any]:
        paths = SegmentPaths(self._trace.path / name, self._trace)
        result, words = Result.DONE, ""
        try:
            compress(paths, self._disk, self._level, lambda io_s: self._pace(paths, io_s))
        except (LockedError, StorageError) as error:
            result, words = Result.LATER, str(error)
        except LttdError as error:
            result, words = Result.NEVER, str(error)
        except (OSError, MemoryError) as error:
            result, words = Result.LATER, unforeseen(error)
        if self._trace.is_missing(paths.directory):
            result = Result.GONE
        return {"segment": name, "result": result, "words": words}

    def _pace(self, paths: SegmentPaths, io_seconds: float) -> None:
        """Stop if the work has lost its purpose; give the disk to others."""
        self._commands.look()
        if self._commands.ended:
            raise _StoppedError
        if self._trace.is_missing(paths.directory):
            raise StorageError(paths.directory, "deleted while it was compressed")
        if self._paces:
            self._pauses.after(io_seconds)


def main(arguments: list[str]) -> int:
    """Compress segments until stdin ends."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(PROCESS_NAME)
    descriptor, trace, level = arguments
    try:
        _Compressor(OpenDirectory(Path(trace), int(descriptor)), int(level)).run()
    except (_StoppedError, BrokenPipeError):
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
