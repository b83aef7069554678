"""Find the recorder that a client is for, make a request, and show the answer.

Exit status of every client: 0 done; 1 refused or failed; 2 usage; 77 no recorder runs there.
"""

import argparse
import errno
import json
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

from lttd.control_protocol import ANSWER_BYTES, REQUEST_BYTES, encode
from lttd.control_socket import client_directories, connected, opened, socket_name, socket_names
from lttd.errors import LttdError, NothingToRecordError, UsageError, reason_of
from lttd.parsers import parse_named, parse_path
from lttd.plausible import parse_json
from lttd.terminal import put_line
from lttd.usage import Parser

PATIENCE_S: Final = 10.0
"""A recorder accepts a client, and answers what needs no waiting, within this time."""
_RECEIVE_BYTES: Final = 1 << 16


class NoRecorderError(LttdError):
    """No recorder runs there."""

    exit_status = NothingToRecordError.exit_status


def client_parser(name: str, description: str) -> Parser:
    """Return a parser for ``lttd NAME`` with the options that every client has."""
    parser = Parser(
        prog=f"lttd {name}",
        description=description,
        epilog="Exit status: 0 done; 1 refused or failed; 2 usage; 77 no recorder runs there.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "-t",
        "--trace-dir",
        metavar="DIR",
        help="the trace that is being recorded; without it: the only recorder that runs",
    )
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    return parser


def ask(
    given: argparse.Namespace,
    request: Mapping[str, Any],
    patience_s: float | None = PATIENCE_S,
) -> dict[str, Any]:
    """Make a request of the recorder that *given* names; return the answer without ``ok``.

    *patience_s* is the longest time until the answer; None: as long as it takes.

    Raises:
        NoRecorderError: no recorder runs there.
        UsageError: several run, or the recorder calls the request wrong.
        LttdError: it refuses, fails or does not answer.
    """
    line = encode(request)
    if len(line) > REQUEST_BYTES:
        raise UsageError(f"the request is too long: at most {REQUEST_BYTES >> 10} KiB")
    with _recorder(given.trace_dir) as recorder:
        raw = _exchange(recorder, line, patience_s)
    if not raw.endswith(b"\n"):
        raise LttdError("the recorder ended before it answered")
    try:
        answer = parse_json(raw)
        if not answer.pop("ok"):
            raise _refusal(answer)
    except (ValueError, KeyError, AttributeError, TypeError):
        raise LttdError("the answer of the recorder is not one: is it another version?") from None
    return dict(answer)


def show(given: argparse.Namespace, answer: Mapping[str, Any], text: str) -> int:
    """Print the answer as JSON if that was asked for, else *text*, whose values are escaped."""
    put_line(json.dumps(answer) if given.json else text)
    return 0


def _refusal(answer: Mapping[str, Any]) -> LttdError:
    errors = {error.exit_status: error for error in (UsageError, NoRecorderError)}
    return errors.get(answer["status"], LttdError)(str(answer["error"]))


def _exchange(recorder: socket.socket, line: bytes, patience_s: float | None) -> bytes:
    deadline = None if patience_s is None else time.monotonic() + patience_s
    received = bytearray()
    try:
        recorder.settimeout(patience_s)
        with suppress(BrokenPipeError):  # it may have refused before the last byte
            recorder.sendall(line)
        while len(received) <= ANSWER_BYTES and not received.endswith(b"\n"):
            if deadline is not None:
                recorder.settimeout(max(deadline - time.monotonic(), 0.001))
            data = recorder.recv(_RECEIVE_BYTES)
            if not data:
                break
            received += data
    except TimeoutError:
        raise LttdError(f"the recorder did not answer within {patience_s:.0f} s") from None
    except ConnectionResetError:
        pass  # it ended
    return bytes(received)


def _recorder(trace_dir: str | None) -> socket.socket:
    """Connect to the recorder of a trace, or to the only one that runs.

    Raises:
        LttdError: there is none, or there are several.
    """
    if trace_dir is None:
        return _only_recorder()
    path = parse_named("trace-dir", parse_path, trace_dir)
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        raise NoRecorderError(f"{path}: no such directory, so no recorder runs there") from None
    except OSError as error:
        words = "without --trace-dir lttd asks the only recorder that runs"
        raise LttdError(f"{path}: {reason_of(error)}; {words}") from None
    name = socket_name(status.st_dev, status.st_ino)
    with ExitStack() as stack:
        for found in _live([name], stack):
            stack.pop_all()
            return found
    raise NoRecorderError(f"{path}: no recorder runs there, or it has no control socket")


def _only_recorder() -> socket.socket:
    with ExitStack() as stack:
        found = list(_live(None, stack))
        if len(found) == 1:
            stack.pop_all()
            return found[0]
        if found:
            traces = sorted(map(_trace_of, found))
            raise UsageError(f"several recorders run; --trace-dir is one of {', '.join(traces)}")
    raise NoRecorderError("no recorder runs here, or it has no control socket")


def _live(names: list[str] | None, stack: ExitStack) -> Iterator[socket.socket]:
    """Yield a connection to each of the sockets called *names*, or to all that are live.

    *stack* closes them.

    Raises:
        LttdError: this user may not connect to one.
    """
    refused = ""
    live = False
    for directory in client_directories():
        path = directory
        try:
            with opened(directory) as fd:
                for name in socket_names(fd) if names is None else names:
                    path = f"{directory}/{name}"
                    recorder = connected(fd, name, PATIENCE_S)
                    if recorder is not None:
                        live = True
                        yield stack.enter_context(recorder)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            refused = f"{path}: {_why(error)}"
    if refused and not live:
        raise LttdError(refused)


def _why(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{error.strerror}: only root and members of the group lttd may use it"
    return reason_of(error)


def _trace_of(recorder: socket.socket) -> str:
    """Return the trace directory of a connected recorder, in words if it does not say."""
    try:
        answer = parse_json(_exchange(recorder, encode({"do": "status"}), PATIENCE_S))
        return str(Path(answer["trace_dir"]))
    except (LttdError, ValueError, KeyError, TypeError):
        return "(one that does not answer)"
