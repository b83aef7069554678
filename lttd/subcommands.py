"""The table of subcommands: ``lttd NAME ...`` runs the module of a row instead of a recorder.

Rule: only the first word of the command line can be one.  A module has ``run(words)``, which takes
the words after NAME, writes its result, and returns the exit status or raises an LttdError.
Rule: a start of the recorder loads none of these modules, and they load neither trio nor numpy.
"""

import signal
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Final

from lttd.errors import LttdError
from lttd.start import unforeseen
from lttd.terminal import PIPE_CLOSED, Level, say

SUBCOMMANDS: Final[Mapping[str, str]] = {
    "doctor": "lttd.doctor.command",
    "presets": "lttd.clients.presets",
    "keep": "lttd.clients.keep",
    "mark": "lttd.clients.mark",
    "release": "lttd.clients.release",
    "reload": "lttd.clients.reload",
    "roll": "lttd.clients.roll",
    "status": "lttd.clients.status",
    "trigger": "lttd.clients.trigger",
}
"""The modules, by NAME; lttd.subcommand_help has a line of help for each."""


def run_subcommand(words: Sequence[str]) -> int:
    """Run ``lttd NAME ...``; return the exit status."""
    try:
        status: int = import_module(SUBCOMMANDS[words[0]]).run(words[1:])
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
