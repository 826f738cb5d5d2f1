// The graph of the program, or of one piece of it, before the passes or after them.

views.graph = {
  title: "Graph",
  count: (program) => program.graphs[lastGraph(program)]?.nodes.length ?? 0,
  build(place, program, route) {
    if (!program.graphs.some((graph) => graph.nodes.length)) {
      place.append(section("Graph", missing("No graph", "The program was not compiled here, so its ops are not known.")));
      return {};
    }
    const view = new GraphPage(place, program);
    view.show(route);
    return { update: (to) => view.show(to), close: () => view.lens.close() };
  },
};

class GraphPage {
  /** @param {any} place @param {Program} program */
  constructor(place, program) {
    this.program = program;
    this.number = -1;
    /** @type {number | null} */
    this.piece = null;
    this.wrapped = false;
    /** @type {Looks} */
    this.looks = { hot: -1, pinned: -1, off: new Set(), lit: null };
    this.ink = inks();
    this.lens = new Lens("Graph: drag or arrow keys move it, wheel or + and - zoom, 0 fits all", this.stage());
    this.map = new GraphMap(this.lens, () => this.model);
    this.controls = el("div.bar-of-controls");
    this.card = el("div.card", { hidden: true });
    this.pin = el("aside.pin", { hidden: true, "aria-label": "The op that was clicked" });
    this.legend = el("div.legend", { role: "group", "aria-label": "Kinds of fusion" });
    const stage = el("div.stage", {}, this.lens.canvas, this.map.element, this.lens.buttons(), this.card, this.pin);
    this.model = new GraphModel(program, lastGraph(program), null, 0);
    place.classList.add("filled");
    place.append(this.controls, this.legend, stage);
  }

  /** @returns {Stage} */
  stage() {
    return {
      most: 2.5,
      least: 0.01,
      draw: (context, camera, size) => drawGraph(context, this.model, camera, size, this.looks, this.ink),
      home: (size) => homeOf(this.model, size),
      box: () => this.model.bounds,
      beside: () => this.map.element.offsetWidth,
      point: (x, y, how, event) => this.point(how === "leave" ? null : this.model.at(x, y), how, event),
    };
  }

  /** What a route names: a graph, a piece of it, an op to bring to the middle. @param {Route} route */
  show(route) {
    const number = this.program.graphs[Number(route.graph)] && route.graph ? Number(route.graph) : lastGraph(this.program);
    const piece = route.piece ? Number(route.piece) : null;
    const wrapped = route.form === "wrapped";
    if (number !== this.number || piece !== this.piece || wrapped !== this.wrapped) {
      this.number = number;
      this.piece = piece;
      this.wrapped = wrapped;
      this.model = new GraphModel(this.program, number, piece, wrapped ? this.aspect() : 0);
      this.looks.pinned = this.looks.hot = -1;
      this.drawControls();
      this.map.element.hidden = wrapped;
      this.map.draw();
      this.lens.resize();
      if (wrapped) this.lens.fit();
      else this.lens.home();
    }
    const node = route.node ? Number(route.node) : -1;
    const mark = this.model.marks[node] ?? null;
    if (mark && this.looks.pinned !== node) this.bring(mark);
    this.setPin(mark ? node : -1);
    requestAnimationFrame(() => this.map.draw());
  }

  /** Width to height of the stage. */
  aspect() {
    const { clientWidth, clientHeight } = this.lens.canvas;
    return clientWidth / Math.max(clientHeight, 1);
  }

  /** Where what is said of it leaves it in sight: on the left, or above where it is narrow. @param {Mark} mark */
  bring(mark) {
    const { lens } = this;
    const scale = Math.max(lens.camera.sx, NEAR);
    const narrow = lens.size.width < 700;
    const [dx, dy] = narrow ? [0, lens.size.height / 4] : [200, 0];
    lens.centre(mark.x + CELL.width / 2 + dx / scale, mark.y + CELL.height / 2 + dy / scale, scale);
  }

  /** The address of what is on view, but for some of it. @param {Record<string, string | number>} more */
  place(more) {
    return { view: "graph", graph: this.number, ...(this.piece !== null && { piece: this.piece }), ...(this.wrapped && { form: "wrapped" }), ...more };
  }

  drawControls() {
    const { graphs } = this.program;
    const which = graphs.map((graph, i) => /** @type {[string, string]} */ ([String(i), graph.title]));
    const pieces = [...new Set(graphs[this.number].nodes.map((node) => node.piece))].filter((piece) => piece >= 0).sort((a, b) => a - b);
    const names = pieces.map((piece) => /** @type {[string, string]} */ ([String(piece), `piece ${piece}`]));
    this.controls.replaceChildren(
      choiceOf("Which graph", which, String(this.number), (graph) => go({ ...this.place({ graph }), piece: "" })),
      pieces.length > 1 ? pickOf("Piece", [["", `all ${pieces.length} pieces`], ...names], String(this.piece ?? ""), (piece) => go(this.place({ piece }))) : "",
      choiceOf("Layout", [["", "Long"], ["wrapped", "Wrapped"]], this.wrapped ? "wrapped" : "", (form) => go(this.place({ form }))),
      el("span.quiet", {}, `${counted(this.model.shown.length, "op")}, ${counted(this.model.edges.length, "edge")}`),
    );
    this.legend.replaceChildren(...this.legendButtons());
  }

  legendButtons() {
    /** @type {Map<string, number>} */
    const counts = new Map();
    for (const { kind } of this.model.shown) counts.set(kind, (counts.get(kind) ?? 0) + 1);
    const kinds = [...kindsOf(this.program), ""].filter((kind) => counts.has(kind));
    return kinds.map((kind) => {
      const swatch = swatchOf("span.swatch", lookOf(this.program, kind));
      const light = (/** @type {string | null} */ lit) => () => this.look({ lit });
      const click = () => {
        const { off } = this.looks;
        if (!off.delete(kind)) off.add(kind);
        button.setAttribute("aria-pressed", String(!off.has(kind)));
        this.look({ lit: null });
      };
      /** @type {any} */
      const button = el(
        "button.legend-kind",
        { type: "button", "aria-pressed": String(!this.looks.off.has(kind)), data: { kind }, on: { click, pointerenter: light(kind), pointerleave: light(null), focus: light(kind), blur: light(null) } },
        swatch,
        kind || "alone",
        el("span.count", {}, countText(counts.get(kind) ?? 0)),
      );
      return button;
    });
  }

  /** @param {Partial<Looks>} looks */
  look(looks) {
    Object.assign(this.looks, looks);
    this.lens.redraw();
  }

  /** @param {Mark | null} mark @param {"hover" | "tap" | "leave"} how @param {PointerEvent | null} event */
  point(mark, how, event) {
    const number = mark?.number ?? -1;
    if (how === "tap") {
      note(this.place(mark ? { node: number } : {}));
      this.setPin(number);
      return;
    }
    if (number !== this.looks.hot) {
      this.look({ hot: number });
      this.card.hidden = !mark;
      if (mark) this.card.replaceChildren(...shortCard(this.program, mark.node));
      this.lens.canvas.classList.toggle("over", Boolean(mark));
    }
    if (mark && event) this.placeCard(event);
  }

  /** Beside the pointer, within the stage. @param {PointerEvent} event */
  placeCard({ offsetX, offsetY }) {
    const { width, height } = this.lens.size;
    const [w, h] = [this.card.offsetWidth, this.card.offsetHeight];
    const x = offsetX + 18 + w > width ? offsetX - 18 - w : offsetX + 18;
    this.card.style.left = `${Math.max(8, x)}px`;
    this.card.style.top = `${Math.max(8, Math.min(offsetY + 12, height - h - 8))}px`;
  }

  /** @param {number} number */
  setPin(number) {
    this.look({ pinned: number });
    this.pin.hidden = number < 0;
    this.card.hidden = true;
    if (number >= 0) this.pin.replaceChildren(...fullCard(this.program, this.number, number, () => this.point(null, "tap", null)));
  }
}

/** The upper end, as wide as the screen where that can be read. @param {GraphModel} model @param {Size} size @returns {Camera} */
function homeOf(model, { width, height }) {
  const { left, right, top, bottom } = model.bounds;
  const least = width < 600 ? READABLE : NEAR;
  const scale = Math.min(Math.max((width - 160) / (right - left), least), 1);
  const fits = (right - left) * scale < width;
  const y = (bottom - top) * scale < height - 40 ? (top + bottom) / 2 - height / 2 / scale : top - 24 / scale;
  return { sx: scale, sy: scale, x: fits ? (left + right) / 2 - width / 2 / scale : left - 48 / scale, y };
}
