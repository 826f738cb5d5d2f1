// The memory plan: which value has which part of the arena, over the steps of the plan.

const ARENA = { left: 0, top: 0, chart: 54, gap: 10, bottom: 22 };

views.memory = {
  title: "Memory",
  build(place, program) {
    const { memory } = program;
    if (!memory) {
      place.append(section("Memory plan", missing("No plan", "The program was not planned: it is an import, or torch runs it as a whole.")));
      return {};
    }
    const temps = memory.buffers.filter((buffer) => buffer.kind === "temp");
    if (!temps.length) {
      place.append(section("Memory plan", memoryFacts(memory, []), missing("No temporaries", "No value of this program waits in the arena.")), buffersTable(memory.buffers));
      return {};
    }
    const view = new MemoryPicture(program, memory, temps);
    place.append(
      section(
        "Memory plan",
        memoryFacts(memory, view.live),
        el("div.bar-of-controls.arena-controls", {}, view.lens.buttons(), el("span.quiet", {}, "Above: bytes in use at each step. Below: where in the arena values lie, and for which steps.")),
        el("div.stage.arena", {}, view.lens.canvas, view.card),
      ),
      view.detail,
      section("Every buffer", buffersTable(memory.buffers)),
    );
    return { close: () => view.lens.close() };
  },
};

/** @param {MemoryView} memory @param {number[]} live */
function memoryFacts(memory, live) {
  const all = total(memory.buffers.filter((buffer) => buffer.kind === "temp").map((buffer) => buffer.bytes));
  const peak = Math.max(0, ...live);
  const at = live.indexOf(peak);
  return factsOf([
    ["arena", [el("b", {}, bytesText(memory.arena)), all > memory.arena ? `, where values would take ${bytesText(all)} each for itself (${ratioText(all, memory.arena)})` : ""]],
    .../** @type {[string, Children][]} */ (peak ? [["peak", `${bytesText(peak)} in use at step ${at}`]] : []),
    ["outputs", bytesText(memory.outputs)],
    ["weights", bytesText(memory.weights)],
  ]);
}

/** Bytes of the arena that hold values, at each step. @param {BufferView[]} buffers @param {number} steps */
function liveBytes(buffers, steps) {
  const change = new Array(steps + 1).fill(0);
  for (const { steps: [from, to], bytes } of buffers) {
    change[from] += bytes;
    change[Math.min(to + 1, steps)] -= bytes;
  }
  let live = 0;
  return change.slice(0, steps).map((more) => (live += more));
}

class MemoryPicture {
  /** @param {Program} program @param {MemoryView} memory @param {BufferView[]} temps */
  constructor(program, memory, temps) {
    this.program = program;
    this.memory = memory;
    this.temps = temps;
    this.steps = Math.max(program.steps.length, ...memory.buffers.map((buffer) => buffer.steps[1] + 1));
    this.live = liveBytes(temps, this.steps);
    this.peak = this.live.indexOf(Math.max(...this.live));
    this.step = this.peak;
    /** @type {BufferView | null} */
    this.hot = null;
    this.ink = inks();
    this.card = el("div.card", { hidden: true });
    this.detail = el("section.live", { "aria-live": "polite" });
    this.lens = new Lens("Memory over steps: drag moves it, wheel or + and - zoom along the steps, 0 fits all", this.stage());
    this.showStep();
  }

  /** @returns {Stage} */
  stage() {
    return {
      flat: true,
      least: 0.05,
      most: 80,
      draw: (context, camera, size) => this.draw(context, camera, size),
      home: (size) => ({ x: 0, y: 0, sx: size.width / this.steps, sy: 1 }),
      box: () => ({ left: 0, right: this.steps, top: 0, bottom: 1 }),
      point: (x, y, how, event) => this.point(Math.floor(x), y, how, event),
    };
  }

  /** The height of a place in the arena, in pixels. @param {number} offset */
  level(offset) {
    const { height } = this.lens.size;
    const top = ARENA.chart + ARENA.gap;
    return height - ARENA.bottom - (offset / this.memory.arena) * (height - ARENA.bottom - top);
  }

  /** @param {CanvasRenderingContext2D} context @param {Camera} camera @param {Size} size */
  draw(context, camera, size) {
    const across = (/** @type {number} */ step) => (step - camera.x) * camera.sx;
    context.fillStyle = this.ink.panel;
    context.fillRect(0, this.level(this.memory.arena), size.width, this.level(0) - this.level(this.memory.arena));
    this.temps.forEach((buffer, number) => this.drawBuffer(context, buffer, number, across, size));
    this.drawLive(context, camera, size, across);
    this.drawStep(context, this.peak, across, this.ink.muted, `peak ${bytesText(this.live[this.peak])}`, size);
    if (this.step !== this.peak) this.drawStep(context, this.step, across, this.ink.accent, "", size);
    this.drawAxis(context, camera, size, across);
    context.fillText(bytesText(this.memory.arena), 4, this.level(this.memory.arena) + 3);
  }

  /** @param {CanvasRenderingContext2D} context @param {BufferView} buffer @param {number} number @param {(step: number) => number} across @param {Size} size */
  drawBuffer(context, buffer, number, across, size) {
    const [left, right] = [across(buffer.steps[0]), across(buffer.steps[1] + 1)];
    if (right < 0 || left > size.width) return;
    const [top, bottom] = [this.level(buffer.offset + buffer.bytes), this.level(buffer.offset)];
    const edge = right - left > 4 ? 1 : 0;
    context.globalAlpha = buffer === this.hot ? 1 : number % 2 ? 0.5 : 0.75;
    context.fillStyle = this.ink.accent;
    context.fillRect(left, top, Math.max(right - left - edge, 1), Math.max(bottom - top - (bottom - top > 3 ? 1 : 0), 1));
    context.globalAlpha = 1;
    if (right - left < 60 || bottom - top < 13) return;
    context.fillStyle = this.ink.bg;
    context.font = "10.5px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace";
    context.textBaseline = "middle";
    context.fillText(fitted(context, buffer.name, right - left - 8), Math.max(left, 0) + 4, (top + bottom) / 2);
  }

  /** @param {CanvasRenderingContext2D} context @param {Camera} camera @param {Size} size @param {(step: number) => number} across */
  drawLive(context, camera, size, across) {
    const most = Math.max(...this.live, 1);
    const first = Math.max(0, Math.floor(camera.x));
    const last = Math.min(this.steps, Math.ceil(camera.x + size.width / camera.sx));
    context.fillStyle = this.ink.before;
    for (let step = first; step < last; step += 1) {
      const height = (this.live[step] / most) * (ARENA.chart - 16);
      context.fillRect(across(step), ARENA.chart - height, Math.max(camera.sx - (camera.sx > 4 ? 1 : 0), 1), height);
    }
  }

  /** @param {CanvasRenderingContext2D} context @param {number} step @param {(step: number) => number} across @param {string} colour @param {string} text @param {Size} size */
  drawStep(context, step, across, colour, text, size) {
    const x = Math.round((across(step) + across(step + 1)) / 2) + 0.5;
    context.strokeStyle = colour;
    context.setLineDash([3, 3]);
    context.beginPath();
    context.moveTo(x, 14);
    context.lineTo(x, this.level(0));
    context.stroke();
    context.setLineDash([]);
    context.fillStyle = this.ink.text;
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "top";
    context.textAlign = x > size.width - 90 ? "right" : "left";
    context.fillText(text, x + (context.textAlign === "right" ? -5 : 5), 0);
    context.textAlign = "left";
  }

  /** @param {CanvasRenderingContext2D} context @param {Camera} camera @param {Size} size @param {(step: number) => number} across */
  drawAxis(context, camera, size, across) {
    const every = niceStep((size.width / camera.sx) / 8);
    context.fillStyle = this.ink.muted;
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "top";
    for (let step = 0; step < this.steps; step += every) {
      const x = across(step);
      if (x >= -1 && x < size.width - 30) context.fillText(step ? String(step) : "step 0", Math.max(x, 0) + 1, size.height - ARENA.bottom + 6);
    }
  }

  /** @param {number} step @param {number} y @param {"hover" | "tap" | "leave"} how @param {PointerEvent | null} event */
  point(step, y, how, event) {
    if (how === "leave" || !event) {
      this.hot = null;
      this.card.hidden = true;
      this.lens.redraw();
      return;
    }
    const found = this.temps.filter((b) => b.steps[0] <= step && step <= b.steps[1]).find((b) => this.level(b.offset) >= event.offsetY && this.level(b.offset + b.bytes) <= event.offsetY);
    this.hot = found ?? null;
    this.lens.redraw();
    if (how === "tap" && step >= 0 && step < this.steps) {
      this.step = step;
      this.showStep();
    }
    this.card.hidden = !found && how !== "tap";
    if (!found) {
      this.card.hidden = true;
      return;
    }
    this.card.replaceChildren(...bufferCard(this.program, found));
    const { width, height } = this.lens.size;
    this.card.style.left = `${Math.max(8, Math.min(event.offsetX + 16, width - this.card.offsetWidth - 8))}px`;
    this.card.style.top = `${Math.max(8, Math.min(event.offsetY + 12, height - this.card.offsetHeight - 8))}px`;
  }

  /** Which values there are at a step. */
  showStep() {
    const live = this.memory.buffers.filter((b) => b.steps[0] <= this.step && this.step <= b.steps[1]);
    const label = this.program.steps[this.step]?.label ?? "";
    const move = (/** @type {number} */ by) => () => {
      this.step = Math.min(Math.max(this.step + by, 0), this.steps - 1);
      this.showStep();
      this.lens.redraw();
    };
    this.detail.replaceChildren(
      el(
        "div.bar-of-controls",
        {},
        el("h2", {}, `Step ${this.step}${this.step === this.peak ? ", the peak" : ""}`),
        el("button", { type: "button", "aria-label": "The step before", on: { click: move(-1) } }, "←"),
        el("button", { type: "button", "aria-label": "The step after", on: { click: move(1) } }, "→"),
        el("span.quiet", {}, `${label} · ${bytesText(this.live[this.step])} in the arena`),
      ),
      buffersTable([...live].sort((a, b) => b.bytes - a.bytes)),
    );
  }
}

/** A round number near another. @param {number} value */
function niceStep(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return Math.max(1, ([1, 2, 5, 10].find((times) => times * power >= value) ?? 10) * power);
}

/** @param {Program} program @param {BufferView} buffer */
function bufferCard(program, buffer) {
  const [from, to] = buffer.steps;
  return [
    el("p.card-title.mono", {}, buffer.name),
    factsOf([
      ["type", buffer.type],
      ["bytes", `${bytesText(buffer.bytes)} at ${countText(buffer.offset)}`],
      ["made by", `step ${from} ${program.steps[from]?.label ?? ""}`],
      ["last read by", `step ${to} ${program.steps[to]?.label ?? ""}`],
    ]),
  ];
}

/** @param {BufferView[]} buffers */
function buffersTable(buffers) {
  /** @type {Column<BufferView>[]} */
  const columns = [
    { title: "Value", cell: (b) => el("span.mono", {}, b.name), by: (b) => b.name },
    { title: "Type", cell: (b) => el("span.mono", {}, b.type), by: (b) => b.type },
    { title: "Lies in", cell: (b) => ({ temp: "arena", output: "an output", host: "torch's memory" })[b.kind], by: (b) => b.kind },
    { title: "Bytes", cell: (b) => bytesText(b.bytes), by: (b) => b.bytes, num: true },
    { title: "At", cell: (b) => (b.kind === "temp" ? countText(b.offset) : ""), by: (b) => b.offset, num: true, wide: true },
    { title: "Steps", cell: (b) => `${b.steps[0]}–${b.steps[1]}`, by: (b) => b.steps[0], num: true },
  ];
  return tableOf("Buffers", columns, buffers).element;
}
