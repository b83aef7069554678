"""Write the ``metadata`` of a CTF 1.8 trace: a text, made last, with the types that occurred.

Names get a leading underscore, which readers remove, so that no name is a keyword.
Source of the language: the Common Trace Format specification, version 1.8.3, section 7 and annex C.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping

from lttd.abi.ftrace_format import Encoding, Field
from lttd.clock import Snapshot
from lttd.view.export.ctf_events import CtfType, is_text

_SECOND_NS = 1_000_000_000


def metadata(
    byteorder: str,
    clock: str,
    snapshot: Snapshot | None,
    environment: Mapping[str, str],
    types: Iterable[CtfType],
) -> str:
    """Return the whole text; *snapshot* gives the wall-clock time of the trace clock's zero."""
    order = "le" if byteorder == "<" else "be"
    parts = [
        "/* CTF 1.8 */\n",
        *(_alias(bits, signed=signed) for bits in (8, 16, 32, 64) for signed in (False, True)),
        "trace {\n\tmajor = 1;\n\tminor = 8;\n"
        f"\tbyte_order = {order};\n"
        "\tpacket.header := struct {\n\t\tuint32_t magic;\n\t\tuint32_t stream_id;\n\t};\n};\n",
        "env {\n",
        *(f"\t{name} = {_quoted(value)};\n" for name, value in environment.items()),
        "};\n",
        _clock(clock, snapshot),
        _STREAM,
        *map(_event, types),
    ]
    return "\n".join(parts)


def _alias(bits: int, *, signed: bool) -> str:
    name = f"{'' if signed else 'u'}int{bits}_t"
    told = f"size = {bits}; align = 8; signed = {str(signed).lower()};"
    return f"typealias integer {{ {told} }} := {name};"


def _clock(clock: str, snapshot: Snapshot | None) -> str:
    offset_ns = snapshot.realtime_ns - snapshot.trace if snapshot else 0
    whole_s, rest_ns = divmod(offset_ns, _SECOND_NS)
    return (
        f"clock {{\n\tname = trace_clock;\n\tdescription = {_quoted(clock)};\n"
        f"\tfreq = {_SECOND_NS};\n\toffset_s = {whole_s};\n\toffset = {rest_ns};\n"
        f"\tabsolute = {'true' if snapshot else 'false'};\n}};\n\n"
        "typealias integer {\n\tsize = 64; align = 8; signed = false;\n"
        "\tmap = clock.trace_clock.value;\n} := trace_time_t;\n"
    )


_STREAM = """\
stream {
	id = 0;
	packet.context := struct {
		trace_time_t timestamp_begin;
		trace_time_t timestamp_end;
		uint64_t content_size;
		uint64_t packet_size;
		uint64_t packet_seq_num;
		uint64_t events_discarded;
		uint32_t cpu_id;
	};
	event.header := struct {
		uint16_t id;
		trace_time_t timestamp;
	};
	event.context := struct {
		int32_t _common_pid;
		uint8_t _common_flags;
		uint8_t _common_preempt_count;
	};
};
"""


def _event(ctf_type: CtfType) -> str:
    fields = "".join(f"\t\t{line}\n" for line in _fields(ctf_type))
    return (
        f"event {{\n\tid = {ctf_type.number};\n\tname = {_quoted(ctf_type.name)};\n"
        "\tstream_id = 0;\n"
        f"\tfields := struct {{\n{fields}\t}};\n}};\n"
    )


def _fields(ctf_type: CtfType) -> Iterator[str]:
    if ctf_type.format is None:
        yield from _sequence("raw", _integer(1, base=16), "raw")
        return
    for one in ctf_type.fixed:
        yield _fixed(one)
    for one in ctf_type.dynamic:
        if is_text(one):
            yield f"string _{_plain(one.name)};"
        else:
            yield from _sequence(one.name, _element(one), one.name)


def _fixed(one: Field) -> str:
    name = _plain(one.name)
    if one.encoding is Encoding.INT:
        return f"{_element(one)} _{name};"
    if one.encoding is Encoding.ARRAY:
        return f"{_element(one)} _{name}[{one.elements}];"
    if one.encoding is Encoding.CHARS:
        text = "integer { size = 8; align = 8; signed = false; encoding = UTF8; }"
        return f"{text} _{name}[{one.size_bytes}];"
    return f"{_integer(1, base=16)} _{name}[{one.size_bytes}];"


def _sequence(name: str, element: str, counted: str) -> Iterator[str]:
    yield f"uint16_t __{_plain(counted)}_length;"
    yield f"{element} _{_plain(name)}[__{_plain(counted)}_length];"


def _element(one: Field) -> str:
    hexadecimal = "*" in one.type or one.encoding is Encoding.BITMASK
    size = one.size_bytes if one.encoding is Encoding.INT else one.element_bytes
    return _integer(size, signed=one.signed and not hexadecimal, base=16 if hexadecimal else 10)


def _integer(size_bytes: int, *, signed: bool = False, base: int = 10) -> str:
    if base == 10:
        return f"{'' if signed else 'u'}int{8 * size_bytes}_t"
    return f"integer {{ size = {8 * size_bytes}; align = 8; signed = false; base = {base}; }}"


def _plain(name: str) -> str:
    return re.sub(r"\W", "_", name, flags=re.ASCII)


def _quoted(text: str) -> str:
    return json.dumps(text)
