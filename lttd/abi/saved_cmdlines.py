"""Make a recording's ``tracefs/commands`` of the kernel's ``saved_cmdlines``, which has no times.

    saved_cmdlines := (pid " " command LF)*      saved_tgids := (pid " " tgid LF)*
    commands       := (time TAB pid TAB tgid TAB command LF)*

Rule: a name that the kernel did not know (``<...>``) is none.
"""

from collections.abc import Iterator

from lttd.limits import COMMAND_LINES


def commands_of(saved_cmdlines: bytes, saved_tgids: bytes = b"") -> bytes:
    """Return the content of ``tracefs/commands``, at the time 0; of equal pids the last counts."""
    tgids = dict(_pairs(saved_tgids))
    names = {pid: name for pid, name in _pairs(saved_cmdlines) if name != b"<...>"}
    return b"".join(
        b"0\t%b\t%b\t%b\n" % (pid, tgids.get(pid, b""), name.replace(b"\\", b"\\\\"))
        for pid, name in names.items()
    )


def _pairs(text: bytes) -> Iterator[tuple[bytes, bytes]]:
    for line in text.split(b"\n", COMMAND_LINES.most)[: COMMAND_LINES.most]:
        pid, _, rest = line.partition(b" ")
        if pid.isdigit():
            yield pid, rest
