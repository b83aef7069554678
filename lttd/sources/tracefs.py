"""Read and write the small files of tracefs; errors name the file and the remedy.

Rule: lttd changes a setting of an instance that it did not make through an Undo (undo.py) only.
"""

import errno
import os
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from lttd.abi.ftrace import OWN_SYSTEM
from lttd.clock import READABLE
from lttd.errors import REMEDIES, LttdError, NothingToRecordError, SourceError, UsageError
from lttd.namespaces import kernel_clock_ns
from lttd.sources.mounts import read_write
from lttd.sources.refused import remedy

# The meaning of an errno for a file of tracefs, and the remedy.
_REMEDIES: Final = {
    errno.EINVAL: "this kernel does not take that value",
    errno.EBUSY: "another process has it open or mapped: stop that tracer",
    errno.ENOMEM: "ask for a smaller buffer",
    errno.EMFILE: REMEDIES[errno.EMFILE],
    errno.ENOENT: "this kernel does not have it",
    errno.ENODEV: "the instance was removed",
}


def explained(path: str, error: OSError, doing: str = "") -> LttdError:
    """Return the exception to raise for *error* at *path*: one line with the remedy."""
    what = f"{path}: {doing}{os.strerror(error.errno or 0)}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return NothingToRecordError(what, remedy(error.errno))
    if error.errno == errno.EROFS:
        return NothingToRecordError(what, read_write(path))
    helps = _REMEDIES.get(error.errno or 0)
    if error.errno == errno.ENOENT and not os.path.isdir(os.path.dirname(path)):
        helps = "the instance was removed, or tracefs unmounted"
    return SourceError(f"{what}; {helps}" if helps else what)


def read_bytes(path: str) -> bytes:
    """Read a small file of tracefs whole.

    Raises:
        LttdError: it cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        raise explained(path, error) from error


def chosen_of(text: str) -> str:
    """Return the chosen word, in brackets, of a file with a list of choices: trace_clock, say."""
    chosen = re.search(r"\[(\S+)\]", text)
    return chosen[1] if chosen else text


def read_text(path: str) -> str:
    """Read a setting, without the line end."""
    return os.fsdecode(read_bytes(path)).strip()


def write_text(path: str, text: str, *, truncate: bool = False) -> None:
    """Write a setting with one write.

    *truncate* empties a list such as ``set_event_notrace_pid`` first.

    Raises:
        LttdError: the kernel refuses.
    """
    try:
        fd = os.open(path, os.O_WRONLY | (os.O_TRUNC if truncate else 0))
        try:
            if text:
                os.write(fd, os.fsencode(text))
        finally:
            os.close(fd)
    except OSError as error:
        raise explained(path, error, f"writing {text!r}: ") from error


class EnableFile(NamedTuple):
    """An ``enable`` file that turns on the events of a glob, or some of them."""

    path: str
    name: str
    """The event, or ``system:*``."""


def find_events(events_directory: str, globs: Iterable[str]) -> list[EnableFile]:
    """Return the files to enable for *globs*; a whole system is one file.

    A glob is ``system:event`` or ``event`` (in any system), with the wildcards of fnmatch;
    ``system:`` means ``system:*``.

    Raises:
        UsageError: a glob matches nothing; the message has the nearest names.
    """
    found: dict[str, EnableFile] = {}
    for glob in globs:
        matches = _matches(events_directory, glob)
        if not matches:
            raise UsageError(_no_match(events_directory, glob))
        found.update((match.path, match) for match in matches)
    return list(found.values())


def _globs(glob: str) -> tuple[str, str]:
    """Return the globs of the system and of the event."""
    system_glob, colon, event_glob = glob.partition(":")
    return (system_glob, event_glob or "*") if colon else ("*", glob)


def is_match(glob: str, system: str, event: str) -> bool:
    """Tell whether a glob, as find_events() takes it, names an event."""
    system_glob, event_glob = _globs(glob)
    return fnmatchcase(system, system_glob) and fnmatchcase(event, event_glob)


def one_by_one(events_directory: str, files: Iterable[EnableFile]) -> list[EnableFile]:
    """Return a file for each single event that *files* enable."""
    found: dict[str, EnableFile] = {}
    for file in files:
        system, _, event = file.name.partition(":")
        names = systems(events_directory) if system == "*" else [system]
        for each in names:
            directory = f"{events_directory}/{each}"
            for name in events_of(directory) if event == "*" else [event]:
                path = f"{directory}/{name}/enable"
                found[path] = EnableFile(path, f"{each}:{name}")
    return list(found.values())


def without(
    events_directory: str, files: Sequence[EnableFile], globs: Sequence[str]
) -> list[EnableFile]:
    """Return files that enable the same events but those of *globs*.

    Raises:
        UsageError: a glob matches no event of this kernel, or no event is left.
    """
    excluded = {
        file.path for file in one_by_one(events_directory, find_events(events_directory, globs))
    }
    found: list[EnableFile] = []
    for file in files:
        single = one_by_one(events_directory, [file])
        kept = [each for each in single if each.path not in excluded]
        found += [file] if len(kept) == len(single) else kept
    if files and not found:
        raise UsageError(f"exclude leaves no event: {', '.join(globs)} are all that events name")
    return found


def _matches(events_directory: str, glob: str) -> list[EnableFile]:
    system_glob, event_glob = _globs(glob)
    if (system_glob, event_glob) == ("*", "*"):
        return [EnableFile(f"{events_directory}/enable", "*:*")]
    matches = []
    for system in systems(events_directory):
        if not fnmatchcase(system, system_glob):
            continue
        directory = f"{events_directory}/{system}"
        if event_glob == "*":
            matches.append(EnableFile(f"{directory}/enable", f"{system}:*"))
            continue
        matches += [
            EnableFile(f"{directory}/{event}/enable", f"{system}:{event}")
            for event in events_of(directory)
            if fnmatchcase(event, event_glob)
        ]
    return matches


def systems(events_directory: str) -> list[str]:
    """Return the event systems that can be enabled; ftrace's own cannot."""
    try:
        with os.scandir(events_directory) as entries:
            return sorted(e.name for e in entries if e.is_dir() and e.name != OWN_SYSTEM)
    except OSError as error:
        raise explained(events_directory, error) from error


def event_file(event: str, name: str) -> str:
    """Return the path of a file of ``system:event``, below an instance."""
    return f"events/{event.replace(':', '/', 1)}/{name}"


def events_of(system_directory: str) -> list[str]:
    """Return the events of one system; none if it was removed (its module was unloaded)."""
    try:
        with os.scandir(system_directory) as entries:
            return sorted(e.name for e in entries if e.is_dir())
    except FileNotFoundError:
        return []


def _no_match(events_directory: str, glob: str) -> str:
    names = [
        f"{system}:{event}"
        for system in systems(events_directory)
        for event in events_of(f"{events_directory}/{system}")
    ]
    plain = glob.replace("*", "").strip(":")
    bare = {name.partition(":")[2]: name for name in names}
    whole = {name.partition(":")[0]: name.partition(":")[0] + ":*" for name in names}
    import difflib  # noqa: PLC0415  (only a misspelt name needs it)

    near = difflib.get_close_matches(plain, names, n=3)
    near += [bare[word] for word in difflib.get_close_matches(plain, bare, n=3)]
    near += [whole[word] for word in difflib.get_close_matches(plain.partition(":")[0], whole, n=2)]
    hint = f": did you mean {', '.join(dict.fromkeys(near))}?" if near else ""
    return f"no event of this kernel matches {glob!r}{hint}"


def parse_stats(text: bytes) -> dict[str, int]:
    """Return the fields of ``per_cpu/cpuN/stats`` by the kernel's names.

    Times are in trace-clock units: ns if the kernel prints seconds (cut off to microseconds), else
    the integer that it prints.
    """
    fields = {}
    for line in text.splitlines():
        name, _, value = line.partition(b": ")
        seconds, point, micros = value.strip().partition(b".")
        number = int(seconds)
        if point:
            number = number * 1_000_000_000 + int(micros) * 1000
        fields[name.decode()] = number
    return fields


class TraceClock:
    """Reads an instance's trace clock, as a POSIX clock or from ``now ts`` in stats."""

    def __init__(self, name: str, stats_path: str) -> None:
        self._clock_id = READABLE.get(name)
        self._stats = StatsFile(stats_path) if self._clock_id is None else None

    def now(self) -> int:
        """Return the time in the trace clock's units; it is never too low."""
        if self._clock_id is not None:
            return kernel_clock_ns(self._clock_id)
        assert self._stats is not None
        # If the kernel prints seconds, it cuts them off to microseconds.
        text = self._stats.text()
        cut = 999 if b"." in text else 0
        return parse_stats(text)["now ts"] + cut

    def close(self) -> None:
        """Close the descriptor, if there is one."""
        if self._stats is not None:
            self._stats.close()


class StatsFile:
    """The file ``per_cpu/cpuN/stats``, kept open, so that a sample is one pread (2 us)."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise explained(path, error) from error

    def text(self) -> bytes:
        """Return the file's present text."""
        try:
            return os.pread(self._fd, 4096, 0)
        except OSError as error:
            raise explained(self.path, error) from error

    def read(self) -> dict[str, int]:
        """Return the file's present fields, as parse_stats() does."""
        return parse_stats(self.text())

    def close(self) -> None:
        """Close the descriptor."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
