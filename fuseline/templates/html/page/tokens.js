// Words of code and IR, by kind. A grammar is one expression whose groups are named by the kinds.

/** @typedef {[string, string]} Token its kind, and its text; the kind is empty where it has none */

const C_WORDS =
  "alignas|auto|bool|break|case|char|class|const|constexpr|continue|default|do|double|else|enum|extern|false|float|for|if|inline|int|long|namespace|nullptr|operator|private|public|return|short|signed|sizeof|static|static_cast|reinterpret_cast|struct|switch|template|this|true|typedef|typename|union|unsigned|using|void|volatile|while|__device__|__global__|__shared__|__restrict__|__forceinline__";
const PYTHON_WORDS =
  "and|as|assert|async|await|break|class|continue|def|del|elif|else|except|False|finally|for|from|global|if|import|in|is|lambda|None|nonlocal|not|or|pass|raise|return|True|try|while|with|yield";

const NUMBER = String.raw`\b(?:0[xX][\da-fA-F']+|\d[\d']*(?:\.\d+)?(?:[eE][+-]?\d+)?)[fFuUlL]*\b`;
const STRING = String.raw`"(?:[^"\\\n]|\\.)*"`;

/** @param {Record<string, string>} kinds */
function grammar(kinds) {
  return new RegExp(Object.entries(kinds).map(([kind, text]) => `(?<${kind}>${text})`).join("|"), "g");
}

const CPP = grammar({
  comment: String.raw`\/\/[^\n]*|\/\*[^]*?\*\/`,
  meta: String.raw`^[ \t]*#[^\n]*`,
  string: `${STRING}|'(?:[^'\\\\\\n]|\\\\.)'`,
  word: `\\b(?:${C_WORDS})\\b`,
  type: String.raw`\b\w+_t\b|\b(?:half|bfloat16|float[234]|__half2?|__nv_bfloat162?)\b`,
  number: NUMBER,
  call: String.raw`\b[A-Za-z_]\w*(?=\()`,
});

/** @type {Record<string, RegExp>} */
const GRAMMARS = {
  cpp: new RegExp(CPP.source, "gm"),
  cuda: new RegExp(CPP.source, "gm"),
  python: grammar({
    comment: String.raw`#[^\n]*`,
    string: String.raw`"""[^]*?"""|'''[^]*?'''|` + `${STRING}|'(?:[^'\\\\\\n]|\\\\.)*'`,
    meta: String.raw`@[\w.]+`,
    word: `\\b(?:${PYTHON_WORDS})\\b`,
    number: NUMBER,
    call: String.raw`\b[A-Za-z_]\w*(?=\()`,
  }),
  ptx: grammar({
    comment: String.raw`\/\/[^\n]*|\/\*[^]*?\*\/`,
    word: String.raw`(?<![\w.])\.[a-z]\w*`,
    value: String.raw`%\w+(?:\.[xyz])?`,
    string: STRING,
    number: String.raw`\b0[fd][\dA-F]+\b|` + NUMBER,
    call: String.raw`\b[a-z]\w*(?:\.\w+)+`,
    meta: String.raw`\$\w+`,
  }),
  ir: grammar({
    comment: String.raw` @ "[^"]*"(?: "[^"]*")*$`,
    string: STRING,
    value: String.raw`[%@][\w.]+`,
    type: String.raw`\b(?:bool|b?[fiuc]\d+(?:_\w+)?)(?=\[)`,
    word: String.raw`\b(?:func|return|param|buffer|const|true|false|none)\b`,
    call: String.raw`(?<== |^ +)[\w.]+(?= |$)`,
    number: NUMBER,
  }),
};

/** The words of a text. @param {string} text @param {string} language @returns {Token[]} */
function tokensOf(text, language) {
  const expression = GRAMMARS[language];
  if (!expression) return [["", text]];
  /** @type {Token[]} */
  const found = [];
  let at = 0;
  for (const match of text.matchAll(expression)) {
    if (match.index > at) found.push(["", text.slice(at, match.index)]);
    const kind = Object.entries(match.groups ?? {}).find(([, word]) => word !== undefined)?.[0] ?? "";
    found.push([kind, match[0]]);
    at = match.index + match[0].length;
  }
  if (at < text.length) found.push(["", text.slice(at)]);
  return found;
}

/** The same by line, as comments and strings may go over several. @param {string} text @param {string} language */
function tokenLines(text, language) {
  /** @type {Token[][]} */
  const lines = [[]];
  for (const [kind, word] of tokensOf(text, language)) {
    word.split("\n").forEach((part, number) => {
      if (number) lines.push([]);
      if (part) lines[lines.length - 1].push([kind, part]);
    });
  }
  return lines;
}

/** @param {Token} token */
const tokenElement = ([kind, word]) => (kind ? el(`span.t-${kind}`, {}, word) : word);
