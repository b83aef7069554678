"""Try the address of ``--metrics`` as a start does, and name the processes that have it."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from lttd.config import Config
from lttd.doctor.finding import Finding, Findings, Mark, refused
from lttd.errors import LttdError
from lttd.locks import holder_of
from lttd.tracedir import LOCK

TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTENS: Final = "0A"
_SYSTEMD: Final = 1


def try_port(config: Config, trace: Path | None) -> Findings:
    """Bind the address, and let it go again; *trace* is the trace directory, if one is named."""
    if config.metrics is None:
        if config.web_enable_trigger:
            words = "web-enable-trigger needs a port"
            yield Finding("metrics", Mark.BAD, words, "--metrics 127.0.0.1:9469")
        return
    import trio  # noqa: PLC0415  (only with --metrics)

    from lttd.endpoint import open_listeners, parse_address  # noqa: PLC0415  (the same)

    async def bind() -> None:
        for listener in await open_listeners(address):
            await listener.aclose()

    try:
        address = parse_address(config.metrics)
        trio.run(bind)
        found = Finding("metrics", Mark.OK, f"{address}: lttd can listen there")
    except LttdError as error:
        found = refused("metrics", error)
    if found.mark is Mark.BAD and "in use" in found.words:
        found = _explained(found, dict(listeners_on(address.port)), trace)
    yield found


def _explained(found: Finding, holders: Mapping[int, str], trace: Path | None) -> Finding:
    """Name who has the port; that is right if a start of this very recorder took it."""
    if not holders:
        return found
    words = f"{found.words} by {', '.join(holders.values())}"
    if trace and _recorder_of(trace) in holders.values():
        return Finding("metrics", Mark.NOTE, words, "it is the recorder of this trace")
    if not trace and any(holder.startswith("lttd (") for holder in holders.values()):
        remedy = "right if that is the recorder with these options: --trace-dir DIR tells"
        return Finding("metrics", Mark.NOTE, words, remedy)
    if _SYSTEMD in holders:
        remedy = "right if lttd.socket is enabled, which hands it to lttd: systemctl list-sockets"
        return Finding("metrics", Mark.NOTE, words, remedy)
    return found._replace(words=words)


def listeners_on(port: int) -> Iterator[tuple[int, str]]:
    """Yield pid and ``command (pid N)`` of the processes that listen on a TCP port.

    Those of other users are seen by root only.
    """
    targets = {f"socket:[{inode}]" for table in TABLES for inode in _inodes(table, port)}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended, or is another user's
            if any(_target(file) in targets for file in (process / "fd").iterdir()):
                command = (process / "comm").read_text(errors="replace").strip()
                yield int(process.name), f"{command} (pid {process.name})"


def _inodes(table: Path, port: int) -> Iterator[str]:
    """Yield the inodes of the sockets that listen on *port*; see proc(5), /proc/net/tcp."""
    with suppress(OSError):  # no IPv6
        for line in table.read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == _LISTENS and int(words[1].rpartition(":")[2], 16) == port:
                yield words[9]


def _target(file: Path) -> str:
    try:
        return str(file.readlink())
    except OSError:  # it was closed
        return ""


def _recorder_of(trace: Path) -> str:
    """Return who records into a trace, as listeners_on() writes it; empty if nobody does."""
    try:
        return holder_of((trace / LOCK).stat())
    except OSError:
        return ""
