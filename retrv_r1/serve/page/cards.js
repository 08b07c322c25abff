// The candidates as cards: in the order they were given, then in the order of the ranking.

import { bar, byId, counted, eye, make, picture, whole } from "./dom.js";

const STILL = matchMedia("(prefers-reduced-motion: reduce)");

export class Cards {
  // `remove(key)` is called when the user takes a candidate out.
  constructor(remove) {
    this.list = byId("cards");
    this.remove = remove;
    this.list.addEventListener("keydown", (event) => this.move(event));
    this.list.addEventListener("focusin", (event) => this.rove(event.target.closest(".card")));
  }

  // Draws unranked candidates.
  show(items) {
    this.items = items;
    this.list.className = items.length && !items.some((item) => item.url) ? "rows" : "grid";
    this.list.replaceChildren(...items.map((item, index) => this.card(item, index)));
    if (this.list.firstElementChild) this.list.firstElementChild.tabIndex = 0;
    byId("list").hidden = items.length === 0;
    byId("list-title").textContent = "Candidates";
    byId("list-count").textContent = whole(items.length);
  }

  card(item, index) {
    const number = make("b", { class: "number" }, String(index + 1));
    const card = make("li", { id: `c${index + 1}`, class: "card", tabindex: -1, title: item.name, data: { index } });
    card.append(item.url ? picture(item) : make("span", { class: "words" }, item.text));
    card.append(make("span", { class: "name" }, number, item.url ? item.name : ""));
    const taken = make("button", { type: "button", class: "remove", tabindex: -1, "aria-label": `Remove ${item.name}` }, "×");
    taken.addEventListener("click", () => this.remove(item.key));
    card.append(taken);
    this.describe(card, item, index);
    return card;
  }

  at(index) {
    return byId(`c${index + 1}`);
  }

  // A candidate that the model looks at just now: it lights up, and keeps its mark.
  inspect(index) {
    const card = this.at(index);
    if (!card || card.classList.contains("is-inspected")) return;
    card.classList.add("is-inspected", "is-looked-at");
    card.append(make("span", { class: "badge", title: "inspected in full" }, eye()));
    card.addEventListener("animationend", () => card.classList.remove("is-looked-at"), { once: true });
  }

  // Shows a ranking: cards move to their places and get their scores.
  rank(results, answer, inspected) {
    const before = new Map([...this.list.children].map((card) => [card, card.getBoundingClientRect()]));
    inspected.forEach((index) => this.inspect(index));
    const ranked = results.map(({ index, relevance_score: score, truncated }, place) => {
      const card = this.at(index);
      card.classList.toggle("is-answer", index === answer);
      card.prepend(make("span", { class: "rank" }, String(place + 1)));
      if (truncated) card.append(make("span", { class: "text" }, "only the start was read"));
      card.append(make("span", { class: "score" }, bar(score), make("strong", {}, score.toFixed(3))));
      this.describe(card, this.items[index], index, { place, score, answer: index === answer });
      return card;
    });
    this.list.append(...ranked);
    this.rove(ranked[0]);
    byId("list-title").textContent = "Ranking";
    byId("list-count").textContent = counted(results.length, "candidate");
    if (!STILL.matches && ranked.length <= 128) glide(before);
  }

  describe(card, item, index, ranked) {
    const parts = [`candidate ${index + 1}: ${item.name}`];
    if (ranked) parts.unshift(`rank ${ranked.place + 1}`);
    if (ranked) parts.push(`score ${ranked.score.toFixed(3)}`);
    if (ranked?.answer) parts.push("the answer");
    if (card.classList.contains("is-inspected")) parts.push("inspected in full");
    card.setAttribute("aria-label", parts.join(", "));
  }

  // One card at a time can be reached by Tab.
  rove(card) {
    if (!card) return;
    for (const other of this.list.querySelectorAll('.card[tabindex="0"]')) other.tabIndex = -1;
    card.tabIndex = 0;
  }

  move(event) {
    const card = event.target.closest(".card");
    if (!card || event.altKey || event.ctrlKey || event.metaKey) return;
    const cards = [...this.list.children];
    const place = cards.indexOf(card);
    if (event.key === "Delete" || event.key === "Backspace") {
      event.preventDefault();
      this.remove(this.items[Number(card.dataset.index)].key);
      this.list.children[Math.min(place, this.list.children.length - 1)]?.focus();
      return;
    }
    const columns = getComputedStyle(this.list).gridTemplateColumns.split(" ").length;
    const targets = {
      ArrowLeft: place - 1,
      ArrowRight: place + 1,
      ArrowUp: place - columns,
      ArrowDown: place + columns,
      Home: 0,
      End: cards.length - 1,
    };
    const target = cards[targets[event.key]];
    if (event.key in targets) event.preventDefault();
    target?.focus();
  }
}

function glide(before) {
  for (const [card, old] of before) {
    const now = card.getBoundingClientRect();
    const [x, y] = [old.left - now.left, old.top - now.top];
    if (x || y) {
      card.animate([{ transform: `translate(${x}px, ${y}px)` }, { transform: "none" }], {
        duration: 380,
        easing: "cubic-bezier(.2, .7, .2, 1)",
      });
    }
  }
}
