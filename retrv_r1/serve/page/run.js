// One request at a time: sent, watched, shown, stopped.

import { showBill, showComparison } from "./bill.js";
import { byId, make } from "./dom.js";
import { sent } from "./items.js";
import { showAnswer, showStopped, showWork } from "./outcome.js";
import { Reasoning } from "./reasoning.js";
import { Problem, rerank } from "./server.js";
import { askForKey, hideProblem, say, showModel, showProblem } from "./words.js";

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
    const run = { abort: new AbortController(), items: this.given.candidates, retrv: options(), ranked: false };
    this.begin(run);
    try {
      const response = await this.ask(run, run.retrv);
      this.show(run, response);
      if (byId("compare").checked) await this.compare(run, response);
      say("");
    } catch (error) {
      run.end();
      if (error.name === "AbortError") stopped(run);
      else failed(run, error);
    } finally {
      this.run = null;
      atWork(false);
    }
  }

  begin(run) {
    this.run = run;
    this.given.changed();
    run.reasoning = new Reasoning(run.items);
    byId("outcome").hidden = false;
    showThoughts(run.retrv.mode !== "fast");
    run.end = showWork(run.items.length, run.retrv.mode === "reason");
    atWork(true);
    say("Ranking");
    byId("outcome").scrollIntoView({ block: "nearest" });
  }

  ask(run, retrv) {
    const { text, picture } = this.given;
    const query = picture ? { ...(text && { text }), image: picture.image } : text;
    const body = { query, documents: run.items.map(sent), return_documents: false, retrv };
    return rerank(body, {
      key: byId("key").value,
      signal: run.abort.signal,
      onReasoning: (piece) => run.reasoning.append(piece),
      onInspection: (index) => this.cards.inspect(index),
    });
  }

  show(run, response) {
    const elapsed = run.end();
    const { retrv = {}, results } = response;
    const answer = retrv.answer ?? results[0]?.index ?? null;
    run.reasoning.finish(retrv.reasoning, answer);
    showThoughts(byId("steps").children.length > 0);
    showAnswer(response, run.items);
    this.cards.rank(results, answer, retrv.inspected ?? []);
    const pictures = [this.given.picture, ...run.items];
    showBill(response, pictures.reduce((total, item) => total + (item?.bytes ?? 0), 0), elapsed);
    run.ranked = true;
    if (answer !== null) {
      byId("spoken").append(make("p", {}, `Answer: candidate ${answer + 1}, ${run.items[answer].name}`));
    }
    showModel(response.model);
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
  if (!run.ranked) showStopped(run.end());
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
