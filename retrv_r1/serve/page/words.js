// What the page says: its state, and errors with their remedy.

import { byId, make } from "./dom.js";
import { facts } from "./server.js";

const LOADING_PAUSE = 2000;

export function say(text) {
  byId("status").textContent = text;
}

export function showProblem(message, remedy = "") {
  byId("problem").replaceChildren(make("strong", {}, message), " ", make("span", {}, remedy));
  byId("problem").hidden = false;
}

export function hideProblem() {
  byId("problem").hidden = true;
}

export function askForKey() {
  byId("key-form").hidden = false;
  byId("key").focus();
}

// Asks the server what it serves. While it loads its model, asks again; where it wants a key, the
// page asks for one.
export async function showFacts() {
  const known = await facts(byId("key").value);
  if (known?.loading) {
    say("The model is loading");
    setTimeout(showFacts, LOADING_PAUSE);
    return;
  }
  if (byId("status").textContent === "The model is loading") say("");
  if (known?.locked) askForKey();
  const words = [known?.model, known?.device].filter(Boolean);
  if (words.length) byId("facts").replaceChildren(...words.map((word) => make("span", {}, word)));
}
