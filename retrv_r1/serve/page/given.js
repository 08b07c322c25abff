// What the user has given: the query's picture, and the candidates. Its text is in its field.

import { byId, make, picture } from "./dom.js";
import { forget, linesOf, pictureItem, picturesOf, textItem } from "./items.js";
import { hideProblem, say, showProblem } from "./words.js";

export class Given {
  // `changed()` is called after each change of the candidates; nothing changes while `busy()`.
  constructor(changed, busy) {
    this.candidates = [];
    this.picture = null;
    this.changed = changed;
    this.busy = busy;
  }

  get text() {
    return byId("query").value.trim();
  }

  // The field that lacks something, and what to do; null if a ranking can start.
  missing() {
    if (!this.text && !this.picture) return ["query", "Type a query first, or give a picture."];
    if (!this.candidates.length) return ["texts", "Add candidates first: pictures, or texts."];
    return null;
  }

  set(candidates) {
    this.candidates.forEach(forget);
    this.candidates = candidates;
    this.changed();
  }

  add(items) {
    if (!items.length) return;
    this.candidates = [...this.candidates, ...items];
    this.changed();
    say(`${items.length} added`);
  }

  remove(key) {
    if (this.busy()) return;
    forget(this.candidates.find((item) => item.key === key));
    this.candidates = this.candidates.filter((item) => item.key !== key);
    this.changed();
  }

  addTexts() {
    this.add(linesOf(byId("texts").value).map(textItem));
    byId("texts").value = "";
  }

  async addPictures(files) {
    hideProblem();
    const read = await Promise.allSettled([...files].map(pictureItem));
    this.add(read.filter((one) => one.status === "fulfilled").map((one) => one.value));
    const failed = read.filter((one) => one.status === "rejected");
    if (failed.length) showProblem(failed.map((one) => one.reason.message).join(" "));
  }

  async readPicture(file) {
    hideProblem();
    try {
      this.setPicture(await pictureItem(file));
    } catch (error) {
      showProblem(error.message);
    }
  }

  setPicture(item) {
    forget(this.picture);
    this.picture = item;
    const place = byId("query-picture");
    place.hidden = !item;
    byId("choose-query").textContent = item ? "Another picture" : "Choose a picture";
    byId("query").placeholder = item ? "Words, too?" : "What are you looking for?";
    if (!item) return place.replaceChildren();
    const remove = make("button", { type: "button", class: "remove", "aria-label": "Remove the query's picture" }, "×");
    remove.addEventListener("click", () => this.setPicture(null));
    place.replaceChildren(picture(item), remove);
  }

  // Takes what was dropped or pasted: into the query, or as candidates.
  take(transfer, forQuery) {
    if (this.busy()) return;
    hideProblem();
    const files = picturesOf(transfer);
    const text = transfer.getData("text/plain");
    if (forQuery && files.length) this.readPicture(files[0]);
    else if (forQuery) byId("query").value = text.trim();
    else if (files.length) this.addPictures(files);
    else if (transfer.files.length) showProblem("Only pictures can be dropped here.", "Paste texts into the field, one a line.");
    else this.add(linesOf(text).map(textItem));
  }
}
