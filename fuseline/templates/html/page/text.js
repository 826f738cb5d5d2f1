// The whole text of the program, after any pass.

views.text = {
  title: "IR",
  build(place, program, route) {
    /** @param {Route} to */
    const show = (to) => {
      const at = textNumber(program, to.at);
      const numbers = at === "final" ? program.final : textAfter(program, Number(at));
      const lines = numbers.map((number) => program.lines[number]);
      place.replaceChildren(
        el(
          "div.bar-of-controls",
          {},
          pickOf("Which text", textChoices(program), at, (value) => go({ view: "text", at: value })),
          copyButton(() => lines.join("\n") + "\n"),
          el("span.quiet", {}, counted(lines.length, "line")),
        ),
        lines.length ? codeBlock(lines, "ir", { line: Number(to.line), label: "Text of the program" }) : missing("No text", "The program was not compiled here."),
      );
    };
    show(route);
    return { update: show };
  },
};

/** What is asked for, or the pass before it that changed the text. @param {Program} program @param {string | undefined} asked */
function textNumber(program, asked) {
  let number = Math.floor(Number(asked));
  if (!asked || !(number >= 0 && number <= program.passes.length)) return "final";
  while (number > 0 && !program.passes[number - 1].hunks.length) number -= 1;
  return String(number);
}

/** @param {Program} program @returns {[string, string][]} */
function textChoices(program) {
  const after = program.passes.map((pass, i) => /** @type {[string, string]} */ ([String(i + 1), `after ${i + 1} ${pass.name}`]));
  return [["0", "as imported"], ...after.filter((_, i) => program.passes[i].hunks.length), ["final", "after all passes"]];
}

/** The line of an op in the text that its graph is of, from 1. @param {Program} program @param {number} graph @param {NodeView} node */
function lineOf(program, graph, node) {
  const text = graph === 0 && program.graphs.length > 1 ? program.imported : program.final;
  return text.indexOf(node.text) + 1;
}
