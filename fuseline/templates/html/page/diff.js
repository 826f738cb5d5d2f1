// What one pass changed: its text before and after, side by side, or one below the other where it is narrow.

const LONG_LINE = 700;
const ROWS_OF_PART = 60;
const ROWS_AT_FIRST = 120;

views.diff = {
  title: "Diffs",
  count: (program) => program.passes.filter(changed).length,
  build(place, program, route) {
    if (!program.passes.length) {
      place.append(section("Diffs", missing("No passes", "This program came from an artifact or a cache, ready to run.")));
      return {};
    }
    let number = 0;
    /** @param {Route} to */
    const show = (to) => {
      number = passNumber(program, to);
      place.replaceChildren(...diffOf(program, number));
      place.scrollTop = 0;
    };
    show(route);
    return {
      update: show,
      key(event) {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return false;
        const next = nextPass(program, number, step, event.shiftKey);
        if (next) go({ view: "diff", pass: next });
        return Boolean(next);
      },
    };
  },
};

/** The pass that a route names, from 1; else the first that changed something. @param {Program} program @param {Route} route */
function passNumber(program, route) {
  const asked = Number(route.pass);
  if (asked >= 1 && asked <= program.passes.length) return Math.floor(asked);
  return program.passes.findIndex(changed) + 1 || 1;
}

/** The next one that changed something, or any; 0 where there is none. @param {Program} program @param {number} from @param {number} step @param {boolean} any */
function nextPass(program, from, step, any) {
  for (let at = from + step; at >= 1 && at <= program.passes.length; at += step) {
    if (any || changed(program.passes[at - 1])) return at;
  }
  return 0;
}

/** @param {Program} program @param {number} number */
function diffOf(program, number) {
  const pass = program.passes[number - 1];
  const { gone, came } = lineCounts(pass);
  return [
    diffControls(program, number),
    el("h2.pass-title", {}, el("span.count", {}, `${number}`), el("span.mono", {}, pass.name)),
    pass.about && el("p.about", {}, pass.about),
    el("p.facts-line", {}, ...[secondsText(pass.seconds), opsChange(pass), linesChange(gone, came)].filter(Boolean).map((fact) => el("span", {}, ...[fact].flat())), link({ view: "text", at: number }, "the whole text after it")),
    rewritesOf(pass),
    pass.hunks.length ? hunksOf(program, number) : missing("No line changed", changed(pass) ? "Its rewrites left the text as it was." : "This run of the pass found nothing to do."),
  ].filter(Boolean);
}

/** @param {Program} program @param {number} number */
function diffControls(program, number) {
  const choices = program.passes.map((pass, i) => /** @type {[string, string]} */ ([String(i + 1), `${i + 1} ${pass.name}${changed(pass) ? "" : " (nothing)"}`]));
  return el(
    "div.bar-of-controls.one-row",
    {},
    turn("←", "Previous pass that changed something", nextPass(program, number, -1, false)),
    pickOf("Pass", choices, String(number), (value) => go({ view: "diff", pass: value })),
    turn("→", "Next pass that changed something", nextPass(program, number, 1, false)),
  );
}

/** @param {string} sign @param {string} label @param {number} to */
function turn(sign, label, to) {
  return el("button.turn", { type: "button", "aria-label": label, title: label, disabled: !to, on: { click: () => go({ view: "diff", pass: to }) } }, sign);
}

/** @param {PassView} pass */
function rewritesOf(pass) {
  if (!pass.rewrites.length) return null;
  const list = el("ol.rewrites");
  const box = el("details", {}, el("summary", {}, counted(pass.rewrites.length, "rewrite")), list);
  box.addEventListener("toggle", () => {
    if (!list.childElementCount) list.append(...pass.rewrites.map((text) => el("li", {}, text)));
  });
  return box;
}

/** @param {Program} program @param {number} number */
function hunksOf(program, number) {
  const { hunks } = program.passes[number - 1];
  const before = textAfter(program, number - 1);
  const table = el("div.diff", { role: "group", "aria-label": "Text before and after, side by side" });
  let [old, now, made] = [1, 1, 0];
  for (const hunk of hunks) {
    table.append(...between(program, before, old, now, hunk.before - old), ...rowsOf(program, hunk.before, hunk.after, hunk.rows, made > ROWS_AT_FIRST));
    made += hunk.rows.length;
    old = hunk.before + hunk.rows.filter(([line]) => line >= 0).length;
    now = hunk.after + hunk.rows.filter(([, line]) => line >= 0).length;
  }
  table.append(...between(program, before, old, now, before.length + 1 - old));
  return table;
}

/** A button in the place of lines that stayed. @param {Program} program @param {number[]} text @param {number} old @param {number} now @param {number} count */
function between(program, text, old, now, count) {
  if (count <= 0) return [];
  const button = el("button.unfold", { type: "button", on: { click: unfold } }, `${counted(count, "line")} that stayed`);
  function unfold() {
    const rows = text.slice(old - 1, old - 1 + count).map((line) => /** @type {[number, number]} */ ([line, line]));
    button.replaceWith(...rowsOf(program, old, now, rows));
  }
  return [button];
}

/** Rows in parts that are made when they are seen. @param {Program} program @param {number} old @param {number} now @param {[number, number][]} rows @param {boolean} later all of them */
function rowsOf(program, old, now, rows, later = false) {
  const parts = [];
  for (let first = 0; first < rows.length; first += ROWS_OF_PART) {
    const some = rows.slice(first, first + ROWS_OF_PART);
    const [from, to] = [old, now];
    old += some.filter(([line]) => line >= 0).length;
    now += some.filter(([, line]) => line >= 0).length;
    const part = el("div.diff-part", { style: { "--rows": some.length } });
    const fill = () => {
      part.classList.add("made");
      part.append(...numbered(program, from, to, some));
    };
    if (first || later) whenSeen(part, fill);
    else fill();
    parts.push(part);
  }
  return parts;
}

/** @param {Program} program @param {number} old @param {number} now @param {[number, number][]} rows */
function numbered(program, old, now, rows) {
  return rows.map(([before, after]) => {
    const kind = before === after ? "same" : before < 0 ? "came" : after < 0 ? "gone" : "other";
    const row = el(`div.row.${kind}`, {}, ...sides(program.lines, before, after, kind, old, now));
    if (before >= 0) old += 1;
    if (after >= 0) now += 1;
    return row;
  });
}

/** @param {string[]} lines @param {number} before @param {number} after @param {string} kind @param {number} old @param {number} now */
function sides(lines, before, after, kind, old, now) {
  const texts = [lines[before], lines[after]];
  const ranges = kind === "other" ? changedRanges(texts[0], texts[1]) : [[], []];
  return [side("left", texts[0], old, ranges[0]), side("right", texts[1], now, ranges[1])].flat();
}

/** @param {string} name @param {string | undefined} text @param {number} number @param {Stretch[]} ranges */
function side(name, text, number, ranges) {
  if (text === undefined) return [el(`span.no.${name}`), el(`span.text.${name}.none`)];
  const long = text.length > LONG_LINE ? ".long" : "";
  return [el(`span.no.${name}`, { data: { n: number } }), el(`span.text.${name}${long}`, {}, painted(text, "ir", ranges))];
}
