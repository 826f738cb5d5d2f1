// Which words of a line changed, where it became another.

/** @typedef {[number, number]} Stretch the first character, and the one behind the last */

const MOST_PAIRS = 160000;

/** @param {string} line */
const wordsOf = (line) => line.match(/[%@]?[\w.]+|\s+|[^]/g) ?? [];

/**
 * The ranges of two lines that the other one does not have.
 * @param {string} before @param {string} after
 * @returns {[Stretch[], Stretch[]]}
 */
function changedRanges(before, after) {
  const a = wordsOf(before);
  const b = wordsOf(after);
  let head = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head += 1;
  let tail = 0;
  while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) {
    tail += 1;
  }
  const [left, right] = [a.slice(head, a.length - tail), b.slice(head, b.length - tail)];
  const [keptLeft, keptRight] = keptWords(left, right);
  const start = a.slice(0, head).join("").length;
  return [rangesOf(left, keptLeft, start), rangesOf(right, keptRight, start)];
}

/**
 * The words of a longest common part, by number; none where lines are too long to compare.
 * @param {string[]} a @param {string[]} b
 * @returns {[Set<number>, Set<number>]}
 */
function keptWords(a, b) {
  const kept = /** @type {[Set<number>, Set<number>]} */ ([new Set(), new Set()]);
  if (!a.length || !b.length || a.length * b.length > MOST_PAIRS) return kept;
  const wide = b.length + 1;
  const best = new Uint16Array((a.length + 1) * wide);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      const at = i * wide + j;
      best[at] = a[i] === b[j] ? best[at + wide + 1] + 1 : Math.max(best[at + wide], best[at + 1]);
    }
  }
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    if (a[i] === b[j]) {
      kept[0].add(i++);
      kept[1].add(j++);
    } else if (best[(i + 1) * wide + j] >= best[i * wide + j + 1]) i += 1;
    else j += 1;
  }
  return kept;
}

/**
 * Ranges of the words that were not kept; a space between two of them belongs to them.
 * @param {string[]} words @param {Set<number>} kept @param {number} start
 */
function rangesOf(words, kept, start) {
  /** @type {Stretch[]} */
  const ranges = [];
  let at = start;
  words.forEach((word, number) => {
    const last = ranges[ranges.length - 1];
    const end = at + word.length;
    const bridge = word.trim() === "" && last?.[1] === at && number + 1 < words.length && !kept.has(number + 1);
    if (!kept.has(number) || bridge) {
      if (last && last[1] === at) last[1] = end;
      else ranges.push([at, end]);
    }
    at = end;
  });
  return ranges;
}

/**
 * A line with its words coloured, and ranges of it marked.
 * @param {string} line @param {string} language @param {Stretch[]} [ranges]
 * @returns {Node}
 */
function painted(line, language, ranges = []) {
  const made = document.createDocumentFragment();
  let at = 0;
  for (const [kind, word] of tokensOf(line, language)) {
    for (const [part, marked] of cut(word, at, ranges)) {
      const shown = tokenElement([kind, part]);
      made.append(marked ? el("mark", {}, shown) : shown);
    }
    at += word.length;
  }
  return made;
}

/**
 * The parts of a word within ranges of its line, and without.
 * @param {string} word @param {number} start @param {Stretch[]} ranges
 * @returns {[string, boolean][]}
 */
function cut(word, start, ranges) {
  const end = start + word.length;
  /** @type {[string, boolean][]} */
  const parts = [];
  let at = start;
  for (const [from, to] of ranges) {
    if (to <= at || from >= end) continue;
    if (from > at) parts.push([word.slice(at - start, from - start), false]);
    const stop = Math.min(to, end);
    parts.push([word.slice(Math.max(from, at) - start, stop - start), true]);
    at = stop;
  }
  if (at < end) parts.push([word.slice(at - start), false]);
  return parts;
}
