// What is said of one op of the graph: in short where the pointer is, and in full where it was clicked.

/** @param {Program} program @param {NodeView} node @returns {[string, Children][]} */
function opFacts(program, node) {
  const group = program.groups[node.group];
  return [
    ["module", node.module || "none"],
    ["source", node.source.length ? node.source.join(", ") : "not known"],
    ["moves", bytesText(node.bytes)],
    ["computes", flopsText(node.flops)],
    ["part of", group ? [swatchOf("span.dot", lookOf(program, group.kind)), `${group.kind} at ${group.where}`] : "nothing: it stands alone"],
    ["kernel", node.kernels.length ? node.kernels.join(", ") : "none"],
    .../** @type {[string, Children][]} */ (node.piece >= 0 ? [["piece", String(node.piece)]] : []),
  ];
}

/** @param {Program} program @param {NodeView} node */
function shortCard(program, node) {
  return [
    el("p.card-title", {}, node.op),
    el("p.card-text.mono", {}, painted(clipped(program.lines[node.text] ?? "", 420), "ir")),
    factsOf(opFacts(program, node)),
  ];
}

/**
 * @param {Program} program @param {number} graph @param {number} number @param {() => void} close
 */
function fullCard(program, graph, number, close) {
  const node = program.graphs[graph].nodes[number];
  const line = lineOf(program, graph, node);
  const at = graph === 0 && program.graphs.length > 1 ? "0" : "final";
  const sites = sitesOf(program, node);
  return [
    el("button.close", { type: "button", "aria-label": "Close", on: { click: close } }, "×"),
    el("p.card-title", {}, node.op),
    el("p.card-text.mono", {}, painted(clipped(program.lines[node.text] ?? "", 2000), "ir")),
    factsOf(opFacts(program, node).filter(([name]) => name !== "kernel")),
    el(
      "ul.card-links",
      {},
      line > 0 && el("li", {}, link({ view: "text", at, line }, `Line ${line} of the IR`)),
      ...node.kernels.map((symbol) => el("li", {}, "Kernel ", kernelLink(program, symbol))),
      ...sites.map((site) => el("li", {}, link({ view: "sites", site }, `Site: ${program.sites[site].pattern}, ${program.sites[site].status}`))),
    ),
    ...nearList("Reads", program, graph, neighboursOf(program.graphs[graph]).reads[number]),
    ...nearList("Read by", program, graph, neighboursOf(program.graphs[graph]).readers[number]),
  ];
}

/** @param {string} title @param {Program} program @param {number} graph @param {number[]} numbers */
function nearList(title, program, graph, numbers) {
  if (!numbers.length) return [];
  const { nodes } = program.graphs[graph];
  const items = numbers.slice(0, 12).map((n) => el("li", {}, link({ view: "graph", graph, node: n }, nodes[n].op), el("span.quiet", {}, ` ${nodes[n].module}`)));
  const rest = numbers.length - items.length;
  return [el("p.card-sub", {}, title), el("ul.card-links", {}, ...items, rest > 0 && el("li.quiet", {}, `and ${rest} more`))];
}

/** @param {string} text @param {number} most */
const clipped = (text, most) => (text.length > most ? `${text.slice(0, most)} …` : text);
