// The frame around the views: which program, which view, in which colours; and the keys.

const ORDER = ["overview", "passes", "diff", "graph", "sites", "kernels", "layers", "memory", "samples", "text"];

/** @type {[string, string][]} */
const KEYS = [
  ["/", "search"],
  ["1 to 9, 0", "a view"],
  ["← →", "the pass before, and after, that changed something; with Shift, any pass"],
  ["+ − 0 and arrows", "in a picture: zoom, fit all, move"],
  ["Esc", "leave search, or close what is open"],
  ["?", "this list"],
];

class Shell {
  constructor() {
    this.tabs = el("nav.tabs", { "aria-label": "Views" });
    this.main = el("main", { id: "main", tabindex: -1 });
    this.search = searchBox(() => programOf(this.program));
    this.help = el("dialog.help", { "aria-label": "Keys" }, el("h2", {}, "Keys"), factsOf(KEYS), el("form", { method: "dialog" }, el("button", {}, "Close")));
    this.program = -1;
    this.view = "";
    /** @type {Shown} */
    this.shown = {};
    document.body.append(el("a.skip", { href: "#main", on: { click: (/** @type {Event} */ e) => (e.preventDefault(), this.main.focus()) } }, "To the content"), this.header(), this.tabs, this.main, this.help, el("span", { id: "probe", hidden: true }));
  }

  header() {
    const names = page.programs.map((program, i) => /** @type {[string, string]} */ ([String(i), `${program.name} · ${program.target}`]));
    this.picker = pickOf("Program", names, "0", (program) => (location.hash = `#${new URLSearchParams({ program, view: this.view })}`));
    const title = el("a.brand", { href: "#" }, el("b", {}, "fuseline"), el("span.brand-title", {}, page.title));
    return el("header", {}, title, page.programs.length > 1 && this.picker, this.search.element, themeButton(() => this.rebuild()), el("button", { type: "button", "aria-label": "Keys", title: "Keys (?)", on: { click: () => this.help.showModal() } }, "?"));
  }

  /** Shows what the address names. */
  show() {
    if (!page.programs.length) {
      this.showNotes();
      return;
    }
    const route = routeNow();
    const number = programNumber(route);
    const name = views[route.view] ? route.view : "overview";
    if (number === this.program && name === this.view) {
      this.shown.update?.(route);
      return;
    }
    this.program = number;
    this.view = name;
    this.build(route);
  }

  rebuild() {
    if (page.programs.length) this.build(routeNow());
  }

  /** All of a page on which nothing was compiled. */
  showNotes() {
    this.tabs.hidden = this.search.element.hidden = true;
    document.title = page.title;
    this.main.replaceChildren(el("h1", {}, page.title), el("p.sub", {}, "Nothing was compiled."), ...notesOf(), mapSection("Versions", page.versions));
    document.documentElement.dataset.ready = "notes";
  }

  /** @param {Route} route */
  build(route) {
    const program = programOf(this.program);
    this.shown.close?.();
    this.main.dataset.view = this.view;
    this.main.dataset.program = [program.name, program.target].filter(Boolean).join(" · ");
    this.main.className = "";
    this.main.replaceChildren();
    forgetUnseen();
    window.scrollTo(0, 0);
    if (this.picker) this.picker.value = String(this.program);
    this.drawTabs(program);
    document.title = `${views[this.view].title} · ${page.title}`;
    this.shown = views[this.view].build(this.main, program, route);
    document.documentElement.dataset.ready = this.view;
  }

  /** @param {Program} program */
  drawTabs(program) {
    const links = ORDER.map((name) => {
      const count = views[name].count?.(program);
      return el("a.tab", { href: href({ view: name }), "aria-current": name === this.view ? "page" : null }, views[name].title, count ? el("span.count", {}, countText(count)) : "");
    });
    this.tabs.replaceChildren(...links);
    this.tabs.querySelector("[aria-current]").scrollIntoView({ block: "nearest", inline: "center" });
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target instanceof HTMLElement && event.target.closest("input, select, textarea, dialog")) return;
    if (this.shown.key?.(event)) {
      event.preventDefault();
      return;
    }
    if (event.key === "/") {
      event.preventDefault();
      this.search.input.focus();
    } else if (event.key === "?") this.help.showModal();
    else if (/^\d$/.test(event.key)) go({ view: ORDER[(Number(event.key) + 9) % 10] });
  }
}

const SCHEMES = /** @type {const} */ (["system", "light", "dark"]);

/** Goes through the system's colours, light and dark. @param {() => void} redraw */
function themeButton(redraw) {
  const root = document.documentElement;
  const button = el("button.theme", { type: "button", on: { click: next } });
  function next() {
    const at = SCHEMES.indexOf(/** @type {any} */ (root.dataset.scheme));
    set(SCHEMES[(at + 1) % SCHEMES.length]);
    redraw();
  }
  /** @param {string} scheme */
  function set(scheme) {
    root.dataset.scheme = scheme;
    button.textContent = { system: "◐", light: "☀", dark: "☾" }[scheme] ?? "◐";
    button.setAttribute("aria-label", `Colours: ${scheme}`);
    button.title = `Colours: ${scheme}`;
    keep(scheme);
  }
  set(kept());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  return button;
}

const KEPT = "fuseline-report-scheme";

function kept() {
  try {
    return localStorage.getItem(KEPT) ?? "system";
  } catch {
    return "system";
  }
}

/** @param {string} scheme */
function keep(scheme) {
  try {
    localStorage.setItem(KEPT, scheme);
  } catch {
    // A browser that keeps nothing for files asks the system each time.
  }
}
