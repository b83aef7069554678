"""Where events of CTF begin: events of variable size, places that only look like events, tables."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lttd.abi import ctf_events, ctf_walk
from lttd.abi.ctf_bits import Bits
from lttd.abi.ctf_forms import forms_of
from lttd.abi.ctf_guess import Guess
from lttd.abi.ctf_heads import Packets, heads_of
from lttd.abi.ctf_metadata import read_metadata
from lttd.abi.ctf_plan import Plan
from lttd.abi.ctf_sizes import Sizes
from tests import ctf_model

CONTENT = """/* CTF 1.8 */
typealias integer { size = 8; align = 8; } := u8;
typealias integer { size = 16; align = 8; } := u16;
typealias integer { size = 32; align = 8; } := u32;
typealias integer { size = 64; align = 8; } := u64;
trace { major = 1; minor = 8; byte_order = ORDER; };
clock { name = "c"; };
stream { id = 0; HEADER
    event.context := struct { u32 tid; }; };
event { name = "fixed"; id = 0; stream_id = 0; fields := struct { u64 a; u64 b; u32 c; }; };
event { name = "texts"; id = 1; stream_id = 0; fields := struct {
    u8 a; string one; u16 b; string two; }; };
event { name = "lists"; id = 2; stream_id = 0; fields := struct {
    u8 n; u16 list[n]; string text; u32 m; u64 more[m]; u8 last; }; };
event { name = "variant"; id = ID; stream_id = 0; fields := struct {
    enum : u8 { small = 0, large = 1 } tag; variant <tag> { u8 small; u64 large; } value; }; };
"""
COMPACT = """event.header := struct {
    enum : integer { size = 5; align = 1; } { compact = 0 ... 30, extended = 31 } id;
    variant <id> {
        struct { integer { size = 27; align = 1; map = clock.c.value; } timestamp; } compact;
        struct { u32 id; integer { size = 64; map = clock.c.value; } timestamp; } extended;
    } v; } align(8);"""
LARGE = "event.header := struct { u16 id; integer { size = 32; map = clock.c.value; } timestamp; };"
WIDE = "event.header := struct { u32 id; integer { size = 64; map = clock.c.value; } timestamp; };"


class Stream:
    """A packet without a header, of random events."""

    def __init__(
        self,
        seed: int,
        header: str,
        order: str,
        events: int,
        few: tuple[int, ...] = (),
        last: int = 0,
    ) -> None:
        """*few*: the only ids to choose from; *last*: that of the event with a variant."""
        self.random = random.Random(seed)
        last = last or (70_000 if header == COMPACT else 9)
        ids = few or (0, 1, 2, last)
        text = CONTENT.replace("HEADER", header).replace("ORDER", order).replace("ID", str(last))
        trace = read_metadata(text.encode())
        self.stream = trace.streams[0]
        self.plan = Plan(trace, self.stream)
        self.at: list[int] = []
        self.ids: list[int] = []
        self.times: list[int] = []
        bits = ctf_model.Bits()
        time = 1 << 40
        for _ in range(events):
            time += self.random.choice([1, 500, 1 << 20])
            event_id = self.random.choice(ids)
            self.at.append(bits.at // 8)
            self.ids.append(event_id)
            self.times.append(time)
            self.encode(event_id, time, bits)
        self.data = bytes(bits.raw)

    def encode(self, event_id: int, time: int, bits: ctf_model.Bits) -> None:
        header = self.stream.event_header
        assert header
        if "v" not in dict(header.members):
            size = header.members[1][1].size_bits  # type: ignore[union-attr]
            ctf_model.encode(header, {"id": event_id, "timestamp": time % (1 << size)}, bits)
        elif event_id > 30:
            wide = {"id": event_id, "timestamp": time}
            ctf_model.encode(header, {"id": 31, "v": ("extended", wide)}, bits)
        else:
            short = {"timestamp": time % (1 << 27)}
            ctf_model.encode(header, {"id": event_id, "v": ("compact", short)}, bits)
        assert self.stream.event_context
        ctf_model.encode(self.stream.event_context, {"tid": self.random.choice([0, 7])}, bits)
        payload = self.stream.events[event_id].payload
        assert payload
        ctf_model.encode(payload, self.values(event_id), bits)

    def values(self, event_id: int) -> dict[str, object]:
        draw = self.random
        texts = [bytes(draw.choices(range(1, 256), k=draw.choice([0, 5, 40, 300]))) for _ in "ab"]
        lists = [[draw.choice([0, 1, 999]) for _ in range(draw.randrange(6))] for _ in "ab"]
        large = draw.random() < 0.5
        varied = {"tag": int(large), "value": ("large" if large else "small", 5)}
        return {
            0: {"a": 0, "b": draw.getrandbits(64), "c": 0},
            1: {"a": 0, "one": texts[0], "b": 1, "two": texts[1]},
            2: {"n": len(lists[0]), "list": lists[0], "text": texts[0], "m": len(lists[1]),
                "more": lists[1], "last": 3},
        }.get(event_id, varied)  # fmt: skip

    def packets(self, end_bytes: int) -> Packets:
        one = np.array([0])
        return Packets(one, one, np.array([end_bytes * 8]), np.array([1 << 40], np.uint64))

    def walked(self, data: bytes, chunk: int, monkeypatch: pytest.MonkeyPatch) -> ctf_events.Walked:
        monkeypatch.setattr(ctf_walk, "_CHUNK_BYTES", chunk)
        (found,) = ctf_events.walk(Bits(data), self.packets(len(data)), self.plan)
        return found


@pytest.mark.parametrize("order", ["le", "be"])
@pytest.mark.parametrize("header", [COMPACT, LARGE, WIDE], ids=["compact", "large", "wide"])
@pytest.mark.parametrize("chunk", [64, 700, 1 << 20])
def test_events_with_strings_and_sequences_are_found_in_chunks_of_any_size(
    header: str, order: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(2):
        stream = Stream(seed, header, order, events=100)
        found = stream.walked(stream.data, chunk, monkeypatch)
        assert found.damage == []
        assert found.at.tolist() == stream.at
        assert [stream.plan.events[number].id for number in found.number] == stream.ids
        assert found.time.tolist() == stream.times


@pytest.mark.parametrize("header", [COMPACT, LARGE], ids=["compact", "large"])
def test_a_stream_cut_anywhere_has_the_events_before_the_cut(
    header: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream(5, header, "le", events=40)
    ends = [*stream.at[1:], len(stream.data)]
    for cut in range(1, len(stream.data), 111):
        for chunk in (64, 1 << 20):
            found = stream.walked(stream.data[:cut], chunk, monkeypatch)
            whole = sum(end <= cut for end in ends)
            assert found.at.tolist() == stream.at[:whole]
            inside = cut not in ends[:whole]
            assert [one.offset_bytes for one in found.damage] == stream.at[whole:][:inside]


def test_a_length_beyond_the_content_is_damage_where_its_event_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = Stream(1, LARGE, "le", events=60)
    number = next(at for at, one in enumerate(stream.ids) if one == 2 and at > 20)
    at = stream.at[number]
    data = bytearray(stream.data)
    data[at + 10] = 255  # n, after 6 bytes of header and 4 of context
    found = stream.walked(bytes(data[: at + 200]), 64, monkeypatch)
    assert found.at.tolist() == stream.at[:number]
    (damage,) = found.damage
    assert damage.offset_bytes == at
    assert "lists: " in damage.reason


@pytest.mark.parametrize(
    ("few", "last"),
    [((*[0] * 60, 2), 9), ((0, 0, 0, 5), 5), ((5,), 5)],
    ids=["lists", "some", "all"],
)
def test_nearly_every_chunk_is_guessed_right_though_most_bytes_look_like_events(
    few: tuple[int, ...], last: int
) -> None:
    # Fields of 0 look like an event of id 0 at time 0, wherever they are; and the size of an event
    # with a variant is known only once its fields are read.
    stream = Stream(3, COMPACT, "le", events=1200, few=few, last=last)
    quick = stream.plan.quick
    assert quick is not None
    bits, packets = Bits(stream.data), stream.packets(len(stream.data))
    walk = ctf_walk.Walk(bits, packets, stream.plan)
    guess = Guess(bits, Sizes(bits, packets, stream.plan, quick), 1, walk.next_of)
    begin = np.arange(4096, len(stream.data) - 8192, 1024)
    found = guess.places(begin, begin + 1024, np.zeros(len(begin), np.int64))
    right = np.isin(found, stream.at)
    assert right.sum() > 0.8 * len(begin)


def test_forms_of_a_header_say_where_ids_and_times_are() -> None:
    for header, sizes in ((COMPACT, [4, 13]), (LARGE, [6]), (WIDE, [12])):
        stream = Stream(0, header, "be", events=1)
        forms = forms_of(stream.stream.event_header)
        assert forms is not None
        assert [form.end_bits // 8 for form in forms.all] == sizes
        bits, at = Bits(stream.data + bytes(16)), np.array([0])
        heads = heads_of(bits, at, at, np.array([1 << 20]), stream.plan)
        form = forms.all[-1 if stream.ids[0] > 30 else 0]
        assert form.time is not None
        assert form.time.read(bits, at).tolist() == heads.time.tolist()
        assert form.end_bits == heads.behind[0]


@given(st.binary(max_size=700), st.data())
@settings(max_examples=60, deadline=None)
def test_the_first_nul_is_found_as_bytes_find_does(raw: bytes, data: st.DataObject) -> None:
    raw = raw.replace(b"\0", b"x" * data.draw(st.sampled_from([1, 30, 120]))) + b"\0" * 3
    places = st.integers(0, len(raw))
    begin = data.draw(st.lists(places, min_size=1, max_size=9))
    end = [data.draw(st.integers(at, len(raw))) for at in begin]
    found = Bits(raw).nuls(np.array(begin), np.array(end))
    expected = [
        place if (place := raw.find(0, low, high)) >= 0 else high
        for low, high in zip(begin, end, strict=True)
    ]
    assert found.tolist() == expected
