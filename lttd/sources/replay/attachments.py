"""Name the small files beside replayed ftrace streams as a recording does."""

from collections.abc import Iterator

from lttd.beneath import OpenDirectory
from lttd.copied_tracefs import COMMANDS_FILE, small_files
from lttd.sources.base import Attachment


def tracefs_files(base: OpenDirectory, notes: list[str]) -> Iterator[Attachment]:
    """Yield the files; *notes* gets a line for each one that is left out, up to a number."""
    for name, content in small_files(base, notes):
        yield Attachment(f"tracefs/{name}", content, append=name == COMMANDS_FILE)
