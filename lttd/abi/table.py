"""ABIS: every ABI that lttd can read on disk, by its name in a manifest.

A stream of an ABI without a row is stored and indexed, but not decoded; only its index states the
sizes of sub-buffers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from lttd.abi.base import Abi
    from lttd.subbuffer import StreamInfo


class AbiRow(NamedTuple):
    """One ABI."""

    module: str
    """The module with ``ABI``, a class for ``lttd.abi.base.Abi``; imported for the first stream."""
    file_name: str = "{channel}_{cpu}"
    """The form of a data file's name that the ABI's own tools expect."""


ABIS: Final = {
    "ftrace": AbiRow("lttd.abi.ftrace_abi"),
    "ltt": AbiRow("lttd.abi.ltt_abi"),
    "ctf": AbiRow("lttd.abi.ctf_abi"),
    # ``blkparse -i streams/NAME`` opens NAME.blktrace.0, .1 and so on, until one is absent.
    "blktrace": AbiRow("lttd.abi.blktrace_abi", "{channel}.blktrace.{cpu}"),
}
_UNKNOWN: Final = AbiRow("")


class _Module(Protocol):
    ABI: "type[Abi]"


def abi_of(info: "StreamInfo", byteorder: str) -> "Abi | None":
    """Return the reader of a stream's sub-buffers; *byteorder* is ``little`` or ``big``.

    None: its ABI has no row, or the manifest states impossible values.
    """
    row = ABIS.get(info.abi)
    try:
        return cast("_Module", import_module(row.module)).ABI(info, byteorder) if row else None
    except ValueError:
        return None


def data_file_name(abi: str, channel: str, cpu: int) -> str:
    """Return the name of a stream's data file; *channel* is a file name already."""
    return ABIS.get(abi, _UNKNOWN).file_name.format(channel=channel, cpu=cpu)
