// The data of the page, as fuseline/debug/page/data.py declares it; a program is read when it is shown.

/** @typedef {{before: number, after: number, rows: [number, number][]}} Hunk */
/**
 * @typedef {object} PassView
 * @property {string} name
 * @property {string} about
 * @property {number} start
 * @property {number} seconds
 * @property {number} before
 * @property {number} after
 * @property {string[]} rewrites
 * @property {Hunk[]} hunks
 */
/**
 * @typedef {object} NodeView
 * @property {string} op
 * @property {number} text
 * @property {string} module
 * @property {string[]} source
 * @property {number} bytes
 * @property {number} flops
 * @property {number} group
 * @property {number} piece
 * @property {string[]} kernels
 * @property {number} x
 * @property {number} y
 */
/** @typedef {{title: string, nodes: NodeView[], edges: [number, number][]}} GraphView */
/** @typedef {{kind: string, where: string}} Group */
/**
 * @typedef {object} Site
 * @property {string} pattern
 * @property {string} where
 * @property {"fused" | "missed"} status
 * @property {string} reason
 * @property {string} kernel
 * @property {Record<string, string>} details
 */
/** @typedef {{label: string, microseconds: number | null, note: string}} Option */
/** @typedef {{sizes: string, chosen: string, by: string, options: Option[], note: string}} Choice */
/**
 * @typedef {object} KernelRecord
 * @property {string} symbol
 * @property {string} family
 * @property {string} op
 * @property {number} launches
 * @property {string} origin
 * @property {"native" | "library" | "reference"} status
 * @property {string} reason
 * @property {string} needs
 * @property {string} target
 * @property {Record<string, number>} resources
 * @property {Choice[]} choices
 * @property {string} sizes
 */
/** @typedef {{record: KernelRecord, language: string, source: string, ptx: string}} KernelView */
/** @typedef {[number, number, number]} Cost launches, bytes, flops */
/** @typedef {{name: string, eager: Cost, compiled: Cost, seconds: number | null, floor: number | null}} LayerView */
/** @typedef {{label: string, symbol: string, where: string, kind: string, seconds: number[], floor: number | null}} StepView */
/**
 * @typedef {object} BufferView
 * @property {string} name
 * @property {string} type
 * @property {"temp" | "output" | "host"} kind
 * @property {number} offset
 * @property {number} bytes
 * @property {[number, number]} steps
 */
/** @typedef {{buffers: BufferView[], arena: number, weights: number, outputs: number}} MemoryView */
/**
 * @typedef {object} Program
 * @property {string} name
 * @property {string} target
 * @property {string[]} lines
 * @property {number[]} imported
 * @property {number[]} final
 * @property {PassView[]} passes
 * @property {GraphView[]} graphs
 * @property {Record<string, string>} options
 * @property {Group[]} groups
 * @property {Site[]} sites
 * @property {KernelView[]} kernels
 * @property {LayerView[]} layers
 * @property {StepView[]} steps
 * @property {MemoryView | null} memory
 * @property {Record<string, number>} sizes
 * @property {Record<string, number>} seconds
 * @property {Record<string, number[]>} calls
 * @property {string} machine
 * @property {number | null} floor
 * @property {string[]} unknown
 */
/**
 * @typedef {object} Page
 * @property {string} title
 * @property {Record<string, string>} versions
 * @property {string[]} notes
 * @property {{name: string, target: string}[]} programs
 */

/** @param {string} id @returns {any} */
function embedded(id) {
  return JSON.parse(document.getElementById(id)?.textContent ?? "null");
}

/** @type {Page} */
const page = embedded("page-data");

/** @type {Map<number, Program>} */
const programs = new Map();

/** @param {number} number @returns {Program} */
function programOf(number) {
  const known = programs.get(number);
  if (known) return known;
  const read = embedded(`program-data-${number}`);
  programs.set(number, read);
  return read;
}
