// One box that finds ops, kernels, sites, passes and layers.

/** @typedef {{kind: string, title: string, more: string, place: Record<string, string | number>}} Hit */

const HITS_OF_KIND = 6;

/** @param {Program} program @param {string} words @returns {Hit[]} */
function searched(program, words) {
  const graph = lastGraph(program);
  const nodes = program.graphs[graph]?.nodes ?? [];
  return [
    ...found(nodes, words, (node) => `${node.op} ${program.lines[node.text] ?? ""}`, (node, number) => ({ kind: "op", title: node.op, more: whereOf(node), place: { view: "graph", graph, node: number } })),
    ...found(program.kernels, words, ({ record }) => `${record.symbol} ${record.op} ${record.family}`, ({ record }) => ({ kind: "kernel", title: record.symbol, more: record.op, place: { view: "kernels", kernel: record.symbol } })),
    ...found(program.sites, words, (site) => `${site.pattern} ${site.where} ${site.reason}`, (site, number) => ({ kind: site.status, title: site.pattern, more: site.where, place: { view: "sites", site: number } })),
    ...found(program.passes, words, (pass) => pass.name, (pass, number) => ({ kind: "pass", title: pass.name, more: changed(pass) ? opsChange(pass) : "changed nothing", place: { view: "diff", pass: number + 1 } })),
  ];
}

/**
 * @template T
 * @param {T[]} all @param {string} words @param {(each: T) => string} text @param {(each: T, number: number) => Hit} hit
 */
function found(all, words, text, hit) {
  const parts = words.toLowerCase().split(/\s+/).filter(Boolean);
  /** @type {Hit[]} */
  const hits = [];
  for (let number = 0; number < all.length && hits.length < HITS_OF_KIND; number += 1) {
    const where = text(all[number]).toLowerCase();
    if (parts.every((part) => where.includes(part))) hits.push(hit(all[number], number));
  }
  return hits;
}

/** @param {() => Program} program */
function searchBox(program) {
  const input = el("input", { type: "search", placeholder: "Search ops, kernels, sites", role: "combobox", "aria-label": "Search", "aria-expanded": "false", "aria-controls": "hits", autocomplete: "off" });
  const list = el("ul.hits", { id: "hits", role: "listbox", hidden: true });
  let at = 0;
  /** @type {Hit[]} */
  let hits = [];
  const close = () => {
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
  };
  /** @param {Hit | undefined} hit */
  const follow = (hit) => {
    if (!hit) return;
    close();
    input.blur();
    go(hit.place);
  };
  const mark = () => {
    [...list.children].forEach((item, i) => item.setAttribute("aria-selected", String(i === at)));
    list.children[at]?.scrollIntoView({ block: "nearest" });
  };
  const show = () => {
    const words = input.value.trim();
    hits = words ? searched(program(), words) : [];
    at = 0;
    const items = hits.map((hit) => el("li", { role: "option", on: { pointerdown: (/** @type {Event} */ e) => (e.preventDefault(), follow(hit)) } }, badge(hit.kind, hit.kind), el("span.mono", {}, hit.title), el("span.quiet", {}, hit.more)));
    list.replaceChildren(...(items.length ? items : [el("li.quiet", {}, "Nothing found")]));
    list.hidden = !words;
    input.setAttribute("aria-expanded", String(Boolean(words)));
    mark();
  };
  input.addEventListener("input", show);
  input.addEventListener("focus", show);
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && hits.length) {
      at = (at + step + hits.length) % hits.length;
      mark();
      event.preventDefault();
    }
    if (event.key === "Enter") follow(hits[at]);
    if (event.key === "Escape") input.blur();
  });
  return { element: el("div.search", { role: "search" }, input, list), input };
}
