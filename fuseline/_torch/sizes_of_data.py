"""Sizes that only the data tells: letting Dynamo follow them, and tracing again where it fails."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

SETTING = "capture_dynamic_output_shape_ops"
"""Dynamo's setting to go on where only the data tells how large a result is."""

GUARDS_DATA = "data-dependent expression"
"""What torch says where a program asks for a size that only the data tells."""


@lru_cache(maxsize=1)
def restart() -> type[Exception] | None:
    """What a backend may raise to have the present frame traced again; None in a torch without."""
    exceptions = importlib.import_module("torch._dynamo.exc")
    return getattr(exceptions, "TensorifyScalarRestartAnalysis", None)


@lru_cache(maxsize=1)
def can_trace_again(has_given_up: Callable[[Exception], bool]) -> bool:
    """Whether frames can be traced again, and are where tracing fails because of such sizes.

    Dynamo has calls that end a graph where no size may depend on data, and fail where it may
    (``x.unique().tolist()``), and where the program asks for such a size it breaks far outside.
    """
    module = cast("Any", importlib.import_module("torch._dynamo.convert_frame"))
    trace = getattr(module, "trace_frame", None)
    if trace is None or restart() is None:
        return False

    def trace_again_without(*args: Any, **kwargs: Any) -> Any:
        try:
            return trace(*args, **kwargs)
        except Exception as error:
            if not has_given_up(error):
                raise
            again = cast("Any", restart())(restart_reason=f"{type(error).__name__}: {error}")
            for name in filter(_is_dynamos, vars(error)):
                setattr(again, name, getattr(error, name))
            raise again from error

    module.trace_frame = trace_again_without
    return True


def _is_dynamos(name: str) -> bool:
    """Whether Dynamo has put an attribute on an error, to clean up after it."""
    return name.startswith("_torch_dynamo")


def stems_from_sizes(error: Exception) -> bool:
    """Whether tracing may have failed because of a size that only the data tells.

    Where Dynamo breaks, skips or restarts on its own account, it says so; a backend's error is its
    own; anything else might come of it.
    """
    exceptions = cast("Any", importlib.import_module("torch._dynamo.exc"))
    if isinstance(error, exceptions.BackendCompilerFailed):
        return False
    own = (exceptions.RestartAnalysis, exceptions.SkipFrame, exceptions.Unsupported)
    said, cause = list[str](), cast("BaseException | None", error)
    while cause is not None:
        said += [str(cause), str(getattr(cause, "restart_reason", ""))]
        cause = cause.__cause__ or cause.__context__
    return not isinstance(error, own) or any(GUARDS_DATA in text for text in said)
