// What is on view is written in the fragment of the address, so that any place can be linked to.

/** @typedef {Record<string, string>} Route */

/** @returns {Route} */
function routeNow() {
  return Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
}

/** @param {Route} route */
function programNumber(route) {
  const number = Number(route.program ?? 0);
  return page.programs[number] ? number : 0;
}

/** The address of a place in the program on view. @param {Record<string, string | number>} place */
function href(place) {
  const parts = new URLSearchParams({ program: String(programNumber(routeNow())) });
  for (const [key, value] of Object.entries(place)) if (value !== "") parts.set(key, String(value));
  return `#${parts}`;
}

/** Goes to a place. @param {Record<string, string | number>} place */
function go(place) {
  location.hash = href(place);
}

/** Notes where one is, without a step for the button that goes back. @param {Record<string, string | number>} place */
function note(place) {
  history.replaceState(null, "", href(place));
}

/** A link to a place. @param {Record<string, string | number>} place @param {...Children} children */
function link(place, ...children) {
  return el("a", { href: href(place) }, ...children);
}

/** A link to a kernel, where the page has it. @param {Program} program @param {string} symbol */
function kernelLink(program, symbol) {
  if (!kernelsOf(program).has(symbol)) return symbol;
  return el("a.mono", { href: href({ view: "kernels", kernel: symbol }) }, symbol);
}
