// Numbers as people read them.

/** Three digits that matter. @param {number} value */
function digits(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return value.toFixed(size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2);
}

/** @param {number} value @param {string[]} units each a thousand of the one before */
function scaled(value, units) {
  let at = 0;
  while (Math.abs(value) >= 999.5 && at < units.length - 1) {
    value /= 1000;
    at += 1;
  }
  return `${at === 0 ? String(Math.round(value)) : digits(value)}\u00a0${units[at]}`.trim();
}

/** @param {number} value */
const bytesText = (value) => scaled(value, ["B", "kB", "MB", "GB", "TB"]);

/** @param {number} value */
const flopsText = (value) => scaled(value, ["flop", "kflop", "Mflop", "Gflop", "Tflop"]);

/** @param {number} value */
const countText = (value) => value.toLocaleString("en-US");

/** @param {number} value of seconds */
function secondsText(value) {
  if (value === 0) return "0\u00a0s";
  if (value < 999.5e-6) return `${digits(value * 1e6)}\u00a0µs`;
  if (value < 0.9995) return `${digits(value * 1e3)}\u00a0ms`;
  return `${digits(value)}\u00a0s`;
}

/** How many times less there is after than before. @param {number} before @param {number} after */
function ratioText(before, after) {
  if (!before || !after) return "";
  const times = before / after;
  if (Math.abs(times - 1) < 0.005) return "the same";
  return times >= 1 ? `${digits(times)}× less` : `${digits(1 / times)}× more`;
}

/** @param {number} share */
function percentText(share) {
  const value = share * 100;
  return `${value >= 9.95 ? value.toFixed(0) : value.toFixed(1)}\u00a0%`;
}

/** @param {number} count @param {string} one @param {string} [many] */
const counted = (count, one, many = `${one}s`) => `${countText(count)}\u00a0${count === 1 ? one : many}`;

/** @param {readonly number[]} values @param {number} share 0.5 is the median */
function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  const place = (sorted.length - 1) * share;
  const low = Math.floor(place);
  const high = Math.min(low + 1, sorted.length - 1);
  return sorted[low] + (sorted[high] - sorted[low]) * (place - low);
}

/** @param {readonly number[]} values */
const median = (values) => quantile(values, 0.5);

/** @param {Iterable<number>} values */
function total(values) {
  let sum = 0;
  for (const value of values) sum += value;
  return sum;
}
