"""The keys of ``lttng`` become channels; lttd refuses those that no kernel takes, in one line."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from lttd.config import SourceSpec, parse_command_line, parse_spec
from lttd.errors import NothingToRecordError, SourceError, UsageError
from lttd.sources.base import Request
from lttd.sources.lttng.reload import changed
from lttd.sources.lttng.session import PATH, Channel
from lttd.sources.lttng.source import open_source
from lttd.sources.lttng.wanted import DEFAULT_CHANNEL, Asked, Kprobe, Wanted, channels_of, matching
from lttd.sources.registry import parsed_options
from lttd.subbuffer import BufferPool

READY = Path(__file__).parents[1] / "systemd/lttng-channels.toml"


def channels(spec: str) -> dict[str, Wanted]:
    return channels_of(parsed_options(parse_spec(spec)))


def from_file(path: Path) -> SourceSpec:
    (spec,) = parse_command_line(["--config", str(path), "--trace-dir", "/t"]).sources
    return spec


def test_a_spec_describes_one_channel() -> None:
    spec = "lttng:mine,events=sched_switch,irq_*,syscalls=openat,context=procname,tid"
    (wanted,) = channels(spec).values()
    assert wanted.events == ("sched_switch", "irq_*")
    assert wanted.syscalls == ("openat",)
    assert wanted.context == ("procname", "tid")
    assert list(channels("lttng")) == [DEFAULT_CHANNEL]


def test_the_ready_configuration_has_the_channels_of_the_roadmap() -> None:
    spec = from_file(READY)
    assert spec.kind == "lttng"
    found = channels_of(parsed_options(spec))
    assert list(found) == ["cpu", "interrupts", "modules", "network", "processes"]
    assert all(wanted.context == ("procname", "tid") for wanted in found.values())
    assert [size * count >> 20 for size, count in (each.geometry for each in found.values())] == [
        4, 4, 1, 2, 1,
    ]  # fmt: skip


def test_a_channel_of_a_file_overrides_the_keys_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "lttd.toml"
    path.write_text(
        '[[source]]\nkind = "lttng"\noverwrite = true\nread-timer = "10ms"\n'
        '[source.channel.one]\nevents = "sched_*"\n'
        '[source.channel.two]\nsyscalls = ["*"]\noverwrite = false\nkprobe = ["a=do_exit"]\n'
    )
    spec = from_file(path)
    found = channels_of(parsed_options(spec))
    assert [found[name].overwrite for name in ("one", "two")] == [True, False]
    assert [found[name].read_timer for name in ("one", "two")] == [0.01, 0.01]
    assert found["two"].kprobes == [Kprobe("a", "do_exit", 0)]
    assert str(spec) == "lttng,overwrite=True,read-timer=10ms,channel=one,two"


@pytest.mark.parametrize(
    ("keys", "geometry"),
    [
        ("", (256 << 10, 16)),
        ("buffer-size=1M", (256 << 10, 4)),
        ("buffer-size=64K", (16 << 10, 4)),
        ("buffer-size=8K", (4 << 10, 2)),
        ("subbuffer-size=4M", (4 << 20, 4)),
        ("buffer-size=1M,subbuffers=2", (512 << 10, 2)),
        ("subbuffer-size=4K,subbuffers=2", (4096, 2)),
    ],
)
def test_two_of_three_sizes_decide_the_third(keys: str, geometry: tuple[int, int]) -> None:
    (wanted,) = channels(f"lttng,{keys}" if keys else "lttng").values()
    assert wanted.geometry == geometry


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("buffer-size=1M,subbuffer-size=256K,subbuffers=4", "write two of"),
        ("buffer-size=3M", "powers of two"),
        ("subbuffers=3", "powers of two"),
        ("subbuffers=1", "subbuffers 1"),
        ("subbuffer-size=1K", "at least 4K"),
        ("buffer-size=2G", "at most 1G"),
        ("context=procnam", "did you mean procname"),
        ("context=xyzzy", "write pid, procname"),
        ("kprobe=do_exit", "NAME=SYMBOL"),
        ("kprobe=a=b+zz", "NAME=SYMBOL"),
        ("read-timer=0", "read-timer 0"),
        ("switch-timer=10us", "from 1ms"),
    ],
)
def test_what_no_kernel_takes_is_refused(keys: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as raised:
        channels(f"lttng,{keys}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[source.channel.metadata]\nevents = "a"', "'metadata' is the name of the file"),
        ('[source.channel."a/b"]\nevents = "a"', "write letters"),
        ("[source.channel.a]\nsubbuffers = 4", "records nothing"),
        ('[source.channel.a]\nevent = "a"', "'event' is not a key"),
        ('[source.channel.a]\nsubbuffers = "x"', "a: subbuffers 'x'"),
        ('events = "a"\n[source.channel.a]\nevents = "b"', "events beside channels"),
        ('channel = "a"', "write a table"),
        ("channel = {}", "write a table"),
        ("channel = {a = 3}", "not a table"),
    ],
)
def test_impossible_channels_of_a_file_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "lttd.toml"
    path.write_text(f'[[source]]\nkind = "lttng"\n{text}\n')
    with pytest.raises(UsageError, match=said) as raised:
        channels_of(parsed_options(from_file(path)))
    assert "\n" not in str(raised.value)


def test_tables_deeper_than_a_channel_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lttd.toml"
    path.write_text('[[source]]\nkind = "lttng"\n[source.channel.a.b]\nevents = "a"\n')
    with pytest.raises(UsageError, match="nested too deeply"):
        from_file(path)


def test_a_name_that_the_kernel_would_accept_silently_is_refused() -> None:
    known = ["sched_switch", "sched_wakeup", "irq_handler_entry"]
    assert matching(["sched_*", "sched_switch"], known, "tracepoint", "") == known[:2]
    with pytest.raises(NothingToRecordError, match=r"'sched_swich'; did you mean sched_switch\?"):
        matching(["sched_swich"], known, "tracepoint", "load it")
    with pytest.raises(NothingToRecordError, match="'net_\\*'; load it"):
        matching(["net_*"], known, "tracepoint", "load it")


class NotedChannel(Channel):
    """A channel without a kernel; it notes what is asked of it."""

    def __init__(self, name: str, wanted: Wanted, refused: str = "") -> None:
        super().__init__(name, -1, wanted)
        self.refused = refused
        self.noted: list[str] = []

    def declare(self, asked: Asked) -> None:
        if asked.glob == self.refused:
            raise SourceError("no memory")
        self.noted.append(f"declare {asked.glob}")

    def switch_events(self, some: Iterable[Asked], *, on: bool) -> None:
        self.noted += [f"{'on' if on else 'off'} {asked.glob}" for asked in sorted(some)]

    def forget(self, some: Iterable[Asked]) -> None:
        self.noted += [f"forget {asked.glob}" for asked in sorted(some)]


def test_a_reload_declares_new_events_before_it_records_them() -> None:
    channel = NotedChannel("channel0", Wanted(events=("a", "b")))
    followed: list[bool] = []
    wanted = channels("lttng,events=b,c,syscalls=read")
    change = changed([channel], wanted, lambda: followed.append(True))
    change.announce()
    assert channel.noted == ["declare c", "declare read"]
    assert not followed
    channel.noted.clear()
    change.make()
    assert channel.noted == ["on c", "on read", "off a", "forget a"]
    assert channel.wanted == wanted["channel0"]
    assert followed
    channel.noted.clear()
    changed([channel], wanted, lambda: None).make()
    assert channel.noted == []


def test_a_reload_that_the_kernel_refuses_leaves_no_event_behind() -> None:
    channel = NotedChannel("channel0", Wanted(events=("a",)), refused="c")
    change = changed([channel], channels("lttng,events=b,c"), lambda: None)
    with pytest.raises(SourceError, match="no memory"):
        change.announce()
    assert channel.noted == ["declare b", "forget b", "forget c"]
    assert channel.wanted.events == ("a",)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"other": Wanted(events=("a",))}, "takes no other channels"),
        ({"one": Wanted(events=("a",), context=("tid",))}, "channel one: only its events"),
        ({"one": Wanted(events=("a",), overwrite=True)}, "channel one: only its events"),
    ],
)
def test_a_reload_that_needs_another_session_is_refused(
    wanted: dict[str, Wanted], said: str
) -> None:
    channel = NotedChannel("one", Wanted(events=("a",)))
    with pytest.raises(UsageError, match=said):
        changed([channel], wanted, lambda: None)


@pytest.mark.parametrize("name", ["a b", "x" * 201, "ä", "a/b", '"'])
def test_the_name_of_a_session_is_plain(name: str) -> None:
    with pytest.raises(UsageError, match="lttng: session"):
        open_source(request(name))


def request(name: str) -> Request:
    return Request(name, {}, BufferPool())


@pytest.mark.skipif(Path(PATH).exists(), reason="lttng-modules is loaded here")
def test_absent_modules_are_named_with_the_command_that_loads_them() -> None:
    with pytest.raises(NothingToRecordError, match="modprobe -a lttng-tracer"):
        open_source(request(""))
