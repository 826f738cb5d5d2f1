// The pipeline over time: a bar for each run of a pass, and how many ops there are as a line over it.

const TIMELINE = { height: 220, left: 12, right: 52, top: 24, bottom: 34 };

views.passes = {
  title: "Pipeline",
  count: (program) => program.passes.length,
  build(place, program, route) {
    if (!program.passes.length) {
      place.append(section("Pipeline", missing("No passes", "This program came from an artifact or a cache, ready to run.")));
      return {};
    }
    const stage = el("div.timeline");
    let form = route.by ?? "time";
    const draw = () => stage.replaceChildren(timeline(program, stage.clientWidth || 800, form));
    const by = choiceOf("Width of bars", [["time", "By time"], ["pass", "One width"]], form, (value) => {
      form = value;
      draw();
    });
    place.append(section("Pipeline", el("div.bar-of-controls", {}, by, keyOf([["changed", "changed something"], ["same", "changed nothing"], ["ops", "ops"]])), stage, el("p.below", {}, passesSum(program))), passTable(program));
    draw();
    const observer = new ResizeObserver(draw);
    observer.observe(stage);
    return { close: () => observer.disconnect() };
  },
};

/** @param {Program} program */
function passesSum(program) {
  const first = program.passes[0];
  const last = program.passes[program.passes.length - 1];
  return `${countText(first.before)} ops became ${countText(last.after)} in ${secondsText(last.start + last.seconds)}. A bar leads to what its pass changed.`;
}

/** @param {Program} program @param {number} width @param {string} form */
function timeline(program, width, form) {
  const { height, left, right, top, bottom } = TIMELINE;
  const passes = program.passes;
  const end = Math.max(...passes.map((pass) => pass.start + pass.seconds), 1e-9);
  const across = width - left - right;
  /** @param {number} number @returns {[number, number]} */
  const place = (number) => {
    const pass = passes[number];
    const slot = across / passes.length;
    if (form === "pass") return [left + number * slot, Math.max(slot - 1, 1)];
    return [left + (pass.start / end) * across, Math.max((pass.seconds / end) * across - 0.5, 2)];
  };
  const most = Math.max(...passes.map((pass) => Math.max(pass.before, pass.after)), 1);
  /** @param {number} ops */
  const level = (ops) => top + (height - top - bottom) * (1 - ops / most);
  return svg(
    "svg",
    { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Passes over time, with counts of ops" },
    ...opsAxis(most, level, width),
    ...passes.map((pass, number) => passBar(pass, number, place(number))),
    opsLine(passes, place, level),
    ...(form === "pass" ? [] : timeAxis(end, across)),
  );
}

/** @param {PassView} pass @param {number} number @param {[number, number]} place */
function passBar(pass, number, [x, width]) {
  const { height, top, bottom } = TIMELINE;
  const words = `${number + 1} ${pass.name}: ${secondsText(pass.seconds)}, ${opsChange(pass)}${changed(pass) ? "" : ", changed nothing"}`;
  const label = width > pass.name.length * 7 + 12 && svg("text.bar-name", { x: x + 6, y: height - bottom - 8 }, pass.name);
  return svg(
    `a.pass.${changed(pass) ? "changed" : "same"}`,
    { href: href({ view: "diff", pass: number + 1 }), "aria-label": words, data: { pass: number + 1 } },
    svg("title", {}, words),
    svg("rect", { x, y: top, width, height: height - top - bottom, rx: Math.min(2, width / 4) }),
    changed(pass) && svg("rect.tick", { x, y: height - bottom + 2, width, height: 4 }),
    label,
  );
}

/** @param {PassView[]} passes @param {(number: number) => [number, number]} place @param {(ops: number) => number} level */
function opsLine(passes, place, level) {
  const points = passes.map((pass, number) => {
    const [x, width] = place(number);
    return `${number ? "L" : "M"}${x} ${level(pass.before)}L${x + width} ${level(pass.after)}`;
  });
  return svg("path.ops-line", { d: points.join("") });
}

/** @param {number} most @param {(ops: number) => number} level @param {number} width */
function opsAxis(most, level, width) {
  return [0, 0.5, 1].map((share) => {
    const y = level(most * share);
    const x = width - TIMELINE.right;
    return svg("g.axis", {}, svg("line", { x1: TIMELINE.left, x2: x, y1: y, y2: y }), svg("text", { x: x + 6, y: y + 4 }, countText(Math.round(most * share))));
  });
}

/** @param {number} end @param {number} across */
function timeAxis(end, across) {
  const y = TIMELINE.height - 8;
  return [0, 0.25, 0.5, 0.75, 1].map((share) =>
    svg("g.axis", {}, svg("text", { x: TIMELINE.left + across * share, y, "text-anchor": share === 0 ? "start" : share === 1 ? "end" : "middle" }, secondsText(end * share))),
  );
}

/** @param {PassView} pass */
function opsChange(pass) {
  const more = pass.after - pass.before;
  return more ? `${countText(pass.before)} → ${countText(pass.after)} ops` : `${countText(pass.after)} ops`;
}

/** @param {Program} program */
function passTable(program) {
  const rows = program.passes.map((pass, number) => ({ pass, number, ...lineCounts(pass) }));
  const longest = Math.max(...rows.map((row) => row.pass.seconds));
  /** @type {Column<typeof rows[0]>[]} */
  const columns = [
    { title: "No.", cell: (row) => String(row.number + 1), by: (row) => row.number, num: true },
    { title: "Pass", cell: (row) => link({ view: "diff", pass: row.number + 1 }, el("span.mono", {}, row.pass.name)), by: (row) => row.pass.name },
    { title: "Time", cell: (row) => [bar(row.pass.seconds / longest, "time"), secondsText(row.pass.seconds)], by: (row) => row.pass.seconds, num: true },
    { title: "Ops", cell: (row) => countText(row.pass.after), by: (row) => row.pass.after, num: true },
    { title: "Change", cell: (row) => signed(row.pass.after - row.pass.before), by: (row) => row.pass.after - row.pass.before, num: true },
    { title: "Rewrites", cell: (row) => (row.pass.rewrites.length ? countText(row.pass.rewrites.length) : ""), by: (row) => row.pass.rewrites.length, num: true },
    { title: "Lines", cell: (row) => linesChange(row.gone, row.came), by: (row) => row.gone + row.came, num: true, wide: true },
    { title: "What it does", cell: (row) => row.pass.about, wide: true },
  ];
  const quiet = (/** @type {any} */ row, /** @type {any} */ element) => element.classList.toggle("quiet", !changed(row.pass));
  return section("Every run of a pass", tableOf("Passes", columns, rows, { mark: quiet }).element);
}

/** @param {number} value */
const signed = (value) => (value > 0 ? `+${countText(value)}` : value < 0 ? `−${countText(-value)}` : "");

/** @param {number} gone @param {number} came */
const linesChange = (gone, came) => (gone + came ? [el("span.gone", {}, `−${gone}`), " ", el("span.came", {}, `+${came}`)] : "");
