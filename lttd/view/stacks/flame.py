"""Draw stacks as a flame graph: one SVG file with its own style and script.

A box is a function; its width is the weight of all stacks through it; the functions that it called
are above it.  A click shows a box and what is above it in full width; ``/`` or the field searches.

Rule: the file needs no network and no other file; without its script it is still a picture.
Rule: text of a trace is escaped, and the script only reads it as text.
Rule: a box narrower than LEAST_WIDTH is left out; its parent is as wide as before.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from lttd.view.stacks.folded import Folded, Frame
from lttd.view.svg import FONT, clean, element

WIDTH: Final = 1200
SIDE: Final = 12
HEAD: Final = 62
FOOT: Final = 34
ROW: Final = 17
LEAST_WIDTH: Final = 0.3
CHAR_WIDTH: Final = 6.6
MOST_DEPTH: Final = 1024
_SHADES: Final = 5


class Head(NamedTuple):
    """The text above a flame graph."""

    title: str
    told: str
    unit: str
    """Of the weights: ``samples``, ``ns``, or a field's name."""


@dataclass(slots=True, eq=False)
class _Node:
    frame: Frame
    weight: int = 0
    children: dict[Frame, "_Node"] = field(default_factory=dict)


class _Box(NamedTuple):
    frame: Frame
    weight: int
    x: float
    """As a share of the width."""
    share: float
    depth: int


def svg(folded: Folded, head: Head) -> str:
    """Return the picture."""
    total = sum(weight for weight in folded.values() if weight > 0)
    boxes = list(_boxes(_tree(folded), total)) if total else []
    height = HEAD + ROW * (max((box.depth for box in boxes), default=0) + 1) + FOOT
    parts = [element("title", clean(head.title)), _STYLE, *_frame(head, height)]
    parts.append('<g id="boxes">')
    parts += [_box(box, total, head.unit, height) for box in boxes]
    parts.append("</g>")
    if not boxes:
        middle = WIDTH / 2
        parts.append(_text(middle, height / 2, "no stacks here", "faint", text_anchor="middle"))
    parts.append(f'<script type="text/javascript"><![CDATA[{_SCRIPT}]]></script>')
    content = "\n".join(parts)
    return element(
        "svg", f"\n{content}\n", xmlns="http://www.w3.org/2000/svg", version="1.1",
        viewBox=f"0 0 {WIDTH} {height}", width=WIDTH, height=height, font_family=FONT, font_size=12,
    )  # fmt: skip


def _tree(folded: Folded) -> _Node:
    root = _Node(Frame("all", "by"))
    for frames, weight in folded.items():
        if weight <= 0:
            continue
        root.weight += weight
        node = root
        for frame in frames[:MOST_DEPTH]:
            node = node.children.setdefault(frame, _Node(frame))
            node.weight += weight
    return root


def _boxes(root: _Node, total: int) -> Iterator[_Box]:
    """Yield the boxes that are wide enough, parents first."""
    least = LEAST_WIDTH / (WIDTH - 2 * SIDE) * total
    waiting = [(root, 0, 0)]
    while waiting:
        node, begin, depth = waiting.pop()
        yield _Box(node.frame, node.weight, begin / total, node.weight / total, depth)
        for _, child in sorted(node.children.items()):
            if child.weight >= least:
                waiting.append((child, begin, depth + 1))
            begin += child.weight


def _box(box: _Box, total: int, unit: str, height: int) -> str:
    room = WIDTH - 2 * SIDE
    x, width = SIDE + box.x * room, box.share * room
    y = height - FOOT - ROW * (box.depth + 1)
    told = f"{box.frame.name} ({box.weight:,} {unit}, {box.weight / total:.2%})"
    chars = int((width - 6) / CHAR_WIDTH)
    name = box.frame.name
    shown = "" if chars < 3 else name if len(name) <= chars else f"{name[: chars - 1]}…"
    shade = zlib.crc32(name.encode()) % _SHADES
    return (
        f'<g class="b" data-x="{box.x:.7f}" data-w="{box.share:.7f}" data-d="{box.depth}">'
        f"<title>{clean(told)}</title>"
        f'<rect class="{box.frame.kind} s{shade}" x="{x:.2f}" y="{y}" width="{width:.2f}"'
        f' height="{ROW - 1}" rx="2"/>'
        f'<text x="{x + 3:.2f}" y="{y + 12}">{clean(shown)}</text></g>'
    )


def _frame(head: Head, height: int) -> Iterator[str]:
    yield element("rect", class_="ground", width="100%", height="100%")
    yield _text(SIDE, 25, head.title, "title")
    yield _text(SIDE, 45, head.told, "faint")
    yield _text(SIDE, height - 11, " ", "", id="told")
    yield _text(WIDTH - SIDE, height - 11, " ", "", id="found", text_anchor="end")
    yield '<g id="buttons" display="none">'
    yield _text(WIDTH - SIDE, 25, "Search (/)", "button", id="search", text_anchor="end")
    yield _text(WIDTH - SIDE, 45, "Show all (Esc)", "button", id="reset", text_anchor="end")
    yield "</g>"


def _text(x: float, y: float, text: str, class_: str, **more: object) -> str:
    return element("text", clean(text), x=x, y=y, class_=class_, **more)


# Colours with enough contrast to the text in either scheme; kernel warm, programs cool.
_STYLE: Final = """<style>
.ground { fill: #fff } text { fill: #1b2430; pointer-events: none }
.title { font-size: 17px; font-weight: 600 } .faint, #told, #found { fill: #5b6472 }
.button { fill: #2f5fa8; cursor: pointer; pointer-events: auto }
.button:hover { text-decoration: underline }
.b text { font-family: 'DejaVu Sans Mono', Menlo, Consolas, monospace; font-size: 11px }
.b rect { cursor: pointer } .b:hover rect { stroke: #1b2430; stroke-width: 1 }
.by { fill: #d5dae2 }
.kernel.s0 { fill: #f6b26b } .kernel.s1 { fill: #f4a95c } .kernel.s2 { fill: #f7bd80 }
.kernel.s3 { fill: #f29f55 } .kernel.s4 { fill: #f8c893 }
.user.s0 { fill: #8fc1e3 } .user.s1 { fill: #82b7dd } .user.s2 { fill: #9fcbe8 }
.user.s3 { fill: #93c9cf } .user.s4 { fill: #a9d3ea }
.parent { opacity: .55 } .hit rect { fill: #d76bd2 !important }
@media (prefers-color-scheme: dark) {
.ground { fill: #14181f } text { fill: #e6e9ef } .faint, #told, #found { fill: #9aa4b2 }
.button { fill: #8ab4f8 } .b:hover rect { stroke: #e6e9ef }
.by { fill: #3a4250 }
.kernel.s0 { fill: #8a5320 } .kernel.s1 { fill: #7f4b1c } .kernel.s2 { fill: #935b28 }
.kernel.s3 { fill: #86481a } .kernel.s4 { fill: #9a6330 }
.user.s0 { fill: #24567c } .user.s1 { fill: #1f4e72 } .user.s2 { fill: #2a5f86 }
.user.s3 { fill: #1f5f66 } .user.s4 { fill: #316790 }
.hit rect { fill: #9c2f97 !important }
}
</style>"""
_SCRIPT: Final = f"""
"use strict";
(function () {{
  const width = {WIDTH}, side = {SIDE}, room = width - 2 * side, char = {CHAR_WIDTH};
  const root = document.documentElement, get = id => document.getElementById(id);
  const boxes = Array.from(document.querySelectorAll("#boxes .b")).map(g => {{
    const title = g.querySelector("title").textContent;
    return {{ g, title, name: title.slice(0, title.lastIndexOf(" (")),
      rect: g.querySelector("rect"), text: g.querySelector("text"),
      x: +g.dataset.x, w: +g.dataset.w, d: +g.dataset.d }};
  }});
  const tiny = 1e-7;
  let focus = null, wanted = null;
  function show() {{
    const from = focus ? focus.x : 0, share = focus ? focus.w : 1;
    for (const b of boxes) {{
      const parent = focus && b.d < focus.d && b.x <= from + tiny
        && b.x + b.w >= from + share - tiny;
      const inside = !focus || parent || (b.d >= focus.d && b.x >= from - tiny
        && b.x + b.w <= from + share + tiny);
      b.g.style.display = inside ? "" : "none";
      if (!inside) continue;
      const x = parent ? side : side + (b.x - from) / share * room;
      const w = parent ? room : b.w / share * room;
      b.rect.setAttribute("x", x.toFixed(2));
      b.rect.setAttribute("width", Math.max(w, 0).toFixed(2));
      b.text.setAttribute("x", (x + 3).toFixed(2));
      const chars = Math.floor((w - 6) / char);
      b.text.textContent = chars < 3 ? "" : b.name.length <= chars ? b.name
        : b.name.slice(0, chars - 1) + "\\u2026";
      b.g.classList.toggle("parent", Boolean(parent));
    }}
    mark();
  }}
  function mark() {{
    let spans = [];
    for (const b of boxes) {{
      const hit = wanted !== null && wanted.test(b.name);
      b.g.classList.toggle("hit", hit);
      if (hit && b.g.style.display !== "none" && !b.g.classList.contains("parent"))
        spans.push([b.x, b.x + b.w]);
    }}
    let covered = 0, end = -1;
    for (const [a, z] of spans.sort((p, q) => p[0] - q[0])) {{
      if (z > end) {{ covered += z - Math.max(a, end); end = z; }}
    }}
    get("found").textContent = wanted === null ? "" : "matched: "
      + (100 * covered / (focus ? focus.w : 1)).toFixed(1) + " %";
  }}
  function search() {{
    const asked = prompt("Search for a function (a regular expression):", "");
    if (asked === null) return;
    wanted = null;
    if (asked) {{
      try {{ wanted = new RegExp(asked); }}
      catch (error) {{ wanted = {{ test: name => name.includes(asked) }}; }}
    }}
    mark();
  }}
  function reset() {{ focus = null; wanted = null; show(); }}
  for (const b of boxes) {{
    b.g.addEventListener("click", () => {{ focus = b.d ? b : null; show(); }});
    b.g.addEventListener("mouseover", () => {{ get("told").textContent = b.title; }});
    b.g.addEventListener("mouseout", () => {{ get("told").textContent = ""; }});
  }}
  get("buttons").removeAttribute("display");
  get("search").addEventListener("click", search);
  get("reset").addEventListener("click", reset);
  document.addEventListener("keydown", event => {{
    if (event.key === "/") {{ event.preventDefault(); search(); }}
    if (event.key === "Escape") reset();
  }});
}})();
"""
