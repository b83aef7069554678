"""Find the events that a recording asks for: by globs, by presets, or by default.

Rule: a glob that the user wrote must match an event; one of a preset that this kernel lacks is left
out, with a note.
"""

from collections.abc import Sequence
from typing import Final

from lttd.errors import NothingToRecordError, UsageError
from lttd.presets import Preset, chosen
from lttd.sources.ftrace.instance import Instance
from lttd.sources.tracefs import EnableFile, find_events

OWN_EVENTS: Final = ("sched:*",)
"""The events of an instance of lttd's own if nothing was asked for."""


def wanted_events(
    instance: Instance, globs: Sequence[str], presets: Sequence[str]
) -> list[EnableFile]:
    """Return the files to enable for *globs* and for the *presets* of these names.

    Raises:
        UsageError: a glob matches no event, or a preset is not known.
        NothingToRecordError: this kernel has no event of a preset.
    """
    directory = instance.file("events")
    found = find_events(directory, globs)
    for preset in chosen(presets):
        found += _of_preset(instance, directory, preset)
    return list({file.path: file for file in found}.values())


def _of_preset(instance: Instance, directory: str, preset: Preset) -> list[EnableFile]:
    found: list[EnableFile] = []
    absent = []
    for glob in preset.events:
        try:
            found += find_events(directory, (glob,))
        except UsageError:
            absent.append(glob)
    if not found:
        what = f"preset {preset.name}: this kernel has no event {' or '.join(absent)}"
        raise NothingToRecordError(what, f"see the events in {directory}")
    if absent:
        words = "left out, because this kernel lacks them"
        instance.notes.append(f"preset {preset.name}: {', '.join(absent)} {words}")
    return found
