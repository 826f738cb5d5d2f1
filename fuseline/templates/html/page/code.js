// Code with numbered lines. All of its text is there from the start; colours come with its being seen.

const LINES_AT_ONCE = 80;

/**
 * @param {string[]} lines
 * @param {string} language
 * @param {{line?: number, label?: string}} [options] `line` is the one to show, from 1
 */
function codeBlock(lines, language, options = {}) {
  const coloured = lazy(() => (language === "ir" ? null : tokenLines(lines.join("\n"), language)));
  /** @type {any[]} */
  const parts = [];
  for (let first = 0; first < lines.length; first += LINES_AT_ONCE) {
    const rows = lines.slice(first, first + LINES_AT_ONCE).map((text, i) => codeLine(text, first + i + 1));
    const part = el("div.code-part", { style: { "--rows": rows.length } }, ...rows);
    whenSeen(part, () => rows.forEach((row, i) => colour(row.lastChild, first + i)));
    parts.push(part);
  }
  /** @param {any} cell @param {number} number */
  function colour(cell, number) {
    const tokens = coloured()?.[number] ?? tokensOf(lines[number], language);
    cell.replaceChildren(...tokens.map(tokenElement));
  }
  const width = `${String(lines.length).length + 1}ch`;
  const block = el(
    "div.code",
    { tabindex: 0, role: "region", "aria-label": options.label ?? "code", style: { "--numbers": width } },
    ...parts,
  );
  if (options.line) showLine(block, options.line);
  return block;
}

/** @param {string} text @param {number} number */
function codeLine(text, number) {
  return el("div.line", {}, el("span.no", { data: { n: number }, "aria-hidden": true }), el("span.text", {}, text));
}

/** @param {any} block @param {number} number */
function showLine(block, number) {
  const line = block.querySelectorAll(".line")[number - 1];
  if (!line) return;
  line.classList.add("here");
  requestAnimationFrame(() => line.scrollIntoView({ block: "center" }));
}

/** A button that copies a text. @param {() => string} text */
function copyButton(text) {
  const button = el("button", { type: "button", on: { click: copy } }, "Copy");
  async function copy() {
    button.textContent = (await copied(text())) ? "Copied" : "Not allowed";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  }
  return button;
}

/** @param {string} text */
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = el("textarea", { readonly: true });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

/** A value that is found when it is first asked for. @template T @param {() => T} find */
function lazy(find) {
  /** @type {T[]} */
  const found = [];
  return () => {
    if (!found.length) found.push(find());
    return found[0];
  };
}
