// Colours of kinds of fusion, after Okabe and Ito, whose colours most eyes tell apart.

/** The style sheet has a colour for each of the most frequent kinds; those behind have one again. */
const HUES = 8;

/** @typedef {{hue: string, dashed: boolean}} Look `hue` names a colour; dashed borders tell those that share one */

/** How a kind is drawn; the empty one is of ops that stand alone. @param {Program} program @param {string} kind @returns {Look} */
function lookOf(program, kind) {
  const number = kindsOf(program).indexOf(kind);
  if (number < 0) return { hue: "kind-alone", dashed: false };
  return { hue: `kind-${number % HUES}`, dashed: number >= HUES };
}

/** A patch of a kind's colour. @param {string} tag @param {Look} look */
const swatchOf = (tag, look) => el(`${tag}${look.dashed ? ".dashed" : ""}`, { style: { "--hue": `var(--${look.hue})` } });

/** A colour of the style sheet, as it is in the scheme at hand. @param {string} name */
function colourOf(name) {
  const probe = document.getElementById("probe");
  if (!probe) return "#888";
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

/** Colours that pictures are drawn in. */
function inks() {
  const kinds = Array.from({ length: HUES }, (_, number) => `kind-${number}`);
  const names = ["bg", "panel", "text", "muted", "line", "accent", "edge", "before", "kind-alone", ...kinds];
  return Object.fromEntries(names.map((name) => [name, colourOf(name)]));
}
