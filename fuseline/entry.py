"""What users call: `compile`, `explain`, and the backend of ``torch.compile``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast, overload

import torch
from torch import fx, nn

from fuseline import errors
from fuseline.build import OnProgress
from fuseline.compiler import Compiler
from fuseline.config import Config
from fuseline.debug import remarks
from fuseline.debug.dump import check_folder
from fuseline.debug.required import Watch, requirements
from fuseline.frontend.backend import Backend
from fuseline.frontend.execute import Compiled, CompileStep
from fuseline.frontend.wrap import wrap
from fuseline.logs import apply_config
from fuseline.passes.pipeline_text import check_chosen
from fuseline.report import Report
from fuseline.saved import SavedForms, placement

T = TypeVar("T")


@dataclass
class _Engine:
    """A compiler as the frontend's wrappers use it."""

    compiler: Compiler

    @property
    def step(self) -> CompileStep:
        return self.compiler

    @property
    def dynamic(self) -> bool | None:
        return self.compiler.config.dynamic

    @property
    def eager(self) -> Sequence[str]:
        return self.compiler.config.eager

    @property
    def forms(self) -> SavedForms | None:
        compiler = self.compiler
        return SavedForms(compiler.tools.cache, compiler.config) if compiler.keeps_forms else None

    @property
    def required(self) -> Watch | None:
        return self.compiler.required

    def begin(self) -> None:
        self.compiler.begin()

    def plain(self, name: str, reason: str) -> None:
        self.compiler.plain(name, reason)

    def broken(self, where: str, reason: str) -> None:
        self.compiler.broken(where, reason)

    def factors(self, target: object) -> Mapping[str, Any]:
        devices = (
            {p.device.type for p in target.parameters()}
            if isinstance(target, nn.Module)
            else set[str]()
        )
        return {"placement": placement(target), "devices": sorted(devices)}

    def restore(self, saved: str) -> Compiled:
        return self.compiler.restore(saved)

    def report(self) -> Report:
        return self.compiler.report()


@overload
def compile(target: T, /, *, progress: OnProgress | None = None, **options: Any) -> T: ...


@overload
def compile(
    target: None = None, /, *, progress: OnProgress | None = None, **options: Any
) -> Callable[[T], T]: ...


def compile(target: Any = None, /, *, progress: OnProgress | None = None, **options: Any) -> Any:
    """Compile a function of tensors, an ``nn.Module``, or a class of them.

    The result is called as the target is; compilation happens at the first call, and again for
    inputs that need it, by the rules of ``torch.compile``. It also has ``report()``. A compiled
    module shares its parameters with the original. Without a target, gives a decorator.

    Args:
        target: what to compile.
        progress: called as kernels are built, in the thread that builds them.
        options: fields of `fuseline.Config` by name, or ``config`` with a whole one.

    Raises:
        UsageError: FL0101, FL0102, FL0104 or FL0107, for an option.
        TypeError: the target is nothing that can be compiled.

    """
    config = _config(options)
    if target is None:
        return functools.partial(compile, progress=progress, config=config)
    return wrap(target, lambda: _Engine(Compiler(config, progress)))


def explain(model: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Report:
    """What would be fused in a model, and what not and why, for a call with these arguments.

    The model is compiled, and run once to be traced; ``config=`` takes a `fuseline.Config`.
    """
    config = kwargs.pop("config", None) or Config()
    compiled = compile(model, config=config.replace(reuse=False))
    with torch.no_grad():
        compiled(*args, **kwargs)
    return cast("Any", compiled).report()


def dynamo_backend(
    module: fx.GraphModule, inputs: Sequence[object], **options: Any
) -> Callable[..., Any]:
    """The backend that ``torch.compile(model, backend="fuseline")`` finds.

    ``torch.compile(..., options={...})`` gives fields of `Config`.

    Raises:
        UsageError: FL0101, FL0102, FL0104 or FL0107, for an option; FL0101 also for
            ``batch_invariant``: where torch compiles no more it runs a model as it is, and asks
            no backend.

    """
    config = _config(options.get("options") or options)
    if config.batch_invariant:
        raise errors.INVALID_OPTION.error(
            "batch_invariant",
            where='torch.compile(backend="fuseline")',
            found="True, where torch runs a model as it is past recompile_limit, and tells nobody",
            expected="False",
            hint="fuseline.compile(model, batch_invariant=True), and no FUSELINE_BATCH_INVARIANT",
        )
    compiler = Compiler(config)
    backend, watch = Backend(compiler), compiler.required
    run = backend(module, inputs)
    if watch is None:
        return run

    def held(*arguments: Any) -> Any:  # no more than a graph is known of a call here
        watch.begin()
        result = run(*arguments)
        watch.end(backend.report())
        return result

    return held


def _config(options: Mapping[str, Any]) -> Config:
    config = options.get("config")
    if config is None:
        config = Config.of(options)
    elif not isinstance(config, Config) or len(options) > 1:
        raise TypeError("give either config=Config(...) or single options")
    apply_config(config)
    if config.dump_dir is not None:
        check_folder(config.dump_dir)
    if config.html is not None:
        from fuseline.debug.page.page import check_place

        check_place(config.html)
    check_chosen(config)
    requirements(config.require)
    remarks.check(config)
    return config
