// What each layer costs, before and after: launches, bytes, flops; like layers as one.

views.layers = {
  title: "Layers",
  count: (program) => program.layers.length,
  build(place, program) {
    if (!program.layers.length) {
      place.append(section("Layers", missing("No layers", "Costs are of the program as it was captured, which is not known here.")));
      return {};
    }
    const folded = foldsOf(program.layers, (layer) => layer.name, ({ eager, compiled }) => [eager, compiled]);
    const single = program.layers.map((layer) => ({ name: layer.name, items: [layer] }));
    const table = tableOf("Layers", layerColumns(program), folded);
    const alike = folded.length < single.length;
    const choice = alike && choiceOf("Like layers", [["fold", "Like layers as one"], ["each", "Each layer"]], "fold", (value) => table.show(value === "fold" ? folded : single));
    const key = keyOf([["eager", "before: as captured, each op a launch"], ["compiled", "after: as compiled"]]);
    place.append(section("Cost by layer", el("div.bar-of-controls", {}, choice, key), totalTiles(program), table.element));
    return {};
  },
};

/** @param {Program} program */
function totalTiles(program) {
  const [eager, compiled] = [costOf(program, "eager"), costOf(program, "compiled")];
  const texts = [countText, bytesText, flopsText];
  return el("p.facts-line", {}, "All layers:", ...["launches", "bytes", "flops"].map((name, i) => el("span", {}, `${name} `, ...arrow(eager[i], compiled[i], texts[i]), el("span.quiet", {}, ` ${ratioText(eager[i], compiled[i])}`))));
}

/** @param {Program} program @returns {Column<Fold<LayerView>>[]} */
function layerColumns(program) {
  const names = /** @type {const} */ (["Launches", "Bytes", "Flops"]);
  const texts = [countText, bytesText, flopsText];
  const most = [0, 1, 2].map((i) => Math.max(...program.layers.map((layer) => Math.max(layer.eager[i], layer.compiled[i])), 1));
  const timed = program.layers.some((layer) => layer.seconds !== null);
  const longest = Math.max(...program.layers.map((layer) => layer.seconds ?? 0), 1e-12);
  return [
    { title: "Layer", cell: (fold) => [el("span.mono", {}, fold.name || "in no module"), fold.items.length > 1 && el("span.count", {}, `×${fold.items.length}`)], by: (fold) => fold.name },
    ...names.map((title, i) => ({
      title: `${title} of each`,
      num: true,
      by: (/** @type {Fold<LayerView>} */ fold) => fold.items[0].eager[i],
      cell: (/** @type {Fold<LayerView>} */ { items: [layer] }) => pairCell(layer.eager[i], layer.compiled[i], most[i], texts[i]),
    })),
    ...(timed ? [timeColumn(longest)] : []),
    ...(timed && program.machine ? [floorColumn(longest)] : []),
  ];
}

/** @param {number} before @param {number} after @param {number} most @param {(value: number) => string} text */
function pairCell(before, after, most, text) {
  const less = before ? (after - before) / before : 0;
  return el("div.pair", {}, el("span.pair-text", {}, ...arrow(before, after, text)), el("span.quiet.delta", {}, before && after !== before ? `${less > 0 ? "+" : "−"}${percentText(Math.abs(less))}` : ""), bar(before / most, "before"), bar(after / most, "after"));
}

/** @param {number} longest @returns {Column<Fold<LayerView>>} */
function timeColumn(longest) {
  const times = (/** @type {Fold<LayerView>} */ fold) => fold.items.map((layer) => layer.seconds ?? 0);
  return {
    title: "Time of each",
    about: "The sum of the medians of its steps",
    num: true,
    by: (fold) => Math.max(...times(fold)),
    cell: (fold) => {
      const [low, high] = [Math.min(...times(fold)), Math.max(...times(fold))];
      return el("div.pair", {}, el("span.pair-text", {}, fold.items.length > 1 ? `${secondsText(low)} to ${secondsText(high)}` : secondsText(high)), bar(high / longest));
    },
  };
}

/** @param {number} longest @returns {Column<Fold<LayerView>>} */
function floorColumn(longest) {
  const floor = (/** @type {Fold<LayerView>} */ { items: [layer] }) => layer.floor ?? 0;
  return {
    title: "Floor of each",
    about: "What bytes or operations of its ops take, whichever is more; what lies in caches comes faster",
    num: true,
    by: floor,
    cell: (fold) => (fold.items[0].floor === null ? el("span.quiet", {}, "not known") : el("div.pair", {}, el("span.pair-text", {}, secondsText(floor(fold))), bar(floor(fold) / longest))),
  };
}
