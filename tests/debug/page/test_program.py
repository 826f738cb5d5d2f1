"""What a page shows of small models: it is what their compilation was."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping

import pytest

from fuseline.debug.cost import costs_of
from fuseline.debug.machine import Machine
from fuseline.debug.page.data import BufferView, ProgramView
from fuseline.ir.text import parse_func
from fuseline.report import layer_of, span
from fuseline.runtime.executor import applies
from fuseline.runtime.plan import WORKERS, Evaluator
from tests.debug.page.pages import Shown, applied, shown
from tests.debug.test_round_trip import prefill, step

# transformers asks its version through a cached function while it is traced.
pytestmark = pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")


@pytest.fixture(
    scope="module",
    params=[
        "qwen3",
        "qwen3_moe",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("deepseek_v3", "olmo2")),
        *(pytest.param(f"{n} step", marks=pytest.mark.slow) for n in ("qwen3", "qwen2_moe")),
    ],
)
def model(request: pytest.FixtureRequest) -> Shown:
    """A tiny model with dynamic sizes, as a page shows it."""
    name, _, kind = request.param.partition(" ")
    func = step(name) if kind else prefill(name)
    sizes = {name: 3 + 2 * number for number, name in enumerate(sorted(func.symbols))}
    return shown(func, sizes)


def texts(view: ProgramView, numbers: tuple[int, ...]) -> str:
    return "".join(f"{view.lines[number]}\n" for number in numbers)


def test_the_hunks_of_each_pass_make_the_next_text(model: Shown) -> None:
    view, text = model.view, list(model.view.imported)
    for each in view.passes:
        assert bool(each.hunks) == (applied(text, each.hunks) != text), each.name
        text = applied(text, each.hunks)
        ops = len(parse_func(texts(view, tuple(text))))
        assert ops == each.after, each.name
    assert tuple(text) == view.final


def test_passes_tell_how_long_they_took_and_what_they_rewrote(model: Shown) -> None:
    passes = model.view.passes
    assert [p.name for p in passes][:2] == ["fold-constants", "canonicalize"]
    assert passes[0].about.endswith(".")
    assert "\n" not in passes[0].about
    for one, other in itertools.pairwise(passes):
        assert other.start == pytest.approx(one.start + one.seconds)
        assert other.before == one.after
    rewrites = [text for p in passes for text in p.rewrites]
    assert rewrites == [str(each) for each in model.run.applied]
    assert rewrites


def test_each_op_has_its_place_its_line_and_its_cost(model: Shown) -> None:
    first, last = model.view.graphs
    assert len(first.nodes) > len(last.nodes) == len(model.run.func)
    for graph in (first, last):
        assert len({(node.x, node.y) for node in graph.nodes}) == len(graph.nodes)
        for source, reader in graph.edges:
            assert graph.nodes[source].y < graph.nodes[reader].y
    for node, op in zip(last.nodes, model.run.func.ops, strict=True):
        line = model.view.lines[node.text]
        results = ", ".join(f"%{v.hint}" for v in op.results)
        assert line.strip().startswith(f"{results} = {op.name}" if results else op.name)
        assert node.module == ("" if op.loc is None else op.loc.module)
        assert list(node.source) == list(dict.fromkeys(at.source for at in op.sources if at.source))
    numbers = {op: i for i, op in enumerate(model.run.func.ops)}
    reads = {(numbers[v.owner], i) for op, i in numbers.items() for v in op.operands if v.owner}
    assert set(last.edges) == reads


def test_groups_are_the_sites(model: Shown) -> None:
    view = model.view
    fused = Counter((s.pattern, s.where) for s in view.sites if s.status == "fused")
    groups = Counter((g.kind, where) for g in view.groups for where in g.where.split("; "))
    assert fused
    assert not fused - groups, "each site is one"
    kinds = {kind for kind, _ in fused}
    assert all(kind not in kinds for kind, _ in (groups - fused)), "and others are no sites"
    first, last = ({node.group for node in graph.nodes} - {-1} for graph in view.graphs)
    assert first <= last == set(range(len(view.groups))), "each is an op that is there"


def kinds_of(model: Shown, module: str, op: str) -> set[str]:
    """What the ops of a name, before all passes, that are in a kind of modules, were fused into."""
    view = model.view
    return {
        view.groups[node.group].kind if node.group >= 0 else ""
        for node in view.graphs[0].nodes
        if module in node.module and node.op == op
    }


def test_ops_have_the_colour_of_what_they_were_fused_into(model: Shown) -> None:
    """The arithmetic of a head's norm was first raised, and then fused with the rotation."""
    name = model.view.name
    assert "add_rms_norm" in kinds_of(model, "norm", "rsqrt")
    if "Deepseek" in name:
        assert kinds_of(model, "q_a_layernorm", "rsqrt") == {"mla"}
    if not name.startswith("Qwen3"):
        return
    assert kinds_of(model, "q_norm", "rsqrt") == {"qk_norm"}
    assert kinds_of(model, "k_norm", "rsqrt") == {"qk_norm"}
    assert kinds_of(model, "o_proj", "linear") == {""}, "it stands alone"
    if "Moe" in name:
        assert kinds_of(model, "mlp.gate", "linear") == {"moe"}


def test_layers_sum_up_to_the_account(model: Shown) -> None:
    view = model.view
    records = costs_of(model.run.func, "compiled", view.sizes)
    for number, what in ((1, "bytes"), (2, "flops")):
        of_layers = sum(layer.compiled[number] for layer in view.layers)
        assert of_layers == sum(getattr(r, what) for r in records)
    one = next(layer for layer in view.layers if layer.name.endswith("layers.0"))
    assert one.compiled[2] == sum(r.flops for r in records if layer_of(r.module) == one.name)
    plan = model.assembled.plan
    value = Evaluator(plan)({**view.sizes, WORKERS: 1})
    launches = sum(applies(step, value) for step in plan.steps)
    assert sum(layer.compiled[0] for layer in view.layers) == launches
    nodes = view.graphs[0].nodes
    eager = [sum(layer.eager[i] for layer in view.layers) for i in range(3)]
    assert eager[0] == sum(bool(node.bytes or node.flops) for node in nodes)
    assert eager[1:] == [sum(n.bytes for n in nodes), sum(n.flops for n in nodes)]


def test_a_step_says_for_which_sizes_it_runs(model: Shown) -> None:
    steps = model.assembled.plan.steps
    for each, view in zip(steps, model.view.steps, strict=True):
        words = "" if each.when is None else f", for {span(*each.when)}"
        assert view.label == f"{each.label}{words}"
    chosen = any(each.when for each in steps)
    assert chosen == bool(model.view.sizes), "which is known at once where no size varies"


def overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two spans, both ends included, have something in common."""
    return one[0] <= other[1] and other[0] <= one[1]


def places(buffer: BufferView) -> tuple[int, int]:
    return buffer.offset, buffer.offset + max(buffer.bytes, 1) - 1


def test_values_that_live_at_once_do_not_share_memory(model: Shown) -> None:
    memory = model.view.memory
    assert memory is not None
    temps = [b for b in memory.buffers if b.kind == "temp"]
    assert len(temps) > 10
    for one, other in itertools.combinations(temps, 2):
        assert not (overlap(one.steps, other.steps) and overlap(places(one), places(other)))
    assert max(b.offset + b.bytes for b in temps) <= memory.arena
    shared = [b.offset for b in temps]
    assert len(set(shared)) < len(shared), "and others do share it"
    steps = range(len(model.view.steps))
    assert all(b.steps[0] in steps and b.steps[1] in steps for b in memory.buffers)


def test_a_value_lives_from_the_step_that_makes_it(model: Shown) -> None:
    memory, made = model.view.memory, dict[str, int]()
    assert memory is not None
    for number, op in enumerate(model.assembled.owners):
        made |= {v.hint: number for v in op.results}
    values = [b for b in memory.buffers if b.name != "scratch"]
    assert values
    assert all(b.steps[0] <= made[b.name] <= b.steps[1] for b in values)
    assert [b.kind for b in memory.buffers].count("output") >= 1


def test_weights_are_what_the_model_has(model: Shown) -> None:
    memory, func = model.view.memory, model.run.func
    assert memory is not None
    params = [a for a in func.args if a.origin and a.origin.kind in ("param", "const")]
    assert memory.weights == sum(int(a.tensor.nbytes) for a in params)


def test_ops_know_their_kernels_and_their_piece(model: Shown) -> None:
    symbols = {step.symbol for step in model.view.steps if step.kind == "native"}
    nodes = model.view.graphs[1].nodes
    assert {symbol for node in nodes for symbol in node.kernels} == symbols
    assert all(node.piece >= 0 for node in nodes if node.kernels)
    pieces = sorted({node.piece for node in nodes} - {-1})
    assert pieces == list(range(len(pieces)))
    kinds = [step.kind for step in model.view.steps]
    assert len(pieces) == sum(kind == "native" for kind, _ in itertools.groupby(kinds))


def sampled(sizes: Mapping[str, int]) -> ProgramView:
    """A product of B rows and an op of fixed size, whose steps have run on a machine of 1 GB/s."""
    text = """func @f(%x: f32[B, 64], %w: f32[96, 64], %n: f32[64]) where B in 2..8 {
      %y = linear %x, %w @ "layers.0.up" "m.py:5"
      %e = exp %n @ "layers.1.act" "m.py:6"
      return %y, %e
    }"""
    program = shown(parse_func(text), sizes).program
    program.machine = Machine(1e9, 1e12, 1e12, "a machine of this test")
    program.samples.update({0: [1e-5], 1: [1e-6]})
    return program.view()


def test_steps_and_layers_have_the_floor_of_their_bytes() -> None:
    view = sampled({"B": 5})
    floors = [4 * (5 * 64 + 96 * 64 + 5 * 96) / 1e9, 4 * 2 * 64 / 1e9]
    assert [step.floor for step in view.steps] == pytest.approx(floors)
    assert [layer.floor for layer in view.layers] == pytest.approx(floors)
    assert view.floor == pytest.approx(sum(floors))
    assert view.unknown == ()


def test_what_depends_on_a_size_that_nobody_gave_has_no_floor() -> None:
    view = sampled({})
    assert [step.floor is None for step in view.steps] == [True, False]
    assert [layer.floor is None for layer in view.layers] == [True, False]
    assert view.floor is None
    assert view.unknown == ("B",)
