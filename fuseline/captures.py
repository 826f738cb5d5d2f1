"""The graphs of a model as funcs, with the arguments of its first call: captured, not compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from fuseline.config import Config
from fuseline.debug.case import Case, given_options, versions
from fuseline.frontend.captured import Captured
from fuseline.frontend.execute import Compiled, CompileStep
from fuseline.frontend.importer import DependsOnData, import_captured
from fuseline.frontend.wrap import wrap
from fuseline.ir.core import Func
from fuseline.ir.evaluate import Argument, bind, evaluate
from fuseline.passes.known_sizes import UnknownSizeError
from fuseline.passes.manager import PassManager
from fuseline.passes.pipeline import default_pipeline
from fuseline.passes.pipeline_text import format_pipeline
from fuseline.report import Report
from fuseline.source import pin, pin_import


@dataclass
class Graph:
    """A graph as it was imported, and what it was first called with, if it was called."""

    name: str
    func: Func
    arguments: list[Argument] | None = None

    def case(self, config: Config, pipeline: str | None = None) -> Case:
        """A reproducer of it; ``pipeline`` is the text of one that is not the usual."""
        passes = default_pipeline(
            cache_latents=config.cache == "latent", on_gpu=config.target.startswith("sm_")
        )
        usual = format_pipeline(p for p in passes if p.name not in config.disable)
        case = Case(
            self.func,
            usual if pipeline is None else pipeline,
            options=given_options(config),
            versions=versions(),
        )
        if self.arguments is None:
            return case
        strides = {
            arg.hint: list(value.stride())
            for arg, value in zip(self.func.args, self.arguments, strict=True)
            if isinstance(value, Tensor) and not value.is_contiguous()
        }
        sizes = bind(self.func, self.arguments)
        return Case(
            self.func, case.pipeline, case.options, 0, sizes, strides, versions=case.versions
        )


@dataclass
class Graphs:
    """Stands for the compiler while a model is captured: it runs each graph op by op."""

    config: Config
    found: list[Graph] = field(default_factory=list[Graph])

    @property
    def step(self) -> CompileStep:
        """Notes a captured graph."""
        return self._note

    @property
    def dynamic(self) -> bool | None:
        """As a compilation has it."""
        return self.config.dynamic

    @property
    def eager(self) -> Sequence[str]:
        """As a compilation has it."""
        return self.config.eager

    @property
    def forms(self) -> None:
        """Nothing is kept."""
        return

    @property
    def required(self) -> None:
        """Nothing is required."""

    def begin(self) -> None:
        """There is nothing to make ready."""

    def broken(self, where: str, reason: str) -> None:
        """What is between breaks makes graphs."""

    def plain(self, name: str, reason: str) -> None:
        """What is run as it is makes no graph."""

    def factors(self, target: object) -> Mapping[str, Any]:
        """Nothing is kept that could depend on anything."""
        del target
        return {}

    def restore(self, saved: str) -> Compiled:
        """Never asked for, as nothing is kept."""
        raise NotImplementedError(saved)

    def report(self) -> Report:
        """Nothing was compiled."""
        return Report()

    def _note(self, captured: Captured) -> Compiled:
        func = import_captured(captured)
        pin(func, captured)
        try:
            PassManager(default_pipeline(), disable=self.config.disable).run(func.clone())
        except UnknownSizeError as error:  # then a compilation has the graph cut, too
            raise DependsOnData(str(error), []) from error
        except Exception:
            pass
        graph = Graph(captured.name, func)
        self.found.append(graph)

        def run(arguments: Sequence[Argument]) -> Sequence[Tensor]:
            if graph.arguments is None:
                graph.arguments = _kept(func, arguments)
            with torch.no_grad():
                return evaluate(func, arguments)

        return run


def capture(
    program: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], config: Config
) -> tuple[list[Graph], Any]:
    """The graphs of a program, as one call of it makes them, and what that call gives op by op.

    Args:
        program: what a command loads.
        args: its arguments.
        kwargs: the same by name.
        config: options of the compilation.

    """
    onnx: Any = getattr(program, "program", None)
    if getattr(program, "compile_for", None) is not None and onnx is not None:
        imported = onnx.imported()
        func = imported.func
        pin_import(func, imported)
        given = [kwargs[name] for name in onnx.inputs if name not in onnx.fixed]
        return [Graph("onnx", func, [*given, *onnx.tensors])], program(*args, **kwargs)
    graphs = Graphs(config)
    wrapped: Any = wrap(cast("Any", program), lambda: graphs)
    with torch.no_grad():
        result = wrapped(*args, **kwargs)
    return graphs.found, result


def _kept(func: Func, arguments: Sequence[Argument]) -> list[Argument]:
    """Arguments as they are now; parameters are not written by a call, and need no copy."""
    return [
        value.clone() if isinstance(value, Tensor) and _may_change(arg.origin) else value
        for arg, value in zip(func.args, arguments, strict=True)
    ]


def _may_change(origin: Any) -> bool:
    return origin is None or origin.kind not in ("param", "const")


__all__ = ["Graph", "capture"]
