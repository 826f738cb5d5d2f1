"""Kernel templates: a frozen dataclass per kernel family, rendered by one Jinja template.

Decisions happen in the class; the template holds text, loops over ready-made strings, and
little else. The fields are the whole of a kernel's geometry, so equal contexts give equal bytes
and the symbol can be derived from them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import cached_property, lru_cache
from typing import ClassVar

import jinja2


@lru_cache(maxsize=1)
def environment() -> jinja2.Environment:
    """The one Jinja environment: undefined names are errors, blocks leave no blank lines."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("fuseline", "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


@dataclasses.dataclass(frozen=True)
class KernelTemplate:
    """Base of the kernel contexts; a subclass names its template and declares the fields it reads.

    A template reads exactly the dataclass fields of its class, its public properties, and
    ``symbol``; `tests/codegen/test_templates.py` holds every template to that.
    """

    template: ClassVar[str]
    family: ClassVar[str]
    flags: ClassVar[tuple[str, ...]] = ()
    """Options of the C++ compiler for this family, behind those that all kernels have."""
    steady_flags: ClassVar[tuple[str, ...]] = ("-ffp-contract=off",)
    """Those that it has on top under ``Config(batch_invariant=True)``. Where an element stands in a
    vector or in what is left of a row depends on the rows beside it, and so would the choice of the
    products that a sum takes unrounded."""
    varies: ClassVar[str] = "its family does not say that it is batch invariant"
    """Why the bits of a row depend on the rows beside it; empty where they do not. Each family says
    it, and one whose contexts differ in it has a ``why_varies`` of its own."""
    per_element: ClassVar[bool] = False
    """Whether no element is added to another: forms for other sizes then give the same bits."""

    def __init_subclass__(cls, *, template: str | None = None) -> None:
        """Bind a concrete subclass to its template; the family is the template's file name."""
        super().__init_subclass__()
        if template is not None:
            cls.template = template
            cls.family = template.rsplit("/", 1)[-1].split(".", 1)[0]

    @cached_property
    def symbol(self) -> str:
        """The kernel's symbol: its family and a digest of its fields."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        text = json.dumps(fields, sort_keys=True, default=str)
        return f"{self.family}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def options(self, *, steady: bool) -> tuple[str, ...]:
        """Options of the C++ compiler, none twice; ``steady`` for a program that is to be batch
        invariant.
        """
        return tuple(dict.fromkeys((*self.flags, *(self.steady_flags if steady else ()))))

    def why_varies(self) -> str:
        """Why the bits of a row depend on the rows beside it; empty where they do not."""
        return self.varies

    def render(self) -> str:
        """The kernel's source: the same bytes for the same fields."""
        names = {f.name for f in dataclasses.fields(self)}
        names |= {
            name
            for cls in type(self).__mro__
            for name, member in vars(cls).items()
            if isinstance(member, property) and not name.startswith("_")
        }
        context = {name: getattr(self, name) for name in sorted(names)}
        return environment().get_template(self.template).render(symbol=self.symbol, **context)
