// The answer's card: at work, then the answer with its marks, or what stopped it.

import { bar, byId, counted, eye, make, picture, seconds } from "./dom.js";

const NOT_LIKELY = 0.5;

// Shows that a request is at work. Returns `end`, which stops the clock and tells its seconds, and
// `note`, which shows a line of words.
export function showWork(count, thinks) {
  const began = performance.now();
  const clock = make("p", { class: "clock" }, "0.0 s");
  const timer = setInterval(() => {
    clock.textContent = `${((performance.now() - began) / 1000).toFixed(1)} s`;
  }, 100);
  const moving = make("span", { class: "working", "aria-hidden": "true" }, make("i"));
  const line = make("p", { class: "path" }, counted(count, "candidate"));
  fill("is-working", make("h2", {}, thinks ? "Thinking" : "Ranking"), clock, moving, line);
  return {
    end() {
      clearInterval(timer);
      return (performance.now() - began) / 1000;
    },
    note(words) {
      line.textContent = words;
    },
  };
}

export function showStopped(elapsed) {
  fill("is-stopped", make("h2", {}, "Stopped"), make("p", { class: "clock" }, seconds(elapsed)),
    make("p", { class: "path" }, "The server has been told to stop, too."));
}

function fill(state, ...body) {
  const card = byId("answer");
  card.className = `answer ${state}`;
  card.replaceChildren(make("div", { class: "answer-body" }, ...body));
}

// Shows the answer of a response.
export function showAnswer(response, items) {
  const { results, retrv = {} } = response;
  const best = results[0];
  if (!best) return showNothing();
  const index = retrv.answer ?? best.index;
  const item = items[index];
  const score = results.find((row) => row.index === index)?.relevance_score ?? best.relevance_score;
  const doubt = retrv.none_of_these;
  const unlikely = typeof doubt === "number" && doubt > NOT_LIKELY;
  const name = make("p", { class: item.name.length > 60 ? "answer-name long" : "answer-name" }, item.name);
  fill(
    unlikely ? "is-doubtful" : "",
    make("h2", {}, unlikely ? "Nothing here fits well; the closest is" : "Answer"),
    name,
    make("p", { class: "score" }, bar(score), make("strong", {}, score.toFixed(3))),
    typeof doubt === "number" ? doubtLine(doubt) : null,
    marks(retrv, index),
    ...warnings(response),
  );
  if (item.url) byId("answer").prepend(picture(item));
}

function showNothing() {
  fill("is-stopped", make("h2", {}, "Answer"), make("p", { class: "path" }, "There were no candidates."));
}

function doubtLine(doubt) {
  return make("p", { class: "score doubt", title: "Probability that no candidate fits the query" },
    make("span", {}, "nothing fits"), bar(doubt), make("strong", {}, doubt.toFixed(3)));
}

function marks(retrv, index) {
  const inspected = retrv.inspected?.includes(index);
  return make(
    "p",
    { class: "marks" },
    make("span", { class: "mark" }, `candidate ${index + 1}`),
    retrv.mode ? make("span", { class: "mark", title: retrv.auto ? "chosen by auto mode" : null }, retrv.mode === "reason" ? "reasoned" : "answered at once") : null,
    inspected ? make("span", { class: "mark look" }, eye(), " inspected in full") : null,
  );
}

function warnings({ retrv = {}, warnings: others = [] }) {
  const lines = [...others];
  if (retrv.mode === "reason" && retrv.well_formed === false) {
    lines.push("The engine had to enforce the format of this reasoning.");
  }
  if (retrv.query_truncated) lines.push("Only the start of the query was read.");
  if (retrv.cut) lines.push("The reasoning was cut short, because its time was up.");
  return lines.map((line) => make("p", { class: "path caution" }, typeof line === "string" ? line : line.message));
}
