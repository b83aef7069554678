"""Record the Linux kernel's per-CPU trace buffers, and read the recorded traces."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lttd.view.opened import open_trace as open  # noqa: A004

__all__ = ["open"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import the library's modules on first use; the daemon never needs them."""
    if name == "open":
        from lttd.view.opened import open_trace  # noqa: PLC0415

        return open_trace
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
