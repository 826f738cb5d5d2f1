// Begins, once all other parts are there.

const shell = new Shell();
addEventListener("hashchange", () => shell.show());
addEventListener("beforeprint", revealAll);
addEventListener("keydown", (event) => shell.key(event));
shell.show();
requestAnimationFrame(() => performance.mark("shown"));
