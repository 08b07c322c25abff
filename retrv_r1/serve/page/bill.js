// What a ranking cost, and the same list read in full beside it.

import { bar, byId, bytes, counted, make, picture, seconds, whole } from "./dom.js";

const COLOURS = 6;
const ROWS = { query: "query and instruction", candidates: "candidates", inspected: "inspected", generated: "generated" };

// Rows by kind, of a response. The prompt is counted without its candidates.
export function rowsOf({ retrv = {}, usage = {} }) {
  const tokens = retrv.bill?.prompts ? retrv.bill.tokens : retrv.tokens;
  if (!tokens) return { read: usage.prompt_tokens ?? 0, generated: usage.completion_tokens ?? 0 };
  return {
    query: tokens.prompt - tokens.candidates,
    candidates: tokens.candidates,
    inspected: tokens.inspected,
    generated: tokens.generated,
  };
}

const sum = (values) => Object.values(values).reduce((total, value) => total + value, 0);
const named = (rows) => Object.fromEntries(Object.entries(rows).map(([kind, count]) => [ROWS[kind] ?? kind, count]));

function panel(title, lead, values, show) {
  const total = sum(values);
  const stack = make("div", { class: "stack", "aria-hidden": "true" });
  const list = make("dl");
  Object.entries(values).forEach(([name, value], place) => {
    if (!(value > 0)) return;
    const colour = `s${place % COLOURS}`;
    const part = make("i", { class: colour });
    part.style.width = `${((100 * value) / total).toFixed(2)}%`;
    stack.append(part);
    list.append(make("div", {}, make("dt", {}, make("i", { class: colour }), name), make("dd", {}, show(value))));
  });
  const heading = make("h2", {}, title, lead ? make("small", {}, lead) : null);
  return make("div", {}, heading, stack, list);
}

// Shows seconds by phase, rows by kind, inspections, cache hits and what was sent.
export function showBill(response, sentBytes, elapsed) {
  const { retrv = {}, usage = {} } = response;
  const rows = rowsOf(response);
  const bill = retrv.bill ?? {};
  const { total, ...phases } = bill.seconds ?? retrv.timings ?? {};
  const cached = (bill.tokens ?? retrv.tokens)?.cached ?? usage.cached_tokens ?? 0;
  const found = (bill.remembered ?? 0) + (bill.stored ?? 0);
  const inspections = bill.inspections ?? retrv.inspected?.length ?? 0;
  const facts = [
    inspections && [whole(inspections), "inspected in full"],
    [whole(cached), `of ${counted(sum(rows) - (rows.generated ?? 0), "row")} from the cache`],
    found + bill.encoded > 0 && [whole(found), `of ${counted(found + bill.encoded, "item")} known from before`],
    sentBytes && [bytes(sentBytes), "of pictures sent"],
    [seconds(elapsed), "from the click to the ranking"],
  ].filter(Boolean);
  byId("bill").replaceChildren(
    make("h2", {}, "The bill"),
    make(
      "div",
      { class: "cost" },
      panel("Rows the model read and wrote", whole(sum(rows)), named(rows), whole),
      panel("Time", seconds(total ?? sum(phases)), phases, seconds),
    ),
    make("p", { class: "summary" }, ...facts.map(([value, words]) => make("span", {}, make("b", {}, value), ` ${words}`))),
  );
  byId("bill").hidden = false;
}

// Time without the encoding of pictures and texts, which both readings share through the cache.
function modelSeconds({ retrv = {} }) {
  const { features, total, queue, ...others } = retrv.bill?.seconds ?? retrv.timings ?? {};
  return sum(others);
}

const ratio = (more, less) => (less > 0 && more > 0 ? `${(more / less).toFixed(1)} ×` : "");

// Shows the same list read as two tokens a candidate and in full: rows, seconds, both rankings.
export function showComparison(compressed, full, items) {
  const places = (response) => new Map(response.results.map((row, place) => [row.index, place + 1]));
  const [here, there] = [places(compressed), places(full)];
  const agree = compressed.results[0]?.index === full.results[0]?.index;
  const rows = [compressed, full].map((response) => sum(rowsOf(response)));
  const times = [compressed, full].map(modelSeconds);
  byId("comparison").replaceChildren(
    make("h2", {}, "Full against compressed ", make("small", {}, agree ? "the same answer" : "another answer")),
    make(
      "div",
      { class: "versus" },
      side("Two tokens a candidate", compressed, items, there, rows[0], times[0], [
        ratio(rows[1], rows[0]) && `${ratio(rows[1], rows[0])} fewer rows`,
        ratio(times[1], times[0]) && `${ratio(times[1], times[0])} the speed`,
      ]),
      side("All tokens", full, items, here, rows[1], times[1], []),
    ),
    make("p", { class: "hint" }, "Seconds are the model's alone: pictures were encoded once for both. Both answered in fast mode."),
  );
  byId("comparison").hidden = false;
}

function side(title, response, items, otherPlaces, rows, time, gains) {
  const facts = make("p", { class: "summary" },
    make("span", {}, make("b", {}, whole(rows)), " rows"), make("span", {}, make("b", {}, seconds(time))),
    ...gains.filter(Boolean).map((gain) => make("span", { class: "gain" }, gain)));
  const list = make("ol", { class: "duel" });
  response.results.forEach(({ index, relevance_score: score }, place) => {
    const moved = (otherPlaces.get(index) ?? place + 1) - (place + 1);
    const item = items[index];
    const move = moved ? `${moved > 0 ? "▲" : "▼"} ${Math.abs(moved)}` : "=";
    list.append(make(
      "li",
      { data: { index }, title: item.name },
      make("b", { class: "place" }, String(place + 1)),
      item.url ? picture(item) : null,
      make("span", { class: "duel-name" }, item.name),
      make("span", { class: moved ? "moved" : "moved same", title: "places beside the other reading" }, move),
      make("span", { class: "score" }, bar(score), make("strong", {}, score.toFixed(3))),
    ));
  });
  return make("div", {}, make("h3", {}, title), facts, list);
}
