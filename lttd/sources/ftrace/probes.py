"""Make the dynamic events that a recording asks for: kprobes, uprobes, synthetic events, and so on.

    p:opens do_sys_openat2 file=+0($arg2):ustring     a place in the kernel
    r:ret vfs_read n=$retval:s64                      the return of a function
    p:alloc /lib/x86_64-linux-gnu/libc.so.6:0xa0d30   a place in a program
    e:who sched.sched_switch to=$next_comm:string     fields of another event

lttd reads the letter and the name; the rest is the kernel's.  The event is ``lttd:NAME``, and
``synthetic:NAME`` for an ``s``.

Rule: a name that exists is refused, because the kernel would add a second place to that event, and
both would end together.  Only a source of the same run may use the same probe: the first one has it
in its record, and is closed last.
Rule: deleting a probe empties every ring that ever recorded it.  So probes end after their
instance (undo.py), and those of a killed lttd after its ring was drained.
Rule: dynamic_events is never opened with O_TRUNC, which deletes every probe of the machine.
"""

import errno
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from lttd.errors import LockedError, LttdError, NothingToRecordError, SourceError, UsageError
from lttd.locks import lock_now
from lttd.parsers import shown
from lttd.runtime import Recorder
from lttd.sources.ftrace.additions import (
    PROBE_GROUP,
    PROBES_FILE,
    SYNTHETIC_GROUP,
    append_line,
    is_on,
    probe_name,
    probe_names,
)
from lttd.sources.ftrace.error_log import ErrorLog
from lttd.sources.ftrace.instance import Instance, hold_left
from lttd.sources.ftrace.record import glance, record_names
from lttd.sources.tracefs import EnableFile, explained, read_text

_PROBE: Final = r"([prfte]\d*|s):(?:([^/\s;]*)/)?([A-Za-z_]\w{0,63})([\s;].*)"
# The kernel takes a line of fewer than 4,094 bytes.
_MOST_BYTES: Final = 4000
# Another lttd that makes probes has the lock for some milliseconds; 5 s are many of them.
_ATTEMPTS: Final = 500
# lttd.service has directories of its own in their place (ProtectHome=, PrivateTmp=).
_PRIVATE: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
_EXAMPLE: Final = "write one as 'p:NAME SYMBOL', see docs/CONTROL.md"


class _Kind(NamedTuple):
    """A kind of dynamic events: its name, and words of tracefs's README if it is there."""

    name: str
    readme: str
    config: str


_UPROBE: Final = _Kind("uprobes", "<path>:<offset>", "CONFIG_UPROBE_EVENTS")
_KPROBE: Final = _Kind("kprobes", "[<module>:]<symbol>", "CONFIG_KPROBE_EVENTS")
_KINDS: Final[Mapping[str, _Kind]] = {
    "p": _KPROBE,
    "r": _KPROBE,
    "f": _Kind("fprobes", "<func-name>[%return]", "CONFIG_FPROBE_EVENTS"),
    "t": _Kind("tracepoint probes", "<tracepoint>", "CONFIG_FPROBE_EVENTS"),
    # Every README with dynamic events names them, also where they are not built.
    "e": _Kind("eprobes", "", "CONFIG_EPROBE_EVENTS"),
    "s": _Kind("synthetic events", "s:[synthetic/]", "CONFIG_SYNTH_EVENTS"),
}


class Probe(NamedTuple):
    """One dynamic event."""

    line: str
    """The line for dynamic_events."""
    event: str
    """``lttd:NAME`` or ``synthetic:NAME``."""

    @property
    def kind(self) -> _Kind:
        """What the kernel needs for it."""
        letter = self.line[0]
        is_of_program = letter in "pr" and self.line.partition(" ")[2].lstrip().startswith("/")
        return _UPROBE if is_of_program else _KINDS[letter]


def parse_probe(text: str) -> Probe:
    """Parse the letter, the group and the name of a probe.

    Raises:
        UsageError: it has none, or the group is not lttd's.
    """
    text = text.strip()
    found = re.fullmatch(_PROBE, text)
    if found is None or any(end in text for end in "\n\r\0"):
        raise UsageError(f"probe {shown(text)}: {_EXAMPLE}")
    letter, group, name, rest = found.groups()
    rest = rest.strip() if rest[0] != ";" else rest
    its = SYNTHETIC_GROUP if letter == "s" else PROBE_GROUP
    if group not in (None, its):
        why = f"its group is {its}, so that lttd can remove it"
        raise UsageError(f"probe {shown(text)}: {why}; leave out {group + '/'!r}")
    line = f"s:{name} {rest}" if letter == "s" else f"{letter}:{PROBE_GROUP}/{name} {rest}"
    if len(os.fsencode(line)) > _MOST_BYTES:
        raise UsageError(f"probe {name}: the kernel takes at most {_MOST_BYTES:,} bytes")
    return Probe(line, f"{its}:{name}")


def probe_events(texts: Sequence[str]) -> list[str]:
    """Return the name of each probe's event.

    Raises:
        UsageError: a text is not a probe.
    """
    return [parse_probe(text).event for text in texts]


def name_functions(texts: Sequence[str]) -> bool:
    """Tell whether the probes store addresses of kernel functions."""
    return any(parse_probe(text).kind in (_KPROBE, _KINDS["f"]) for text in texts)


def has_kernel_probes(root: str, path: str) -> bool:
    """Tell whether probes of lttd's that store addresses of kernel functions are on at *path*."""
    try:
        lines = read_text(f"{root}{PROBES_FILE}").splitlines()
    except LttdError:
        return False
    ours = [line for line in lines if re.match(rf"[prf]\d*:{PROBE_GROUP}/", line)]
    on = [line for line in ours if is_on(f"{path}/events/{probe_name(line)}/enable")]
    return name_functions(on)


def make_probes(instance: Instance, texts: Sequence[str]) -> None:
    """Make the probes, or keep those that a killed lttd left; if one is refused, remove all.

    Raises:
        UsageError: the kernel refuses one, with its words, or a name exists.
        NothingToRecordError: this kernel has no such probes.
    """
    probes = [parse_probe(text) for text in texts]
    events = [probe.event for probe in probes]
    if twice := [event for event in events if events.count(event) > 1]:
        raise UsageError(f"probe {twice[0]}: two have this name; give each its own")
    path = f"{instance.root}{PROBES_FILE}"
    with _locked(path):
        there = probe_names(read_text(path))
        new = [probe for probe in probes if probe_name(probe.line) not in there]
        for probe in probes:
            if probe not in new and probe.line not in instance.undo.added(PROBES_FILE):
                _use_existing(instance, probe)
        instance.undo.add(PROBES_FILE, [probe.line for probe in new])
        try:
            for probe in new:
                _make(instance.root, probe)
        except LttdError:
            instance.notes += instance.undo.take_back(PROBES_FILE, [probe.line for probe in new])
            raise


def refuse_disabled(instance: Instance, files: Sequence[EnableFile], texts: Sequence[str]) -> None:
    """Refuse a probe that the kernel made and cannot turn on: at no instruction of a program, say.

    Raises:
        UsageError: there is one.
    """
    for file in files:
        if file.name in probe_events(texts) and file.name not in instance.events:
            reason = next((note for note in instance.notes if note.startswith(file.path)), "")
            what = f"probe {file.name}: the kernel cannot turn it on"
            raise UsageError(f"{what}; see that its place is an instruction: {reason}")


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Keep other lttds from making probes; the kernel would accept a name twice.

    Raises:
        LockedError: somebody else keeps the file locked.
        NothingToRecordError: this kernel has no such file.
    """
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        what = f"{path}: this kernel has no dynamic events (CONFIG_DYNAMIC_EVENTS)"
        raise NothingToRecordError(what, "record its static events instead") from None
    except OSError as error:
        raise explained(path, error) from error
    try:
        # Whoever may read the file can lock it, and keep it so.
        lock_now(fd, lambda who: f"{path}: {who} has locked it; end that first", attempts=_ATTEMPTS)
        yield
    finally:
        os.close(fd)


def _use_existing(instance: Instance, probe: Probe) -> None:
    """Use a probe of another source of this run, or take over that of a killed lttd of the trace.

    The killed one's ring is drained after this run began, and must not take the probe with it.

    Raises:
        UsageError: somebody else's event has the name, or the same name is another probe.
    """
    name = probe_name(probe.line)
    if any(probe_name(line) == name for line in instance.undo.added(PROBES_FILE)):
        what = "an lttd that was killed left another probe of this name, and the ring holds events"
        raise UsageError(f"probe {probe.event}: {what}; record once without --probe, or rename it")
    for note in record_names():
        left = glance(note)
        added = left.added.get(PROBES_FILE) if left is not None and left.of_this_boot else None
        line = next((one for one in added.items if probe_name(one) == name), "") if added else ""
        if left is None or not line:
            continue
        where = left.owner.path
        if left.recorder == Recorder.this():
            if line == probe.line:
                return
            what = f"another source of this run has a probe of this name, {shown(line)}"
            raise UsageError(f"probe {probe.event}: {what}; give one of them another name")
        try:
            record = hold_left(note)
        except LockedError:
            what = f"the lttd with pid {left.recorder.pid} has a probe of this name"
            raise UsageError(f"probe {probe.event}: {what}; give it another name") from None
        if record is None:
            continue  # another lttd removed it just now
        try:
            if line != probe.line or not instance.owner.is_trace(left.owner):
                what = f"an lttd that was killed left it for {where}, as {shown(line)}"
                remedy = f"lttd --append -t {where} without --probe drains its ring and removes it"
                raise UsageError(f"probe {probe.event}: {what}; {remedy}")
            instance.undo.adopt(PROBES_FILE, [line])
            record.write_down({"taken_back": PROBES_FILE, "items": [line]})
        finally:
            record.release()
        return
    raise UsageError(
        f"probe {probe.event}: an event of this name exists, and would get a second place; give it"
        f" another name, or remove that: echo -:{name} >> {instance.root}{PROBES_FILE}"
    )


def _make(root: str, probe: Probe) -> None:
    log = ErrorLog(f"{root}/error_log")
    path = f"{root}{PROBES_FILE}"
    try:
        append_line(path, probe.line)
    except OSError as error:
        known = log.newest()
        if known is not None:
            raise UsageError(f"probe {probe.event}: {known}{_why_hidden(probe)}") from None
        if not takes(root, probe.kind):
            raise _lacks(probe, error) from None
        if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENODEV, errno.EEXIST, errno.EILSEQ):
            raise UsageError(_refused(probe, error)) from None
        raise explained(path, error, f"writing {shown(probe.line)}: ") from error
    if probe_name(probe.line) not in probe_names(read_text(path)):
        raise SourceError(f"{path}: the kernel took {shown(probe.line)}, and does not list it")


def takes(root: str, kind: _Kind) -> bool:
    """Tell whether the kernel's README names a kind of probes."""
    try:
        return kind.readme in read_text(f"{root}/README")
    except LttdError:
        return True


def kinds_of(root: str) -> dict[str, bool]:
    """Return the kinds of probes by name, and whether the kernel has each; without unknown ones."""
    kinds = dict.fromkeys((_KPROBE, _UPROBE, *_KINDS.values()))
    return {kind.name: takes(root, kind) for kind in kinds if kind.readme}


def _lacks(probe: Probe, error: OSError) -> LttdError:
    kind = probe.kind
    what = f"probe {probe.event}: this kernel has no {kind.name} ({kind.config}):"
    return NothingToRecordError(f"{what} {error.strerror}", "record static events, or uprobes")


def _why_hidden(probe: Probe) -> str:
    """Return words for a program that this process does not see, if a unit may hide it."""
    program = probe.line.split()[1].rpartition(":")[0]
    directory = next((each for each in _PRIVATE if program.startswith(f"{each}/")), "")
    if not directory or os.path.exists(program):
        return ""
    return f"; a service does not see files below {directory}, see docs/SYSTEMD.md"


def _refused(probe: Probe, error: OSError) -> str:
    """Return words for a refusal that the kernel's log does not explain."""
    hints = {
        "e": "see that its event exists, and that the kernel has CONFIG_EPROBE_EVENTS",
        "s": "see the types and names of its fields",
    }
    hint = hints.get(probe.line[0], "see that its symbol or file exists, and its arguments")
    if probe.line[0] == "t" and error.errno == errno.EEXIST:
        # Linux kernel/tracepoint.c, tracepoint_add_func(), up to 6.12 at least.
        hint = "a tracepoint takes one probe, and another has it; see dynamic_events"
    return f"probe {probe.event}: the kernel refuses {shown(probe.line)}: {error.strerror}; {hint}"
