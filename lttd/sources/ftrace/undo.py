"""Change settings of an instance and of the top level, and restore them.

Rule: a change is written to the instance's record before it is made, so that after any kill the
next start of any lttd can undo it.  Changes inside an instance of lttd's own are not: they end with
the instance.
Rule: a setting is restored only while it has the value that lttd wrote; a later change by others
stays.
Rule: SETTINGS (settings.py) lists every file that lttd changes, ADDITIONS (additions.py) every list
to which it adds.  A record that names another file is refused.
Rule: a setting that has the value already is not written: even then, writing a clock empties the
ring.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from lttd.errors import LttdError, SourceError
from lttd.sources.ftrace.additions import Added, addition_of, take_back
from lttd.sources.ftrace.settings import (
    Change,
    as_written,
    events_one_by_one,
    place_of,
    put_back,
    read_setting,
    setting_of,
)
from lttd.sources.tracefs import event_file, read_text, write_text


def _unrecorded(_: Mapping[str, Any]) -> None:
    return None


class Undo:
    """The changes that lttd made in one instance, and for it at the top level."""

    def __init__(
        self,
        path: str,
        write_down: Callable[[Mapping[str, Any]], None] = _unrecorded,
        *,
        root: str = "",
        own: bool = False,
    ) -> None:
        """*path* is the instance's; *write_down* adds a line to its record.

        *root* is the mount point of tracefs.  *own*: the instance will be removed, so that changes
        in it need not be undone.
        """
        self._path = path
        self._root = root or path
        self._write_down = write_down
        self._own = own
        self._changes: dict[str, Change] = {}
        self._inherited: dict[str, Change] = {}
        self._added: dict[str, Added] = {}

    @property
    def changed(self) -> bool:
        """Tell whether there are changes to undo."""
        return bool(self.files)

    @property
    def files(self) -> list[str]:
        """The files with changes to undo, in the order of the changes."""
        return [*self._inherited, *self._changes, *filter(self._outlives, self._added)]

    def take_over(self, changes: Iterable[Change], added: Iterable[Added]) -> None:
        """Take over the content of the record itself, to undo it."""
        self._changes = {one.file: one for one in changes if self._outlives(one.file)}
        self._added = {one.file: one for one in added if self._outlives(one.file)}

    def inherit(self, changes: Iterable[Change], added: Iterable[Added] = ()) -> list[str]:
        """Take over the changes that a killed lttd made in this instance, to record from it.

        Take its additions back, but those which would empty a ring, and those that must wait for
        a setting; return lines on failures.
        """
        failed: list[str] = []
        for change in changes:
            for each in events_one_by_one(self._path, change):
                self._inherited[each.file] = each
        for each in self._inherited.values():
            self._write_down(each.to_json())
        for one in added:
            self._added[one.file] = one
            self._write_down(one.to_json())
        for one in added:
            if not (empties_ring(one.file) or self._waits(one)):
                failed += self.take_back(one.file)
        return failed

    def change(self, file: str, text: str) -> None:
        """Write *text* to a setting unless it has that value.

        If the kernel refuses it, the setting keeps its value.

        Raises:
            LttdError: the kernel refuses, or the change cannot be written down.
        """
        now = read_setting(self._file(file))
        inherited = self._inherited.pop(file, None)
        if inherited is not None:
            self._changes[file] = inherited
        if now == text:
            return
        if not self._outlives(file):
            self._write(file, now, text)
            return
        known = self._changes.pop(file, None)
        before = known.before if known else now
        self._note(Change(file, before, text))
        try:
            self._write(file, now, text)
        except LttdError:
            self._note(Change(file, before, now))
            raise
        made = read_setting(self._file(file))
        if made != text:  # sizes are rounded
            self._note(Change(file, before, made))

    def foresee(self, file: str, text: str) -> None:
        """Write down that the kernel will change a setting to *text* by itself.

        Raises:
            LttdError: the setting cannot be read, or the change cannot be written down.
        """
        if (inherited := self._inherited.pop(file, None)) is not None:
            self._changes[file] = inherited
        now = read_setting(self._file(file))
        if now != text and not self.has_changed(file) and self._outlives(file):
            self._note(Change(file, now, text))

    def has_changed(self, file: str) -> bool:
        """Tell whether lttd has changed a setting, so that it will be put back."""
        return file in self._changes

    def add(self, file: str, items: Iterable[str]) -> list[str]:
        """Write down that *items* will be added to a list; return those that it lacks, to be added.

        An item that is there already is not lttd's: it stays at the end.  If adding one fails, call
        take_back().

        Raises:
            LttdError: the list cannot be read, or the items cannot be written down.
        """
        row = addition_of(file)
        assert row is not None, file
        there = row.listed(read_text(self._file(file)))
        known = self._added.get(file) or Added(file, (), not there)
        new = [item for item in dict.fromkeys(items) if row.name_of(item) not in there]
        if not new:
            return []
        assert all(re.fullmatch(row.item, item) for item in new), new
        try:
            every = known.with_more(new)
        except ValueError as error:
            raise SourceError(str(error)) from None
        if self._outlives(file):
            self._write_down(known._replace(items=tuple(new)).to_json())
        self._added[file] = every
        return new

    def adopt(self, file: str, items: Iterable[str]) -> None:
        """Take over items that another record of lttd has, and that the list holds."""
        known = self._added.get(file) or Added(file, (), alone=False)
        every = known.with_more(items)
        self._write_down(every.to_json())
        self._added[file] = every

    def added(self, file: str) -> tuple[str, ...]:
        """Return the items that lttd added to a list."""
        known = self._added.get(file)
        return known.items if known else ()

    def take_back(self, file: str, items: Iterable[str] | None = None) -> list[str]:
        """Take *items* (None: all) out of a list; return a line for each that stays."""
        known = self._added.get(file)
        if known is None:
            return []
        ours = [item for item in known.items if items is None or item in set(items)]
        try:
            stay = take_back(self._file(file), known, ours) if self._is_there(file) else {}
            gone = [item for item in ours if item not in stay]
            if gone and self._outlives(file):
                self._write_down({"taken_back": file, "items": gone})
        except LttdError as error:
            return [f"not undone: {error}"]
        self._added[file] = known.without(gone)
        if not self._added[file].items:
            del self._added[file]
        return list(stay.values())

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
        waiting = [each for each in self._inherited.values() if empties_ring(each.file)]
        for each in waiting:
            self._changes[each.file] = self._inherited.pop(each.file)
        return self._put_back(self._inherited, list(self._inherited))

    def disable_events(self, names: Iterable[str]) -> list[str]:
        """Turn off those of the events *names* that lttd turned on; return lines on failures."""
        self._divide_groups()
        return self.restore(event_file(name, "enable") for name in names)

    def restore(self, files: Iterable[str]) -> list[str]:
        """Undo the changes of some settings; return lines on failures."""
        return self._put_back(self._changes, [file for file in files if file in self._changes])

    def _divide_groups(self) -> None:
        """Replace each change of a whole system by one for each of its events."""
        for group in list(self._changes.values()):
            events = events_one_by_one(self._path, group)
            if events == [group]:
                continue
            for each in events:
                if each.file not in self._changes:
                    self._note(each)
            # A kill here leaves both in the record: each event is then compared by itself.
            del self._changes[group.file]
            self._write_down({"undone": [group.file]})

    def leave_out(self, file: str, pids: Iterable[int]) -> None:
        """Add *pids* to a list of excluded ones."""
        new = self.add(file, map(str, sorted(set(pids))))
        if new:
            # Without O_TRUNC, this adds to the list.  It can take the kernel 50 ms.
            write_text(self._file(file), " ".join(new))

    def stop_producing(self) -> list[str]:
        """Undo the changes that make the kernel record; return a line for each failure."""
        failed = self._take_back_producing()
        return failed + self._put_back(self._changes, [f for f in self._changes if _produces(f)])

    def _take_back_producing(self) -> list[str]:
        """Take back the additions that make the kernel record."""
        files = [each for each, one in self._added.items() if one.row.produces]
        return [line for file in filter(self._outlives, files) for line in self.take_back(file)]

    def run(self, *, keep_rings: bool = False) -> list[str]:
        """Undo all changes, the last one first; return a line for each failure.

        *keep_rings* leaves the changes whose undoing would empty a ring.
        """
        failed = self._take_back_producing()  # an event that a trigger turned on stays on without
        for changes in (self._inherited, self._changes):
            waiting = {file for file in changes if keep_rings and self._would_empty(changes[file])}
            failed += self._put_back(changes, [file for file in changes if file not in waiting])
        # Probes are the last, because a trigger keeps its probe.
        for file in sorted(filter(self._outlives, self._added), key=lambda f: f.startswith("/")):
            if not ((keep_rings and empties_ring(file)) or self._waits(self._added[file])):
                failed += self.take_back(file)
        return failed

    def _would_empty(self, change: Change) -> bool:
        """Tell whether undoing a change empties a ring: a refused change has nothing to undo."""
        if not empties_ring(change.file):
            return False
        try:
            return read_setting(self._file(change.file)) != change.before
        except LttdError:
            return True

    def _waits(self, added: Added) -> bool:
        """Tell whether a setting that must be put back before is still changed."""
        after = added.row.after
        return after in self._changes or after in self._inherited

    def _outlives(self, file: str) -> bool:
        """Tell whether a change outlives the instance, so that it must be undone."""
        return not self._own or file.startswith("/")

    def _file(self, file: str) -> str:
        return place_of(self._path, self._root, file)

    def _is_there(self, file: str) -> bool:
        """Return False if a file went with its instance or its event's module.

        Without tracefs this is unknown.
        """
        return os.path.exists(self._file(file)) or not os.path.exists(f"{self._root}/trace_clock")

    def _write(self, file: str, now: str, text: str) -> None:
        """Write a setting; if the kernel refuses, write *now*: a refused filter removes it."""
        try:
            write_text(self._file(file), as_written(file, text))
        except LttdError:
            with suppress(LttdError):
                if read_setting(self._file(file)) != now:
                    write_text(self._file(file), as_written(file, now))
            raise

    def _note(self, change: Change) -> None:
        self._write_down(change.to_json())
        self._changes[change.file] = change

    def _put_back(self, changes: dict[str, Change], files: Sequence[str]) -> list[str]:
        lines, undone = [], []
        for file in reversed(files):
            try:
                there = self._is_there(file)
                line = put_back(self._path, changes[file], self._root) if there else ""
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


def _produces(file: str) -> bool:
    setting = setting_of(file)
    return setting is not None and setting.produces


def empties_ring(file: str) -> bool:
    """Tell whether undoing a change of *file* empties a ring."""
    row = setting_of(file) or addition_of(file)
    return row is not None and row.empties
