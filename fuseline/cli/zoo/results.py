"""What the census finds out of each architecture, and the file that keeps it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

Status: TypeAlias = Literal["correct", "wrong", "failed", "correct in parts", "no model", "stopped"]

LEAST_CHANCE = 0.01
"""Below it, outputs outside the rule are not eager's as well as the program's (a sign test)."""

STRUCTURES = {"moe": ("moe", "route"), "mla": ("mla",)}
"""The patterns of sites that explain a structure."""


@dataclass(frozen=True)
class Miss:
    """Sites of one pattern that were missed for one reason."""

    pattern: str
    reason: str
    count: int


@dataclass(frozen=True)
class Mode:
    """One way in which a model was compiled and run: prefill, or decode.

    Attributes:
        failure: the error that compiling or running it raised; else empty.
        graphs: that were compiled.
        breaks: graph breaks, by reason.
        plain: reasons why graphs were left to torch as a whole.
        fused: sites that were fused, by pattern.
        missed: sites that were not.
        error: relative to the float64 oracle, of the output that is the worst by the next two;
            where there are several seeds, the median of their outputs.
        eager_error: eager's own of that output, or the median.
        allowed: the largest error that is right, for one seed.
        seeds: of the tokens that it was run on; several where the first breaks the rule.
        outputs: how many there were, of all seeds.
        outside: how many of them break the rule.
        eager_outside: how many of eager's would, were this program the one to be followed.
        native: steps of the plans that run natively.
        host: steps that torch runs, by the name of the op.
    """

    failure: str = ""
    graphs: int = 0
    breaks: Mapping[str, int] = field(default_factory=dict[str, int])
    plain: tuple[str, ...] = ()
    fused: Mapping[str, int] = field(default_factory=dict[str, int])
    missed: tuple[Miss, ...] = ()
    error: float | None = None
    eager_error: float | None = None
    allowed: float | None = None
    seeds: int = 1
    outputs: int = 0
    outside: int = 0
    eager_outside: int = 0
    native: int = 0
    host: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def captured(self) -> bool:
        """Whether it was compiled as a whole."""
        return bool(self.graphs) and not (self.breaks or self.plain)

    @property
    def right(self) -> bool:
        """Whether the numbers rule holds for the first seed; else, whether eager is as far from it.

        Where a choice between experts is close, rounding decides it one way here and another way
        in eager, and the logits differ by far. Neither is nearer to the oracle then: of the outputs
        where one of them is outside, each has half. `chance` tells how likely it is that so many
        are this program's.
        """
        if self.error is None or self.allowed is None:
            return False
        return self.error <= self.allowed if self.seeds == 1 else self.chance >= LEAST_CHANCE

    @property
    def chance(self) -> float:
        """How likely at least so many outputs are outside here, if it might be eager's as well."""
        total = self.outside + self.eager_outside
        ways = sum(math.comb(total, n) for n in range(self.outside, total + 1))
        return ways / 2**total


@dataclass(frozen=True)
class Result:
    """One architecture in one dtype.

    Attributes:
        name: of the architecture, as transformers has it.
        dtype: of the weights.
        structures: of ``moe`` and ``mla``, what the model has.
        cause: why there is no model, or what ended its examination.
        stage: what was being done when that was written, for those that were ended.
        prefill: of any batch and length.
        decode: one token at a time; None where the model keeps no state.
        cache: what the model keeps: ``static``, ``default`` (its own) or ``none``.
        why_not_static: why it is not a static one.
        seconds: that all of it took.
    """

    name: str
    dtype: str
    structures: tuple[str, ...] = ()
    cause: str = ""
    stage: str = "configuring"
    prefill: Mode | None = None
    decode: Mode | None = None
    cache: str = ""
    why_not_static: str = ""
    seconds: float = 0.0

    @property
    def modes(self) -> tuple[Mode, ...]:
        """What was run."""
        return tuple(mode for mode in (self.prefill, self.decode) if mode is not None)

    @property
    def status(self) -> Status:
        """What became of it."""
        if self.cause:
            return "no model" if self.stage == "configuring" else "stopped"
        if any(mode.failure for mode in self.modes):
            return "failed"
        if not all(mode.right for mode in self.modes):
            return "wrong"
        return "correct" if self.captured else "correct in parts"

    @property
    def configured(self) -> bool:
        """Whether there is a model."""
        return self.prefill is not None or self.stage != "configuring"

    @property
    def captured(self) -> bool:
        """Whether all that was run was compiled as a whole."""
        return bool(self.modes) and all(mode.captured for mode in self.modes)

    @property
    def correct(self) -> bool:
        """Whether all that was run is right, captured as a whole or not."""
        ran = bool(self.modes) and not self.cause
        return ran and all(mode.right and not mode.failure for mode in self.modes)

    @property
    def fused(self) -> Counter[str]:
        """Sites that were fused, by pattern."""
        return sum((Counter(mode.fused) for mode in self.modes), Counter[str]())

    @property
    def missed(self) -> tuple[Miss, ...]:
        """Sites that were missed, in either mode."""
        counts = Counter[tuple[str, str]]()
        for mode in self.modes:
            for miss in mode.missed:
                counts[miss.pattern, miss.reason] += miss.count
        return tuple(Miss(*key, count) for key, count in counts.items())

    @property
    def unexplained(self) -> tuple[str, ...]:
        """Structures of the model of which no site speaks, and patterns missed with no reason."""
        seen = set(self.fused) | {miss.pattern for miss in self.missed}
        silent = [s for s in self.structures if not seen.intersection(STRUCTURES[s])]
        return (*silent, *(miss.pattern for miss in self.missed if not miss.reason))

    @classmethod
    def of_dict(cls, data: Mapping[str, Any]) -> Result:
        """A result as JSON gives it back."""
        given: dict[str, Any] = {**data, "structures": tuple(data["structures"])}
        given |= {name: _mode(data[name]) for name in ("prefill", "decode")}
        return cls(**given)


def _mode(data: Mapping[str, Any] | None) -> Mode | None:
    if data is None:
        return None
    given: dict[str, Any] = {**data, "plain": tuple(data["plain"])}
    given["missed"] = tuple(Miss(**miss) for miss in data["missed"])
    return Mode(**given)


@dataclass(frozen=True)
class Results:
    """All results so far, and what they were made with.

    Attributes:
        versions: of the packages that decide them.
        names: every architecture that there is.
        results: by name and dtype.
    """

    versions: Mapping[str, str]
    names: tuple[str, ...]
    results: tuple[Result, ...] = ()

    def __add__(self, result: Result) -> Results:
        """The same with one more result, in place of an earlier one of its name and dtype."""
        key = (result.name, result.dtype)
        others = [r for r in self.results if (r.name, r.dtype) != key]
        ordered = sorted([*others, result], key=lambda r: (r.dtype, self.names.index(r.name)))
        return replace(self, results=tuple(ordered))

    def of(self, dtype: str) -> tuple[Result, ...]:
        """The results in one dtype."""
        return tuple(r for r in self.results if r.dtype == dtype)

    def to_dict(self) -> dict[str, Any]:
        """As dicts, lists, strings and numbers."""
        return dataclasses.asdict(self)

    def save(self, path: Path) -> None:
        """Write a file; whoever reads it meanwhile sees the old one or the new one, whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f"{path.name}.{os.getpid()}")
        staged.write_text(json.dumps(self.to_dict(), indent=1) + "\n")
        staged.replace(path)

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a file that `save` wrote.

        Raises:
            ValueError: the file is no such one.
        """
        try:
            data = json.loads(path.read_text())
            results = tuple(Result.of_dict(item) for item in data["results"])
            return cls(data["versions"], tuple(data["names"]), results)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} holds no results of a census") from error
