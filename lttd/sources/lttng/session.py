"""A session of lttng-modules: everything that the kernel makes for one recording.

Rule: a session lives as long as its descriptors: however lttd ends, it leaves none in the kernel.
Rule: contexts come before the first start, channels too: the kernel refuses both afterwards.

The session is started when it is made, with its channels disabled: only then does the kernel write
the metadata, which belongs into the segment before any data.
"""

import errno
import os
import re
import time
from collections.abc import Iterable
from typing import Final

from lttd.errors import LttdError, NothingToRecordError, SourceError
from lttd.sources.lttng import abi
from lttd.sources.lttng.ring import MetadataRing
from lttd.sources.lttng.wanted import Asked, Kprobe, Wanted
from lttd.sources.tracefs import explained

PATH: Final = "/proc/lttng"
MODULES: Final = (
    "modprobe -a lttng-tracer lttng-ring-buffer-metadata-mmap-client"
    " lttng-ring-buffer-client-mmap-discard lttng-ring-buffer-client-mmap-overwrite"
)
PROBES: Final = "load the module of its probes: modprobe lttng-probe-sched, say"
_OLDEST: Final = (2, 1)
"""The ABI of lttng-modules 2.8, whose packets have numbers."""
_METADATA_SUBBUFFERS: Final = 2
_METADATA_BYTES: Final = 4096
_TRACEPOINT_NAME: Final = re.compile(r"event \{ name = ([^;]+); \};")
_SYSCALL_NAME: Final = re.compile(r"name = ([^;]+);")


class Tracer:
    """/proc/lttng."""

    def __init__(self) -> None:
        """Open it.

        Raises:
            NothingToRecordError: lttng-modules is not loaded, too old, or refused to this user.
        """
        try:
            self.fd = os.open(PATH, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            what = f"{PATH}: lttng-modules is not loaded"
            raise NothingToRecordError(what, f"{MODULES} (docs/LTTNG.md)") from None
        except OSError as error:
            raise explained(PATH, error) from error
        try:
            self.abi_version = abi.ask_version(self.fd)
        except OSError as error:
            self.close()
            raise explained(PATH, error, "TRACER_ABI_VERSION: ") from error
        if not _OLDEST <= self.abi_version < (3, 0):
            self.close()
            numbers = ".".join(map(str, self.abi_version))
            raise NothingToRecordError(
                f"{PATH}: speaks ABI {numbers}, and lttd 2.1 to 2.x",
                "load lttng-modules 2.8 or later",
            )

    def tracepoints(self) -> list[str]:
        """Return the names of the tracepoints that the loaded probes offer."""
        return _TRACEPOINT_NAME.findall(self._list(abi.TRACEPOINT_LIST))

    def syscalls(self) -> list[str]:
        """Return the names of the system calls; none if this kernel has no tracepoint for them."""
        return list(dict.fromkeys(_SYSCALL_NAME.findall(self._list(abi.SYSCALL_LIST))))

    def _list(self, request: int) -> str:
        try:
            fd = abi.call(self.fd, request)
        except OSError as error:
            if error.errno == errno.ENOSYS:
                return ""
            raise explained(PATH, error, "list of events: ") from error
        with open(fd, "rb", buffering=0) as file:
            return file.readall().decode(errors="replace")

    def close(self) -> None:
        """Close it."""
        os.close(self.fd)


class Channel:
    """One channel of a session, and the descriptors of its events."""

    def __init__(self, name: str, fd: int, wanted: Wanted) -> None:
        self.name = name
        self.fd = fd
        self.wanted = wanted
        self._events: dict[Asked, int] = {}
        self._probes: list[int] = []

    def add_context(self, name: str) -> None:
        """Record *name* with each event.

        Raises:
            LttdError: this kernel cannot.
        """
        argument = abi.CONTEXT.pack(abi.CONTEXTS[name], b"", b"")
        try:
            abi.give(self.fd, abi.ADD_CONTEXT, argument)
        except OSError as error:
            raise refused(f"lttng: channel {self.name}: context {name}", error) from error

    def declare(self, asked: Asked) -> None:
        """Make the events that match, with their declarations; they are off.

        A glob also takes the tracepoints of modules that are loaded later.

        Raises:
            LttdError: this kernel cannot.
        """
        detail = abi.SYSCALL.pack(0, 0, 0, 0, 0) if asked.kind == abi.SYSCALL_EVENT else b""
        try:
            self._events[asked] = self._make(asked.glob, asked.kind, detail)
        except OSError as error:
            raise refused(f"lttng: channel {self.name}: event {asked.glob}", error) from error

    def switch_events(self, some: Iterable[Asked], *, on: bool) -> None:
        """Record these events, or not.

        Raises:
            LttdError: the kernel refuses.
        """
        for asked in some:
            try:
                abi.call(self._events[asked], abi.ENABLE if on else abi.DISABLE)
            except OSError as error:
                raise refused(f"lttng: channel {self.name}: event {asked.glob}", error) from error

    def forget(self, some: Iterable[Asked]) -> None:
        """Close the descriptors of events that are off; their declarations stay."""
        for asked in some:
            fd = self._events.pop(asked, -1)
            if fd >= 0:
                os.close(fd)

    def add_kprobe(self, probe: Kprobe) -> None:
        """Record a probe of an instruction.

        Raises:
            LttdError: there is no such symbol, or the kernel lets nobody probe it.
        """
        address, offset = (0, probe.offset) if probe.symbol else (probe.offset, 0)
        detail = abi.KPROBE.pack(address, offset, probe.symbol.encode())
        try:
            self._probes.append(self._make(probe.name, abi.KPROBE_EVENT, detail))
            abi.call(self._probes[-1], abi.ENABLE)
        except OSError as error:
            where = probe.symbol or f"{probe.offset:#x}"
            raise SourceError(
                f"lttng: channel {self.name}: kprobe {probe.name}: {os.strerror(error.errno or 0)};"
                f" there is no {where} in /proc/kallsyms, or the kernel lets nobody probe it"
            ) from error

    def _make(self, name: str, kind: int, detail: bytes) -> int:
        return abi.give(self.fd, abi.NEW_EVENT, abi.EVENT.pack(name.encode(), kind, 0, b"", detail))

    def new_stream(self) -> int | None:
        """Return a descriptor for a CPU that has none; None: all CPUs that were online have one."""
        try:
            return abi.call(self.fd, abi.STREAM)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise refused(f"lttng: channel {self.name}: stream", error) from error

    def close(self) -> None:
        """Close the descriptors."""
        for fd in (*self._events.values(), *self._probes, self.fd):
            os.close(fd)


class Session:
    """A session with its channels, started, and its channels disabled."""

    def __init__(self, tracer: Tracer, name: str) -> None:
        """Make a session of this *name*, without channels.

        Raises:
            LttdError: the kernel refuses.
        """
        self.channels: list[Channel] = []
        self._fds: list[int] = []
        try:
            self._fd = abi.call(tracer.fd, abi.SESSION)
            self._fds.append(self._fd)
            abi.give(self._fd, abi.SET_NAME, name.encode().ljust(abi.NAME_BYTES, b"\0"))
            now = time.strftime("%Y%m%dT%H%M%S+0000", time.gmtime()).encode()
            abi.give(self._fd, abi.SET_CREATION_TIME, now.ljust(abi.TIME_BYTES, b"\0"))
            self.metadata = MetadataRing(self._make_metadata(), "lttng: metadata")
        except OSError as error:
            self.close()
            raise refused("lttng: session", error) from error
        except BaseException:
            self.close()
            raise

    def _make_metadata(self) -> int:
        argument = abi.CHANNEL.pack(
            _METADATA_BYTES, _METADATA_SUBBUFFERS, 0, 0, abi.OUTPUT_MMAP, 0, b""
        )
        channel = abi.give(self._fd, abi.NEW_METADATA, argument)
        self._fds.append(channel)
        return abi.call(channel, abi.STREAM)

    def add_channel(self, name: str, wanted: Wanted) -> Channel:
        """Make a channel that records nothing yet.

        Raises:
            LttdError: the kernel refuses.
        """
        size_bytes, count = wanted.geometry
        argument = abi.CHANNEL.pack(
            size_bytes,
            count,
            round(wanted.switch_timer * 1e6),
            round(wanted.read_timer * 1e6),
            abi.OUTPUT_MMAP,
            wanted.overwrite,
            b"",
        )
        try:
            fd = abi.give(self._fd, abi.NEW_CHANNEL, argument)
        except OSError as error:
            raise refused(f"lttng: channel {name}", error) from error
        self.channels.append(Channel(name, fd, wanted))
        return self.channels[-1]

    def begin(self) -> None:
        """Let the kernel write the metadata; the channels record nothing yet."""
        self._do("disable", abi.DISABLE, self.channels)
        self._do("start", abi.START)

    def start(self) -> None:
        """Record, and describe processes, files and interrupts that exist now."""
        self._do("enable", abi.ENABLE, self.channels)
        self._do("statedump", abi.STATEDUMP)

    def stop(self) -> None:
        """Stop recording; the kernel closes the sub-buffers that it writes."""
        self._do("stop", abi.STOP)

    def _do(self, what: str, request: int, channels: list[Channel] | None = None) -> None:
        try:
            for fd in [self._fd] if channels is None else [each.fd for each in channels]:
                abi.call(fd, request)
        except OSError as error:
            raise refused(f"lttng: {what}", error) from error

    def close(self) -> None:
        """Close the descriptors: the kernel removes the session with its last stream."""
        for channel in self.channels:
            channel.close()
        for fd in self._fds:
            os.close(fd)
        self.channels, self._fds = [], []


_REMEDIES: Final = {
    errno.EINVAL: f"a module of its ring buffer may be missing: {MODULES}",
    errno.ENOENT: "this kernel has no such event or symbol",
    errno.ENOSYS: "this kernel was built without it",
    errno.ENOMEM: "ask for a smaller buffer-size",
    errno.EMFILE: "let lttd open more files (ulimit -n; systemd: LimitNOFILE=)",
}


def refused(what: str, error: OSError) -> LttdError:
    """Return the exception to raise when the kernel refuses *what*."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return explained(what, error)
    line = f"{what}: {os.strerror(error.errno or 0)}"
    remedy = _REMEDIES.get(error.errno or 0)
    return SourceError(f"{line}; {remedy}" if remedy else line)
