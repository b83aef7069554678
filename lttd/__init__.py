"""Record the Linux kernel's per-CPU trace buffers, and read what was recorded."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lttd.view.library import open_trace as open  # noqa: A004

__all__ = ["open"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Load what a reader of traces needs when it is asked for: the daemon never does."""
    if name == "open":
        from lttd.view.library import open_trace  # noqa: PLC0415

        return open_trace
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
