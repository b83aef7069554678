"""The error of a take that has sub-buffers to return all the same: the next take raises it."""

from lttd.errors import SourceError, StreamLostError


class LateError:
    """Keeps the last error of a stream."""

    def __init__(self) -> None:
        self._kept: SourceError | None = None

    def keep(self, error: SourceError) -> None:
        """Keep *error* for raise_kept()."""
        self._kept = error

    def raise_kept(self) -> None:
        """Raise the error that was kept: at every call if the stream is lost, else once."""
        kept = self._kept
        if not isinstance(kept, StreamLostError):
            self._kept = None
        if kept is not None:
            raise kept
