"""The ways to have torch trace a program, or not."""

from __future__ import annotations

import importlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import fx

from fuseline._torch.nodes import is_functorch

_lib = cast("Any", torch)


def export_graph(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
    *,
    asking: bool = False,
) -> Any:
    """``torch.export.export`` without Dynamo; an ``ExportedProgram``, in-place ops still in it.

    With ``asking``, what cannot be proven of sizes is written down: see `asked_of_sizes`.
    """
    export = cast("Any", torch.export.export)
    return export(
        model,
        args,
        dict(kwargs or {}),
        dynamic_shapes=dynamic_shapes,
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=asking,
    )


def asked_of_sizes(program: Any) -> list[Any]:
    """All conditions on sizes that a program which was exported with ``asking`` rests on.

    The graph has calls of ``_assert_scalar`` for most of them. For some it has none (those that go
    through floats), and torch does not say so.
    """
    from torch._guards import detect_fake_mode

    values = [n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"]
    mode: Any = detect_fake_mode(values)
    if mode is None or mode.shape_env is None:
        return []
    asserts = mode.shape_env.deferred_runtime_asserts
    return [each.expr for group in asserts.values() for each in group]


def is_unproven_size(error: Exception) -> bool:
    """Whether export refuses a program for something that it cannot prove of sizes."""
    from torch._dynamo.exc import UserError, UserErrorType

    kind = UserErrorType.CONSTRAINT_VIOLATION
    return isinstance(error, UserError) and cast("Any", error).error_type is kind


def functional_graph(module: fx.GraphModule, inputs: Sequence[object]) -> tuple[Any, list[str]]:
    """Trace a graph again through AOTAutograd: functional ATen, and what its outputs write.

    Slower than `fuseline.frontend.convert` and more general; the graph's first outputs are the new
    contents of the placeholders named.
    """
    from torch._functorch.aot_autograd import aot_export_module

    # Before dispatch, composite ops are whole, but what is inside a vmap has no batch.
    early = not any(is_functorch(node.target) for node in module.graph.nodes)
    with torch.no_grad(), _transforms_left():
        graph, signature = cast("Any", aot_export_module)(
            module, list(inputs), trace_joint=False, pre_dispatch=early
        )
    written = {**signature.buffers_to_mutate, **signature.user_inputs_to_mutate}
    outputs = next(n for n in graph.graph.nodes if n.op == "output").args[0]
    return graph, [written[n.name] for n in outputs[: len(written)]]


_LEAVE = {
    "Vmap": "_vmap_decrement_nesting",
    "Grad": "_grad_decrement_nesting",
    "Jvp": "_jvp_decrement_nesting",
    "Functionalize": "_func_decrement_nesting",
}


@contextmanager
def _transforms_left() -> Generator[None]:
    """Leave the transforms of ``torch.func`` that a failed run of a graph has entered."""
    functorch = _lib._C._functorch
    depth = len(functorch.get_interpreter_stack() or ())
    try:
        yield
    finally:
        # Not pop_dynamic_layer_stack_and_undo_to_depth: up to torch 2.11 it leaves one too many.
        stack = cast("list[Any]", functorch.get_interpreter_stack() or [])
        for entered in reversed(stack[depth:]):
            getattr(functorch, _LEAVE[entered.key().name])()


def optimize(model: Any, backend: Any, *, dynamic: bool | None, package: Any = None) -> Any:
    """``torch.compile`` with a backend; ``package`` keeps what Dynamo finds."""
    if package is None:
        return cast("Any", torch.compile)(model, backend=backend, dynamic=dynamic)
    return _lib._dynamo.optimize(backend=backend, dynamic=dynamic, package=package)(model)


def never_compiled(function: Any) -> Any:
    """A function that does the same and that Dynamo neither traces nor looks into."""
    return cast("Any", torch.compiler.disable)(function)


def traced_frame() -> Mapping[str, object]:
    """The local variables of the frame that Dynamo has traced, while it calls a backend."""
    tracing = importlib.import_module("torch._dynamo.symbolic_convert")
    try:
        return dict(tracing.InstructionTranslator.current_tx().output.root_tx.f_locals)
    except AttributeError:  # nothing is being traced on this thread
        return {}
