"""Random programs that log to an LTTng 0.x kernel: markers with any fields, and their events."""

from dataclasses import dataclass, field

from hypothesis import strategies as st

from tests.segment_builder_ltt import LttBuffer, Marker, Tracer, describe

# The declaration of a field, and the form that the tracer stores; "w" is the width of a long.
DECLARED = {
    "%d": "i4", "%u": "u4", "%hu": "u2", "%hd": "i2", "%lu": "uw", "%ld": "iw", "%lX": "uw",
    "%llu": "u8", "%lld": "i8", "%zu": "uw", "%p": "uw", "%c": "u1", "#1u%u": "u1", "#1x%c": "u1",
    "#2d%ld": "i2", "#2u%u": "u2", "#4u%lu": "u4", "#8u%llu": "u8", "#p%lu": "uw", "#p%ld": "uw",
    "#n2u%hu": "n2", "#n4u%lu": "n4", "%s": "s",
}  # fmt: skip
Value = int | bytes


@dataclass(frozen=True)
class LoggedMarker:
    """A marker of a program, with the stored form of its fields."""

    marker: Marker
    stored: tuple[str, ...]
    """The forms that Tracer.pack() takes."""
    network: tuple[bool, ...]

    @property
    def largest(self) -> int:
        return max((int(form[1:]) for form in self.stored if form != "s"), default=1)

    def payload(self, tracer: Tracer, values: tuple[Value, ...]) -> bytes:
        told = []
        for form, network, value in zip(self.stored, self.network, values, strict=True):
            if network and isinstance(value, int):
                raw = value.to_bytes(int(form[1:]), "big")
                value = int.from_bytes(raw, tracer.endian)  # type: ignore[arg-type]  # noqa: PLW2901
            told.append((form, value))
        return tracer.pack(*told)


def logged_marker(tracer: Tracer, marker: Marker, declared: list[str]) -> LoggedMarker:
    stored = [DECLARED[one].replace("w", str(tracer.pointer_bytes)) for one in declared]
    return LoggedMarker(
        marker,
        tuple(one.replace("n", "u") for one in stored),
        tuple(one[0] == "n" for one in stored),
    )


@dataclass
class Program:
    """A tracer, the markers of one channel, and its events as (marker, values, TSC)."""

    tracer: Tracer
    markers: list[LoggedMarker]
    events: list[tuple[LoggedMarker, tuple[Value, ...], int]] = field(default_factory=list)
    subbuffer_bytes: int = 4096

    def metadata(self) -> LttBuffer:
        buffer = LttBuffer(self.tracer, 1 << 16)
        tsc = self.tracer.start_tsc
        for number, logged in enumerate(self.markers):
            describe(buffer, logged.marker, tsc + number)
        buffer.finalize(tsc + len(self.markers))
        return buffer

    def channel(self) -> LttBuffer:
        buffer = LttBuffer(self.tracer, self.subbuffer_bytes, count=256)
        for logged, values, tsc in self.events:
            payload = logged.payload(self.tracer, values)
            assert buffer.log(logged.marker.id, payload, tsc, logged.largest)
        buffer.finalize(self.events[-1][2] if self.events else self.tracer.start_tsc)
        return buffer


def value_of(form: str) -> st.SearchStrategy[Value]:
    if form == "s":
        text = st.binary(max_size=20) | st.integers(0, 900).map(lambda size: b"x" * size)
        return text.map(lambda raw: raw.replace(b"\0", b"-"))
    bits = 8 * int(form[1:])
    low, high = (-(1 << bits - 1), 1 << bits - 1) if form[0] == "i" else (0, 1 << bits)
    return st.integers(low, high - 1)


@st.composite
def tracers(draw: st.DrawFn) -> Tracer:
    pointer_bytes = draw(st.sampled_from((4, 8)))
    return Tracer(
        minor=draw(st.integers(0, 6)),
        order=draw(st.sampled_from("<>")),
        pointer_bytes=pointer_bytes,
        alignment=draw(st.sampled_from((0, pointer_bytes))),
        start_tsc=draw(st.integers(1, 1 << 50)),
        sized=draw(st.booleans()),
    )


@st.composite
def programs(draw: st.DrawFn, most_events: int = 60) -> Program:
    tracer = draw(tracers())
    declared = st.lists(st.sampled_from(sorted(DECLARED)), max_size=6)
    markers = []
    # Ids 0 and 1 belong to the metadata.
    ids = draw(st.lists(st.integers(2, 60), min_size=1, max_size=5, unique=True))
    for number, one in enumerate(ids):
        fields = draw(declared)
        text = " ".join(f"f{at} {how}" for at, how in enumerate(fields))
        markers.append(logged_marker(tracer, Marker("kernel", f"m{number}", one, text), fields))
    events = []
    tsc = tracer.start_tsc
    for _ in range(draw(st.integers(0, most_events))):
        logged = draw(st.sampled_from(markers))
        step = draw(st.integers(0, 1000) | st.sampled_from((1 << 26, (1 << 27) - 1, 1 << 27)))
        tsc += draw(st.sampled_from((1, 1 << 10))) * step
        events.append((logged, tuple(draw(value_of(one)) for one in logged.stored), tsc))
    return Program(tracer, markers, events, draw(st.sampled_from((4096, 8192))))
