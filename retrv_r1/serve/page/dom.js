// Elements are made here and filled with text nodes only: what users and models write is never markup.

export const byId = (id) => document.getElementById(id);

export function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") element.className = value;
    else if (name === "on") {
      for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    } else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const eye = () => byId("eye").content.firstElementChild.cloneNode(true);

export function picture(item) {
  const element = make("span", { class: "pic", role: "img", "aria-label": item.name });
  element.style.backgroundImage = `url("${item.url}")`;
  return element;
}

export function bar(share, colour = "") {
  const filled = make("i", { class: colour });
  filled.style.width = `${(100 * Math.min(1, Math.max(0, share))).toFixed(1)}%`;
  return make("span", { class: "bar", "aria-hidden": "true" }, filled);
}

export function seconds(value) {
  return value >= 1 ? `${value.toFixed(2)} s` : `${Math.round(value * 1000)} ms`;
}

export function bytes(value) {
  return value >= 1e6 ? `${(value / 1e6).toFixed(1)} MB` : `${Math.ceil(value / 1000)} kB`;
}

export const whole = (value) => value.toLocaleString("en-US", { maximumFractionDigits: 0 });

export const counted = (count, noun) => `${whole(count)} ${noun}${count === 1 ? "" : "s"}`;

// Ids that repeat what a server sent are shown without characters that could steer a reader's eye.
export function plain(text) {
  return String(text ?? "").replace(/[\u202a-\u202e\u2066-\u2069]/g, "\ufffd");
}
