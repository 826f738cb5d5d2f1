// How a graph is drawn: the closer one is, the more is said of each op.

const NEAR = 0.72;
const READABLE = 0.42;
const FAR = 0.1;
const STUB = 10;

/**
 * @typedef {object} Looks what is picked out
 * @property {number} hot the op below the pointer, or -1
 * @property {number} pinned the op that was clicked, or -1
 * @property {Set<string>} off kinds that are faded
 * @property {string | null} lit the kind that alone is not
 */

/**
 * @param {CanvasRenderingContext2D} context @param {GraphModel} model @param {Camera} camera
 * @param {Size} size @param {Looks} looks @param {Record<string, string>} ink
 */
function drawGraph(context, model, camera, size, looks, ink) {
  const scale = camera.sx;
  const view = { left: camera.x, top: camera.y, right: camera.x + size.width / scale, bottom: camera.y + size.height / scale };
  context.save();
  context.scale(scale, scale);
  context.translate(-camera.x, -camera.y);
  drawPieces(context, model, view, scale, ink);
  if (scale > FAR || model.shown.length < 400) drawEdges(context, model, view, scale, looks, ink);
  const near = nearOf(model, looks.pinned);
  for (const mark of model.between(view.top - CELL.height, view.bottom)) {
    if (mark.x < view.right && mark.x + CELL.width > view.left) drawOp(context, model, mark, scale, looks, near, ink);
  }
  context.restore();
}

/** @param {GraphModel} model @param {number} pinned */
function nearOf(model, pinned) {
  if (pinned < 0) return new Set();
  const { reads, readers } = neighboursOf(model.graph);
  return new Set([...(reads[pinned] ?? []), ...(readers[pinned] ?? [])]);
}

/** @param {CanvasRenderingContext2D} context @param {GraphModel} model @param {Box} view @param {number} scale @param {Record<string, string>} ink */
function drawPieces(context, model, view, scale, ink) {
  const margin = (CELL.down - CELL.height) / 2;
  for (const { piece, count, left, top, right, bottom } of model.pieces) {
    if (bottom < view.top || top > view.bottom) continue;
    context.fillStyle = ink.panel;
    context.globalAlpha = piece % 2 ? 0.55 : 1;
    context.fillRect(left - 40, top - margin, right - left + 80, bottom - top + 2 * margin);
    context.globalAlpha = 1;
    if (scale < 0.2) continue;
    const size = 11 / Math.max(scale, 0.5);
    context.fillStyle = ink.muted;
    context.font = `${size}px system-ui, sans-serif`;
    context.textBaseline = "top";
    context.save();
    context.translate(left - 36, Math.min(Math.max(top, view.top + 8 / scale), bottom - CELL.height));
    context.rotate(Math.PI / 2);
    context.fillText(`piece ${piece} · ${count} ops`, 0, -size);
    context.restore();
  }
}

/** @param {CanvasRenderingContext2D} context @param {GraphModel} model @param {Box} view @param {number} scale @param {Looks} looks @param {Record<string, string>} ink */
function drawEdges(context, model, view, scale, looks, ink) {
  const curved = scale > 0.25;
  const picked = [];
  context.beginPath();
  for (const edge of model.edges) {
    const from = /** @type {Mark} */ (model.marks[edge[0]]);
    const to = /** @type {Mark} */ (model.marks[edge[1]]);
    if (to.y < view.top || from.y > view.bottom) continue;
    if (Math.max(from.x, to.x) + CELL.width < view.left || Math.min(from.x, to.x) > view.right) continue;
    if ([looks.pinned, looks.hot].some((n) => n === edge[0] || n === edge[1])) picked.push([from, to]);
    else traceEdge(context, from, to, curved);
  }
  context.lineWidth = Math.max(1, 0.7 / scale);
  context.strokeStyle = ink.edge;
  context.stroke();
  context.beginPath();
  for (const [from, to] of picked) traceEdge(context, from, to, curved);
  context.lineWidth = Math.max(2, 1.4 / scale);
  context.strokeStyle = ink.accent;
  context.stroke();
}

/** Down the column of what makes the value, and over to its reader on the last row. @param {CanvasRenderingContext2D} context @param {Mark} from @param {Mark} to @param {boolean} curved */
function traceEdge(context, from, to, curved) {
  const [x, y] = [from.x + CELL.width / 2, from.y + CELL.height];
  const [tx, ty] = [to.x + CELL.width / 2, to.y];
  context.moveTo(x, y);
  if (from.strip !== to.strip) {
    context.lineTo(x, y + STUB); // it goes on in another strip
    context.moveTo(tx, ty - STUB);
    context.lineTo(tx, ty);
    return;
  }
  const bend = ty - (CELL.down - CELL.height);
  if (bend > y) context.lineTo(x, bend);
  if (!curved || x === tx) context.lineTo(tx, ty);
  else {
    const middle = (Math.max(bend, y) + ty) / 2;
    context.bezierCurveTo(x, middle, tx, middle, tx, ty);
  }
}

/**
 * @param {CanvasRenderingContext2D} context @param {GraphModel} model @param {Mark} mark @param {number} scale
 * @param {Looks} looks @param {Set<number>} near @param {Record<string, string>} ink
 */
function drawOp(context, model, mark, scale, looks, near, ink) {
  const { x, y, look, kind, number } = mark;
  const faded = looks.lit !== null ? kind !== looks.lit : looks.off.has(kind);
  const picked = number === looks.hot || number === looks.pinned;
  context.globalAlpha = faded && !picked ? 0.18 : 1;
  if (scale < READABLE) {
    context.fillStyle = ink[look.hue];
    context.fillRect(x, y, CELL.width, scale < FAR ? CELL.down - 6 : CELL.height);
  } else drawBox(context, mark, ink);
  if (picked || near.has(number)) {
    context.strokeStyle = ink.accent;
    context.lineWidth = (picked ? 3 : 1.5) / Math.min(scale, 1);
    context.strokeRect(x, y, CELL.width, CELL.height);
  }
  if (scale >= READABLE) drawWords(context, model, mark, scale, ink);
  context.globalAlpha = 1;
}

/** @param {CanvasRenderingContext2D} context @param {Mark} mark @param {Record<string, string>} ink */
function drawBox(context, { x, y, look }, ink) {
  const alpha = context.globalAlpha;
  context.beginPath();
  context.roundRect(x, y, CELL.width, CELL.height, 5);
  context.fillStyle = ink.bg;
  context.fill();
  context.globalAlpha = alpha * 0.16;
  context.fillStyle = ink[look.hue];
  context.fill();
  context.globalAlpha = alpha;
  context.lineWidth = 1.25;
  context.strokeStyle = ink[look.hue];
  context.setLineDash(look.dashed ? [5, 3] : []);
  context.stroke();
  context.setLineDash([]);
  context.fillRect(x, y + 4, 4, CELL.height - 8);
}

/** @param {CanvasRenderingContext2D} context @param {GraphModel} model @param {Mark} mark @param {number} scale @param {Record<string, string>} ink */
function drawWords(context, model, { x, y, node }, scale, ink) {
  const near = scale >= NEAR;
  const size = near ? 13 : 11.5 / scale > 22 ? 22 : Math.max(13, 10 / scale);
  context.textBaseline = "middle";
  context.fillStyle = ink.text;
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.fillText(fitted(context, node.op, CELL.width - 18), x + 11, y + CELL.height / 2 - (near ? 8 : 0));
  if (!near) return;
  context.fillStyle = ink.muted;
  context.font = "10.5px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace";
  context.fillText(fitted(context, typeOf(model.program.lines[node.text] ?? ""), CELL.width - 18), x + 11, y + CELL.height / 2 + 8);
}

/** A text, shortened to a width. @param {CanvasRenderingContext2D} context @param {string} text @param {number} width */
function fitted(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let [low, high] = [0, text.length];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (context.measureText(`${text.slice(0, middle)}…`).width <= width) low = middle;
    else high = middle - 1;
  }
  return `${text.slice(0, low)}…`;
}
