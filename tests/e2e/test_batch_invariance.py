"""``batch_invariant``: the bits of a sequence's results are its own, whatever is beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed

import fuseline
from fuseline import errors
from fuseline.cli import main
from fuseline.runtime.plan import LibraryStep, NativeStep
from tests.artifact.small import shared
from tests.e2e.determined import LATENT
from tests.e2e.families import FAMILIES, Family, static_cache, tokens
from tests.e2e.harness import QUIET, compilations, logits

BATCHES = (2, 3, 5, 8, 17)
TYPES = [torch.float32, torch.bfloat16, torch.float16]
WIDTH = 1100  # more than a block of the large product


def seeded(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator)


class Block(nn.Module):
    """One layer of a decoder, of odd sizes: grouped attention and a gated MLP, both with norms."""

    def __init__(self, width: int = WIDTH, head: int = 20, inner: int = 52) -> None:
        super().__init__()
        self.head = head
        self.q, self.k, self.v = (nn.Linear(width, n * head) for n in (6, 2, 2))
        self.out = nn.Linear(6 * head, width, bias=False)
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)
        self.first, self.second = (nn.RMSNorm(width, eps=1e-6) for _ in range(2))
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                wide = parameter.shape[-1] ** 0.5
                parameter.copy_(seeded(*parameter.shape, seed=number) / wide)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        y = self.first(x)
        heads = [
            p(y).view(batch, length, -1, self.head).transpose(1, 2)
            for p in (self.q, self.k, self.v)
        ]
        y = F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, -1))
        y = self.second(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def compiled(model: Any, **options: Any) -> Any:
    torch.compiler.reset()
    return fuseline.compile(model, **options)


def run(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        return model(*args, **kwargs)


def mixed(rows: Sequence[Tensor], batch: int) -> Iterator[tuple[int, Tensor, int]]:
    """Batches that have row 0 at some place: which place, the batch, and how many rows it has."""
    for place in {0, batch // 2, batch - 1}:
        others = [rows[1 + (place + i) % (len(rows) - 1)] for i in range(batch)]
        others[place] = rows[0]
        yield place, torch.stack(others), batch


def differing(model: Callable[..., Any], rows: Sequence[Tensor], alone: Tensor) -> list[str]:
    """Where the results of row 0 are not what they are ``alone``, to the bit."""
    return [
        f"row {place} of {batch}"
        for size in BATCHES
        for place, x, batch in mixed(rows, size)
        if not torch.equal(run(model, x)[place], alone)
    ]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "dtype", [TYPES[0], *(pytest.param(t, marks=pytest.mark.slow) for t in TYPES[1:])], ids=str
)
def test_bits_do_not_depend_on_the_batch(dtype: torch.dtype, threads: int) -> None:
    """Nor on where in it a sequence is, on static sizes or not, or on threads."""
    model = Block().to(dtype).eval()
    rows = [seeded(9, WIDTH, seed=100 + i).to(dtype) for i in range(18)]
    options = {"batch_invariant": True, "threads": threads}
    call = compiled(model, dynamic=True, **options)
    alone = run(call, rows[0][None])[0]
    assert differing(call, rows, alone) == []
    for length in (1, 4):  # a sequence that ends earlier, and in one call fewer queries
        assert torch.equal(run(call, torch.stack(rows[:3])[:, :length])[0], alone[:length])
    for batch in (1, 5):
        (place, x, _), *_ = mixed(rows, batch)
        fixed = compiled(model, dynamic=False, **options)
        assert torch.equal(run(fixed, x)[place], alone)


def test_without_the_option_bits_do_depend_on_it() -> None:
    """What the comparison above would find."""
    model = nn.Linear(WIDTH, 20).eval()
    rows = [seeded(9, WIDTH, seed=100 + i) for i in range(18)]
    for invariant in (False, True):
        call = compiled(model, dynamic=True, batch_invariant=invariant)
        assert bool(differing(call, rows, run(call, rows[0][None])[0])) is not invariant


def test_one_form_of_each_kernel_and_no_library() -> None:
    """A prompt's products are ours, too, and no step is for some sizes only."""
    model = compiled(Block().eval(), dynamic=True, batch_invariant=True, reuse=False)
    run(model, torch.stack([seeded(7, WIDTH, seed=i) for i in range(3)]))
    (made,) = compilations(model)
    steps = made.built.assembled.plan.steps
    assert all(isinstance(step, NativeStep) and step.when is None for step in steps)
    assert not any(
        "library" in made.built.sources[s.symbol] for s in steps if isinstance(s, NativeStep)
    )


def product_of(x: Tensor, y: Tensor) -> Tensor:
    return x @ y


def bessel(x: Tensor) -> Tensor:
    return cast("Any", torch).special.bessel_j0(x)


def refused(model: Callable[..., Any], *args: Any, **options: Any) -> errors.Diagnostic:
    """What is said where a program is refused."""
    with pytest.raises(errors.BuildError) as raised:
        run(compiled(model, batch_invariant=True, **options), *args)
    assert raised.value.diagnostic.code == "FL0501"
    return raised.value.diagnostic


def test_a_call_of_which_nothing_is_compiled_is_refused() -> None:
    """Torch leaves recurrent networks as they are."""
    said = refused(nn.GRU(4, 4), torch.ones(3, 2, 4))
    assert said.title == "not batch invariant: GRU by torch"
    assert "torch compiles nothing of it" in str(said)
    assert "torch.no_grad()" in str(said.hint)


def test_torch_products_are_refused_by_name() -> None:
    said = refused(product_of, torch.ones(2, 3, 4), torch.ones(2, 4, 5))
    assert "matmul by torch" in said.title
    assert "number of rows" in str(said.found)


def test_what_torch_computes_in_another_way_at_the_end_is_refused() -> None:
    """A function of torch that fills vectors, and has another form for the last elements."""
    said = refused(bessel, torch.ones(3))
    assert "bessel_j0" in said.title


def test_moving_and_choosing_by_torch_is_not_refused() -> None:
    def moved(x: Tensor) -> Any:
        return torch.sort(x.flip(0), dim=-1)[0], torch.roll(x, 1, 0)

    x = seeded(4, 6, seed=1)
    for ours, theirs in zip(run(compiled(moved, batch_invariant=True), x), moved(x), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["abs", "div", "reciprocal", "sqrt"])
def test_functions_of_complex_numbers_are_refused_by_name(name: str) -> None:
    """Torch's are not rounded once. A product is arithmetic of the IR, of real numbers."""

    def program(x: Tensor) -> Tensor:
        y = torch.view_as_complex(x)
        y = y / y if name == "div" else getattr(torch, name)(y)
        return torch.view_as_real(y) if y.is_complex() else y

    assert f"aten.{name}." in str(refused(program, seeded(4, 3, 2, seed=1)).found)


def test_gradients_are_refused() -> None:
    model = compiled(nn.Linear(3, 4), batch_invariant=True)
    with pytest.raises(errors.BuildError, match="FL0501"):
        model(torch.ones(2, 3))


@pytest.mark.parametrize("given", ["argument", "variable"])
def test_a_backend_of_torch_refuses_the_option(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past its limit of compilations torch asks no backend, and the model would run as it is."""
    torch.compiler.reset()
    if given == "variable":
        monkeypatch.setenv("FUSELINE_BATCH_INVARIANT", "1")
    options = {"batch_invariant": True} if given == "argument" else None
    model = cast("Any", torch).compile(nn.Linear(3, 4), backend="fuseline", options=options)
    with pytest.raises(BackendCompilerFailed) as raised:
        run(model, torch.ones(2, 3))
    said = cast("errors.UsageError", raised.value.inner_exception).diagnostic
    assert (said.code, said.title.rpartition(" ")[2]) == ("FL0101", "batch_invariant")
    assert "fuseline.compile(model, batch_invariant=True)" in str(said.hint)


def test_kernels_that_are_left_out_are_refused() -> None:
    said = refused(nn.Linear(3, 4).eval(), torch.ones(2, 3), plain_kernels=("all",))
    assert "linear by torch" in said.title
    assert "plain_kernels" in str(said.found)


def test_the_option_travels_with_a_file(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = nn.Sequential(nn.RMSNorm(84), nn.Linear(84, 20)).eval()
    example = torch.stack([seeded(5, 84, seed=i) for i in range(18)])
    batch, length = torch.export.Dim("batch", min=1, max=32), torch.export.Dim("length", max=32)
    path = tmp_path / "m.fuse"
    shapes = ({0: batch, 1: length},)
    made = fuseline.export(
        model, (example,), path=path, dynamic_shapes=shapes, batch_invariant=True
    )
    assert made.manifest.options == ("batch_invariant",)
    assert main(["inspect", str(path)]) == 0
    assert re.search("options +batch_invariant", capsys.readouterr().out)
    monkeypatch.setenv("FUSELINE_BATCH_INVARIANT", "1")
    program = fuseline.load(path)
    alone = program(example[:1])[0]
    assert all(torch.equal(program(x)[p], alone) for p, x, _ in mixed([*example], 17))
    with pytest.raises(errors.BuildError, match="FL0501"):
        fuseline.export(
            Products(), (example[:, :5, :5],), path=tmp_path / "p.fuse", batch_invariant=True
        )


def test_a_file_without_the_option_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By `load` and by the commands, where the environment asks for it."""
    path = shared()
    monkeypatch.setenv("FUSELINE_BATCH_INVARIANT", "1")
    with pytest.raises(errors.BuildError, match="FL0501") as raised:
        fuseline.load(path)
    said = raised.value.diagnostic
    assert str(path) in said.title
    assert "export it with batch_invariant=True" in str(said.hint)
    assert main(["run", str(path)]) == 1
    assert main(["inspect", str(path)]) == 0  # what only looks runs nothing


class Products(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ x


# -- whole models ---------------------------------------------------------------------------------


def bits_of(model: nn.Module, batch: int, **options: Any) -> dict[str, Tensor]:
    """Logits of the first of some sequences: as a prompt, step by step, and steps behind one."""
    ids = tokens(17, 7, seed=3)[:batch].flip(0).contiguous()
    found = {"prompt": logits(run(compiled(model, batch_invariant=True, **options), ids))}
    call = compiled(model, batch_invariant=True, **options)
    cache = static_cache(model)
    found["filled"] = logits(run(call, ids[:, :4].contiguous(), past_key_values=cache))
    behind = [logits(run(call, ids[:, i : i + 1], past_key_values=cache)) for i in (4, 5, 6)]
    found["steps"] = torch.cat(behind, 1)
    return {name: part[-1] for name, part in found.items()}


HEADS = {
    f"head of {head}": Family("llama", {"head_dim": head}, qk_norm=False) for head in (80, 96, 112)
}
MODELS = HEADS | {family.model_type: family for family in (*FAMILIES, LATENT)}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", sorted(MODELS))
@QUIET
def test_models_have_the_same_bits(name: str, dtype: torch.dtype) -> None:
    """Prompts, prompts in pieces and single steps, alone and beside others, static and dynamic."""
    model = MODELS[name].build(dtype)
    expected: Tensor | None = None
    for dynamic in (True, False):
        for batch in (1, 2, 17) if dynamic else (1, 3):
            found = bits_of(model, batch, dynamic=dynamic)
            own = found["prompt"]
            assert torch.equal(torch.cat((found["filled"], found["steps"])), own), (batch, dynamic)
            if batch == 1:
                expected = own if expected is None else expected
                assert torch.equal(own, expected)
        for batch in (2, 17):
            ids = tokens(17, 7, seed=3)[:batch].contiguous()  # the first of them is the same
            call = compiled(model, dynamic=dynamic, batch_invariant=True)
            alone = logits(run(call, ids[:1].contiguous()))[0]
            assert torch.equal(logits(run(call, ids))[0], alone)
            assert torch.equal(alone, cast("Tensor", expected))


# -- GPUs: nothing of it was run -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_a_gpu_has_the_same_kernels_for_all_sizes(target: str) -> None:
    """But for those that only move elements, or compute them one by one."""
    pytest.importorskip("triton", reason="compiling for GPUs needs Triton")
    model = Block(width=96, head=32, inner=64).to(torch.bfloat16).eval()
    used: list[set[str]] = []
    for shape, dynamic in (((2, 7), True), ((1, 5), False), ((8, 33), False)):
        call = compiled(model, dynamic=dynamic, batch_invariant=True, target=target)
        with pytest.raises(errors.BuildError, match="op by op"), pytest.warns(match="FL1005"):
            run(call, seeded(*shape, 96, seed=1).to(torch.bfloat16))
        (made,) = compilations(call)
        kernels, steps = made.built.assembled.kernels, made.built.assembled.plan.steps
        assert not any(isinstance(step, LibraryStep) for step in steps)
        used.append({symbol for symbol, k in kernels.items() if not k.per_element})
    assert used[0] == used[1] == used[2]
    assert {s.rpartition("_")[0] for s in used[0]} >= {"attention", "linear_tile", "row_norm"}
