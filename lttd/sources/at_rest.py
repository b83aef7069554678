"""What streams and sources share whose data nobody writes to any more: files, old rings."""

from collections.abc import Iterable, Mapping, Sequence

from lttd.sources.base import Attachments, Stream
from lttd.subbuffer import Batch, Reason, StreamId


class StreamAtRest:
    """The part of ``lttd.sources.base.Stream`` that needs no kernel."""

    def fileno(self) -> int:
        """Return -1: nothing more comes."""
        return -1

    def urgent(self) -> bool:
        """Return False: nothing is lost while it waits."""
        return False

    def losses(self) -> Batch | None:
        """Return nothing: batches contain all losses."""
        return None

    def unplaced(self) -> Mapping[Reason, int]:
        """Return nothing: each known loss is in a batch at once."""
        return {}

    def counters(self) -> Mapping[str, int]:
        """Return nothing: no kernel counts."""
        return {}


class SourceAtRest:
    """The part of ``lttd.sources.base.Source`` that needs no kernel."""

    watch = None
    grows = False
    open_ended = False

    def __init__(self, notes: Iterable[str] = ()) -> None:
        self._notes = list(notes)

    def discover(self) -> Sequence[Stream]:
        """Return nothing: no stream appears later."""
        return ()

    def leave_out(self, thread_ids: Iterable[int]) -> None:
        """Do nothing: the events were recorded before."""

    def start(self) -> None:
        """Do nothing: the data is complete."""

    def stop(self) -> None:
        """Do nothing: the rest of the data is still to be drained."""

    def attachments(self) -> Attachments:
        """Return nothing for any segment: decoding needs the streams only."""
        return lambda _: ()

    def mark_progress(self, segment: str) -> None:
        """Do nothing: a kill leaves nothing that the next run could count."""

    def roll(self, segment: str) -> Mapping[StreamId, int]:
        """Return nothing: there is no kernel that counts."""
        return {}

    def notes(self) -> Sequence[str]:
        """Return lines for the user, each once."""
        notes, self._notes = self._notes, []
        return notes
