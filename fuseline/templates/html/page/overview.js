// What was compiled, and what came of it, in numbers that lead to the other views.

/** @typedef {{update?: (route: Route) => void, key?: (event: KeyboardEvent) => boolean, close?: () => void}} Shown */
/** @typedef {{title: string, count?: (program: Program) => number, build: (place: any, program: Program, route: Route) => Shown}} View */

/** @type {Record<string, View>} */
const views = {};

views.overview = {
  title: "Overview",
  build(place, program) {
    place.append(
      el("h1", {}, page.title),
      el("p.sub", {}, subtitle(program)),
      ...notesOf(),
      ...unknownOf(program),
      el("div.tiles", {}, ...tiles(program)),
      el("div.columns", {}, patternsSection(program), stagesSection(program)),
      el("div.columns", {}, mapSection("Versions", page.versions), mapSection("Options", program.options)),
    );
    return {};
  },
};

/** What is to be said above all programs. */
const notesOf = () => page.notes.map((note) => el("p.note", { role: "note" }, note));

/** @param {Program} program */
function unknownOf({ unknown }) {
  if (!unknown.length) return [];
  const sizes = unknown.length > 1 ? `The sizes ${unknown.join(", ")} are` : `The size ${unknown[0]} is`;
  return [el("p.note", { role: "note" }, `${sizes} not known before the model runs: bytes and arithmetic are those of the least that may be.`)];
}

/** @param {Program} program */
function subtitle(program) {
  const sizes = Object.entries(program.sizes).map(([name, value]) => `${name} = ${value}`);
  const changes = program.passes.filter(changed).length;
  return [
    program.target ? `${program.name} for ${program.target}` : program.name,
    sizes.length ? `with ${sizes.join(", ")}` : "",
    program.passes.length ? `${counted(program.passes.length, "pass", "passes")}, ${changes} of which changed it` : "",
  ].filter(Boolean).join(" · ");
}

/** @param {Program} program */
function tiles(program) {
  const fused = program.sites.filter((site) => site.status === "fused").length;
  const missed = program.sites.length - fused;
  const native = program.kernels.filter((kernel) => kernel.record.status === "native").length;
  const [eager, compiled] = [costOf(program, "eager"), costOf(program, "compiled")];
  const ops = program.graphs.map((graph) => graph.nodes.length);
  return [
    tile({ view: "sites" }, "Sites", `${countText(fused)} fused`, missed ? `${countText(missed)} missed` : "none missed", missed ? "warn" : ""),
    tile({ view: "graph" }, "Ops", arrow(ops[0] ?? 0, ops[ops.length - 1] ?? 0, countText), ratioText(ops[0], ops[ops.length - 1])),
    tile({ view: "layers" }, "Launches", arrow(eager[0], compiled[0], countText), ratioText(eager[0], compiled[0])),
    tile({ view: "layers" }, "Bytes moved", arrow(eager[1], compiled[1], bytesText), ratioText(eager[1], compiled[1])),
    tile({ view: "layers" }, "Arithmetic", arrow(eager[2], compiled[2], flopsText), ratioText(eager[2], compiled[2])),
    tile({ view: "kernels" }, "Kernels", countText(program.kernels.length), `${native} generated, ${program.kernels.length - native} not`),
    tile({ view: "memory" }, "Temporaries", program.memory ? bytesText(program.memory.arena) : "not planned", program.memory ? `beside ${bytesText(program.memory.weights)} of weights` : ""),
    callsTile(program),
  ];
}

/** The unit is said once, where both have it. @param {number} before @param {number} after @param {(value: number) => string} text */
function arrow(before, after, text) {
  const [[old, unit], [, other]] = [text(before).split("\u00a0"), text(after).split("\u00a0")];
  return [el("span.before", {}, unit === other ? old : text(before)), el("span.to", { "aria-label": " to " }, "→"), text(after)];
}

/** @param {Record<string, string>} place @param {string} title @param {Children} value @param {string} more @param {string} [kind] */
function tile(place, title, value, more, kind = "") {
  return el(
    "a.tile",
    { href: href(place) },
    el("span.tile-title", {}, title),
    el("span.tile-value", {}, ...[value].flat()),
    el(`span.tile-more${kind && `.${kind}`}`, {}, more || "\u00a0"),
  );
}

/** @param {Program} program */
function callsTile(program) {
  const { eager, compiled } = program.calls;
  if (compiled?.length && eager?.length) {
    const [before, after] = [median(eager), median(compiled)];
    const words = before >= after ? `${digits(before / after)}× as fast` : `${digits(after / before)}× as slow`;
    return tile({ view: "samples" }, "A call", arrow(before, after, secondsText), words);
  }
  if (compiled?.length) return tile({ view: "samples" }, "A call", secondsText(median(compiled)), "median of its samples");
  return tile({ view: "samples" }, "A call", "not measured", "");
}

/** @param {Program} program */
function patternsSection(program) {
  const patterns = [...new Set(program.sites.map((site) => site.pattern))].sort();
  if (!patterns.length) return section("Sites by pattern", missing("No sites", "Nothing looked like a known pattern."));
  const counts = patterns.map((pattern) => {
    const sites = program.sites.filter((site) => site.pattern === pattern);
    return { pattern, all: sites.length, fused: sites.filter((site) => site.status === "fused").length };
  });
  const most = Math.max(...counts.map((count) => count.all));
  const rows = counts.map(({ pattern, all, fused }) =>
    el(
      "a.bar-row",
      { href: href({ view: "sites", pattern }) },
      el("span.mono", {}, pattern),
      el("span.stack", { "aria-hidden": true }, part("fused", fused / most), part("missed", (all - fused) / most)),
      el("span.num", {}, all - fused ? `${fused} of ${all}` : `${fused}`),
    ),
  );
  return section("Sites by pattern", ...rows);
}

/** @param {string} kind @param {number} share */
const part = (kind, share) => el(`span.${kind}`, { style: { width: `${share * 100}%` } });

/** @param {Program} program */
function stagesSection(program) {
  const stages = Object.entries(program.seconds);
  if (!stages.length) return section("Time by stage", missing("Not known", "This program was not compiled here."));
  const most = Math.max(...stages.map(([, seconds]) => seconds));
  const rows = stages.map(([stage, seconds]) =>
    el("div.bar-row", {}, el("span", {}, stage), el("span.stack", { "aria-hidden": true }, part("time", seconds / most)), el("span.num", {}, secondsText(seconds))),
  );
  return section(`Time by stage: ${secondsText(total(Object.values(program.seconds)))}`, ...rows);
}

/** @param {string} title @param {Record<string, string>} map */
function mapSection(title, map) {
  const pairs = /** @type {[string, Children][]} */ (Object.entries(map));
  return section(title, pairs.length ? factsOf(pairs) : missing("None", "Everything is as it comes."));
}
