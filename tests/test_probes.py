"""Probes that a user asks for: their form, their names, and the records of them."""

import fcntl
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lttd.controls import CONTROLS
from lttd.errors import LockedError, UsageError
from lttd.sources.ftrace import probes
from lttd.sources.ftrace.additions import PROBES_FILE, addition_of, probe_name, probe_names
from lttd.sources.ftrace.instance import Instance
from lttd.sources.ftrace.probes import make_probes, parse_probe
from lttd.sources.ftrace.undo import Undo
from lttd.sources.table import SOURCES, keeps_commas


@pytest.mark.parametrize(
    ("text", "line", "event"),
    [
        ("p:k1 vfs_read", "p:lttd/k1 vfs_read", "lttd:k1"),
        (" p:lttd/k1  vfs_read+4 n=$arg3 ", "p:lttd/k1 vfs_read+4 n=$arg3", "lttd:k1"),
        ("r16:kr vfs_read $retval", "r16:lttd/kr vfs_read $retval", "lttd:kr"),
        ("p:u /a/b, c.so:0x10 a=%di", "p:lttd/u /a/b, c.so:0x10 a=%di", "lttd:u"),
        ("f:f1 vfs_read%return", "f:lttd/f1 vfs_read%return", "lttd:f1"),
        ("t:t1 sched_switch", "t:lttd/t1 sched_switch", "lttd:t1"),
        ("e:e1 sched/sched_switch", "e:lttd/e1 sched/sched_switch", "lttd:e1"),
        ("s:lat u64 lat; pid_t pid", "s:lat u64 lat; pid_t pid", "synthetic:lat"),
        ("s:synthetic/lat u64 lat", "s:lat u64 lat", "synthetic:lat"),
    ],
)
def test_a_probe_is_put_into_the_group_of_lttd(text: str, line: str, event: str) -> None:
    probe = parse_probe(text)
    assert (probe.line, probe.event) == (line, event)
    assert probe_name(line) == event.replace(":", "/")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "write one as 'p:NAME SYMBOL'"),
        ("p vfs_read", "write one as 'p:NAME SYMBOL'"),
        ("p:k1", "write one as 'p:NAME SYMBOL'"),
        ("-:k1 x", "write one as 'p:NAME SYMBOL'"),
        ("x:k1 vfs_read", "write one as 'p:NAME SYMBOL'"),
        ("p:k-1 vfs_read", "write one as 'p:NAME SYMBOL'"),
        ("p:k1 vfs_read\n-:lttd/k2", "write one as 'p:NAME SYMBOL'"),
        ("p:" + "k" * 65 + " vfs_read", "write one as 'p:NAME SYMBOL'"),
        ("p:kprobes/k1 vfs_read", "its group is lttd, so that lttd can remove it"),
        ("p:lttd/x/k1 vfs_read", "write one as 'p:NAME SYMBOL'"),
        ("s:lttd/lat u64 lat", "its group is synthetic"),
        ("p:k1 vfs_read " + "a" * 4000, "at most 4,000 bytes"),
    ],
)
def test_another_form_of_a_probe_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parse_probe(text)
    assert "\n" not in str(caught.value)


@given(st.text() | st.from_regex(r"[prftes]:(\w+/)?\w+ .*", fullmatch=True))
def test_any_probe_that_is_taken_can_be_recorded_and_taken_back(text: str) -> None:
    try:
        probe = parse_probe(text)
    except UsageError:
        return
    row = addition_of(PROBES_FILE)
    assert row is not None
    assert re.fullmatch(row.item, probe.line)
    assert row.name_of(probe.line).replace("/", ":") == probe.event


def test_the_names_of_a_kernels_list_are_read() -> None:
    text = (
        "p:lttd/u1 /bin/ls:0x0000000000006000 a=%di\nr10:lttd/kr vfs_read\n"
        "e:lttd/e1 sched.sched_switch\ns:synthetic/lat\tu64 lat; char[16] comm\n"
    )
    assert probe_names(text) == {"lttd/u1", "lttd/kr", "lttd/e1", "synthetic/lat"}


def test_probe_is_a_key_of_the_source_and_keeps_its_commas() -> None:
    assert "probe" in SOURCES["ftrace"].keys
    assert keeps_commas("ftrace", "probe")
    assert "probe" in CONTROLS


def test_a_lock_that_somebody_keeps_on_the_list_of_probes_ends_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "dynamic_events"
    file.touch()
    monkeypatch.setattr(probes, "_ATTEMPTS", 2)
    instance = Instance(str(tmp_path), str(tmp_path), "top", False, {}, Undo(str(tmp_path)))
    with file.open() as kept:
        fcntl.flock(kept, fcntl.LOCK_EX)
        with pytest.raises(LockedError, match=r"dynamic_events: .* has locked it; end that first"):
            make_probes(instance, ["p:k1 vfs_read"])
