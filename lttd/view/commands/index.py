"""``lttv index``: note which events are in which sub-buffers of the closed segments of a trace."""

from pathlib import Path
from typing import Final

from lttd.errors import LockedError, LttdError, StorageError
from lttd.files import Disk
from lttd.malloc import keep_freed_memory
from lttd.manifest import Manifest
from lttd.occurrence_maker import Made, note_occurrences
from lttd.stats import counted
from lttd.terminal import Level, put_line, say
from lttd.tracedir import deletion_note, segments

MOST_LINES: Final = 8
# With these errors no other segment of the trace can be written, either.
_REASONS: Final = {
    "EROFS": "the file system is read-only: mount it writable, or index a copy of the trace",
    "ENOSPC": "no space left for the table: free some, then run lttv index again",
    "EDQUOT": "the quota is used up: free some, then run lttv index again",
}


def index_all(trace: Path) -> int:
    """Make the tables that are missing; return an exit status."""
    keep_freed_memory()
    made: list[Made] = []
    failed, left_out, had_one, disk = 0, 0, 0, Disk()
    found = segments(trace)
    for number, segment in enumerate(found):
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
            if isinstance(error, LockedError):  # a compressor makes the table itself
                left_out += 1
                say(f"{error}; left out: run lttv index again later", Level.NOTICE, "lttv")
                continue
            if isinstance(error, StorageError) and error.errno_name in _REASONS:
                failed += len(found) - number
                say(f"{error.path}: {_REASONS[error.errno_name]}", Level.ERROR, "lttv")
                break
            failed += 1
            if failed <= MOST_LINES:
                say(str(error), Level.ERROR, "lttv")
            continue
        had_one += one is None
        made += [one] if one is not None and one.table_bytes else []
    else:
        if failed > MOST_LINES:
            say(f"{trace}: {failed - MOST_LINES} more segments have none", Level.ERROR, "lttv")
    put_line(_words(made, len(found) - left_out, had_one))
    return 1 if failed else 0


def _words(made: list[Made], there: int, had_one: int) -> str:
    words = f"{counted(len(made), 'segment')} of {there} indexed"
    data_bytes = sum(one.data_bytes for one in made)
    table_bytes = sum(one.table_bytes for one in made)
    if made:
        share = table_bytes / max(data_bytes, 1)
        words += f": {table_bytes / 1024:,.1f} KiB, {share:.3%} of the data"
    return f"{words}; {had_one} had a table" if had_one else words
