// The status page: asks for status.json every two seconds, and shows what it says.
//
// Rule: names, labels and reasons come from others.  They reach the page as text of a node, after
// shown() has escaped control and direction characters; nothing here makes HTML out of a string.
// Rule: a node changes only when its text does, so that a selection survives.
"use strict";

const INTERVAL_MS = 2000;
const PATIENCE_MS = 6000;
const SAMPLES = 90; // of the written bytes: three minutes
const FEW = 32; // rows of a table before somebody asks for all

const here = (id) => document.getElementById(id);
const rates = []; // bytes per second of all streams, oldest first
let all = false; // show every stream
let asking = false;
let now = 0; // the recorder's wall clock in ns as of the last answer; the browser's may differ

// -- text

function shown(text) {
  return String(text).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (found) => {
    const code = found.codePointAt(0).toString(16);
    if (code.length < 3) return `\\x${code.padStart(2, "0")}`;
    return code.length < 5 ? `\\u${code.padStart(4, "0")}` : `\\U${code.padStart(8, "0")}`;
  });
}

const counted = (number) => number.toLocaleString("en");
const plural = (number, noun) => `${counted(number)} ${noun}${number === 1 ? "" : "s"}`;
const percent = (ratio) => `${(100 * ratio).toFixed(ratio < 0.1 ? 1 : 0)} %`;

function size(bytes) {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (bytes < 1024) return `${unit === "B" || bytes >= 100 ? bytes.toFixed(0) : bytes.toFixed(1)} ${unit}`;
    bytes /= 1024;
  }
  return `${bytes.toFixed(1)} TiB`;
}

function span(seconds) {
  if (seconds === 0) return "0 ms";
  if (seconds < 0.9995) return `${(1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60), rest = Math.floor(seconds % 60);
  if (hours >= 48) return `${Math.floor(hours / 24)} d ${hours % 24} h`;
  return hours ? `${hours} h ${minutes % 60} min` : `${minutes} min${rest ? ` ${rest} s` : ""}`;
}

const two = (number) => String(number).padStart(2, "0");

function moment(ns) {
  if (ns === null || ns === undefined) return "";
  const at = new Date(ns / 1e6);
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  const time = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  return at.toDateString() === new Date(now / 1e6).toDateString() ? time : `${day} ${time}`;
}

// -- nodes

function make(tag, name = "") {
  const node = document.createElement(tag);
  node.className = name;
  return node;
}

function write(node, text, name = node.className) {
  if (node.textContent !== text) node.textContent = text;
  if (node.className !== name) node.className = name;
}

function bar(node, ratio, level) {
  const bare = node.firstElementChild ?? node.appendChild(make("i"));
  bare.style.width = `${100 * Math.min(Math.max(ratio, 0), 1)}%`;
  node.className = `bar ${level}`;
}

// Let *parent* have as many children as there are items, and show(child, item) each.
function each(parent, items, create, show) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  items.forEach((item, at) => show(parent.children[at] ?? parent.appendChild(create()), item));
}

function tile() {
  const box = make("div");
  box.append(make("dt"), make("dd", "value"), make("dd", "note"));
  return box;
}

function showTile(box, [name, value, note = "", level = "", ratio = null, line = null]) {
  const [dt, main, small] = box.children;
  write(dt, name);
  write(main, value, `value ${level}`);
  write(small, note);
  const drawn = box.children[3];
  if (ratio !== null) bar(drawn ?? box.appendChild(make("div")), ratio, level);
  else if (line !== null) draw(drawn ?? box.appendChild(sparkline()), line);
  else drawn?.remove();
}

const SVG = "http://www.w3.org/2000/svg";

function sparkline() {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${SAMPLES - 1} 24`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS(SVG, "polyline"));
  return svg;
}

function draw(svg, values) {
  const most = Math.max(...values, 1), first = SAMPLES - values.length;
  const points = values.map((value, at) => `${first + at},${(23 - (21 * value) / most).toFixed(1)}`);
  svg.firstElementChild.setAttribute("points", [`${first},26`, ...points, `${SAMPLES},26`].join(" "));
}

// Show the cells of a row: each is [text, class] or [ratio, "fill", level].
function showRow(row, cells) {
  each(row, cells, () => make("td"), (cell, [value, name, level = ""]) => {
    if (name === "fill") {
      cell.className = name;
      if (value === null) return cell.replaceChildren();
      bar(cell.firstElementChild ?? cell.appendChild(make("div")), value, level);
      cell.title = percent(value);
    } else write(cell, value, name);
  });
}

function showTable(id, rows) {
  here(id).hidden = rows.length === 0;
  each(here(id).querySelector("tbody"), rows, () => make("tr"), showRow);
}

// -- what is shown

const sum = (values) => values.reduce((total, value) => total + value, 0);
// The item with the largest value of *key*; null if none has a value.
const most = (items, key) => items.filter((item) => item[key] !== null)
  .reduce((found, item) => (found === null || item[key] > found[key] ? item : found), null);
const level = (value, warn, bad) => (value >= bad ? "bad" : value >= warn ? "warn" : "");
const UNITS = [["_subbuffers", "sub-buffer"], ["_bytes", "byte"], ["", "event"]];

// Losses in words, of [key, count] pairs; a key is that of a summary: the reason, with the unit
// unless it is events.
function losses(pairs, unknown) {
  const parts = [...pairs].filter(([, count]) => count).map(([key, count]) => {
    const [suffix, noun] = UNITS.find(([end]) => key.endsWith(end));
    return `${plural(count, noun)} (${worded(key.slice(0, key.length - suffix.length))})`;
  });
  if (unknown) parts.push(`${plural(unknown, "gap")} of unknown size`);
  return parts.join(", ");
}

const worded = (key) => shown(key).replaceAll("_", " ");
const lossesOf = (stream) => losses(Object.entries(stream.lost), stream.gaps_unknown);

function lossesOfAll(streams) {
  const lost = new Map();
  for (const stream of streams) {
    for (const [key, count] of Object.entries(stream.lost)) lost.set(key, (lost.get(key) ?? 0) + count);
  }
  return losses(lost, sum(streams.map((stream) => stream.gaps_unknown)));
}

function tilesOf(state, streams) {
  const events = sum(streams.map((stream) => stream.events_lost));
  const words = lossesOfAll(streams);
  const fullest = most(streams, "ring_fill_ratio"), latest = most(streams, "lag_seconds");
  const backlog = state.backlog, used = backlog.bytes / backlog.limit_bytes;
  const errors = Object.entries(state.write_errors).filter(([, count]) => count);
  const stored = size(sum(streams.map((stream) => stream.payload_bytes)));
  return [
    state.flight && flightTile(state.flight),
    ["Recorded", `${size(rates.at(-1))}/s`, `${stored} in this run`, "", null, rates],
    ["Events lost", counted(events), words || "nothing", words ? "bad" : ""],
    fullest && ["Fullest ring", percent(fullest.ring_fill_ratio), shown(fullest.name),
      level(fullest.ring_fill_ratio, 0.5, 0.8), fullest.ring_fill_ratio],
    latest && ["Longest wait in a ring", span(latest.lag_seconds), shown(latest.name)],
    ["Backlog", size(backlog.bytes), `of ${size(backlog.limit_bytes)}; at most ${size(backlog.high_water_bytes)}`,
      level(used, 0.5, 0.9), used],
    ...storeTiles(state),
    state.triggers && triggersTile(state.triggers),
    errors.length > 0 && ["Failed writes", counted(sum(errors.map(([, count]) => count))),
      errors.map(([name, count]) => `${shown(name)} ${counted(count)}`).join(", "), "bad"],
  ].filter(Boolean);
}

function flightTile(flight) {
  const doing = flight.waiting ? "nothing is written until a trigger" : "a window is written";
  const count = flight.overwritten_events;
  const gone = count === null ? "" : `; ${plural(count, "event")} overwritten that no trigger wanted`;
  return ["Mode", "flight", doing + gone];
}

function storeTiles(state) {
  const store = state.store;
  if (!store) return [["Segments", counted(state.segments)]];
  const gone = Object.entries(store.deletions).filter(([, count]) => count);
  const reach = store.reach_seconds, limit = store.limit_bytes;
  // The limit is for the segments that are not kept.
  const used = store.allocated_bytes - store.kept_bytes;
  return [
    ["Store", size(used), `${limit ? `of ${size(limit)}` : "without a limit of its size"}, besides kept segments`,
      "", limit ? used / limit : null],
    !state.flight && ["Reaches back", reach === null ? "unknown" : span(reach), reach === null ? "" : `to ${moment(now - 1e9 * reach)}`],
    ["Segments", counted(store.segments), `${counted(store.kept_segments)} kept (${size(store.kept_bytes)})`],
    ["Deleted", counted(sum(gone.map(([, count]) => count))),
      gone.map(([reason, count]) => `${counted(count)} by ${worded(reason)}`).join(", ") || "nothing"],
    store.compression_backlog > 0 && ["Waiting for compression", plural(store.compression_backlog, "segment")],
  ].filter(Boolean);
}

function triggersTile(counts) {
  const accepted = sum(Object.values(counts.accepted)), refused = sum(Object.values(counts.refused));
  const notes = [counts.waiting && `${counted(counts.waiting)} waiting`, refused && `${counted(refused)} refused`];
  return ["Triggers", counted(accepted), notes.filter(Boolean).join(", ") || "in this run", refused ? "warn" : ""];
}

function streamRow(stream) {
  const lost = lossesOf(stream);
  return [
    [shown(stream.title), "name"],
    [`${size(stream.bytes_per_second)}/s`, "number"],
    [stream.ring_fill_ratio, "fill", level(stream.ring_fill_ratio, 0.5, 0.8)],
    [stream.lag_seconds === null ? "" : span(stream.lag_seconds), "number"],
    [size(stream.payload_bytes), "number wide"],
    [lost || "nothing lost", lost ? "bad" : "none"],
  ];
}

// The controls of a source: filters, triggers, probes; each is [option, value].
function controlRows(source, several) {
  return (source.controls ?? []).map(([option, value]) => [
    [shown(several ? `${source.source} ${option}` : option), "name"],
    [shown(value), "text"],
  ]);
}

function windowRow(trigger) {
  const labels = Object.entries(trigger.labels).map(([name, value]) => `${name}=${value}`).join(" ");
  const window = `${span(trigger.before_ns / 1e9)} before, ${span(trigger.after_ns / 1e9)} after`;
  return [
    [counted(trigger.number), "number"],
    [shown([trigger.reason, labels].filter(Boolean).join("; ")), "text"],
    [moment(trigger.at_ns), "time"],
    [window, "time"],
    [shown(trigger.by), "wide"],
    [trigger.complete ? "complete" : "waiting", trigger.complete ? "" : "warn"],
  ];
}

function segmentRow(segment, several) {
  const seconds = Math.max(Math.round((now - segment.made_ns) / 1e9), 0);
  const age = segment.made_ns === null ? "" : seconds < 60 ? `${seconds} s` : span(seconds);
  const words = [several && shown(segment.source), segment.open && "open", segment.kept && "kept",
    segment.compressed && "compressed"].filter(Boolean).join(", ");
  return [
    [counted(segment.number), "number"],
    [moment(segment.made_ns), "time"],
    [age, "number wide"],
    [size(segment.bytes), "number"],
    [words, words ? "" : "none"],
  ];
}

function showAll(state) {
  now = state.now_ns;
  const several = state.sources.length > 1;
  const streams = state.sources.flatMap((source) => source.streams.map((stream) => (
    { ...stream, title: several ? `${source.source} ${stream.name}` : stream.name })));
  rates.push(sum(streams.map((stream) => stream.bytes_per_second)));
  if (rates.length > SAMPLES) rates.shift();
  const reasons = state.conditions;
  const doing = state.flight?.waiting ? "waiting for a trigger" : shown(state.doing);
  write(here("verdict"), state.healthy ? `Healthy, ${doing}` : `Impaired: ${plural(reasons.length, "reason")}`,
    state.healthy ? "well" : "ill");
  const begun = `since ${moment(state.began_ns)} (${span(state.uptime_seconds)})`;
  write(here("title"), shown(`lttd on ${state.host}`));
  write(here("about"), shown(`${state.trace_dir} ${begun}; lttd ${state.version}, Linux ${state.kernel}`));
  document.title = `${state.healthy ? "" : "(!) "}lttd on ${shown(state.host)}`;
  here("reasons").hidden = state.healthy;
  each(here("reasons"), reasons, () => {
    const item = make("li");
    item.append(make("b"), " ", make("span"));
    return item;
  }, (item, reason) => {
    write(item.children[0], shown(reason.trouble));
    write(item.children[1], shown(reason.where ? `${reason.where}: ${reason.words}` : reason.words));
  });
  each(here("tiles"), tilesOf(state, streams), tile, showTile);
  showTable("windows", (state.windows ?? []).map(windowRow));
  showTable("controls", state.sources.flatMap((source) => controlRows(source, several)));
  showTable("segments", (state.newest_segments ?? []).map((segment) => segmentRow(segment, several)));
  // The streams that most need a look come first where not all are shown.
  const order = all ? streams : [...streams].sort((one, other) => trouble(other) - trouble(one)).slice(0, FEW);
  showTable("streams", (streams.length > FEW ? order : streams).map(streamRow));
  here("more").hidden = streams.length <= FEW;
  write(here("more"), all ? `Show ${FEW} streams` : `Show all ${counted(streams.length)} streams`);
  here("all").hidden = false;
}

const trouble = (stream) => (lossesOf(stream) ? 1 : 0) + (stream.ring_fill_ratio ?? 0);

// -- asking

async function fetched() {
  const answer = await fetch("status.json", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) })
    .catch(() => { throw new Error("lttd does not answer"); });
  if (!answer.ok) throw new Error(`lttd answered with status ${answer.status}`);
  return answer.json();
}

async function ask() {
  if (asking || document.hidden) return;
  asking = true;
  try {
    showAll(await fetched());
    document.body.classList.remove("stale");
    write(here("asked"), `as of ${moment(now)}`);
  } catch (error) {
    document.body.classList.add("stale");
    write(here("verdict"), shown(error.message), "unknown");
    document.title = "(?) lttd";
  } finally {
    asking = false;
  }
}

here("more").addEventListener("click", () => {
  all = !all;
  ask();
});
document.addEventListener("visibilitychange", ask);
setInterval(ask, INTERVAL_MS);
ask();
