// What several views ask of a program, found once.

/**
 * A function of one object that remembers what it found.
 * @template {object} K
 * @template V
 * @param {(key: K) => V} find
 * @returns {(key: K) => V}
 */
function once(find) {
  /** @type {WeakMap<K, V>} */
  const found = new WeakMap();
  return (key) => {
    if (!found.has(key)) found.set(key, find(key));
    return /** @type {V} */ (found.get(key));
  };
}

/** Whether a pass did anything. @param {PassView} pass */
const changed = (pass) => pass.hunks.length > 0 || pass.rewrites.length > 0;

/** How many lines a pass took away, and how many it put in. @param {PassView} pass */
function lineCounts(pass) {
  let gone = 0;
  let came = 0;
  for (const hunk of pass.hunks) {
    for (const [before, after] of hunk.rows) {
      if (before === after) continue;
      if (before >= 0) gone += 1;
      if (after >= 0) came += 1;
    }
  }
  return { gone, came };
}

/** A text after a pass changed it. @param {number[]} text @param {Hunk[]} hunks */
function patched(text, hunks) {
  /** @type {number[]} */
  const made = [];
  let at = 0;
  for (const hunk of hunks) {
    while (at < hunk.before - 1) made.push(text[at++]);
    for (const [before, after] of hunk.rows) {
      if (before >= 0) at += 1;
      if (after >= 0) made.push(after);
    }
  }
  while (at < text.length) made.push(text[at++]);
  return made;
}

/** The texts that passes left behind, found as far as somebody asked. */
const textsOf = once((/** @type {Program} */ program) => [program.imported]);

/** The text after the first passes. @param {Program} program @param {number} passes how many */
function textAfter(program, passes) {
  const texts = textsOf(program);
  while (texts.length <= passes) {
    const pass = program.passes[texts.length - 1];
    const before = texts[texts.length - 1];
    texts.push(pass.hunks.length ? patched(before, pass.hunks) : before);
  }
  return texts[passes];
}

/** Kernels by symbol. */
const kernelsOf = once(
  (/** @type {Program} */ program) => new Map(program.kernels.map((k) => [k.record.symbol, k])),
);

/** What is drawn of a graph by default: after all passes, where there is that. @param {Program} program */
const lastGraph = (program) => program.graphs.length - 1;

/** The nodes of a graph by the kernel that does them. */
const nodesByKernel = once((/** @type {GraphView} */ graph) => {
  /** @type {Map<string, number[]>} */
  const found = new Map();
  graph.nodes.forEach((node, number) => {
    for (const symbol of node.kernels) {
      const nodes = found.get(symbol);
      if (nodes) nodes.push(number);
      else found.set(symbol, [number]);
    }
  });
  return found;
});

/** Nodes that each node reads, and that read it. */
const neighboursOf = once((/** @type {GraphView} */ graph) => {
  const reads = graph.nodes.map(() => /** @type {number[]} */ ([]));
  const readers = graph.nodes.map(() => /** @type {number[]} */ ([]));
  for (const [from, to] of graph.edges) {
    reads[to].push(from);
    readers[from].push(to);
  }
  return { reads, readers };
});

/** Kinds of fusion, the most frequent first. */
const kindsOf = once((/** @type {Program} */ program) => {
  /** @type {Map<string, number>} */
  const counts = new Map();
  for (const group of program.groups) counts.set(group.kind, (counts.get(group.kind) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).map(([kind]) => kind);
});

/** Whether a place is in a module. @param {string} where @param {string} module */
const isIn = (where, module) => where === module || where.startsWith(`${module} (`) || where.startsWith(`${module}.`);

/** Where an op is, as sites write it. @param {NodeView} node */
function whereOf(node) {
  const [first] = node.source;
  return [node.module, first && `(${first})`].filter(Boolean).join(" ");
}

/** The nodes of each graph by the place of what they are part of, and by their own. */
const nodesByPlace = once((/** @type {Program} */ program) =>
  program.graphs.map(({ nodes }) => {
    /** @type {{grouped: Map<string, number[]>, exact: Map<string, number[]>}} */
    const found = { grouped: new Map(), exact: new Map() };
    const add = (/** @type {Map<string, number[]>} */ map, /** @type {string} */ where, /** @type {number} */ number) => {
      const there = map.get(where);
      if (there) there.push(number);
      else map.set(where, [number]);
    };
    nodes.forEach((node, number) => {
      const group = program.groups[node.group];
      for (const where of group?.where.split("; ") ?? []) add(found.grouped, where, number);
      add(found.exact, whereOf(node), number);
    });
    return found;
  }),
);

/**
 * The nodes of a graph that a site is about: of a fusion of its kind, of any there, or just there.
 * @param {Program} program @param {Site} site @param {number} number of the graph
 */
function nodesOfSite(program, site, number) {
  const places = nodesByPlace(program)[number];
  if (!places) return [];
  const { nodes } = program.graphs[number];
  const grouped = places.grouped.get(site.where) ?? [];
  const alike = grouped.filter((i) => program.groups[nodes[i].group].kind === site.pattern);
  if (alike.length || grouped.length) return alike.length ? alike : grouped;
  const exact = places.exact.get(site.where);
  if (exact) return exact;
  const module = site.where.split(" (")[0];
  const first = module ? nodes.findIndex((node) => isIn(node.module, module)) : -1;
  return first < 0 ? [] : [first];
}

/** The sites that an op may belong to. @param {Program} program @param {NodeView} node */
function sitesOf(program, node) {
  const places = program.groups[node.group]?.where.split("; ") ?? [whereOf(node)];
  return program.sites.map((_, i) => i).filter((i) => places.includes(program.sites[i].where));
}

/** The first part of a path that is a number alone. */
const NUMBER_PART = /(^|\.)(\d+)(?=[. ]|$)/;

/**
 * @template T
 * @typedef {object} Fold things that differ in the number of their layer alone
 * @property {string} name
 * @property {T[]} items
 */

/**
 * @template T
 * @param {T[]} items @param {(item: T) => string} pathOf @param {(item: T) => unknown} restOf what else must be equal
 * @returns {Fold<T>[]}
 */
function foldsOf(items, pathOf, restOf) {
  /** @type {Map<string, T[]>} */
  const found = new Map();
  for (const item of items) {
    const path = pathOf(item);
    const rest = renumbered(JSON.stringify(restOf(item)), path, "#");
    const key = `${path.replace(NUMBER_PART, "$1#")} ${rest}`;
    const alike = found.get(key);
    if (alike) alike.push(item);
    else found.set(key, [item]);
  }
  return [...found.values()].map((alike) => ({ name: foldName(alike.map(pathOf)), items: alike }));
}

/** A text in which the number of a path is another. @param {string} text @param {string} path @param {string} number */
function renumbered(text, path, number) {
  const own = path.match(NUMBER_PART)?.[2];
  return own === undefined ? text : text.replaceAll(`.${own}.`, `.${number}.`);
}

/** A path for several, as `layers.0–3,5.mlp`. @param {string[]} paths */
function foldName(paths) {
  if (paths.length === 1) return paths[0];
  const numbers = paths.map((path) => Number(path.match(NUMBER_PART)?.[2] ?? 0));
  return paths[0].replace(NUMBER_PART, (_, dot) => `${dot}${spansText(numbers)}`);
}

/** @param {number[]} numbers */
function spansText(numbers) {
  /** @type {[number, number][]} */
  const spans = [];
  for (const number of [...new Set(numbers)].sort((a, b) => a - b)) {
    const last = spans[spans.length - 1];
    if (last && number === last[1] + 1) last[1] = number;
    else spans.push([number, number]);
  }
  return spans.map(([from, to]) => (from === to ? String(from) : `${from}–${to}`)).join(",");
}

/** Launches, bytes and flops of all layers. @param {Program} program @param {"eager" | "compiled"} form */
function costOf(program, form) {
  return /** @type {Cost} */ ([0, 1, 2].map((i) => total(program.layers.map((l) => l[form][i]))));
}

/** What a step takes, by its samples. @param {StepView} step */
const stepTime = (step) => (step.seconds.length ? median(step.seconds) : 0);

/** @param {Program} program */
const isSampled = (program) => program.steps.some((step) => step.seconds.length > 0);
