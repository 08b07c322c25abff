// The page: puts the parts together, and listens to pointer and keys.

import { Cards } from "./cards.js";
import { byId, make, picture } from "./dom.js";
import { EXAMPLES, examplePicture, exampleUrl } from "./examples.js";
import { Given } from "./given.js";
import { pictureItem, picturesOf, textItem } from "./items.js";
import { Runner } from "./run.js";
import { hideProblem, say, showFacts, showProblem } from "./words.js";

const cards = new Cards((key) => given.remove(key));
const given = new Given(changed, () => runner.run !== null);
const runner = new Runner(given, cards);

function changed() {
  for (const id of ["outcome", "comparison", "bill"]) byId(id).hidden = true;
  byId("spoken").replaceChildren();
  cards.show(given.candidates);
}

async function showExample({ query, queryPicture, pictures = [], texts = [] }) {
  if (runner.run) return;
  const read = async (name) => pictureItem(await examplePicture(name));
  const asked = queryPicture ? await read(queryPicture) : null;
  given.set([...(await Promise.all(pictures.map(read))), ...texts.map(textItem)]);
  given.setPicture(asked);
  byId("query").value = query;
  await runner.rank();
}

function wireForms() {
  const form = byId("form");
  const modes = () => {
    byId("modes").disabled = byId("compare").checked;
    const fast = byId("compare").checked || form.elements.mode.value === "fast";
    for (const id of ["inspections", "votes"]) byId(id).disabled = fast;
  };
  form.addEventListener("change", modes);
  modes();
  form.addEventListener("submit", (event) => (event.preventDefault(), runner.rank()));
  byId("stop").addEventListener("click", () => runner.stop());
  byId("clear").addEventListener("click", () => (given.set([]), say(""), byId("query").focus()));
  byId("add-texts").addEventListener("click", () => given.addTexts());
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    byId("key-form").hidden = true;
    hideProblem();
    if (given.missing()) showFacts();
    else runner.rank();
  });
}

function wireFiles() {
  const choice = (button, field, take) => {
    byId(button).addEventListener("click", () => byId(field).click());
    byId(field).addEventListener("change", async ({ target }) => {
      await take([...target.files]);
      target.value = "";
    });
  };
  choice("choose", "files", (files) => given.addPictures(files));
  choice("choose-query", "query-file", ([file]) => file && given.readPicture(file));
  for (const example of EXAMPLES) {
    const shown = { name: "", url: exampleUrl(example.sample) };
    const button = make("button", { type: "button", class: "quiet" }, picture(shown), example.label);
    button.addEventListener("click", () =>
      showExample(example).catch((error) => showProblem(error.message, "Reload the page.")));
    byId("examples").append(button);
  }
}

function wireDrops() {
  const unmark = () => document.querySelectorAll(".is-target").forEach((one) => one.classList.remove("is-target"));
  const forQuery = (event) => event.target.closest?.("#query-card");
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    unmark();
    (forQuery(event) ?? byId("tray")).classList.add("is-target");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && unmark());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    unmark();
    given.take(event.dataTransfer, forQuery(event));
  });
  document.addEventListener("paste", (event) => {
    const typed = event.target.closest?.("input, textarea");
    if (typed && !picturesOf(event.clipboardData).length) return;
    event.preventDefault();
    given.take(event.clipboardData, forQuery(event));
  });
}

function wireKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return runner.stop();
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.target.closest?.("input, textarea")) return;
    event.preventDefault();
    byId("query").focus();
    byId("query").select();
  });
  byId("query").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    runner.rank();
  });
  byId("texts").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) given.addTexts();
  });
}

// Whatever names a candidate lights up with its card: a mention, a row of the comparison.
function wireLights() {
  const indexAt = (event) => event.target.closest?.("[data-index]")?.dataset.index;
  const light = (index) => {
    for (const lit of document.querySelectorAll(".is-lit")) lit.classList.remove("is-lit");
    if (index === undefined) return;
    for (const one of document.querySelectorAll(`[data-index="${index}"]`)) one.classList.add("is-lit");
  };
  document.addEventListener("pointerover", (event) => light(indexAt(event)));
  document.addEventListener("focusin", (event) => light(indexAt(event)));
  document.addEventListener("focusout", () => light(undefined));
  byId("steps").addEventListener("click", (event) => {
    const index = indexAt(event);
    if (index === undefined) return;
    event.preventDefault();
    cards.at(Number(index))?.focus();
  });
}

wireForms();
wireFiles();
wireDrops();
wireKeys();
wireLights();
showFacts();
