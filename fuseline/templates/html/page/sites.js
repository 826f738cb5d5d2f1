// Places in the model that look like a known pattern: fused, or missed and why; like places as one.

/** @typedef {{status: string, pattern: string, words: string, each: boolean}} SiteFilter */
/** @typedef {{site: Site, number: number}} SiteRow */

views.sites = {
  title: "Sites",
  count: (program) => program.sites.length,
  build(place, program, route) {
    if (!program.sites.length) {
      place.append(section("Sites", missing("No sites", "Nothing in the model looked like a pattern that is known.")));
      return {};
    }
    const list = new SiteList(place, program, route);
    return { update: (to) => list.follow(to) };
  },
};

class SiteList {
  /** @param {any} place @param {Program} program @param {Route} route */
  constructor(place, program, route) {
    this.program = program;
    /** @type {SiteRow[]} */
    this.rows = program.sites.map((site, number) => ({ site, number }));
    this.place = place;
    this.filter = filterOf(route);
    this.found = el("span.quiet", { role: "status" });
    this.table = this.tableOfFolds();
    this.follow(route);
  }

  /** Shows what a route names: a status, a pattern, or one site. @param {Route} route */
  follow(route) {
    this.filter = filterOf(route);
    this.table = this.tableOfFolds();
    this.place.replaceChildren(section("Sites", siteControls(this.program, this.filter, () => this.show()), this.table.element));
    this.place.querySelector(".bar-of-controls").append(this.found);
    this.show();
    if (route.site) this.pointOut(Number(route.site));
  }

  tableOfFolds() {
    const mark = (/** @type {Fold<SiteRow>} */ fold, /** @type {any} */ row) => row.setAttribute("data-site", fold.items[0].number);
    return tableOf("Sites", siteColumns(this.program), this.folds(), { mark });
  }

  folds() {
    const { filter } = this;
    const rows = this.rows.filter((row) => siteFits(row.site, filter));
    if (filter.each) return rows.map((row) => ({ name: row.site.where, items: [row] }));
    return foldsOf(rows, ({ site }) => site.where, ({ site: { pattern, status, reason, kernel, details } }) => [pattern, status, reason, kernel, details]);
  }

  show() {
    const folds = this.folds();
    this.found.textContent = `${countText(total(folds.map((fold) => fold.items.length)))} of ${counted(this.rows.length, "site")}`;
    this.table.show(folds);
  }

  /** @param {number} number */
  pointOut(number) {
    const element = this.table.element;
    const find = () => element.querySelector(`[data-site="${number}"]`);
    while (!find() && number < this.rows.length && number >= 0) reveal(element.querySelector("tbody").lastChild);
    find()?.classList.add("here");
    find()?.scrollIntoView({ block: "center" });
  }
}

/** @param {Route} route @returns {SiteFilter} */
const filterOf = (route) => ({ status: route.status ?? "", pattern: route.pattern ?? "", words: "", each: Boolean(route.site) });

/** @param {Program} program @param {SiteFilter} filter @param {() => void} changed */
function siteControls(program, filter, changed) {
  const patterns = [...new Set(program.sites.map((site) => site.pattern))].sort();
  const count = (/** @type {string} */ status) => program.sites.filter((site) => site.status === status).length;
  const words = el("input", { type: "search", placeholder: "place, reason, kernel", "aria-label": "Filter sites" });
  /** @param {Partial<SiteFilter>} more */
  const set = (more) => {
    Object.assign(filter, more);
    note({ view: "sites", ...(filter.status && { status: filter.status }), ...(filter.pattern && { pattern: filter.pattern }) });
    changed();
  };
  words.addEventListener("input", () => set({ words: words.value.toLowerCase() }));
  return el(
    "div.bar-of-controls",
    {},
    choiceOf("Status", [["", "All"], ["fused", `Fused ${count("fused")}`], ["missed", `Missed ${count("missed")}`]], filter.status, (status) => set({ status })),
    pickOf("Pattern", [["", "every pattern"], ...patterns.map((p) => /** @type {[string, string]} */ ([p, p]))], filter.pattern, (pattern) => set({ pattern })),
    choiceOf("Like sites", [["fold", "Like sites as one"], ["each", "Each site"]], filter.each ? "each" : "fold", (form) => set({ each: form === "each" })),
    words,
  );
}

/** @param {Site} site @param {SiteFilter} filter */
function siteFits(site, { status, pattern, words }) {
  if ((status && site.status !== status) || (pattern && site.pattern !== pattern)) return false;
  return !words || [site.pattern, site.where, site.reason, site.kernel, ...Object.values(site.details)].join(" ").toLowerCase().includes(words);
}

/** @param {Program} program @returns {Column<Fold<SiteRow>>[]} */
function siteColumns(program) {
  const first = (/** @type {Fold<SiteRow>} */ fold) => fold.items[0].site;
  return [
    { title: "Status", cell: (fold) => badge(first(fold).status, first(fold).status), by: (fold) => first(fold).status },
    { title: "Pattern", cell: (fold) => [el("span.mono", {}, first(fold).pattern), fold.items.length > 1 && el("span.count", {}, `×${fold.items.length}`)], by: (fold) => first(fold).pattern },
    { title: "Where", cell: (fold) => whereCell(program, fold), by: (fold) => fold.name },
    { title: "Why, and what else is known", cell: (fold) => siteDetails(fold) },
    { title: "Kernel", cell: (fold) => (first(fold).kernel ? kernelLink(program, first(fold).kernel) : el("span.quiet", {}, "none")), by: (fold) => first(fold).kernel },
  ];
}

/** @param {Program} program @param {Fold<SiteRow>} fold */
function whereCell(program, fold) {
  if (fold.items.length === 1) return siteLink(program, fold.items[0].site);
  const list = el("ul.places");
  const box = el("details", {}, el("summary", {}, fold.name), list);
  box.addEventListener("toggle", () => {
    if (!list.childElementCount) list.append(...fold.items.map(({ site }) => el("li", {}, siteLink(program, site))));
  });
  return box;
}

/** A site's place, which leads to its op in the graph. @param {Program} program @param {Site} site */
function siteLink(program, site) {
  const graph = lastGraph(program);
  const [node] = graph >= 0 ? nodesOfSite(program, site, graph) : [];
  return node === undefined ? site.where : link({ view: "graph", graph, node }, site.where);
}

/** @param {Fold<SiteRow>} fold */
function siteDetails({ name, items: [{ site }] }) {
  const numbers = name.match(/(?:^|\.)([\d–,]+)(?=[. ]|$)/)?.[1] ?? "";
  const said = (/** @type {string} */ text) => renumbered(text, site.where, numbers);
  const details = Object.entries(site.details).map(([key, text]) => el("span.detail", {}, el("span.quiet", {}, `${key} `), said(text)));
  return [site.reason && el("p.reason", {}, said(site.reason)), ...details];
}
