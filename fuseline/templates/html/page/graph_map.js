// A narrow picture of the whole graph, with what is on the screen framed; it leads to any place.

class GraphMap {
  /** @param {Lens} lens @param {() => GraphModel} model */
  constructor(lens, model) {
    this.lens = lens;
    this.model = model;
    this.canvas = el("canvas.map", { "aria-hidden": true });
    this.frame = el("div.map-frame");
    this.element = el("div.map-box", { title: "All of the graph" }, this.canvas, this.frame);
    this.element.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
      this.element.setPointerCapture(event.pointerId);
      this.goTo(event);
    });
    this.element.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
      if (event.buttons) this.goTo(event);
    });
    lens.watchers.push(() => this.follow());
  }

  /** @param {PointerEvent} event */
  goTo(event) {
    const box = this.element.getBoundingClientRect();
    const { top, bottom, left, right } = this.model().bounds;
    const y = top + ((event.clientY - box.top) / box.height) * (bottom - top);
    const { camera, size } = this.lens;
    const x = size.width / camera.sx >= right - left ? (left + right) / 2 : left + ((event.clientX - box.left) / box.width) * (right - left);
    this.lens.centre(x, y);
  }

  draw() {
    const context = this.canvas.getContext("2d");
    const { clientWidth: width, clientHeight: height } = this.element;
    if (!width || !height || !context) return;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = width * ratio;
    this.canvas.height = height * ratio;
    const { bounds, shown } = this.model();
    const ink = inks();
    const [sx, sy] = [(width * ratio) / (bounds.right - bounds.left), (height * ratio) / (bounds.bottom - bounds.top)];
    for (const { x, y, look } of shown) {
      context.fillStyle = ink[look.hue];
      context.fillRect((x - bounds.left) * sx, (y - bounds.top) * sy, Math.max(CELL.width * sx - 1, 1), Math.max(CELL.height * sy, 1));
    }
  }

  follow() {
    const { camera, size } = this.lens;
    const { top, bottom, left, right } = this.model().bounds;
    const [y, height] = share(camera.y, size.height / camera.sy, top, bottom);
    const [x, width] = share(camera.x, size.width / camera.sx, left, right);
    Object.assign(this.frame.style, { top: y, height, left: x, width });
  }
}

/** Where a part begins in a whole, and how much of it that is. @param {number} from @param {number} size @param {number} low @param {number} high */
function share(from, size, low, high) {
  const start = Math.max(0, (from - low) / (high - low));
  const end = Math.min(1, (from + size - low) / (high - low));
  return [`${start * 100}%`, `${Math.max(end - start, 0) * 100}%`];
}
