// What the page says: its state, and errors with their remedy.

import { byId, make } from "./dom.js";
import { facts } from "./server.js";

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

export function showModel(name) {
  if (name) byId("facts").replaceChildren(make("span", {}, name));
}

// Asks the server what it serves; where it wants a key, the page asks for one.
export async function showFacts() {
  const known = await facts(byId("key").value);
  if (known?.locked) askForKey();
  showModel(known?.model);
}
