r"""The only way out to stderr and stdout: escaped text, by writers that survive any descriptor.

Each line to stderr has a Level.  Where stderr is the journal (JOURNAL_STREAM names the device and
inode of descriptor 2), the line begins with ``<3>`` or another number, which the journal takes as
its priority and removes; elsewhere nobody sees the level.  Source: sd-daemon(3), systemd.exec(5).

These characters are escaped:

    control characters below U+0080, except tab  \x1b    one byte
    bytes that are not UTF-8                     \xff    one byte
    C1 controls, U+0080 to U+009F                \u009b
    bidirectional controls, line separators      \u202e  U+061C, U+200E-F, U+2028-E, U+2066-9
    surrogates                                   \ud800

Everything else stays, backslashes too: the escaped text is for people; programs read JSON.

Rules:
* Each line is escaped whole.  Only ``say_lines()`` writes line breaks, and its caller escaped every
  value in them.
* ``say()`` never raises and never waits: recording goes on.  A line that finds no reader is
  counted, and the next line that gets through says how many are missing.
* ``put()`` writes everything or raises: the user must learn that the output is incomplete.
* Both write to the descriptor.  A text stream would keep unwritten text, and fail again at exit
  (status 120).
"""

import enum
import errno
import os
import re
import select
import sys
import threading
import time
from typing import Final, TextIO

from lttd.errors import OutputError

PIPE_CLOSED: Final = 128 + 13
"""Exit status when the reader of the output ended first, as a shell reports SIGPIPE."""
# Poll reports a pipe as writable when this many bytes fit: pipe(7), PIPE_BUF on Linux.
_PIPE_BUF: Final = 4096
_JOURNAL_STREAM: Final = "JOURNAL_STREAM"
_SUMMARY_PATIENCE_S: Final = 10.0
_UNSAFE: Final = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


class Level(enum.IntEnum):
    """How urgent a line is: the priorities of syslog(3) that lttd uses."""

    ERROR = 3
    """Something failed; data is or may be missing."""
    WARNING = 4
    """A state began that a person should look at."""
    NOTICE = 5
    """A state ended or changed, and nothing has to be done."""
    INFO = 6


def printable(text: str) -> str:
    """Return *text* as one line without control characters; see the head of this file."""
    return text if text.isprintable() else _UNSAFE.sub(_escaped, text)


def printable_bytes(raw: bytes) -> bytes:
    """Return UTF-8 bytes as one line without control characters and without invalid bytes."""
    return printable(raw.decode("utf-8", "surrogateescape")).encode()


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # PEP 383: a byte that is not UTF-8
        code -= 0xDC00
        return f"\\x{code:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"


def fill_standard_descriptors() -> None:
    """Open /dev/null in place of each of the descriptors 0 to 2 that is closed.

    Then no file or socket can get one of these numbers later.  ``sys.stdout`` and ``sys.stderr``
    stay None, so that output to them still counts as not written.
    """
    for fd, flags in enumerate((os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, flags)  # gets the lowest free number, which is this one


class _Stderr:
    """Writes lines while a reader takes them, and counts the lines that no reader took."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # writer threads print lines, too
        self._missing_lines = 0
        self._inside_line = False

    def write(self, text: str, level: Level, program: str, patience_s: float) -> None:
        """Write whole lines of *level*; wait for the reader at most *patience_s*."""
        with self._lock:
            lines = text
            if self._missing_lines:
                missing = f"{self._missing_lines} lines before this one were not written"
                lines = f"{program}: {missing}\n{text}"
            if _stderr_is_the_journal():
                # Each line, so that no text within a line can set the priority of its own.
                lines = "".join(f"<{level}>{line}" for line in lines.splitlines(keepends=True))
            data = ("\n" * self._inside_line + lines).encode()
            try:
                written = _write_all(sys.stderr, data, patience_s)
            except OSError:
                written = 0
            if written == len(data):
                self._missing_lines = 0
                self._inside_line = False
            else:
                self._missing_lines += text.count("\n")
                self._inside_line |= written > 0


def _stderr_is_the_journal() -> bool:
    """Tell whether lines go to the journal; a redirected stderr is another file."""
    named = os.environ.get(_JOURNAL_STREAM)
    if not named or sys.stderr is None:
        return False
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):  # closed, or no file
        return False
    return named == f"{status.st_dev}:{status.st_ino}"


_STDERR: Final = _Stderr()


def say(text: str, level: Level, program: str = "lttd") -> None:
    """Write one line to stderr: escaped, never waiting, never failing."""
    _STDERR.write(f"{program}: {printable(text)}\n", level, program, 0.0)


def say_lines(text: str, level: Level, program: str = "lttd") -> None:
    """Write lines whose values are escaped already to stderr; wait up to 10 s for its reader."""
    _STDERR.write(f"{text}\n", level, program, _SUMMARY_PATIENCE_S)


def overwrite_line(text: str) -> None:
    """Write text to a terminal on stderr, which the next output overwrites."""
    _STDERR.write(f"{printable(text)}\r", Level.INFO, "", 0.0)


def is_terminal(stream: TextIO | None) -> bool:
    """Tell whether *stream* is a terminal; a closed stream is None."""
    try:
        return stream is not None and stream.isatty()
    except (OSError, ValueError):
        return False


def put(data: bytes | memoryview) -> None:
    """Write all of *data* to stdout, and wait for its reader as long as it takes.

    Raises:
        BrokenPipeError: the reader went away.
        OutputError: stdout is closed, its disk is full, or something else failed.
    """
    try:
        _write_all(sys.stdout, data, None)
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = " is closed" if error.errno == errno.EBADF else f": {error.strerror}"
        raise OutputError(f"standard output{reason}; the output is incomplete") from None


def put_line(text: str) -> None:
    """Write text and a line break to stdout; raise the errors of put()."""
    put(f"{text}\n".encode(errors="backslashreplace"))


def _write_all(stream: TextIO | None, data: bytes | memoryview, patience_s: float | None) -> int:
    """Write to a stream's descriptor; return how many bytes were written.

    These are fewer than all only if *patience_s* bounds the waiting; None: wait for all.

    Raises:
        OSError: the descriptor does not take them.
    """
    if stream is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    try:
        fd = stream.fileno()
    except (OSError, ValueError):  # no file: a test or a program that uses lttd captures it
        stream.write(bytes(data).decode())
        stream.flush()
        return len(data)
    end = None if patience_s is None else time.monotonic() + patience_s
    rest = memoryview(data)
    must_wait = end is not None
    while rest:
        if must_wait and not _takes_more(fd, end):
            break
        try:
            rest = rest[os.write(fd, rest if end is None else rest[:_PIPE_BUF]) :]
        except BlockingIOError:  # another process made the shared descriptor non-blocking
            must_wait = True
    return len(data) - len(rest)


def _takes_more(fd: int, end: float | None) -> bool:
    """Wait until a descriptor takes bytes, at most until *end* on the monotonic clock."""
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    left_ms = None if end is None else max(end - time.monotonic(), 0) * 1000
    return bool(poller.poll(left_ms))
