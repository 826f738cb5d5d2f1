"""From emitted ops to launches: by the model, by measurements, and by those of an earlier process.

Kernels are built for real, for a GPU that is not there; what they take is made up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from fuseline import build
from fuseline.assemble import assemble
from fuseline.build import How
from fuseline.build_gpu import Candidate
from fuseline.choose import chooser as chooser_module
from fuseline.choose.cases import Case
from fuseline.choose.chooser import Chooser, Chosen
from fuseline.choose.decision import FILE, Decision, Table
from fuseline.choose.timing import Budget, Run
from fuseline.choose.tuner import FEW, Tuner, Way
from fuseline.codegen import lowerings
from fuseline.codegen.gpu import lower_rows
from fuseline.codegen.gpu.kernel import GpuKernel
from fuseline.codegen.library import LibraryKernel, ReferenceKernel
from fuseline.codegen.lower import Emitted, Launch, emit
from fuseline.codegen.targets import TARGETS, Target
from fuseline.config import Config
from fuseline.ir.core import Func
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.report import Choice, KernelRecord, Option, Report
from fuseline.runtime.cache import Cache
from fuseline.runtime.plan import HostStep
from tests.choose.test_timing import FakeDevice

pytest.importorskip("triton", reason="Triton is not installed")

assert lowerings.__all__, "importing the module registers the lowerings"
H100 = TARGETS["sm_90"]

NORM = """func @f(%x: bf16[S, 4096], %r: bf16[S, 4096], %w: bf16[4096]) {
  %s, %y = add_rms_norm %x, %r, %w
  return %s, %y
}"""
LAYERS = """func @f(%x: bf16[8, 512], %w: bf16[512], %v: bf16[512]) {
  %a = rms_norm %x, %w
  %b = rms_norm %a, %v
  %c = rms_norm %b, %w
  return %c
}"""
LINEAR = """func @f(%x: bf16[T, 1024], %w: bf16[2048, 1024]) {
  %y = linear %x, %w
  return %y
}"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """One cache of binaries; decisions have their own."""
    return Cache(tmp_path_factory.mktemp("chooser"))


@pytest.fixture(autouse=True)
def triton_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms have configurations in one language: those that the tests name."""

    def none(*_: object, **__: object) -> list[GpuKernel]:
        return []

    monkeypatch.setattr(lower_rows, "_in_cuda", none)


Seconds = Callable[[Case, Way, int], float]


@dataclass
class FakeBench:
    """A device on which ways take what a function says; keeps what was asked for."""

    seconds: Seconds
    timer: FakeDevice = field(default_factory=FakeDevice)
    asked: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    memory: int = 1 << 40
    error: Exception | None = None

    def room(self) -> int:
        return self.memory

    def nbytes(self, case: Case, layouts: LayoutMap, values: Mapping[str, int]) -> int:
        return 1 << 20

    def runs(
        self, case: Case, layouts: LayoutMap, values: Mapping[str, int], ways: Sequence[Way]
    ) -> dict[str, Run]:
        if self.error is not None:
            raise self.error
        self.asked += [(case.sizes, way.label) for way in ways]
        size = case.span.middle
        return {
            way.label: self.timer.work(way.label, partial(self.seconds, case, way, size))
            for way in ways
        }


@dataclass
class Chose:
    """What was chosen for a func."""

    func: Func
    layouts: LayoutMap
    chosen: Chosen

    @property
    def item(self) -> Emitted:
        return self.chosen.emitted[-1]

    @property
    def choices(self) -> list[Choice]:
        return [c for each in self.chosen.choices.values() for c in each]


def choose(text: str, cache: Cache, tuner: Tuner | None = None, workers: int = 1) -> Chose:
    func = parse_func(text)
    layouts = LayoutMap(func)
    emitted = emit(func, layouts, "cuda")
    chooser = Chooser(cache, H100, tuner=tuner, workers=workers)
    return Chose(func, layouts, chooser(emitted, layouts))


def tuner(
    bench: FakeBench | None,
    folder: Path,
    budget: float | None = None,
    device: str = "NVIDIA Fake",
    versions: Mapping[str, str] | None = None,
    most: int | None = FEW,
) -> Tuner:
    folder.mkdir(mode=0o700, exist_ok=True)
    return Tuner(Table(Cache(folder), device, versions or {}), bench, Budget(budget), most)


def counted_builds(
    monkeypatch: pytest.MonkeyPatch, after: Callable[[], None] = lambda: None
) -> list[str]:
    """The symbols of kernels that are asked for from here on; ``after`` is called behind each."""
    asked: list[str] = []
    real = chooser_module.candidate

    def candidate(cache: Cache, launch: Launch, target: Target) -> Candidate | str:
        asked.append(launch.kernel.symbol)
        made = real(cache, launch, target)
        after()
        return made

    monkeypatch.setattr(chooser_module, "candidate", candidate)
    return asked


def by_warps(best: int) -> Seconds:
    """One number of warps takes 2 us, the others 3, without kernels it takes 9."""

    def seconds(case: Case, way: Way, size: int) -> float:
        if way.form != "kernels":
            return 9e-6
        return 2e-6 if way.label == f"warps {best}" else 3e-6

    return seconds


def test_without_a_device_the_model_chooses_and_says_so(cache: Cache) -> None:
    found = choose(NORM, cache)
    (launch,) = found.item.launches
    assert launch.kernel.symbol in found.chosen.candidates
    assert {c.by for c in found.choices} == {"model"}
    assert all(o.microseconds for c in found.choices for o in c.options)


def test_only_what_the_ranking_needs_is_built(cache: Cache, tmp_path: Path) -> None:
    empty = Cache(tmp_path)
    found = choose(LAYERS, empty)
    options = len(emit(found.func, LayoutMap(found.func), "cuda")[0].launches[0].others) + 1
    built = [e for e in empty.entries() if e.kind == "cubin"]
    assert options > 1
    assert len(built) == 1


def test_layers_that_are_alike_are_one_job(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = counted_builds(monkeypatch)
    told: list[tuple[int, int, str]] = []
    func = parse_func(LAYERS)
    layouts = LayoutMap(func)
    emitted = emit(func, layouts, "cuda")

    def built(done: int, total: int, name: str) -> None:
        told.append((done, total, name))

    done = Chooser(cache, H100, built=built)(emitted, layouts)
    assert len(asked) == 1
    assert told == [(1, 1, "rms_norm")]
    assert len({n.kernel.symbol for item in done.emitted for n in item.launches}) == 1
    own = [n.buffers[0] for item in done.emitted for n in item.launches]
    assert own == [op.operands[0] for op in func.ops], "each on operands of its own"


def test_threads_choose_what_one_does(cache: Cache) -> None:
    text = NORM.replace("return", "%z = silu %y\n  return").replace("%s, %y\n}", "%s, %z\n}")
    one, other = choose(text, cache), choose(text, cache, workers=4)
    assert [_launches(c) for c in one.chosen.emitted] == [
        _launches(c) for c in other.chosen.emitted
    ]


def _launches(item: Emitted) -> list[tuple[str, object]]:
    return [(n.kernel.symbol, n.when) for n in item.launches]


@pytest.mark.parametrize("best", [8, 16, 32])
def test_the_fastest_configuration_is_taken(best: int, cache: Cache, tmp_path: Path) -> None:
    bench = FakeBench(by_warps(best))
    found = choose(NORM, cache, tuner(bench, tmp_path / "t"))
    (launch,) = found.item.launches
    assert launch.when is None, "the same for all sizes is one launch"
    assert getattr(launch.kernel, "warps", 0) == best
    assert {(c.by, c.chosen) for c in found.choices} == {("measurement", f"warps {best}")}
    times = {o.label: o.microseconds for o in found.choices[0].options}
    assert times == {
        **{f"warps {n}": 3.0 for n in (8, 16, 32)},
        f"warps {best}": 2.0,
        "plain torch": 9.0,
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_what_moves_most_is_measured_first(workers: int, cache: Cache, tmp_path: Path) -> None:
    """Norms of few rows stand before the product, whose weight is more than all of theirs."""
    text = """func @f(%x: bf16[2, 1024], %w: bf16[1024], %m: bf16[4096, 1024]) {
      %a = rms_norm %x, %w
      %b = rms_norm %a, %w
      %y = linear %b, %m
      return %y
    }"""
    bench = FakeBench(lambda case, way, size: 1e-3)
    chosen = choose(text, cache, tuner(bench, tmp_path / "t", budget=1e9), workers)
    order = [label for _, label in bench.asked]
    assert order.index("torch's library") < max(i for i, n in enumerate(order) if "warps" in n)
    assert order.index("torch's library") < len(order) / 2
    assert {c.by for c in chosen.choices} == {"measurement"}


def test_each_range_has_its_own(cache: Cache, tmp_path: Path) -> None:
    def seconds(case: Case, way: Way, size: int) -> float:
        return by_warps(8 if size > 100 else 32)(case, way, size)

    found = choose(NORM, cache, tuner(FakeBench(seconds), tmp_path / "t"))
    few, many = found.item.launches
    assert [getattr(n.kernel, "warps", 0) for n in (few, many)] == [32, 8]
    assert few.when is not None
    assert many.when is not None
    assert (few.when[1:], many.when[1:]) == ((0, 128), (129, None))


def test_a_fusion_that_loses_at_some_sizes_is_not_used_there(cache: Cache, tmp_path: Path) -> None:
    def seconds(case: Case, way: Way, size: int) -> float:
        kernels = 2e-6 if size <= 16 else 20e-6
        return kernels if way.form == "kernels" else 5e-6

    found = choose(NORM, cache, tuner(FakeBench(seconds), tmp_path / "t"))
    plain, own = found.item.launches
    assert isinstance(plain.kernel, ReferenceKernel)
    assert own.when is not None
    assert plain.when is not None
    assert (own.when[1:], plain.when[1:]) == ((0, 16), (17, None))
    done = assemble(found.func, found.layouts, found.chosen.emitted)
    step = done.plan.steps[0]
    assert isinstance(step, HostStep)
    assert step.placed
    assert (step.when or ())[1:] == (17, None)
    assert {r.status for r in done.records} == {"native", "reference"}


def test_a_fusion_that_always_loses_is_not_used(cache: Cache, tmp_path: Path) -> None:
    def seconds(case: Case, way: Way, size: int) -> float:
        return 9e-6 if way.form == "kernels" else 5e-6

    found = choose(NORM, cache, tuner(FakeBench(seconds), tmp_path / "t"))
    assert not found.item.launches
    assert found.item.refusal == "torch was measured faster"


def test_a_library_may_take_a_range_from_our_kernels(cache: Cache, tmp_path: Path) -> None:
    def seconds(case: Case, way: Way, size: int) -> float:
        if way.form == "library":
            return 3e-6
        return 2e-6 if way.form == "kernels" and size == 1 else 8e-6

    found = choose(LINEAR, cache, tuner(FakeBench(seconds), tmp_path / "t"))
    sizes: dict[bool, list[tuple[int, int | None]]] = {True: [], False: []}
    for launch in found.item.launches:
        assert launch.when is not None
        sizes[isinstance(launch.kernel, LibraryKernel)].append(launch.when[1:])
    assert sizes[False] == [(1, 1)]
    assert min(first for first, _ in sizes[True]) == 2
    assert None in [last for _, last in sizes[True]]


def test_a_later_process_measures_nothing(cache: Cache, tmp_path: Path) -> None:
    first, second = FakeBench(by_warps(8)), FakeBench(by_warps(32))
    one = choose(NORM, cache, tuner(first, tmp_path / "t"))
    other = choose(NORM, cache, tuner(second, tmp_path / "t"))
    assert first.asked
    assert not second.asked
    assert _launches(one.item) == _launches(other.item)
    assert {c.by for c in other.choices} == {"table"}
    assert [c.options for c in other.choices] == [c.options for c in one.choices]


def test_a_table_travels_with_its_cache(cache: Cache, tmp_path: Path) -> None:
    choose(NORM, cache, tuner(FakeBench(by_warps(8)), tmp_path / "t"))
    (tmp_path / "t").rename(tmp_path / "elsewhere")
    found = choose(NORM, cache, tuner(None, tmp_path / "elsewhere"))
    assert {(c.by, c.chosen) for c in found.choices} == {("table", "warps 8")}


@pytest.mark.parametrize(
    ("device", "versions"), [("NVIDIA Other", {}), ("NVIDIA Fake", {"compiler": "triton 3.7"})]
)
def test_another_device_or_version_measures_anew(
    device: str, versions: dict[str, str], cache: Cache, tmp_path: Path
) -> None:
    choose(NORM, cache, tuner(FakeBench(by_warps(8)), tmp_path / "t"))
    again = FakeBench(by_warps(32))
    found = choose(NORM, cache, tuner(again, tmp_path / "t", device=device, versions=versions))
    assert again.asked
    assert {c.chosen for c in found.choices} == {"warps 32"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 0}', "null"])
def test_a_damaged_decision_is_a_miss(text: str, cache: Cache, tmp_path: Path) -> None:
    choose(NORM, cache, tuner(FakeBench(by_warps(8)), tmp_path / "t"))
    files = list((tmp_path / "t").glob(f"**/{FILE}"))
    assert files
    for file in files:
        file.write_text(text)
    again = FakeBench(by_warps(32))
    found = choose(NORM, cache, tuner(again, tmp_path / "t"))
    assert again.asked
    assert {(c.by, c.chosen) for c in found.choices} == {("measurement", "warps 32")}


def test_a_decision_for_kernels_that_are_not_offered_is_a_miss(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was written by hand, with a key that fits."""

    def foreign(self: Table, about: object, fits: Callable[[Decision], bool]) -> Decision | None:
        decision = Decision("kernels", ("row_norm_0123",), (Option("warps 7", 1.0),), 1, 5)
        return decision if fits(decision) else None

    monkeypatch.setattr(Table, "get", foreign)
    found = choose(NORM, cache, tuner(FakeBench(by_warps(16)), tmp_path / "t"))
    assert {c.by for c in found.choices} == {"measurement"}


def test_a_table_can_be_read(cache: Cache, tmp_path: Path) -> None:
    choose(NORM, cache, tuner(FakeBench(by_warps(8)), tmp_path / "t"))
    read = [json.loads(f.read_text()) for f in (tmp_path / "t").glob(f"**/{FILE}")]
    assert {each["form"] for each in read} == {"kernels"}
    options = {o["label"]: o["microseconds"] for o in read[0]["options"]}
    assert options["warps 8"] == 2.0
    keys = [json.loads(f.read_text()) for f in (tmp_path / "t").glob("**/key.json")]
    assert {k["factors"]["device"] for k in keys if k["kind"] == "decision"} == {"NVIDIA Fake"}


def test_a_spent_budget_leaves_the_model_and_says_so(cache: Cache, tmp_path: Path) -> None:
    bench = FakeBench(by_warps(8))
    found = choose(NORM, cache, tuner(bench, tmp_path / "t", budget=60e-6))
    by = [c.by for c in found.choices]
    assert "model" in by
    notes = {c.note for c in found.choices if c.by == "model"}
    assert notes == {"not measured: the time for measuring is spent"}
    assert bench.timer.clock < 200e-6


def test_nothing_is_measured_while_somebody_records(cache: Cache, tmp_path: Path) -> None:
    found = choose(NORM, cache, tuner(None, tmp_path / "t"))
    assert {c.note for c in found.choices} == {"not measured: a graph is being captured"}


def test_operands_beyond_the_memory_are_not_measured(cache: Cache, tmp_path: Path) -> None:
    bench = FakeBench(by_warps(8), memory=1 << 10)
    found = choose(NORM, cache, tuner(bench, tmp_path / "t"))
    assert not bench.asked
    assert {c.by for c in found.choices} == {"model"}


@pytest.mark.parametrize("kind", [RuntimeError, torch.OutOfMemoryError])
def test_a_trial_that_fails_leaves_the_model(
    kind: type[Exception], cache: Cache, tmp_path: Path
) -> None:
    bench = FakeBench(by_warps(8), error=kind("no memory is left\nfor this"))
    found = choose(NORM, cache, tuner(bench, tmp_path / "t"))
    assert {(c.by, c.note) for c in found.choices} == {("model", "not measured: no memory is left")}


def test_a_way_that_no_graph_holds_is_not_taken(cache: Cache, tmp_path: Path) -> None:
    """However fast it would be by itself; the report says why."""

    def seconds(case: Case, way: Way, size: int) -> float:
        if way.form == "reference":
            raise RuntimeError("not recordable: it waits for the device")
        return by_warps(16)(case, way, size)

    found = choose(NORM, cache, tuner(FakeBench(seconds), tmp_path / "t"))
    assert {c.chosen for c in found.choices} == {"warps 16"}
    notes = {o.label: o.note for c in found.choices for o in c.options}
    assert notes["plain torch"] == "not recordable: it waits for the device"


@pytest.mark.parametrize("why", ["a spent budget", "no bench", "no room"])
def test_what_is_not_measured_is_not_built(
    why: str, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = counted_builds(monkeypatch)
    choose(NORM, cache)
    model = sorted(asked)
    asked.clear()
    memory = 1 << 10 if why == "no room" else 1 << 40
    bench = None if why == "no bench" else FakeBench(by_warps(8), memory=memory)
    budget = 0.0 if why == "a spent budget" else None
    found = choose(NORM, cache, tuner(bench, tmp_path / "t", budget=budget))
    assert {c.by for c in found.choices} == {"model"}
    assert sorted(asked) == model


def test_building_what_is_to_be_measured_takes_of_the_budget(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = FakeBench(by_warps(8))

    def second() -> None:
        bench.timer.clock += 1.0

    choose(NORM, cache)
    asked = counted_builds(monkeypatch, second)
    measuring = tuner(bench, tmp_path / "t", budget=FEW - 1.5)
    found = choose(NORM, cache, measuring)
    assert not bench.asked, "the first range's configurations took all of it"
    assert len(set(asked)) == FEW
    assert {c.note for c in found.choices} == {"not measured: the time for measuring is spent"}
    assert measuring.budget.spent == FEW - 1


def test_only_the_best_few_are_timed_unless_all_are_wanted(cache: Cache, tmp_path: Path) -> None:
    few, every = FakeBench(by_warps(8)), FakeBench(by_warps(8))
    choose(NORM, cache, tuner(few, tmp_path / "few", most=2))
    choose(NORM, cache, tuner(every, tmp_path / "all", most=None))
    for bench, most in ((few, 2), (every, 3)):
        ranges = {sizes for sizes, _ in bench.asked}
        ours = [sizes for sizes, label in bench.asked if label != "plain torch"]
        assert {ours.count(sizes) for sizes in ranges} == {most}


def test_all_are_timed_though_a_few_were(cache: Cache, tmp_path: Path) -> None:
    few, every, after = (FakeBench(by_warps(8)) for _ in range(3))
    choose(NORM, cache, tuner(few, tmp_path / "t", most=2))
    choose(NORM, cache, tuner(every, tmp_path / "t", most=None))
    assert len(every.asked) > len(few.asked) > 0
    found = choose(NORM, cache, tuner(after, tmp_path / "t", most=2))
    assert not after.asked, "a few were timed among all"
    assert {len(c.options) for c in found.choices} == {4}


def test_a_few_that_are_all_need_no_second_time(cache: Cache, tmp_path: Path) -> None:
    again = FakeBench(by_warps(8))
    choose(NORM, cache, tuner(FakeBench(by_warps(8)), tmp_path / "t", most=3))
    choose(NORM, cache, tuner(again, tmp_path / "t", most=None))
    assert not again.asked


def test_the_report_tells_what_was_chosen_from_what(cache: Cache, tmp_path: Path) -> None:
    tools = build.Tools(Cache(tmp_path), None)
    made = build.build(parse_func(NORM), {}, tools, H100, how=How(threads=2))
    report = Report(kernels=made.assembled.records)
    assert "by model, not" in str(report)
    (kernel,) = json.loads(report.to_json())["kernels"]
    assert kernel["choices"][0]["options"][0]["label"].startswith("warps")


def test_a_kernel_of_two_programs_keeps_the_choices_of_both() -> None:
    few, many = (
        Choice(sizes, "warps 4", "model", (Option("warps 4", 2.0),)) for sizes in ("1", "2 to 16")
    )
    kernel = KernelRecord("rms_norm_01", "rms_norm", "rms_norm", 2, "norm (m.py:40)")
    one = Report(kernels=(replace(kernel, choices=(few,)),))
    other = Report(kernels=(replace(kernel, choices=(few, many)),))
    (both,) = (one + other).kernels
    assert (both.launches, both.choices) == (4, (few, many))


def test_the_option_is_one() -> None:
    assert Config(tune="full").tune == "full"
