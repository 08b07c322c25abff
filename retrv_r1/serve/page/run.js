// One request at a time: sent, watched, shown, stopped.

import { showBill, showComparison } from "./bill.js";
import { byId, make } from "./dom.js";
import { sent } from "./items.js";
import { showAnswer, showStopped, showWork } from "./outcome.js";
import { Reasoning } from "./reasoning.js";
import { Problem, rerank } from "./server.js";
import { askForKey, hideProblem, say, showProblem } from "./words.js";

const number = (id) => (byId(id).value === "" ? undefined : Number(byId(id).value));

function options() {
  const mode = byId("compare").checked ? "fast" : byId("form").elements.mode.value;
  const chosen = mode === "fast" ? { mode } : { mode, max_inspections: number("inspections"), votes: number("votes") };
  return { ...chosen, reading: "compressed" };
}

export class Runner {
  // `given` is what the user gave; `cards` shows it.
  constructor(given, cards) {
    this.given = given;
    this.cards = cards;
    this.run = null;
  }

  stop() {
    this.run?.abort.abort();
  }

  async rank() {
    if (this.run) return;
    hideProblem();
    const missing = this.given.missing();
    if (missing) {
      byId(missing[0]).focus();
      return say(missing[1]);
    }
    const run = this.started();
    this.begin(run);
    try {
      const response = await this.ask(run, run.retrv);
      this.show(run, response);
      if (run.compares) await this.compare(run, response);
      say("");
    } catch (error) {
      run.work.end();
      if (error.name === "AbortError") stopped(run);
      else failed(run, error);
    } finally {
      this.run = null;
      atWork(false);
    }
  }

  // What this request is about, whatever is typed while it runs.
  started() {
    const { text, picture, candidates } = this.given;
    return {
      abort: new AbortController(),
      query: picture ? { ...(text && { text }), image: picture.image } : text,
      items: candidates,
      bytes: [picture, ...candidates].reduce((total, item) => total + (item?.bytes ?? 0), 0),
      retrv: options(),
      compares: byId("compare").checked,
      ranked: false,
    };
  }

  begin(run) {
    this.run = run;
    this.given.changed();
    run.reasoning = new Reasoning(run.items);
    byId("outcome").hidden = false;
    showThoughts(run.retrv.mode !== "fast");
    run.work = showWork(run.items.length, run.retrv.mode === "reason");
    atWork(true);
    say("Ranking");
    byId("outcome").scrollIntoView({ block: "nearest" });
  }

  ask(run, retrv) {
    const body = { query: run.query, documents: run.items.map(sent), return_documents: false, retrv };
    return rerank(body, {
      key: byId("key").value,
      signal: run.abort.signal,
      onReasoning: (piece) => run.reasoning.append(piece),
      onInspection: (index) => this.cards.inspect(index),
      onDraft: (draft) => this.showDraft(run, draft),
    });
  }

  showDraft(run, { results }) {
    const first = run.items[results[0]?.index];
    if (first) run.work.note(`At first sight: ${first.name}. Thinking it over.`);
  }

  show(run, response) {
    const elapsed = run.work.end();
    const { retrv = {}, results } = response;
    const answer = retrv.answer ?? results[0]?.index ?? null;
    run.reasoning.finish(retrv.reasoning, answer);
    showThoughts(byId("steps").children.length > 0);
    showAnswer(response, run.items);
    this.cards.rank(results, answer, retrv.inspected ?? []);
    showBill(response, run.bytes, elapsed);
    run.ranked = true;
    if (answer !== null) {
      byId("spoken").append(make("p", {}, `Answer: candidate ${answer + 1}, ${run.items[answer].name}`));
    }
  }

  async compare(run, compressed) {
    say("Reading all tokens of each candidate");
    showComparison(compressed, await this.ask(run, { mode: "fast", reading: "full" }), run.items);
  }
}

function showThoughts(shown) {
  byId("thoughts").hidden = !shown;
  byId("outcome").classList.toggle("alone", !shown);
}

function stopped(run) {
  if (!run.ranked) showStopped(run.work.end());
  showThoughts(byId("steps").children.length > 0);
  say("Stopped");
}

function failed(run, error) {
  byId("outcome").hidden = !run.ranked;
  say("");
  if (error instanceof Problem) {
    showProblem(error.message, error.remedy);
    if (error.status === 401 || error.status === 403) askForKey();
  } else {
    console.error(error);
    showProblem("The page could not show the answer.", "Reload it. If it happens again, please report it with the browser's log.");
  }
}

function atWork(working) {
  byId("stop").hidden = !working;
  byId("rank").hidden = working;
  document.body.classList.toggle("at-work", working);
  const controls = ["choose", "choose-query", "add-texts", "texts", "clear", "compare"];
  for (const id of controls) byId(id).disabled = working;
}
