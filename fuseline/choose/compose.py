"""From what was settled for each range of sizes to an op's launches.

Neighbouring ranges with the same outcome are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fuseline.build_gpu import Candidate
from fuseline.choose.cases import Case, within
from fuseline.choose.decision import Form
from fuseline.codegen.library import ReferenceKernel
from fuseline.codegen.lower import Emitted, Launch
from fuseline.report import Choice


@dataclass
class Settled:
    """What was settled for a case.

    Attributes:
        form: what runs.
        kernels: the configuration of each launch that has a kernel of ours, by place; with
            ``library``, of what runs instead, by its number there.
        choices: what each launch was chosen from, by place.
        failed: why the op cannot run here at all.
    """

    form: Form = "kernels"
    kernels: dict[int, Candidate] = field(default_factory=dict[int, Candidate])
    choices: dict[int, Choice] = field(default_factory=dict[int, Choice])
    failed: str = ""


def configured(item: Emitted, cases: Sequence[Case], settled: Sequence[Settled]) -> Emitted:
    """An op with the launches that were settled.

    The cases may be those of another op that is alike: launches are this op's own.
    """
    forms = [s.form for s in settled]
    if all(form == "reference" for form in forms):
        return Emitted(item.op, (), "torch was measured faster")
    found: list[Launch] = []
    for first, last, form in _runs(forms):
        if form == "reference":
            found.append(within(_reference(item, cases[first]), cases[first], cases[last]))
        elif form == "library":
            place = next(p for p in cases[first].places if item.launches[p].instead)
            instead = item.launches[place].instead
            found += [within(n, cases[first], cases[last]) for n in instead]
    for place, launch in enumerate(item.launches):
        running = [number for number, case in enumerate(cases) if place in case.places]
        options = {n.kernel.symbol: n for n in (launch, *launch.others)}
        symbols = [_kernel(c, s, place, launch) for c, s in zip(cases, settled, strict=True)]
        for first, last, symbol in _runs(symbols):
            taken = replace(options[symbol], others=(), instead=())
            every = (first, last) == (running[0], running[-1])
            found.append(taken if every else within(taken, cases[first], cases[last]))
    return replace(item, launches=tuple(found))


def _kernel(case: Case, settled: Settled, place: int, launch: Launch) -> str | None:
    """The symbol that a launch has in a case; None where it does not run."""
    if settled.form != "kernels" or place not in case.places:
        return None
    made = settled.kernels.get(place)
    return made.binary.symbol if made else launch.kernel.symbol


def _runs(keys: Sequence[str | None]) -> list[tuple[int, int, str]]:
    """First, last and key of each run of equal keys; what has none is left out."""
    found: list[tuple[int, int, str]] = []
    for number, key in enumerate(keys):
        if key is None:
            continue
        if found and found[-1][1:] == (number - 1, key):
            found[-1] = (found[-1][0], number, key)
        else:
            found.append((number, number, key))
    return found


def _reference(item: Emitted, case: Case) -> Launch:
    """The op's reference as a launch."""
    launch = item.launches[case.places[0]]
    form = next((item.launches[p].form for p in case.places if item.launches[p].form), None)
    reason = "torch was measured faster at some sizes"
    taken = form and replace(form, words="torch")
    return Launch(ReferenceKernel(reason), (), (), launch.work, launch.when, taken)


__all__ = ["Settled", "configured"]
