"""A disk that logs every operation, and can return the files that a crash may leave."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lttd.files import Disk
from lttd.writefile import File

BLOCK_BYTES = 512

Draw = Callable[[int, int], int]
"""Choose a number from the first to the second, both included."""


@dataclass(frozen=True)
class Op:
    call: str  # write, truncate, sync, replace
    path: Path
    offset_bytes: int = 0
    data: bytes = b""

    def on(self, content: bytes, *, cut: int | None = None) -> bytes:
        data = self.data if cut is None else self.data[:cut]
        if self.call == "write":
            there = content.ljust(self.offset_bytes, b"\0")
            return there[: self.offset_bytes] + data + there[self.offset_bytes + len(data) :]
        if self.call == "truncate":
            return content[: self.offset_bytes].ljust(self.offset_bytes, b"\0")
        if self.call == "replace":
            return self.data
        return content


class LoggedFile(File):
    def __init__(self, log: list[Op], path: Path, fd: int) -> None:
        super().__init__(path, fd)
        self._log = log
        log.append(Op("write", path))  # the file exists from here on

    def write_at(self, pieces: Sequence[bytes | memoryview], offset_bytes: int) -> int:
        self._log.append(Op("write", self.path, offset_bytes, b"".join(pieces)))
        return super().write_at(pieces, offset_bytes)

    def truncate(self, size_bytes: int) -> None:
        self._log.append(Op("truncate", self.path, size_bytes))
        super().truncate(size_bytes)

    def sync(self) -> None:
        self._log.append(Op("sync", self.path))


class ForgetfulDisk(Disk):
    def __init__(self) -> None:
        super().__init__()
        self.log: list[Op] = []
        self.synced_directories: list[Path] = []

    def file(self, path: Path, fd: int) -> File:
        return LoggedFile(self.log, path, fd)

    def replace(self, path: Path, data: bytes, *, like: Path | None = None) -> None:
        path.write_bytes(data)
        self.log.append(Op("replace", path, data=data))

    def sync_directory(self, path: Path) -> None:
        self.synced_directories.append(path)


def power_loss(log: Sequence[Op], before: dict[Path, bytes], draw: Draw) -> dict[Path, bytes]:
    """Return one state of the files after the ops of *log* and a power loss.

    Each file keeps its synced content. Of the later operations a first part survives, in order. The
    last write may be cut anywhere, and the end may be zeros from the begin of a block or a write.
    """
    after = dict(before)
    for path in dict.fromkeys(op.path for op in log):
        ops = [op for op in log if op.path == path]
        durable = max(
            (n for n, op in enumerate(ops, 1) if op.call in ("sync", "replace")), default=0
        )
        content = before.get(path, b"")
        for op in ops[:durable]:
            content = op.on(content)
        pending = ops[durable:]
        kept = draw(0, len(pending))
        least, starts = len(content), {len(content)}
        for op in pending[:kept]:
            starts.add(op.offset_bytes)
            content = op.on(content)
        if kept < len(pending) and pending[kept].call == "write":
            starts.add(pending[kept].offset_bytes)
            content = pending[kept].on(content, cut=draw(0, len(pending[kept].data)))
        starts |= set(range(0, len(content), BLOCK_BYTES))
        zeros = sorted(at for at in starts if least <= at < len(content))
        if zeros and draw(0, 1):
            at = zeros[draw(0, len(zeros) - 1)]
            content = content[:at].ljust(len(content), b"\0")
        after[path] = content
    return after


def killed(log: Sequence[Op], before: dict[Path, bytes], draw: Draw) -> dict[Path, bytes]:
    """Return the files as a killed process leaves them: only the last op may be cut."""
    after = dict(before)
    for number, op in enumerate(log, 1):
        last = number == len(log) and op.call == "write"
        cut = draw(0, len(op.data)) if last else None
        after[op.path] = op.on(after.get(op.path, b""), cut=cut)
    return after


def put(files: dict[Path, bytes]) -> None:
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
