"""What ops were fused into: the sites of a func, and what else became one op."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fuseline.debug.page.data import Group
from fuseline.debug.page.graph import Amounts
from fuseline.debug.page.lineage import Lineage
from fuseline.ir.core import Op, Trait
from fuseline.passes.record import Run
from fuseline.report import Site


class Groups:
    """The groups of a run: numbers of living ops, and of those that these stand for."""

    def __init__(self) -> None:
        self.found: list[Group] = []
        self.of: dict[Op, int] = {}

    def add(self, group: Group, ops: Iterable[Op]) -> None:
        """Some ops are a group, but for those that are in one."""
        ops = [op for op in ops if op not in self.of]
        if ops:
            self.of |= dict.fromkeys(ops, len(self.found))
            self.found.append(group)


def groups_of(
    run: Run, first: Sequence[Op], lineage: Lineage, amounts: Amounts
) -> tuple[tuple[Group, ...], dict[Op, int]]:
    """The groups of a func after all passes, and the number of each op's, also of ops that it had.

    An op that was taken apart has the group of its costliest part.

    Args:
        run: the record of the passes.
        first: the ops before all passes.
        lineage: what became of them.
        amounts: bytes and flops of an op.

    """
    func, groups = run.func, Groups()
    beside = _beside(run)
    for op, sites in _sites(run).items():
        places = dict.fromkeys(site.where for site in sites)
        groups.add(Group(sites[0].pattern, "; ".join(places)), [op, *beside.get(op, ())])
    became = {op: _costliest(lineage.standing(op, func), amounts) for op in first}
    for op, parts in _parts(became).items():
        if len(parts) > 1:
            where = str(op.loc or parts[-1].loc or "")
            groups.add(Group(op.name, where), [op])
    numbers = dict(groups.of)
    for op, living in became.items():
        if living is not None and living in groups.of:
            numbers[op] = groups.of[living]
    return tuple(groups.found), numbers


def _sites(run: Run) -> dict[Op, list[Site]]:
    """The sites that each op does the work of: one norm may be two of them."""
    found: dict[Op, list[Site]] = {}
    for site, op in run.located():
        if op is not None:
            found.setdefault(op, []).append(site)
    return found


def _beside(run: Run) -> dict[Op, list[Op]]:
    """For ops of sites, all living ops that the same rewrite made, or those that it swallowed."""
    living: dict[int, list[Op]] = {}
    for each in run.applied:
        whole = each
        while whole.owner is not None:
            whole = whole.owner
        if whole.pattern:
            own = (op for op in each.ops if op in run.func and not op.has(Trait.VIEW))
            living.setdefault(whole.number, []).extend(own)
    return {op: ops for ops in living.values() for op in ops}


def _parts(became: Mapping[Op, Op | None]) -> dict[Op, list[Op]]:
    """Which ops, other than views, each living one stands for."""
    found: dict[Op, list[Op]] = {}
    for op, living in became.items():
        if living is not None and not op.has(Trait.VIEW) and not living.has(Trait.VIEW):
            found.setdefault(living, []).append(op)
    return found


def _costliest(ops: Sequence[Op], amounts: Amounts) -> Op | None:
    return max(ops, key=lambda op: amounts(op)[::-1], default=None)


__all__ = ["groups_of"]
