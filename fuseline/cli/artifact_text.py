"""What `fuseline inspect` prints: of one artifact, or of the difference between two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fuseline.cli.output import columns
from fuseline.cli.units import bytes_text
from fuseline.report import span
from fuseline.report_tables import by_module, digits

if TYPE_CHECKING:
    from fuseline.artifact.inspecting import Facts


def described(facts: Facts, *, full: bool) -> str:
    """What a file holds, as text; ``full`` with every site, choice and member."""
    parts = [_about(facts), _section("weights", _weights(facts["weights"]))]
    for target in facts["targets"]:
        needs = " ".join(target["features"])
        about = [target["machine"], f"needs {needs}" if needs else ""]
        parts.append(f"target {target['title']}\n{columns([[a] for a in about if a])}".rstrip())
        for name, program in target["programs"].items():
            parts += _program(f"{name} for {target['title']}", program, full=full)
    parts.append(_section("members", _members(facts, full=full)))
    return "\n\n".join(part for part in parts if part)


def _section(title: str, rows: list[list[str]]) -> str:
    return f"{title}\n{columns(rows)}" if rows else ""


def _about(facts: Facts) -> str:
    made = [f"{name} {text}" for name, text in facts["made_with"].items() if name != "command"]
    rows = [
        ["model", facts["model"]],
        ["licence", facts["licence"] or "not given"],
        ["written by", f"fuseline {facts['fuseline']}, {', '.join(made)}"],
        ["command", facts["made_with"].get("command", "not given")],
        *([["options", ", ".join(facts["options"])]] if facts["options"] else []),
        ["manifest", f"schema {facts['schema']}, sha256:{facts['digest']}"],
        ["signature", _signature(facts)],
        ["digests", "all checked" if facts["verified"] else "not checked: --verify reads all"],
        *(["runs on", native] for native in _natives(facts)),
    ]
    return _section(f"{facts['path']}: {bytes_text(facts['bytes'])}", rows)


def _signature(facts: Facts) -> str:
    signature = facts["signature"]
    if signature is None:
        return "none"
    checked = "checked" if facts["signed_by_key"] else "not checked: --verify-key does"
    return f"{signature['algorithm']}, key {signature['fingerprint']}, {checked}"


def _natives(facts: Facts) -> list[str]:
    return [
        f"{native['machine']}{', GPUs' if native['launches_on_gpus'] else ''}; "
        f"Python extensions: {', '.join(native['bindings']) or 'none, by ctypes'}"
        for native in facts["native"]
    ]


def _weights(weights: Facts) -> list[list[str]]:
    where = f"{weights['in']}, beside the file" if weights["beside"] else weights["in"]
    rows = [[where, f"{weights['tensors']} tensors", bytes_text(weights["bytes"])]]
    for dtype, kind in weights["dtypes"].items():
        rows.append([f"  {dtype}", f"{kind['tensors']} stored", bytes_text(kind["bytes"])])
    if zeros := weights["zeros"]["tensors"]:
        rows.append(["  zeros", f"{zeros} not stored", bytes_text(weights["zeros"]["bytes"])])
    return rows


def _program(title: str, program: Facts, *, full: bool) -> list[str]:
    memory, steps = program["memory"], program["steps"]
    at = ", ".join(f"{name}={value}" for name, value in memory["at"].items())
    rows = [["takes", program["takes"]], ["gives", program["gives"]]]
    rows += [["input", f"{i['name']}: {_type(i)}"] for i in program["inputs"]]
    rows += [["state", f"{i['name']}: {_type(i)}"] for i in program["state"]]
    rows += [["result", _type(result)] for result in program["results"]]
    rows += [["size", f"{n} in {s['least']}..{_end(s)}"] for n, s in program["sizes"].items()]
    rows.append(
        [
            "memory",
            f"{bytes_text(memory['arena'])} of temporaries and "
            f"{bytes_text(memory['results'])} of results"
            + (f", where {at}" if at else "")
            + ", with one worker",
        ]
    )
    rows += [["temporary", expr] for expr in _counted(memory["temporaries"])] if full else []
    rows.append(
        [
            "steps",
            f"{steps['native']} native, {steps['library']} by libraries, {steps['torch']} by torch",
        ]
    )
    parts = [_section(title, rows), _section("kernels", _kernels(program["kernels"]))]
    parts.append(_section("made from", _places(program["kernels"])))
    parts.append(_section("decisions", _decisions(program["decisions"], full=full)))
    parts.append(_section("sites", _sites(program["sites"], full=full)))
    return parts


def _end(limits: Facts) -> str:
    return "" if limits["most"] is None else str(limits["most"])


def _type(item: Facts) -> str:
    if item["dtype"] == "int":
        return f"int {item['value']}"
    return f"{item['dtype']}[{', '.join(map(str, item['shape']))}]"


def _counted(texts: Sequence[str]) -> list[str]:
    return [
        f"{n} x {text} bytes" if n > 1 else f"{text} bytes" for text, n in Counter(texts).items()
    ]


_HEAD = ["kernel", "registers", "shared", "spills", "widest access", "code", "for"]


def _kernels(kernels: Sequence[Facts]) -> list[list[str]]:
    rows: list[list[str]] = []
    for kernel in kernels:
        has, code = kernel["resources"], kernel.get("cubin") or kernel.get("ptx")
        widest = max(has["widest_load"], has["widest_store"]) if has else 0
        told = f"{kernel['status']}: {kernel['reason']}".removesuffix(": ")
        by = "" if kernel["status"] == "native" else f" ({told})"
        rows.append(
            [
                kernel["symbol"],
                *(str(has.get(what, "-")) for what in ("registers", "shared_memory", "spills")),
                f"{widest} bits" if has else "-",
                bytes_text(code["size"]) if code else "-",
                f"{kernel['op']} at {kernel['origin']}{by}",
            ]
        )
    return [_HEAD, *rows] if rows else []


def _places(kernels: Sequence[Facts]) -> list[list[str]]:
    """The places in the model that each kernel came from, those of one module in a line."""
    rows: list[list[str]] = []
    for kernel in kernels:
        places = by_module(kernel["sources"])
        rows += [[kernel["symbol"] * (not number), place] for number, place in enumerate(places)]
    return rows


def _sites(sites: Sequence[Facts], *, full: bool) -> list[list[str]]:
    """Every site, or how many there are of each kind and outcome."""
    if full:
        return [[s["status"], s["pattern"], s["where"], s["reason"]] for s in sites]
    counts = Counter((s["status"], s["pattern"], s["reason"]) for s in sites)
    return [[status, f"{pattern} x{n}", why] for (status, pattern, why), n in counts.items()]


def _decisions(tables: Sequence[Facts], *, full: bool) -> list[list[str]]:
    """What runs for which sizes, and why: of an op that has several ways, or with ``full`` of each
    that had something to choose, which is then listed.
    """
    rows: list[list[str]] = []
    for table in tables:
        if not full and len(table["rows"]) < 2:
            continue
        many = f" x{table['ops']}" if table["ops"] > 1 else ""
        title = f"{table['op']} at {table['where']}{many}" if table["where"] else table["op"] + many
        for row in table["rows"]:
            sizes = "all" if row["size"] is None else span(*(row[k] for k in _RANGE))
            for run in row["runs"]:
                name = _run(run)
                for why in _why(run, full=full):
                    rows.append([title, sizes, name, why])
                    title = sizes = name = ""
    return rows


_RANGE = ("size", "least", "most")


def _run(run: Facts) -> str:
    beside = {"library": " of torch's library", "torch": " by torch"}
    return f"{run['kernel']}{beside.get(run['kind'], '')}"


def _why(run: Facts, *, full: bool) -> list[str]:
    """What a kernel was chosen by: in short, or for each range of sizes that was looked at."""
    choices: list[Facts] = run["choices"]
    if not choices:
        return [f"by {run['by'] or 'rule, or by measurement'}"]
    if full:
        return [f"{c['sizes']}: {_choice(c)}, {_rest(c)}" for c in choices]
    return ["; ".join(dict.fromkeys(map(_choice, choices)))]


def _choice(choice: Facts) -> str:
    return f"{choice['chosen']} by {choice['by']}"


def _rest(choice: Facts) -> str:
    others = [
        f"{option['label']} {option['note'] or _time(option['microseconds'])}".strip()
        for option in choice["options"]
    ]
    return f"of {', '.join(others)}{'; ' if choice['note'] else ''}{choice['note']}"


def _time(microseconds: float | None) -> str:
    return "" if microseconds is None else f"{digits(microseconds)} us"


def _members(facts: Facts, *, full: bool) -> list[list[str]]:
    """Every member with its digest, or how many each folder has."""
    members: dict[str, Facts] = facts["members"]
    if full:
        return [[name, str(m["size"]), m["sha256"]] for name, m in members.items()]
    folders: dict[str, list[int]] = {}
    for name, member in members.items():
        top = name.rpartition("/")[0] or name
        folders.setdefault(top, []).append(member["size"])
    return [[top, str(len(sizes)), bytes_text(sum(sizes))] for top, sizes in folders.items()]


# -- what changed ---------------------------------------------------------------------------------


def changes(found: Facts) -> str:
    """What changed between two artifacts, as text."""
    if found["same"]:
        return f"{found['other']} holds what {found['one']} does"
    parts = [f"{found['other']}, compared with {found['one']}"]
    parts.append(_section("about", [_changed(change) for change in found["about"]]))
    for target in found["targets"]:
        kernels: list[Facts] = target["kernels"]
        counts = Counter(kernel["status"] for kernel in kernels)
        told = ", ".join(f"{n} {status}" for status, n in counts.items()) or "none"
        rows = [["kernels", told]]
        rows += [
            [k["status"], f"{k['symbol']}{' -> ' * ('now' in k)}{k.get('now', '')}", k["origin"]]
            for k in kernels
            if k["status"] != "same"
        ]
        rows += [_changed(change) for change in target["changes"]]
        width = max(map(len, rows))
        rows = [[*row, *[""] * (width - len(row))] for row in rows]
        parts.append(_section(f"target {target['title']}: {target['status']}", rows))
    parts.append(_section("other members", [_changed(change) for change in found["native"]]))
    weights = found["weights"]
    rows = [["same", str(weights["same"])]]
    rows += [["changed", _tensor(change)] for change in weights["changed"]]
    rows += [[status, name] for status in ("new", "gone") for name in weights[status]]
    parts.append(_section("weights", rows))
    return "\n\n".join(part for part in parts if part)


def _changed(change: Facts) -> list[str]:
    if "status" in change:
        return [change["status"], change["what"]]
    return ["changed", f"{change['what']}: {_short(change['one'])} -> {_short(change['other'])}"]


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _tensor(change: Facts) -> str:
    one, other = change["one"], change["other"]
    if _type(one) != _type(other):
        return f"{change['name']}: {_type(one)} -> {_type(other)}"
    return f"{change['name']}: {_type(one)}, sha256:{one['sha256'][:16]} -> {other['sha256'][:16]}"
