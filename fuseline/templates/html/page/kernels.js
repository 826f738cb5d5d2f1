// The kernels: what is known of each, where it runs, what it was chosen from, and its code.

views.kernels = {
  title: "Kernels",
  count: (program) => program.kernels.length,
  build(place, program, route) {
    if (!program.kernels.length) {
      place.append(section("Kernels", missing("No kernels", "Torch runs all of this program.")));
      return {};
    }
    const shown = el("article.kernel", { "aria-live": "polite" });
    const { element, items } = kernelList(program);
    place.append(el("div.split", {}, element, shown));
    /** @param {Route} to */
    const show = (to) => {
      const kernel = kernelsOf(program).get(to.kernel) ?? program.kernels[0];
      for (const [symbol, item] of items) {
        if (symbol === kernel.record.symbol) item.setAttribute("aria-current", "true");
        else item.removeAttribute("aria-current");
      }
      if (to.kernel) items.get(kernel.record.symbol)?.scrollIntoView({ block: "nearest" });
      shown.replaceChildren(...kernelPage(program, kernel));
    };
    show(route);
    return { update: show };
  },
};

/** @param {Program} program */
function kernelList(program) {
  const items = new Map();
  const list = el("ul.list");
  for (const { record } of program.kernels) {
    const item = el(
      "a.list-item",
      { href: href({ view: "kernels", kernel: record.symbol }) },
      el("span.list-title", {}, record.family, record.status !== "native" && badge(record.status, record.status)),
      el("span.count", { title: "launches of one call" }, `×${record.launches}`),
      el("span.quiet.mono", {}, record.symbol),
    );
    items.set(record.symbol, item);
    list.append(el("li", {}, item));
  }
  return { element: el("nav.kernels", { "aria-label": "Kernels" }, list), items };
}

/** @param {Program} program @param {KernelView} kernel */
function kernelPage(program, kernel) {
  const { record } = kernel;
  return [
    el("h2.mono.wraps", {}, record.symbol),
    el("p.sub", {}, badge(record.status, record.status), ` ${record.op} by ${record.family}, ${counted(record.launches, "launch", "launches")} a call`),
    record.reason && el("p.reason", {}, record.reason),
    factsOf(kernelFacts(record)),
    resourcesOf(record),
    ...placesOf(program, record),
    ...choicesOf(record),
    sourceOf(kernel),
  ].filter(Boolean);
}

/** @param {KernelRecord} record @returns {[string, Children][]} */
function kernelFacts(record) {
  const known = [["built for", record.target], ["sizes", record.sizes], ["needs", record.needs]].filter(([, value]) => value);
  return [["first launch at", record.origin || "not known"], .../** @type {[string, Children][]} */ (known)];
}

/** What one asks of a kernel's machine code first. */
const FIRST = ["registers", "shared_memory", "spills", "warps"];

/** @param {KernelRecord} record */
function resourcesOf(record) {
  const names = [...new Set([...FIRST, ...Object.keys(record.resources)])].filter((name) => name in record.resources);
  if (!names.length) return null;
  const stats = names.map((name) => {
    const value = record.resources[name];
    const text = /memory|bytes|stack/.test(name) ? bytesText(value) : countText(value);
    return el(`div.stat${name === "spills" && value ? ".warn" : ""}`, {}, el("dt", {}, name.replaceAll("_", " ")), el("dd", {}, text));
  });
  return el("dl.stats", { "aria-label": "From its machine code" }, ...stats);
}

/** @param {Program} program @param {KernelRecord} record */
function placesOf(program, record) {
  const steps = program.steps.map((step, number) => ({ step, number })).filter(({ step }) => step.symbol === record.symbol);
  const graph = lastGraph(program);
  const nodes = graph >= 0 ? (nodesByKernel(program.graphs[graph]).get(record.symbol) ?? []) : [];
  if (!steps.length && !nodes.length) return [];
  const ops = nodes.map((node) => el("li", {}, link({ view: "graph", graph, node }, program.graphs[graph].nodes[node].op), el("span.quiet", {}, ` ${whereOf(program.graphs[graph].nodes[node])}`)));
  const calls = steps.map(({ step, number }) => el("li", {}, `step ${number}`, el("span.quiet", {}, ` ${step.where}`)));
  const list = el("ul.places", {}, ...(ops.length ? ops : calls));
  return [el("details", { open: nodes.length <= 6 && steps.length <= 6 }, el("summary", {}, ops.length ? `Does ${counted(ops.length, "op")}` : `Called by ${counted(calls.length, "step")}`), list)];
}

/** @param {KernelRecord} record */
function choicesOf(record) {
  return record.choices.map((choice) => {
    const label = `Chosen by ${choice.by} for ${choice.sizes}`;
    return el(
      "details",
      {},
      el("summary", {}, `${label}: `, el("b", {}, choice.chosen)),
      choice.note && el("p.quiet", {}, choice.note),
      el("div.scroll", {}, el("table", { "aria-label": label }, el("tbody", {}, ...optionRows(choice)))),
    );
  });
}

/** @param {Choice} choice */
function optionRows(choice) {
  const most = Math.max(...choice.options.map((option) => option.microseconds ?? 0), 1e-9);
  return choice.options.map(({ label, microseconds, note }) => {
    const chosen = label === choice.chosen;
    const time = microseconds === null ? "" : [bar(microseconds / most, chosen ? "after" : "before"), secondsText(microseconds / 1e6)];
    return el(`tr${chosen ? ".chosen" : ""}`, {}, el("td", {}, chosen ? "✓ " : "", label), el("td.num", {}, ...[time].flat()), el("td", {}, note));
  });
}

/** @param {KernelView} kernel */
function sourceOf({ record, language, source, ptx }) {
  if (!source) return missing("No source", record.status === "native" ? "Its source was not kept." : "It is not ours: torch or one of its libraries does this.");
  const forms = /** @type {[string, string][]} */ ([["source", language === "python" ? "Triton" : language === "cuda" ? "CUDA" : "C++"], ...(ptx ? [["ptx", "PTX"]] : [])]);
  const place = el("div");
  const entry = el("button", { type: "button", on: { click: () => showLine(place.firstChild, Number(entry.dataset.line)) } });
  let shown = "";
  /** @param {string} form */
  const show = (form) => {
    shown = form === "ptx" ? ptx : source;
    const lines = shown.replace(/\n$/, "").split("\n");
    const line = lines.findIndex((text) => text.includes(`${record.symbol}(`)) + 1;
    entry.hidden = line < 2;
    entry.dataset.line = String(line);
    entry.textContent = `Entry, line ${line}`;
    place.replaceChildren(codeBlock(lines, form === "ptx" ? "ptx" : language, { label: `Code of ${record.symbol}` }));
  };
  show("source");
  const choice = forms.length > 1 ? choiceOf("Which code", forms, "source", show) : el("h3", {}, forms[0][1]);
  return el("section", { "aria-label": "Code" }, el("div.bar-of-controls", {}, choice, copyButton(() => shown), entry), place);
}
