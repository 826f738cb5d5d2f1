// Tables that can be sorted by any column; rows are made as far as one looks.

/**
 * @template R
 * @typedef {object} Column
 * @property {string} title
 * @property {(row: R) => Children} cell
 * @property {(row: R) => string | number} [by] what it is sorted by; none where it cannot be
 * @property {boolean} [num] numbers stand at the right, and begin with the largest
 * @property {boolean} [wide] left out on narrow screens
 * @property {string} [about]
 */

const ROWS_AT_ONCE = 150;

/**
 * @template R
 * @param {string} label
 * @param {Column<R>[]} columns
 * @param {R[]} rows
 * @param {{sort?: number, down?: boolean, mark?: (row: R, element: any) => void}} [options]
 */
function tableOf(label, columns, rows, options = {}) {
  let shown = rows;
  let by = options.sort ?? -1;
  let down = options.down ?? false;
  const body = el("tbody");
  const heads = columns.map((column, number) => headOf(column, () => sort(number)));
  const table = el("table", { "aria-label": label }, el("thead", {}, el("tr", {}, ...heads)), body);
  const element = el("div.scroll", { tabindex: 0, role: "region", "aria-label": label }, table);

  /** @param {number} number */
  function sort(number) {
    down = by === number ? !down : Boolean(columns[number].num);
    by = number;
    draw();
  }
  function draw() {
    heads.forEach((head, i) => {
      head.setAttribute("aria-sort", i !== by ? "none" : down ? "descending" : "ascending");
    });
    body.replaceChildren();
    append(sorted(shown, columns[by]?.by, down), 0);
  }
  /** @param {R[]} all @param {number} from */
  function append(all, from) {
    const end = Math.min(from + ROWS_AT_ONCE, all.length);
    for (const row of all.slice(from, end)) body.append(rowOf(columns, row, options.mark));
    if (end < all.length) whenSeen(body.lastChild, () => append(all, end));
  }
  draw();
  return {
    element,
    /** @param {R[]} next */
    show(next) {
      shown = next;
      draw();
    },
  };
}

/** @param {Column<any>} column @param {() => void} sort */
function headOf(column, sort) {
  const title = column.by ? el("button", { type: "button", on: { click: sort } }, column.title) : column.title;
  return el(`th${classesOf(column)}`, { scope: "col", title: column.about }, title);
}

/** @param {Column<any>[]} columns @param {any} row @param {((row: any, element: any) => void) | undefined} mark */
function rowOf(columns, row, mark) {
  const made = el("tr", {}, ...columns.map((c) => el(`td${classesOf(c)}`, { "data-title": c.title }, ...[c.cell(row)].flat())));
  mark?.(row, made);
  return made;
}

/** @param {Column<any>} column */
const classesOf = (column) => (column.num ? ".num" : "") + (column.wide ? ".wide" : "");

/** @param {any[]} rows @param {((row: any) => string | number) | undefined} by @param {boolean} down */
function sorted(rows, by, down) {
  if (!by) return rows;
  const sign = down ? -1 : 1;
  return [...rows].sort((a, b) => {
    const [left, right] = [by(a), by(b)];
    return left < right ? -sign : left > right ? sign : 0;
  });
}

/** A bar behind a number: its share of the largest. @param {number} share @param {string} [kind] */
function bar(share, kind = "after") {
  const width = `${Math.max(0, Math.min(1, share || 0)) * 100}%`;
  return el("span.bar", { "aria-hidden": true }, el(`span.${kind}`, { style: { width } }));
}

/** Names and values. @param {[string, Children][]} pairs */
function factsOf(pairs) {
  return el("dl.facts", {}, ...pairs.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, ...[value].flat())]));
}
