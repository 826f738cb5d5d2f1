"""What stands for an object of Python in another process: its name, and a digest of its code."""

from __future__ import annotations

import hashlib
import importlib
import types
from typing import Any, TypeAlias, cast

import torch

Identity: TypeAlias = "tuple[str, ...]"


class CannotSaveError(Exception):
    """A trace that holds something with no meaning outside this process."""


def identity_of(value: object) -> Identity:
    """What stands for an object in another process.

    Raises:
        CannotSaveError: nothing does.

    """
    if isinstance(value, types.ModuleType):
        return "module", value.__name__
    if isinstance(value, type):
        return "class", value.__module__, value.__qualname__
    if isinstance(value, types.MethodType):
        return "method", *identity_of(value.__func__)
    if isinstance(value, types.FunctionType):
        return "function", value.__module__, value.__qualname__, code_digest(value.__code__)
    if isinstance(value, types.CodeType):
        return "code", value.co_qualname, code_digest(value)
    if isinstance(value, types.BuiltinFunctionType | types.WrapperDescriptorType):
        return "builtin", str(getattr(value, "__module__", "")), value.__qualname__
    if isinstance(value, _operator_type()):
        overloads = [getattr(value, name) for name in cast("Any", value).overloads()]
        if any(_is_decomposed(overload) for overload in overloads):
            raise CannotSaveError(f"a guard on {value}, which is traced into and not of torch")
        return "operator", str(value), *sorted(str(overload._schema) for overload in overloads)
    if value is None or isinstance(value, bool | types.EllipsisType | types.NotImplementedType):
        return "constant", repr(value)
    raise CannotSaveError(f"a guard on the identity of a {type(value).__qualname__}")


def _is_decomposed(overload: Any) -> bool:
    """Whether tracing looks into an operator, so that what it does is in the trace.

    What torch's own do goes with its version.
    """
    composite = cast("Any", torch)._C.DispatchKey.CompositeImplicitAutograd
    own = overload.namespace in ("aten", "prim", "prims")
    return not own and overload.has_kernel_for_dispatch_key(composite)


def _operator_type() -> Any:
    return cast("Any", importlib.import_module("torch._ops")).OpOverloadPacket


def code_digest(code: types.CodeType) -> str:
    """A digest of what a function does, not of where it stands."""
    consts = [code_digest(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    text = repr((code.co_code, code.co_names, code.co_varnames, consts))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
