// A canvas that shows a part of a larger picture: moved by mouse, fingers, wheel, keys and buttons.

/** @typedef {{x: number, y: number, sx: number, sy: number}} Camera place of the left upper corner, and pixels of a unit */
/** @typedef {{width: number, height: number}} Size */
/** @typedef {{left: number, top: number, right: number, bottom: number}} Box */

/**
 * @typedef {object} Stage
 * @property {(context: CanvasRenderingContext2D, camera: Camera, size: Size) => void} draw
 * @property {(size: Size) => Camera} home where it begins
 * @property {() => Box} box what there is to see
 * @property {(x: number, y: number, how: "hover" | "tap" | "leave", event: PointerEvent | null) => void} point in the picture's units
 * @property {() => number} [beside] pixels at the right that something else covers
 * @property {boolean} [flat] zooms across only
 * @property {number} [least] pixels of a unit, at least
 * @property {number} [most] the same, at most
 */

class Lens {
  /** @param {string} label @param {Stage} stage */
  constructor(label, stage) {
    this.stage = stage;
    this.canvas = el("canvas", { tabindex: 0, role: "application", "aria-label": label });
    this.context = this.canvas.getContext("2d");
    /** @type {Camera} */
    this.camera = { x: 0, y: 0, sx: 1, sy: 1 };
    /** @type {Size} */
    this.size = { width: 0, height: 0 };
    /** @type {Map<number, {x: number, y: number}>} */
    this.fingers = new Map();
    this.moved = 0;
    this.waiting = 0;
    this.placed = false;
    /** @type {(() => void)[]} */
    this.watchers = [];
    listen(this);
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(this.canvas);
  }

  close() {
    this.observer.disconnect();
    cancelAnimationFrame(this.waiting);
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return;
    const ratio = window.devicePixelRatio || 1;
    this.size = { width, height };
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    if (this.placed) this.redraw();
    else this.home();
    this.placed = true;
    this.paint();
  }

  home() {
    this.camera = this.stage.home(this.size);
    this.redraw();
  }

  /** All of the picture. */
  fit() {
    const { left, top, right, bottom } = this.stage.box();
    const { width, height } = this.size;
    if (this.stage.flat) {
      this.home();
      return;
    }
    const free = width - (this.stage.beside?.() ?? 0);
    const scale = Math.min((free - 32) / (right - left), (height - 32) / (bottom - top), 1);
    this.camera = { sx: scale, sy: scale, x: (left + right) / 2 - free / 2 / scale, y: (top + bottom) / 2 - height / 2 / scale };
    this.redraw();
  }

  /** Larger, or smaller, about a point of the screen. @param {number} times @param {number} [px] @param {number} [py] */
  zoom(times, px = this.size.width / 2, py = this.size.height / 2) {
    const { camera, stage } = this;
    const sx = Math.min(Math.max(camera.sx * times, stage.least ?? 0.01), stage.most ?? 3);
    const sy = stage.flat ? camera.sy : sx;
    this.camera = {
      sx,
      sy,
      x: camera.x + px / camera.sx - px / sx,
      y: camera.y + py / camera.sy - py / sy,
    };
    this.redraw();
  }

  /** By pixels. @param {number} dx @param {number} dy */
  pan(dx, dy) {
    const { camera } = this;
    this.camera = { ...camera, x: camera.x - dx / camera.sx, y: camera.y - (this.stage.flat ? 0 : dy / camera.sy) };
    this.redraw();
  }

  /** Brings a point of the picture to the middle. @param {number} x @param {number} y @param {number} [scale] */
  centre(x, y, scale = this.camera.sx) {
    const { width, height } = this.size;
    this.camera = { sx: scale, sy: scale, x: x - width / 2 / scale, y: y - height / 2 / scale };
    this.redraw();
  }

  redraw() {
    this.keepNear();
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => this.paint());
  }

  /** Some of the picture stays on the screen. */
  keepNear() {
    const { camera, size } = this;
    if (!size.width) return;
    const { left, top, right, bottom } = this.stage.box();
    const [across, down] = [size.width / camera.sx, size.height / camera.sy];
    camera.x = Math.min(Math.max(camera.x, left - across * 0.7), right - across * 0.3);
    if (!this.stage.flat) camera.y = Math.min(Math.max(camera.y, top - down * 0.7), bottom - down * 0.3);
  }

  paint() {
    cancelAnimationFrame(this.waiting);
    this.waiting = 0;
    const { context, camera, size } = this;
    if (!context || !size.width) return;
    const ratio = this.canvas.width / size.width;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, size.width, size.height);
    this.stage.draw(context, camera, size);
    this.canvas.dataset.camera = [camera.x, camera.y, camera.sx].map((v) => v.toFixed(3)).join(" ");
    for (const watch of this.watchers) watch();
  }

  /** The picture's point below one of the screen. @param {{offsetX: number, offsetY: number}} event @returns {[number, number]} */
  under({ offsetX, offsetY }) {
    const { camera } = this;
    return [camera.x + offsetX / camera.sx, camera.y + offsetY / camera.sy];
  }

  /** Buttons that do what the wheel does. */
  buttons() {
    /** @param {string} sign @param {string} label @param {() => void} act */
    const button = (sign, label, act) => el("button", { type: "button", "aria-label": label, title: label, on: { click: act } }, sign);
    return el(
      "div.lens-buttons",
      { role: "group", "aria-label": "Zoom" },
      button("+", "Zoom in (+)", () => this.zoom(1.4)),
      button("−", "Zoom out (-)", () => this.zoom(1 / 1.4)),
      button("Fit", "Fit all (0)", () => this.fit()),
    );
  }
}

/** @param {Lens} lens */
function listen(lens) {
  const { canvas, stage } = lens;
  canvas.addEventListener("wheel", (/** @type {WheelEvent} */ event) => {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    if (event.shiftKey) lens.pan(-event.deltaY * lines, 0);
    else lens.zoom(Math.exp(-event.deltaY * lines * 0.0018), event.offsetX, event.offsetY);
  }, { passive: false });
  canvas.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
    canvas.setPointerCapture(event.pointerId);
    lens.fingers.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
    lens.moved = lens.fingers.size > 1 ? Infinity : 0;
  });
  canvas.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
    if (lens.fingers.has(event.pointerId)) drag(lens, event);
    else stage.point(...lens.under(event), "hover", event);
  });
  canvas.addEventListener("pointerup", (/** @type {PointerEvent} */ event) => {
    lens.fingers.delete(event.pointerId);
    if (lens.moved < 6) stage.point(...lens.under(event), "tap", event);
  });
  canvas.addEventListener("pointercancel", (/** @type {PointerEvent} */ event) => lens.fingers.delete(event.pointerId));
  canvas.addEventListener("pointerleave", () => stage.point(0, 0, "leave", null));
  canvas.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => steer(lens, event));
}

/** One finger moves the picture, two make it larger or smaller. @param {Lens} lens @param {PointerEvent} event */
function drag(lens, event) {
  const [first, second] = lens.fingers.values();
  const old = lens.fingers.get(event.pointerId) ?? { x: 0, y: 0 };
  const now = { x: event.offsetX, y: event.offsetY };
  lens.fingers.set(event.pointerId, now);
  lens.moved += Math.hypot(now.x - old.x, now.y - old.y);
  if (!second) {
    lens.pan(now.x - old.x, now.y - old.y);
    return;
  }
  const other = first === old ? second : first;
  const [apart, before] = [distance(now, other), distance(old, other)];
  if (before > 0) lens.zoom(apart / before, (now.x + other.x) / 2, (now.y + other.y) / 2);
  lens.pan((now.x - old.x) / 2, (now.y - old.y) / 2);
}

/** @param {{x: number, y: number}} a @param {{x: number, y: number}} b */
const distance = (a, b) => Math.hypot(a.x - b.x, a.y - b.y);

/** @param {Lens} lens @param {KeyboardEvent} event */
function steer(lens, event) {
  /** @type {Record<string, () => void>} */
  const keys = {
    ArrowLeft: () => lens.pan(80, 0),
    ArrowRight: () => lens.pan(-80, 0),
    ArrowUp: () => lens.pan(0, 80),
    ArrowDown: () => lens.pan(0, -80),
    "+": () => lens.zoom(1.4),
    "=": () => lens.zoom(1.4),
    "-": () => lens.zoom(1 / 1.4),
    0: () => lens.fit(),
    Home: () => lens.home(),
  };
  const act = event.ctrlKey || event.metaKey ? undefined : keys[event.key];
  if (!act) return;
  event.preventDefault();
  event.stopPropagation();
  act();
}
