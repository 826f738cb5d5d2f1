"""What stands for an object of Python in another process: its name, and a digest of its code."""

from __future__ import annotations

import hashlib
import importlib
import types
from typing import Any, TypeAlias, cast

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
        packet = cast("Any", value)
        schemas = (str(getattr(packet, overload)._schema) for overload in packet.overloads())
        return "operator", str(packet), *sorted(schemas)
    if value is None or isinstance(value, bool | types.EllipsisType | types.NotImplementedType):
        return "constant", repr(value)
    raise CannotSaveError(f"a guard on the identity of a {type(value).__qualname__}")


def _operator_type() -> Any:
    return cast("Any", importlib.import_module("torch._ops")).OpOverloadPacket


def code_digest(code: types.CodeType) -> str:
    """A digest of what a function does, not of where it stands."""
    consts = [code_digest(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    text = repr((code.co_code, code.co_names, code.co_varnames, consts))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
