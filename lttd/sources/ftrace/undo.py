"""Change settings of an instance that is not lttd's own, and restore them.

Rule: a change is written to the instance's record before it is made, so that after any kill the
next start of any lttd can undo it.
Rule: a setting is restored only while it has the value that lttd wrote; a later change by others
stays.
Rule: SETTINGS lists every file that lttd changes.  A record that names another file is refused.
Rule: a setting that has the value already is not written: even then, writing a clock empties the
ring.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from lttd.errors import LttdError
from lttd.sources.tracefs import chosen_of, events_of, read_text, systems, write_text

PIDS_FILE: Final = "set_event_notrace_pid"
_NAME: Final = r"[\w-][\w.-]*"


class Setting(NamedTuple):
    """A kind of file below an instance that lttd may write."""

    file: re.Pattern[str]
    value: re.Pattern[str]
    produces: bool = False
    """Whether it makes the kernel record; then it is restored as soon as recording stops."""
    empties: bool = False
    """Whether writing it empties the ring; then it is restored only when the ring is empty."""


SETTINGS: Final = (
    Setting(re.compile(rf"events/({_NAME}/){{0,2}}enable"), re.compile("[01]"), produces=True),
    Setting(re.compile("tracing_on"), re.compile("[01]"), produces=True),
    Setting(re.compile(rf"options/{_NAME}"), re.compile("[01]")),
    Setting(re.compile("buffer_percent"), re.compile(r"\d{1,3}")),
    # A ring that becomes smaller drops its oldest events.
    Setting(
        re.compile(r"per_cpu/cpu\d{1,5}/buffer_size_kb"), re.compile(r"\d{1,12}"), empties=True
    ),
    Setting(re.compile("buffer_subbuf_size_kb"), re.compile(r"\d{1,12}"), empties=True),
    Setting(re.compile("trace_clock"), re.compile(_NAME), empties=True),
)


def setting_of(file: str) -> Setting | None:
    """Return the row of SETTINGS for *file*, a path below an instance."""
    return next((one for one in SETTINGS if one.file.fullmatch(file)), None)


def read_setting(path: str) -> str:
    """Return a setting's value in the form in which it is written."""
    text = read_text(path)
    name = os.path.basename(path)
    if name == "trace_clock":
        return chosen_of(text)
    if name == "enable":
        return text[:1]  # "0*" and "1*": the event has a trigger
    return text.split()[0] if text else text  # "7 (expanded: 1408)"


class Change(NamedTuple):
    """One setting that lttd changed."""

    file: str
    """The path below the instance."""
    before: str
    after: str

    def to_json(self) -> dict[str, str]:
        """Return the change as an object of a record."""
        return {slot: getattr(self, slot) for slot in self._fields}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Change":
        """Return the change of an object that to_json() made.

        Raises:
            ValueError: it names a file or a value that lttd never writes.
        """
        file, before, after = (str(value.get(slot, "")) for slot in cls._fields)
        setting = setting_of(file)
        if setting is None:
            raise ValueError(f"{file!r} is not a setting that lttd changes")
        for text in (before, after):
            if not setting.value.fullmatch(text):
                raise ValueError(f"{text!r} is not a value of {file}")
        return cls(file, before, after)


def _unrecorded(_: Mapping[str, Any]) -> None:
    return None


class Undo:
    """The changes that lttd made in one instance."""

    def __init__(
        self, path: str, write_down: Callable[[Mapping[str, Any]], None] = _unrecorded
    ) -> None:
        """*path* is the instance's; *write_down* adds a line to its record."""
        self._path = path
        self._write_down = write_down
        self._changes: dict[str, Change] = {}
        self._inherited: dict[str, Change] = {}
        self._pids: set[int] = set()

    @property
    def changed(self) -> bool:
        """Tell whether there are changes to undo."""
        return bool(self._changes or self._inherited or self._pids)

    def inherit(self, changes: Iterable[Change]) -> None:
        """Take over the changes that a killed lttd made in this instance."""
        for change in changes:
            for each in _events_one_by_one(self._path, change):
                self._inherited[each.file] = each
        for each in self._inherited.values():
            self._write_down(each.to_json())

    def change(self, file: str, text: str) -> None:
        """Write *text* to a setting unless it has that value.

        Raises:
            LttdError: the kernel refuses, or the change cannot be written down.
        """
        now = read_setting(self._file(file))
        inherited = self._inherited.pop(file, None)
        if inherited is not None:
            self._changes[file] = inherited
        if now == text:
            return
        known = self._changes.pop(file, None)
        self._note(Change(file, known.before if known else now, text))
        write_text(self._file(file), text)
        made = read_setting(self._file(file))
        if made != text:  # sizes are rounded
            self._note(Change(file, self._changes[file].before, made))

    def keep(self, name: str) -> bool:
        """Keep a killed lttd's value of a setting, or of all below a directory, for this run.

        Return whether there was any.
        """
        kept = [f for f in self._inherited if f == name or f.startswith(f"{name}/")]
        for file in kept:
            self._changes[file] = self._inherited.pop(file)
        return bool(kept)

    def drop_inherited(self) -> list[str]:
        """Undo the changes of a killed lttd that this run does not need; return lines on failures.

        Settings that would empty the ring stay until the end.
        """
        waiting = [each for each in self._inherited.values() if _empties(each)]
        for each in waiting:
            self._changes[each.file] = self._inherited.pop(each.file)
        return self._put_back(self._inherited, list(self._inherited))

    def disable_events(self, names: Iterable[str]) -> list[str]:
        """Turn off those of the events *names* that lttd turned on; return lines on failures."""
        self._divide_groups()
        files = [f"events/{name.replace(':', '/')}/enable" for name in names]
        return self._put_back(self._changes, [file for file in files if file in self._changes])

    def _divide_groups(self) -> None:
        """Replace each change of a whole system by one for each of its events."""
        for group in list(self._changes.values()):
            events = _events_one_by_one(self._path, group)
            if events == [group]:
                continue
            for each in events:
                if each.file not in self._changes:
                    self._note(each)
            # A kill here leaves both in the record: each event is then compared by itself.
            del self._changes[group.file]
            self._write_down({"undone": [group.file]})

    @property
    def left_out(self) -> frozenset[int]:
        """The pids that lttd added to the list of excluded ones."""
        return frozenset(self._pids)

    def leave_out(self, pids: Iterable[int]) -> None:
        """Add *pids* to the list of excluded ones."""
        new = sorted(set(pids) - self._pids)
        if not new:
            return
        self._write_down({"left_out": new})
        self._pids.update(new)
        # Without O_TRUNC, this adds to the list.  It can take the kernel 50 ms.
        write_text(self._file(PIDS_FILE), " ".join(map(str, new)))

    def stop_producing(self) -> list[str]:
        """Undo the changes that make the kernel record; return a line for each failure."""
        return self._put_back(self._changes, [f for f in self._changes if _produces(f)])

    def run(self) -> list[str]:
        """Undo all changes, the last one first; return a line for each failure."""
        failed = self._put_back(self._inherited, list(self._inherited))
        failed += self._put_back(self._changes, list(self._changes))
        if self._pids:
            try:
                remove_pids(self._path, self._pids)
                self._write_down({"undone": [PIDS_FILE]})
                self._pids.clear()
            except LttdError as error:
                failed.append(f"not undone: {error}")
        return failed

    def _file(self, file: str) -> str:
        return f"{self._path}/{file}"

    def _note(self, change: Change) -> None:
        self._write_down(change.to_json())
        self._changes[change.file] = change

    def _put_back(self, changes: dict[str, Change], files: Sequence[str]) -> list[str]:
        lines, undone = [], []
        for file in reversed(files):
            try:
                line = put_back(self._path, changes[file])
            except LttdError as error:
                lines.append(f"not undone: {error}")
                continue
            lines += [line] if line else []
            undone.append(file)
            del changes[file]
        if undone:
            try:
                self._write_down({"undone": undone})
            except LttdError as error:
                lines.append(str(error))
        return lines


def put_back(path: str, change: Change) -> str:
    """Undo one change of the instance at *path*; return the reason if it was left, else nothing.

    Raises:
        LttdError: the kernel refuses.
    """
    file = f"{path}/{change.file}"
    if not os.path.exists(file):
        return ""  # the event's module or the instance was removed
    now = read_setting(file)
    if now == change.before:
        return ""
    if now == "X":  # some of these events were switched since, so each is compared
        for each in _events_one_by_one(path, change):
            if each.file != change.file:
                put_back(path, each)
        return ""
    if now != change.after:
        return (
            f"{file}: was set to {now!r} by another process, and stays so; it was {change.before!r}"
            " before lttd changed it"
        )
    write_text(file, change.before)
    return ""


def remove_pids(path: str, pids: Iterable[int]) -> None:
    """Remove *pids* from the list of excluded ones; the others stay.

    Raises:
        LttdError: the kernel refuses.
    """
    file = f"{path}/{PIDS_FILE}"
    listed = {int(word) for word in read_text(file).split() if word.isdigit()}
    ours = listed & set(pids)
    if ours:
        # One write: a list that is written in parts cuts numbers in two.
        write_text(file, " ".join(map(str, sorted(listed - ours))), truncate=True)


def waits(change: Change, unread_events: int) -> bool:
    """Tell whether undoing *change* must wait until the ring is drained."""
    return bool(unread_events) and _empties(change)


def _produces(file: str) -> bool:
    setting = setting_of(file)
    return setting is not None and setting.produces


def _empties(change: Change) -> bool:
    setting = setting_of(change.file)
    return setting is not None and setting.empties


def _events_one_by_one(path: str, change: Change) -> list[Change]:
    """Return a change for each event, if *change* is of a whole system or of all events."""
    words = change.file.split("/")
    if words[0] != "events" or len(words) == 4:
        return [change]
    names = [words[1]] if len(words) == 3 else systems(f"{path}/events")
    return [
        Change(f"events/{system}/{event}/enable", change.before, change.after)
        for system in names
        for event in events_of(f"{path}/events/{system}")
        if os.path.exists(f"{path}/events/{system}/{event}/enable")
    ]
