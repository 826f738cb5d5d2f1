// What was measured: whole calls, eager and compiled, and each step of the plan.

views.samples = {
  title: "Samples",
  count: (program) => Math.max(0, ...program.steps.map((step) => step.seconds.length)),
  build(place, program) {
    const calls = Object.entries(program.calls).filter(([, seconds]) => seconds.length);
    const sampled = isSampled(program);
    place.append(
      section("Whole calls", calls.length ? callsPicture(program, calls) : missing("No calls were measured", howToSample())),
      section("Steps by time", sampled ? stepsTable(program) : missing("No steps were measured", howToSample())),
    );
    return {};
  },
};

function howToSample() {
  return el("span", {}, "Programs that are only compiled have none. ", el("code", {}, "fuseline run MODEL --html report.html"), " runs the model, and times its calls and steps.");
}

/** @param {Program} program @param {[string, number[]][]} calls */
function callsPicture(program, calls) {
  const most = Math.max(...calls.flatMap(([, seconds]) => seconds));
  const { eager, compiled } = program.calls;
  const times = eager?.length && compiled?.length ? median(eager) / median(compiled) : 0;
  const rows = calls.map(([name, seconds]) => callsRow(name, seconds, most));
  const words = times ? el("p.facts-line", {}, `The median call is ${times >= 1 ? `${digits(times)}× as fast as eager's` : `${digits(1 / times)}× as slow as eager's`}.`) : "";
  const more = isWhole(program) ? "" : el("p.below", {}, "A call is more than one run of this program.");
  return el("div", {}, el("div.calls", {}, words, ...rows), more, program.machine && floorLine(program));
}

/** What the program takes at least, and whose speed that is by. @param {Program} program */
function floorLine(program) {
  const { floor, machine } = program;
  if (!floor) return el("p.below", {}, `Its floor is not known: sizes were not given. Steps have theirs by ${machine}.`);
  const times = isWhole(program) ? `, and a call ${digits(median(program.calls.compiled) / floor)} times that` : "";
  return el("p.below", {}, `The bytes and operations of ${program.name} take ${secondsText(floor)}${times}, by ${machine}.`);
}

/** Whether a call is one run of this program, and nothing else. @param {Program} program */
function isWhole(program) {
  const runs = Math.max(0, ...program.steps.map((step) => step.seconds.length));
  return page.programs.length === 1 && !page.notes.length && runs === program.calls.compiled?.length;
}

/** Dots over time, and the median as a line. @param {string} name @param {number[]} seconds @param {number} most */
function callsRow(name, seconds, most) {
  const left = (/** @type {number} */ value) => `${1 + (value / most) * 97}%`;
  const dots = seconds.map((value, i) => el("span.call", { style: { left: left(value), top: `${6 + ((i * 7) % 16)}px` } }));
  const middle = median(seconds);
  const range = `${secondsText(Math.min(...seconds))} to ${secondsText(Math.max(...seconds))}`;
  const label = `${name}: median ${secondsText(middle)} of ${counted(seconds.length, "call")}, ${range}`;
  return el(
    "div.calls-row",
    {},
    el("span.calls-name", {}, name),
    el(`div.dots.${name === "eager" ? "eager" : "compiled"}`, { role: "img", "aria-label": label }, ...dots, el("span.median", { style: { left: left(middle) } })),
    el("span.num", {}, secondsText(middle), el("span.quiet", {}, ` ${range}`)),
  );
}

/** @param {Program} program */
function stepsTable(program) {
  const rows = program.steps.map((step, number) => ({ step, number, time: stepTime(step), low: step.seconds.length ? quantile(step.seconds, 0.1) : 0, high: step.seconds.length ? quantile(step.seconds, 0.9) : 0 }));
  const all = total(rows.map((row) => row.time));
  const most = Math.max(...rows.map((row) => row.time));
  const longest = Math.max(...rows.map((row) => Math.min(row.high, 3 * row.time)));
  /** @type {Column<typeof rows[0]>[]} */
  const columns = [
    { title: "Step", cell: (row) => String(row.number), by: (row) => row.number, num: true },
    { title: "Does", cell: (row) => [row.step.label, row.step.kind !== "native" && badge(row.step.kind, row.step.kind)], by: (row) => row.step.label },
    { title: "Median", cell: (row) => (row.step.seconds.length ? secondsText(row.time) : el("span.quiet", {}, "not run")), by: (row) => row.time, num: true },
    { title: "Spread", about: "From the tenth to the ninetieth of a hundred samples", cell: (row) => (row.step.seconds.length ? spread(row.low, row.time, row.high, longest) : ""), by: (row) => row.high - row.low },
    ...(program.machine ? floorColumns() : []),
    { title: "Share", cell: (row) => [bar(row.time / most, "time"), percentText(row.time / (all || 1))], by: (row) => row.time, num: true },
    { title: "Kernel", cell: (row) => (row.step.symbol ? kernelLink(program, row.step.symbol) : el("span.quiet", {}, "torch")), by: (row) => row.step.symbol },
    { title: "Where", cell: (row) => row.step.where, by: (row) => row.step.where, wide: true },
  ];
  const ran = rows.filter((row) => row.step.seconds.length).length;
  const around = median(program.calls.compiled ?? []) - all;
  const rest = around > 0 && isWhole(program) ? ` The rest of a call, ${secondsText(around)}, is around them.` : "";
  return el("div", {}, el("p.below", {}, `${counted(ran, "step")}, ${secondsText(all)} in all, by their medians.${rest}`), tableOf("Steps", columns, rows, { sort: 2, down: true }).element);
}

/** What a step takes at least, where it alone does its op. @returns {Column<{step: StepView, time: number}>[]} */
function floorColumns() {
  const times = (/** @type {{step: StepView, time: number}} */ { step, time }) => (step.floor ? time / step.floor : 0);
  return [
    { title: "Floor", about: "What the bytes or the operations of its op take, whichever is more; what lies in caches comes faster", cell: ({ step }) => (step.floor ? secondsText(step.floor) : ""), by: ({ step }) => step.floor ?? 0, num: true },
    { title: "Times that", cell: (row) => (times(row) ? `${digits(times(row))}×` : ""), by: times, num: true },
  ];
}

/** @param {number} low @param {number} middle @param {number} high @param {number} longest */
function spread(low, middle, high, longest) {
  const part = (/** @type {number} */ value) => `${Math.min(1, value / longest) * 100}%`;
  return el(
    "span.spread",
    { title: `${secondsText(low)} to ${secondsText(high)}` },
    el("span.spread-line", { style: { left: part(low), width: part(high - low) } }),
    el("span.spread-dot", { style: { left: part(middle) } }),
  );
}
