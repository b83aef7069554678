"""The table of subcommands: ``lttd NAME ...`` runs the module of a row instead of a recorder.

Rule: only the first word of the command line can be one.  A module has ``run(words)``, which takes
the words after NAME, writes its result, and returns the exit status or raises an LttdError.
Rule: a start of the recorder loads none of these modules, and they load neither trio nor numpy.
"""

import signal
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Final, NamedTuple

from lttd.errors import LttdError
from lttd.start import unforeseen
from lttd.terminal import PIPE_CLOSED, Level, say


class Subcommand(NamedTuple):
    """One row of the table."""

    module: str
    help: str


SUBCOMMANDS: Final[Mapping[str, Subcommand]] = {
    "doctor": Subcommand("lttd.doctor.command", "print what this machine allows, with remedies"),
    "keep": Subcommand("lttd.clients.keep", "let retention delete no segment of these numbers"),
    "release": Subcommand("lttd.clients.release", "let retention delete segments again"),
    "roll": Subcommand("lttd.clients.roll", "let it close its segments and go on in new ones"),
    "trigger": Subcommand("lttd.clients.trigger", "keep a window of time around now"),
    "status": Subcommand("lttd.clients.status", "print what a running lttd does"),
    "reload": Subcommand("lttd.clients.reload", "let it read its configuration file again"),
}


def run_subcommand(words: Sequence[str]) -> int:
    """Run ``lttd NAME ...``; return the exit status."""
    try:
        status: int = import_module(SUBCOMMANDS[words[0]].module).run(words[1:])
    except LttdError as error:
        say(str(error), Level.ERROR)
        return error.exit_status
    except BrokenPipeError:
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:  # noqa: BLE001  (no traceback reaches a user)
        say(unforeseen(error), Level.ERROR)
        return 1
    return status
