"""Set options of an instance: stacks of events, and any other file below ``options``.

    sym-userobj    userstacktrace=1    noirq-info

Rule: an option that has a key of its own is set by that alone.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Final

from lttd.errors import LttdError, UsageError
from lttd.parsers import nearest, parse_bool, shown
from lttd.sources.ftrace.instance import Instance
from lttd.sources.tracefs import read_text

STACK: Final = "stacktrace"
USER_STACK: Final = "userstacktrace"
OF_KEYS: Final[Mapping[str, str]] = {
    "overwrite": "overwrite",
    STACK: "stack",
    USER_STACK: "user-stack",
}
"""The options that have a key of their own."""
_NOT: Final = "no"


def set_stacks(instance: Instance, *, kernel: bool | None, user: bool | None) -> None:
    """Have the kernel store the stack with every event; None leaves the option as it is.

    Raises:
        UsageError: this kernel cannot.
    """
    for name, value in ((STACK, kernel), (USER_STACK, user)):
        if value is None:
            continue
        if not os.path.exists(instance.file(f"options/{name}")):
            if not value:
                continue
            raise UsageError(f"{OF_KEYS[name]}: this kernel has no option {name}; leave it out")
        _set(instance, name, value=value)


def set_options(instance: Instance, texts: Iterable[str]) -> None:
    """Set each option of the form ``NAME``, ``NAME=VALUE`` or ``noNAME``.

    Raises:
        UsageError: a text has another form, or this kernel has no such option.
    """
    wanted: dict[str, bool] = {}
    for text in texts:
        name, value = _parsed(instance, text)
        if wanted.get(name, value) != value:
            raise UsageError(f"option {name} is asked for with both values; write it once")
        wanted[name] = value
    for name, value in wanted.items():
        _set(instance, name, value=value)


def _parsed(instance: Instance, text: str) -> tuple[str, bool]:
    """Return the name of an option and its value."""
    known = _known(instance)
    name, equals, written = (part.strip() for part in text.partition("="))
    try:
        value = parse_bool(written) if equals else True
    except UsageError as error:
        raise UsageError(f"option {name}: {error}") from None
    if name not in known and name.startswith(_NOT):
        name, value = name.removeprefix(_NOT), not value
    if name in OF_KEYS:
        raise UsageError(f"option {name}: write {OF_KEYS[name]} instead")
    if name not in known:
        near = nearest(name, known)
        advice = f"did you mean {near}?" if near else f"see {instance.file('options')}"
        raise UsageError(f"option {shown(text)}: this kernel has none of this name here; {advice}")
    return name, value


def _known(instance: Instance) -> list[str]:
    try:
        return os.listdir(instance.file("options"))
    except OSError:
        return []


def _set(instance: Instance, name: str, *, value: bool) -> None:
    file, text = f"options/{name}", str(int(value))
    try:
        instance.undo.change(file, text)
    except LttdError as error:
        raise UsageError(f"option {name}: {error}") from error
    if read_text(instance.file(file)) != text:
        raise UsageError(f"option {name}: the kernel kept {1 - value}; leave it out")
