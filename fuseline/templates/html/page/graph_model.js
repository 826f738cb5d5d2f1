// A graph as it is drawn: where its ops are, by row, so that only those on the screen are looked at.

const CELL = { across: 196, down: 64, width: 172, height: 38 };

/** @typedef {{number: number, node: NodeView, strip: number, x: number, y: number, look: Look, kind: string}} Mark */

class GraphModel {
  /**
   * @param {Program} program @param {number} number
   * @param {number | null} piece all of them where it is null
   * @param {number} wide 0, or width to height of what it is wrapped into: strips side by side, as columns of a newspaper
   */
  constructor(program, number, piece, wide) {
    this.program = program;
    this.graph = program.graphs[number];
    const shown = this.graph.nodes.filter((node) => piece === null || node.piece === piece);
    const strips = stripsOf(shown, wide);
    /** @type {(Mark | null)[]} */
    this.marks = this.graph.nodes.map((node, i) => (piece === null || node.piece === piece ? markOf(program, node, i, strips) : null));
    /** @type {Map<number, Mark[]>} */
    this.rows = new Map();
    for (const mark of this.marks) if (mark) this.rowOf(mark.y / CELL.down).push(mark);
    this.edges = this.graph.edges.filter(([from, to]) => this.marks[from] && this.marks[to]);
    this.shown = this.marks.filter((mark) => mark !== null);
    this.bounds = boundsOf(this.shown);
    this.pieces = piecesOf(this.shown);
  }

  /** @param {number} y */
  rowOf(y) {
    const row = this.rows.get(y);
    if (row) return row;
    /** @type {Mark[]} */
    const made = [];
    this.rows.set(y, made);
    return made;
  }

  /** Ops between two heights. @param {number} top @param {number} bottom */
  *between(top, bottom) {
    const last = Math.floor(bottom / CELL.down);
    for (let y = Math.floor(top / CELL.down); y <= last; y += 1) yield* this.rows.get(y) ?? [];
  }

  /** The op at a point. @param {number} x @param {number} y */
  at(x, y) {
    for (const mark of this.between(y - CELL.height, y)) {
      if (x >= mark.x && x <= mark.x + CELL.width && y >= mark.y && y <= mark.y + CELL.height) return mark;
    }
    return null;
  }
}

/** @typedef {{first: number, rows: number, columns: number}} Strips */

/** @param {NodeView[]} nodes @param {number} wide @returns {Strips} */
function stripsOf(nodes, wide) {
  let [first, last, columns] = [Infinity, 0, 0];
  for (const { x, y } of nodes) {
    first = Math.min(first, y);
    last = Math.max(last, y);
    columns = Math.max(columns, x + 2);
  }
  const rows = last - first + 1;
  if (!wide || !nodes.length) return { first: 0, rows: last + 1, columns };
  const strips = Math.round(Math.sqrt((wide * rows * CELL.down) / (columns * CELL.across)));
  return { first, rows: Math.ceil(rows / Math.max(strips, 1)), columns };
}

/** @param {Program} program @param {NodeView} node @param {number} number @param {Strips} strips @returns {Mark} */
function markOf(program, node, number, { first, rows, columns }) {
  const kind = program.groups[node.group]?.kind ?? "";
  const strip = Math.floor((node.y - first) / rows);
  const [x, y] = [node.x + strip * columns, node.y - first - strip * rows];
  return { number, node, strip, kind, look: lookOf(program, kind), x: x * CELL.across, y: y * CELL.down };
}

/** @param {Mark[]} marks @returns {Box} */
function boundsOf(marks) {
  const box = { left: Infinity, top: Infinity, right: -Infinity, bottom: -Infinity };
  for (const { x, y } of marks) {
    box.left = Math.min(box.left, x);
    box.top = Math.min(box.top, y);
    box.right = Math.max(box.right, x + CELL.width);
    box.bottom = Math.max(box.bottom, y + CELL.height);
  }
  return marks.length ? box : { left: 0, top: 0, right: 1, bottom: 1 };
}

/** Bands behind the ops of each piece. @param {Mark[]} marks */
function piecesOf(marks) {
  /** @type {Map<string, Mark[]>} */
  const found = new Map();
  for (const mark of marks) {
    if (mark.node.piece < 0) continue;
    const key = `${mark.node.piece} ${mark.strip}`;
    const ops = found.get(key);
    if (ops) ops.push(mark);
    else found.set(key, [mark]);
  }
  return [...found.values()]
    .map((ops) => ({ piece: ops[0].node.piece, count: ops.length, ...boundsOf(ops) }))
    .sort((a, b) => a.piece - b.piece);
}

/** The types that an op makes, as its line says. */
const typeOf = (/** @type {string} */ line) => line.match(/ : ([^:{}"]*?)(?: @ "|$)/)?.[1] ?? "";
