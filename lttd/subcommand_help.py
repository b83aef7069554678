"""The help of each subcommand, which ``lttd --help`` prints without loading any of them."""

from collections.abc import Mapping
from typing import Final

HELP: Final[Mapping[str, str]] = {
    "doctor": "print what this machine allows, with remedies",
    "presets": "list the groups of events of --preset, and what they cost",
    "status": "print what a running lttd does",
    "trigger": "keep a window of time around now",
    "mark": "write a line into the recording, at this moment",
    "keep": "let retention delete no segment of these numbers",
    "release": "let retention delete segments again",
    "roll": "let it close its segments and go on in new ones",
    "reload": "let it read its configuration file again",
}


def help_lines() -> str:
    """Return a line for each subcommand."""
    width = max(map(len, HELP))
    return "\n".join(f"  lttd {name:{width}}   {text}" for name, text in HELP.items())
