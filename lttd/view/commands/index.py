"""``lttv index``: note which events are in which sub-buffers of the closed segments of a trace."""

from pathlib import Path
from typing import Final

from lttd.errors import LttdError
from lttd.files import Disk
from lttd.malloc import keep_freed_memory
from lttd.manifest import Manifest
from lttd.occurrence_maker import Made, note_occurrences
from lttd.stats import counted
from lttd.terminal import Level, put_line, say
from lttd.tracedir import deletion_note, segments

MOST_LINES: Final = 8


def index_all(trace: Path) -> int:
    """Make the tables that are missing; return an exit status."""
    keep_freed_memory()
    made: list[Made] = []
    failed, left_out, disk = 0, 0, Disk()
    found = segments(trace)
    for segment in found:
        try:
            if Manifest.read(segment.place(segment.manifest)).state != "closed":
                left_out += 1
                say(f"{segment.directory}: is not closed; left out", Level.NOTICE, "lttv")
                continue
            one = note_occurrences(segment, disk)
        except LttdError as error:
            if segment.is_gone():
                left_out += 1
                say(deletion_note(segment.directory), Level.NOTICE, "lttv")
                continue
            failed += 1
            if failed <= MOST_LINES:
                say(str(error), Level.ERROR, "lttv")
            continue
        made += [one] if one is not None and one.table_bytes else []
    if failed > MOST_LINES:
        say(f"{trace}: {failed - MOST_LINES} more segments have none", Level.ERROR, "lttv")
    put_line(_words(made, len(found) - left_out))
    return 1 if failed else 0


def _words(made: list[Made], there: int) -> str:
    words = f"{counted(len(made), 'segment')} of {there} indexed"
    data_bytes = sum(one.data_bytes for one in made)
    table_bytes = sum(one.table_bytes for one in made)
    if made:
        share = table_bytes / max(data_bytes, 1)
        words += f": {table_bytes / 1024:,.1f} KiB, {share:.3%} of the data"
    return words
