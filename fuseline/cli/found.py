"""What `fuseline bisect` found, for a program and for people."""

from __future__ import annotations

from typing import Any

from fuseline.cli.output import columns
from fuseline.debug.bisect import Found, FoundKernel, FoundNothing, FoundPass, FoundRewrite
from fuseline.passes.record import Applied


def described(found: Found) -> tuple[dict[str, Any], str]:
    """What was found, for a program and for people."""
    match found:
        case FoundRewrite():
            return _rewrite(found)
        case FoundPass(number, name, said, compilations):
            data = {"found": "pass" if number else "before", "pass": name, "number": number}
            text = (
                f"{name}, pass {number} of the pipeline, breaks it, without any rewrite before it"
            )
            if not number:
                text = "it breaks before all passes: in capture or import"
            rows = [["check", said]]
            if number:
                rows.append(
                    ["turn off", f"Config(disable=[{name!r}])  or  FUSELINE_DISABLE={name}"]
                )
        case FoundKernel(kernel, total, said, alone, compilations):
            data = {"found": "kernel" if kernel else "plan", "kernels": total, "alone": alone}
            rows = [["check", said]]
            text = f"it breaks without any of its {total} kernels: in the plan of buffers and steps"
            if kernel is not None:
                data |= {"kernel": kernel.symbol, "template": kernel.template}
                data |= {"where": kernel.where}
                text = f"the kernel {kernel.symbol} breaks it, one of {total}"
                off = f"Config(plain_kernels=[{kernel.symbol!r}])"
                rows = [
                    ["template", kernel.template],
                    ["at", kernel.where],
                    *rows,
                    ["alone", _word(alone, "no: only with others before it")],
                    ["turn off", f"{off}  or  FUSELINE_PLAIN_KERNELS={kernel.symbol}"],
                ]
        case FoundNothing(said, unclear, compilations):
            data = {"found": "nothing", "unclear": unclear}
            text = "the check cannot tell" if unclear else "nothing fails"
            rows = [["check", said]]
    data |= {"said": said, "compilations": compilations}
    rows.append(["took", "1 compilation" if compilations == 1 else f"{compilations} compilations"])
    return data, f"{text}\n{columns(rows)}"


def _disable(name: str) -> str:
    return f"Config(disable=[{name!r}])  or  FUSELINE_DISABLE={name}"


def _rewrite(found: FoundRewrite) -> tuple[dict[str, Any], str]:
    one: Applied = found.applied
    removed, added = found.lines
    name, where = one.name, str(one.where or "no known place")
    partners = [
        {"number": p.applied.number, "name": p.applied.name, "enables": p.enables}
        for p in found.partners
    ]
    data: dict[str, Any] = {
        "found": "rewrite",
        "number": one.number,
        "rewrites": found.total,
        "pass": one.rewrite,
        "name": name,
        "pattern": one.pattern,
        "where": where,
        "alone": found.alone,
        "together_with": partners,
        "later_pass": found.later,
        "removed": removed,
        "added": added,
        "disable": [one.rewrite],
        "skip_rewrites": [name],
        "not_told": list(found.first.skipped),
        "said": found.said,
        "searched": found.searched,
        "compilations": found.compilations,
    }
    more = found.compilations - found.searched
    rows = [
        ["at", where],
        ["check", found.said],
        ["needs", ", ".join(map(_named, found.needs)) or "no earlier rewrite"],
        ["alone", _alone(found)],
        ["turn off", _disable(one.rewrite)],
        ["just it", f"Config(skip_rewrites=[{name!r}])"],
        ["", f"or  FUSELINE_SKIP_REWRITES='{name}'"],
        ["took", f"{found.searched} compilations, of at most {found.bound:.1f}, and {more} more"],
    ]
    if found.first.skipped:
        tried = ", ".join(f"#{n}" for n in found.first.skipped)
        rows.insert(2, ["not told", f"with {tried}: it may be one of these"])
    title = f"rewrite #{one.number} of {found.total} breaks it: {one.rewrite}"
    lines = [f"  - {line}" for line in removed] + [f"  + {line}" for line in added]
    return data, "\n".join([title, columns(rows), *lines])


def _alone(found: FoundRewrite) -> str:
    if found.later:
        return f"no: {found.later}, a later pass over the whole func, breaks what it leaves"
    if not found.partners:
        return _word(found.alone, "no, and no other rewrite was found that it needs")
    said = [
        f"{_named(p.applied)}{', without which it is not applied' if p.enables else ''}"
        for p in found.partners
    ]
    return f"no: only together with {' and '.join(said)}"


def _named(applied: Applied) -> str:
    return f"#{applied.number} {applied.name}"


def _word(alone: bool | None, no: str) -> str:
    return "the check cannot tell" if alone is None else "yes" if alone else no
