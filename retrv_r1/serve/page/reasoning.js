// The reasoning as steps with chips, redrawn as it grows. The rules are those of the report page.

import { byId, eye, make, picture, plain } from "./dom.js";

const INSPECT = /\binspect \[(\d+)\]/g;
const LABEL = /\[(\d+)\]/g;
const SENTENCE = /[.!?](?=\s)/;

// Splits at line ends, before each inspection, and after an inspection's first sentence.
export function stepsOf(text, count) {
  const steps = [];
  const known = (match) => Number(match[1]) >= 1 && Number(match[1]) <= count;
  for (const line of text.split("\n")) {
    const looks = [...line.matchAll(INSPECT)].filter(known);
    steps.push({ fragments: fragmentsOf(line.slice(0, looks[0]?.index ?? line.length), known) });
    looks.forEach((look, place) => {
      const verdict = line.slice(look.index + look[0].length, looks[place + 1]?.index ?? line.length);
      const stop = SENTENCE.exec(verdict);
      const cut = stop ? stop.index + 1 : verdict.length;
      steps.push({ inspected: Number(look[1]) - 1, fragments: fragmentsOf(verdict.slice(0, cut), known) });
      steps.push({ fragments: fragmentsOf(verdict.slice(cut), known) });
    });
  }
  return steps.filter((step) => step.fragments.length || step.inspected !== undefined);
}

function fragmentsOf(text, known) {
  const fragments = [];
  let last = 0;
  const trimmed = text.trim();
  for (const match of trimmed.matchAll(LABEL)) {
    if (!known(match)) continue;
    fragments.push({ text: trimmed.slice(last, match.index) }, { candidate: Number(match[1]) - 1 });
    last = match.index + match[0].length;
  }
  fragments.push({ text: trimmed.slice(last) });
  return fragments.filter((one) => one.text || one.candidate !== undefined);
}

// Keeps the list of steps up to date while text arrives, and speaks each finished step once.
export class Reasoning {
  constructor(candidates) {
    this.candidates = candidates;
    this.text = "";
    this.answer = null;
    this.drawn = [];
    this.spoken = 0;
    this.due = false;
    byId("steps").replaceChildren();
    byId("spoken").replaceChildren();
  }

  append(text) {
    this.text += plain(text);
    if (this.due) return;
    this.due = true;
    requestAnimationFrame(() => this.draw());
  }

  finish(text, answer) {
    this.text = plain(text) || this.text;
    this.answer = answer;
    this.drawn = [];
    this.draw();
    this.speak(Infinity);
  }

  draw() {
    this.due = false;
    const list = byId("steps");
    const steps = stepsOf(this.text, this.candidates.length);
    steps.forEach((step, place) => {
      const form = JSON.stringify(step);
      if (this.drawn[place] === form) return;
      this.drawn[place] = form;
      const element = this.step(step);
      if (list.children[place]) list.children[place].replaceWith(element);
      else list.append(element);
    });
    while (list.children.length > steps.length) list.lastElementChild.remove();
    this.speak(steps.length - 1);
  }

  step(step) {
    const element = make("li", { class: step.inspected === undefined ? "thought" : "look" });
    if (step.inspected !== undefined) {
      element.append(make("span", { class: "verb" }, eye(), " inspects"), " ", this.chip(step.inspected), " ");
    }
    for (const one of step.fragments) {
      element.append(one.candidate === undefined ? one.text : this.chip(one.candidate));
    }
    return element;
  }

  chip(index) {
    const item = this.candidates[index];
    const shown = item.url ? [picture(item)] : [];
    return make(
      "a",
      {
        class: index === this.answer ? "chip is-answer" : "chip",
        href: `#c${index + 1}`,
        title: item.name,
        data: { index },
      },
      ...shown,
      make("b", {}, String(index + 1)),
      item.url ? null : make("span", { class: "chip-name" }, item.name),
    );
  }

  // The last step may still grow, so only those before it are spoken until the end.
  speak(end) {
    const list = byId("steps").children;
    for (; this.spoken < Math.min(end, list.length); this.spoken++) {
      byId("spoken").append(make("p", {}, list[this.spoken].textContent));
    }
  }
}
