"""Detect the ABI of the files in a replayed directory, by their names and first bytes.

    NAME.blktrace.CPU                            blktrace
    CHANNEL_CPU with LTTng 0.x's magic           ltt
    per_cpu/cpuN/trace_pipe_raw, cpuN.*, CHANNEL_CPU   ftrace
    metadata, a text or packets of CTF           CTF, which is not replayed

Rule: lttd does not guess: it refuses a directory that could be of two kinds, and ``abi=`` decides.
"""

from pathlib import Path
from typing import Final, NamedTuple

from lttd.errors import UsageError
from lttd.files import read_head
from lttd.sources.replay.blktrace import find_blktraces
from lttd.sources.replay.ltt import find_channels, has_ltt_magic
from lttd.sources.replay.source import find_streams

# CTF 1.8, sections 7.1.1 and 7.1.2: the metadata is a text, or packets of a text.
_CTF_TEXT: Final = b"/* CTF 1"
_CTF_PACKETS: Final = (b"\x75\xd1\x1d\x57", b"\x57\x1d\xd1\x75")


class Detected(NamedTuple):
    """The ABI of a directory, and the evidence."""

    abi: str
    by: Path
    """The file that shows it."""

    def __str__(self) -> str:
        """Return it as one line for the user."""
        return f"{self.by}: replayed as abi={self.abi}, by its name or first bytes"


def detect(directory: Path) -> Detected | None:
    """Detect the ABI of *directory*; return None if no file shows it.

    Raises:
        UsageError: it holds two kinds, or a kind that no replay reads, or is not a directory.
    """
    if not directory.is_dir():
        raise UsageError(f"{directory} is not a directory")
    found = [Detected("blktrace", one.path) for one in find_blktraces(directory)[:1]]
    ltt = (path for _, path in find_channels(directory) if has_ltt_magic(path))
    if (path := next(ltt, None)) is not None:
        found.append(Detected("ltt", path))
    elif _is_ctf(directory / "metadata"):
        raise UsageError(
            f"{directory}/metadata: a CTF trace, which no replay reads (babeltrace2 does): replay"
            " files of ftrace, blktrace or LTTng 0.x"
        )
    else:
        found += [Detected("ftrace", one.path) for one in find_streams(directory, "ftrace")[:1]]
    if len(found) > 1:
        kinds = " and ".join(f"{one.abi} ({one.by.name})" for one in found)
        raise UsageError(f"{directory} holds {kinds}: say which with replay:DIR,abi=")
    return found[0] if found else None


def _is_ctf(path: Path) -> bool:
    try:
        head = read_head(path, len(_CTF_TEXT))
    except OSError:
        return False
    return head == _CTF_TEXT or head[:4] in _CTF_PACKETS
