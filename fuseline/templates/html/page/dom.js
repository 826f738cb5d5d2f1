// Elements from plain values. What a model is called is only ever text: nothing here reads HTML.

/** @typedef {Node | string | number | null | undefined | false} Child */
/** @typedef {Child | Child[]} Children */
/** @typedef {Record<string, any>} Props attributes; `on` has listeners, `style` and `data` pairs */

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element: `el("a.quiet", {href}, "text")`; classes follow the name of the tag.
 * @param {string} tag
 * @param {Props} [props]
 * @param {...Children} children
 * @returns {any}
 */
function el(tag, props, ...children) {
  const [name, ...classes] = tag.split(".");
  const made = document.createElement(name);
  if (classes.length) made.className = classes.join(" ");
  return filled(made, props, children);
}

/**
 * The same for a part of a picture.
 * @param {string} tag
 * @param {Props} [props]
 * @param {...Children} children
 * @returns {any}
 */
function svg(tag, props, ...children) {
  const [name, ...classes] = tag.split(".");
  const made = document.createElementNS(SVG, name);
  if (classes.length) made.setAttribute("class", classes.join(" "));
  return filled(made, props, children);
}

/** @param {any} made @param {Props | undefined} props @param {Children[]} children */
function filled(made, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) give(made, name, value);
  for (const child of children.flat()) {
    if (child !== null && child !== undefined && child !== false) made.append(child);
  }
  return made;
}

/** @param {any} made @param {string} name @param {any} value */
function give(made, name, value) {
  if (value === null || value === undefined || value === false) return;
  if (name === "on") {
    for (const [event, act] of Object.entries(value)) made.addEventListener(event, act);
  } else if (name === "style") {
    for (const [key, text] of Object.entries(value)) made.style.setProperty(key, String(text));
  } else if (name === "data") {
    for (const [key, text] of Object.entries(value)) made.dataset[key] = String(text);
  } else {
    made.setAttribute(name, value === true ? "" : String(value));
  }
}

/** @type {Map<Element, () => void>} */
const unseen = new Map();

const seen = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) if (entry.isIntersecting) reveal(entry.target);
  },
  { rootMargin: "600px" },
);

/**
 * Does something to an element once it comes near what is on the screen.
 * @param {Element} element @param {() => void} act
 */
function whenSeen(element, act) {
  unseen.set(element, act);
  seen.observe(element);
}

/** Does all of it that a view waits for: paper has no place below the screen. */
function revealAll() {
  for (const element of [...unseen.keys()]) if (element.isConnected) reveal(element);
}

/** Waits no longer for what is not there any more. */
function forgetUnseen() {
  for (const element of [...unseen.keys()]) {
    if (element.isConnected) continue;
    seen.unobserve(element);
    unseen.delete(element);
  }
}

/** Does it now. @param {Element} element */
function reveal(element) {
  seen.unobserve(element);
  const act = unseen.get(element);
  unseen.delete(element);
  act?.();
}

/** What stands where there is nothing to see. @param {string} what @param {...Child} why */
function missing(what, ...why) {
  return el("div.missing", { role: "note" }, el("p.missing-what", {}, what), el("p", {}, ...why));
}

/** @param {string} title @param {...Children} children */
function section(title, ...children) {
  return el("section", { "aria-label": title }, el("h2", {}, title), ...children);
}

/**
 * Buttons of which one is pressed.
 * @param {string} label
 * @param {[string, string][]} choices values, and what they are called
 * @param {string} value
 * @param {(value: string) => void} choose
 */
function choiceOf(label, choices, value, choose) {
  const buttons = choices.map(([key, title]) =>
    el("button", { type: "button", "aria-pressed": String(key === value), on: { click: () => press(key) } }, title),
  );
  /** @param {string} key */
  function press(key) {
    buttons.forEach((b, i) => b.setAttribute("aria-pressed", String(choices[i][0] === key)));
    choose(key);
  }
  return el("div.choice", { role: "group", "aria-label": label }, ...buttons);
}

/**
 * A list to pick from.
 * @param {string} label
 * @param {[string, string][]} choices values, and what they are called
 * @param {string} value
 * @param {(value: string) => void} choose
 */
function pickOf(label, choices, value, choose) {
  const options = choices.map(([key, title]) =>
    el("option", { value: key, selected: key === value }, title),
  );
  const list = el("select", { "aria-label": label }, ...options);
  list.addEventListener("change", () => choose(list.value));
  return list;
}

/** What colours of a picture mean. @param {[string, string][]} pairs kinds of swatches, and words */
const keyOf = (pairs) => el("div.key", {}, ...pairs.map(([kind, words]) => el("span", {}, el(`span.swatch.${kind}`), words)));

/** A coloured word. @param {string} kind @param {string} text */
function badge(kind, text) {
  return el(`span.badge.${kind}`, {}, text);
}
