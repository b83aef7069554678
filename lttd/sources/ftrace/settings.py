"""SETTINGS: the files of tracefs with one value that lttd changes, and how each is put back.

A file that begins with ``/`` is one of the top level, beside all instances; see place_of().

Rule: a record that names a file or a value which is not in the table is refused.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from lttd.sources.ftrace.additions import NAME
from lttd.sources.tracefs import chosen_of, events_of, read_text, systems, write_text


class Setting(NamedTuple):
    """A kind of file that lttd may write, with one value."""

    file: str
    """A regular expression, as all of these: they are compiled when they are needed first."""
    value: str
    produces: bool = False
    """Whether it makes the kernel record; then it is restored as soon as recording stops."""
    empties: bool = False
    """Whether writing it empties the ring; then it is restored only when the ring is empty."""
    words: Mapping[str, str] = {}
    """How to write a value that reads otherwise."""


SETTINGS: Final = (
    Setting(rf"events/({NAME}/){{0,2}}enable", "[01]", produces=True),
    Setting("tracing_on", "[01]", produces=True),
    Setting(rf"options/{NAME}", "[01]"),
    Setting("buffer_percent", r"\d{1,3}"),
    # A ring that becomes smaller drops its oldest events.
    Setting(r"per_cpu/cpu\d{1,5}/buffer_size_kb", r"\d{1,12}", empties=True),
    Setting("buffer_subbuf_size_kb", r"\d{1,12}", empties=True),
    Setting("trace_clock", NAME, empties=True),
    Setting("current_tracer", NAME, empties=True),
    Setting(
        rf"events/{NAME}/{NAME}/filter",
        r"[^\n\0]{1,4096}",
        words={"none": "0"},
    ),
    Setting("/max_graph_depth", r"\d{1,10}"),
)


def setting_of(file: str) -> Setting | None:
    """Return the row of SETTINGS for *file*; see place_of() for its path."""
    return next((one for one in SETTINGS if re.fullmatch(one.file, file)), None)


def place_of(path: str, root: str, file: str) -> str:
    """Return the path of *file*, which is below *root* if it begins with ``/``, else below *path*.

    *path* is the instance's, *root* the mount point of tracefs.
    """
    return f"{root}{file}" if file.startswith("/") else f"{path}/{file}"


def read_setting(path: str) -> str:
    """Return a setting's value in the form in which it is written."""
    text = read_text(path)
    name = os.path.basename(path)
    if name == "trace_clock":
        return chosen_of(text)
    if name == "enable":
        return text[:1]  # "0*" and "1*": the event has a trigger
    if name == "filter":
        return text.partition("\n")[0]  # the next lines explain why a filter was refused
    return text.split()[0] if text else text  # "7 (expanded: 1408)"


class Change(NamedTuple):
    """One setting that lttd changed."""

    file: str
    """The file, see place_of()."""
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
            if not re.fullmatch(setting.value, text):
                raise ValueError(f"{text!r} is not a value of {file}")
        return cls(file, before, after)


def as_written(file: str, value: str) -> str:
    """Return the text to write for a value that read_setting() returned."""
    setting = setting_of(file)
    return setting.words.get(value, value) if setting else value


def put_back(path: str, change: Change, root: str = "") -> str:
    """Undo one change of the instance at *path*; return the reason if it was left, else nothing.

    Raises:
        LttdError: the kernel refuses.
    """
    file = place_of(path, root, change.file)
    now = read_setting(file)
    if now == change.before:
        return ""
    if now == "X":  # some of these events were switched since, so each is compared
        for each in events_one_by_one(path, change):
            if each.file != change.file:
                put_back(path, each)
        return ""
    if now != change.after:
        return (
            f"{file}: was set to {now!r} by another process, and stays so; it was {change.before!r}"
            " before lttd changed it"
        )
    write_text(file, as_written(change.file, change.before))
    return ""


def events_one_by_one(path: str, change: Change) -> list[Change]:
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
