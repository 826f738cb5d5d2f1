"""Options: one frozen `Config`, and the only place where environment variables are read.

Each option has one variable. An argument wins over the variable, the variable over the default,
and `Config.sources` tells which one it was.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, cast, get_args

from fuseline.errors import INVALID_OPTION, UNKNOWN_OPTION, Diagnostic, UsageError

PREFIX = "FUSELINE_"

Graphs: TypeAlias = Literal["auto", "none", "piecewise", "full"]
Target: TypeAlias = Literal["auto", "cpu", "sm_80", "sm_90", "sm_100", "sm_120"]
Cache: TypeAlias = Literal["model", "latent"]
Tune: TypeAlias = Literal["auto", "off", "full"]
Origin: TypeAlias = Literal["argument", "environment", "default"]
T = TypeVar("T")


class _Unset:
    """Stands for an option that was not given as an argument."""

    def __repr__(self) -> str:
        return "<from the environment, or the default>"


_UNSET = _Unset()


@dataclass(frozen=True)
class Parser:
    """Reads one kind of value, from an argument or from text; `expected` says what it takes."""

    read: Callable[[object], object]
    expected: str


@dataclass(frozen=True)
class Source:
    """Where the value of an option came from, for `fuseline doctor`."""

    name: str
    variable: str
    value: object
    origin: Origin
    help: str


def _read_bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    value = str(value) if isinstance(value, int) else value
    words = {"1": True, "true": True, "yes": True, "on": True}
    words |= {"0": False, "false": False, "no": False, "off": False}
    return words[_text(value).lower()]


def _read_dynamic(value: object) -> bool | None:
    if value is None or value == "auto":
        return None
    return _read_bool(value)


def _read_count(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError
    number = int(value)
    if number < 0:
        raise ValueError
    return number


def _read_threads(value: object) -> int | None:
    number = _read_count(value)
    if number == 0:
        raise ValueError
    return number


def _read_ratio(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    number = float(value)
    if not 0 < number < float("inf"):
        raise ValueError
    return number


def _read_names(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    if not isinstance(value, tuple | list):
        raise TypeError
    return tuple(_text(item) for item in cast("tuple[object, ...]", value))


def _read_path(value: object) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, str | Path):
        raise TypeError
    if "\0" in str(value) or not str(value):
        raise ValueError
    try:
        path = Path(value).expanduser()
    except RuntimeError as error:  # no such user
        raise ValueError from error
    return path.absolute()


def _read_paths(value: object) -> tuple[Path, ...]:
    """Paths in a tuple or a list, or one text with the system's separator, as in PATH."""
    if isinstance(value, str):
        value = tuple(part for part in value.split(os.pathsep) if part)
    if isinstance(value, Path):
        value = (value,)
    if not isinstance(value, tuple | list):
        raise TypeError
    found = [_read_path(item) for item in cast("tuple[object, ...]", value)]
    if None in found:
        raise TypeError
    return cast("tuple[Path, ...]", tuple(dict.fromkeys(found)))


def _read_pattern(value: object) -> str | None:
    """A regular expression; a truth value stands for all names, or for none."""
    if value is None:
        return None
    try:
        return ".*" if _read_bool(value) else None
    except KeyError:
        text = _text(value)
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError from error
    return text


def _read_requirements(value: object) -> tuple[str, ...]:
    found = _read_names(value)
    for text in found:
        name, equals, number = text.partition("=")
        if not name.strip() or (equals and not _read_count(number)):
            raise ValueError
    return tuple("=".join(part.strip() for part in text.split("=")) for text in found)


def _read_level(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, int):
        value = logging.getLevelName(value)
    name = _text(value).upper()
    if name not in logging.getLevelNamesMapping():
        raise ValueError
    return name


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _choice(choices: tuple[str, ...]) -> Parser:
    return Parser(lambda value: choices[choices.index(_text(value))], f"one of {_join(choices)}")


def _join(names: tuple[str, ...]) -> str:
    return ", ".join(names)


_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_BOOL = Parser(_read_bool, "a truth value: 1, true, yes, on, or 0, false, no, off")
_NAMES = Parser(_read_names, "names, separated by commas")
_PATH = Parser(_read_path, "a path")
_PATHS = Parser(_read_paths, f"paths, separated by {os.pathsep!r}")
_PATTERN = Parser(
    _read_pattern, "a regular expression on the names of passes, or a truth value for all or none"
)
_LEVEL = Parser(_read_level, f"a log level: {_join(_LEVELS)}")


def _option(default: T, variable: str, parser: Parser, help: str) -> T:
    """A field with one environment variable; the parser reads arguments and variables alike."""
    metadata = {"default": default, "variable": PREFIX + variable, "parser": parser, "help": help}
    return cast("T", dataclasses.field(default=cast("Any", _UNSET), metadata=metadata))


@dataclass(frozen=True)
class Config:
    """The options of a compilation. ``Config(verify=True)`` leaves the others to the environment.

    Raises:
        UsageError: FL0101, for a value that an option cannot take.
    """

    target: Target = _option(
        "auto",
        "TARGET",
        _choice(get_args(Target)),
        "the machine to generate code for; auto: the one that the model's tensors are on",
    )
    dynamic: bool | None = _option(
        None,
        "DYNAMIC",
        Parser(_read_dynamic, "a truth value, or auto"),
        "treat sizes as dynamic; auto: those that were seen to change",
    )
    graphs: Graphs = _option(
        "auto",
        "GRAPHS",
        _choice(get_args(Graphs)),
        "CUDA graphs: piecewise, with steps between them that cannot be recorded; full, one of all "
        "steps; auto, piecewise for up to 512 tokens. none: no graphs, and on a CPU a call for "
        "each native step",
    )
    side_stream: bool = _option(
        True,
        "SIDE_STREAM",
        _BOOL,
        "in CUDA graphs, run a shared branch of experts at the same time as the routed ones",
    )
    early_launch: bool = _option(
        True,
        "EARLY_LAUNCH",
        _BOOL,
        "on GPUs from sm_90 on, launch a kernel before the one ahead of it has ended, for which it "
        "waits itself (programmatic dependent launch)",
    )
    tune: Tune = _option(
        "auto",
        "TUNE",
        _choice(get_args(Tune)),
        "on a GPU, measure what runs fastest, once for each kernel and range of sizes: auto, the "
        "likeliest configurations, for at most ten seconds a program; full, all of them, however "
        "long it takes. off: go by estimates",
    )
    cache: Cache = _option(
        "model",
        "KV_CACHE",
        _choice(get_args(Cache)),
        "model: caches hold what the model writes; latent: where keys and values are expanded from "
        "a latent, compiled code keeps that in their place, and leaves the model's caches alone",
    )
    batch_invariant: bool = _option(
        False,
        "BATCH_INVARIANT",
        _BOOL,
        "the bits of a sequence's results do not depend on what is beside it in the batch, nor on "
        "how many threads there are: one form of each kernel for all sizes, slower at some; raise "
        "where there is none",
    )
    disable: tuple[str, ...] = _option((), "DISABLE", _NAMES, "passes that do not run")
    eager: tuple[str, ...] = _option(
        (), "EAGER", _NAMES, "modules, by path, that run outside the compiled graph"
    )
    verify: bool = _option(False, "VERIFY", _BOOL, "check the IR after every pass")
    cost: bool = _option(
        False, "COST", _BOOL, "account for the bytes and flops of eager and of compiled code"
    )
    check_numerics: bool = _option(
        False,
        "CHECK_NUMERICS",
        _BOOL,
        "at the first call of a program, compare what every rewrite computes with float64, and "
        "raise where one is further off than `tolerance` allows; slow",
    )
    strict: bool = _option(
        False, "STRICT", _BOOL, "raise where a plain lowering would stand in for a kernel"
    )
    tolerance: float = _option(
        1.5,
        "TOLERANCE",
        Parser(_read_ratio, "a positive number"),
        "largest error allowed, as a multiple of eager's own, both against float64",
    )
    fuse_limit: int | None = _option(
        None,
        "FUSE_LIMIT",
        Parser(_read_count, "a count, 0 or more"),
        "apply only the first so many rewrites",
    )
    skip_rewrites: tuple[str, ...] = _option(
        (), "SKIP_REWRITES", _NAMES, "single rewrites to leave out, by the names `bisect` gives"
    )
    only_rewrites: tuple[str, ...] = _option(
        (), "ONLY_REWRITES", _NAMES, "the only rewrites to apply, by the same names; none: all"
    )
    plain_kernels: tuple[str, ...] = _option(
        (), "PLAIN_KERNELS", _NAMES, "kernels, by symbol, in whose place torch runs; all: every one"
    )
    threads: int | None = _option(
        None,
        "THREADS",
        Parser(_read_threads, "a count, 1 or more"),
        "worker threads of compiled code; as torch has, if not set",
    )
    cache_dir: Path | None = _option(
        None, "CACHE_DIR", _PATH, "where built code is kept; the user's cache, if not set"
    )
    cache_base: tuple[Path, ...] = _option(
        (),
        "CACHE_BASE",
        _PATHS,
        "caches that are read where that one has nothing, in this order, and never written",
    )
    reuse: bool = _option(
        True, "REUSE", _BOOL, "bring back from the cache what a program was compiled to"
    )
    require: Sequence[str] = _option(
        (),
        "REQUIRE",
        Parser(_read_requirements, "names of patterns, each with =N for a least number if need be"),
        "patterns that must be fused: moe, every site, and one at least; moe=4, four of them",
    )
    remarks: str | None = _option(
        None, "REMARKS", _PATTERN, "say what the passes that this matches have applied, and where"
    )
    remarks_missed: str | None = _option(
        None, "REMARKS_MISSED", _PATTERN, "say what they have missed, and by which predicate"
    )
    remarks_output: Path | None = _option(
        None,
        "REMARKS_OUTPUT",
        _PATH,
        "write all remarks to this file, in YAML as LLVM's optimisation records",
    )
    html: Path | None = _option(
        None, "HTML", _PATH, "write one page of HTML with all that was done to this file"
    )
    dump_dir: Path | None = _option(None, "DUMP", _PATH, "write what every pass did to this folder")
    log: str | None = _option(None, "LOG", _LEVEL, "show log records of this level and above")
    _origins: Mapping[str, Origin] = dataclasses.field(
        init=False, repr=False, compare=False, default_factory=dict[str, Origin]
    )

    def __post_init__(self) -> None:
        origins: dict[str, Origin] = {}
        for option in _options():
            value, origins[option.name] = _resolve(option, getattr(self, option.name))
            object.__setattr__(self, option.name, value)
        object.__setattr__(self, "_origins", origins)

    @classmethod
    def of(cls, options: Mapping[str, object]) -> Config:
        """A configuration from options by name, such as keyword arguments.

        Raises:
            UsageError: FL0102, for a name that is no option; FL0101, for a wrong value.
        """
        for name in options:
            _named(name)
        return cls(**cast("dict[str, Any]", dict(options)))

    @classmethod
    def tolerant(cls, options: Mapping[str, object]) -> tuple[Config, list[Diagnostic]]:
        """As `of`, with the default in the place of a variable's value that cannot be meant; and
        what is wrong with these.
        """
        problems: list[Diagnostic] = []
        defaults: dict[str, object] = {}
        for option in _options():
            try:
                _resolve(option, options.get(option.name, _UNSET))
            except UsageError as error:
                if option.name in options:
                    raise
                problems.append(error.diagnostic)
                defaults[option.name] = option.metadata["default"]
        config = cls.of({**options, **defaults})
        origins = {**config._origins, **dict.fromkeys(defaults, "default")}
        object.__setattr__(config, "_origins", origins)
        return config, problems

    def replace(self, **changes: object) -> Config:
        """This configuration with some options changed; the others keep where they came from."""
        given = {name: getattr(self, name) for name, o in self._origins.items() if o == "argument"}
        return Config.of(given | changes)

    def sources(self) -> tuple[Source, ...]:
        """Every option with its value, its variable, and where the value came from."""
        return tuple(
            Source(
                name=option.name,
                variable=option.metadata["variable"],
                value=getattr(self, option.name),
                origin=self._origins[option.name],
                help=option.metadata["help"],
            )
            for option in _options()
        )


def unknown_variables() -> tuple[str, ...]:
    """Environment variables that look like options and are none: misspellings, most likely."""
    known = {option.metadata["variable"] for option in _options()}
    return tuple(sorted(v for v in os.environ if v.startswith(PREFIX) and v not in known))


@cache
def warn_of_unknown_variables() -> None:
    """Warn of `unknown_variables`, once in a process: what they were to set has its default."""
    known = [option.metadata["variable"] for option in _options()]
    for name in unknown_variables():
        near = get_close_matches(name, known, n=1, cutoff=0.8)
        hint = f"perhaps {near[0]} was meant" if near else None
        UNKNOWN_OPTION.warn(name, where="the environment", hint=hint)


def parse_option(name: str, value: object, *, where: str) -> object:
    """The value of one option; a mistake is reported as one at `where`.

    Raises:
        UsageError: FL0102, for a name that is no option; FL0101, for a wrong value.
    """
    return _read(_named(name, where).metadata["parser"], value, name, where)


def parse_level(level: str | int, *, where: str) -> str:
    """The canonical name of a log level.

    Raises:
        UsageError: FL0101, for a level that does not exist.
    """
    return cast("str", _read(_LEVEL, level, "log", where))


def _options() -> tuple[dataclasses.Field[object], ...]:
    return tuple(f for f in dataclasses.fields(Config) if "variable" in f.metadata)


def _named(name: str, where: str | None = None) -> dataclasses.Field[object]:
    known = {option.name: option for option in _options()}
    if name not in known:
        raise UNKNOWN_OPTION.error(name, where=where, expected=f"one of {_join(tuple(known))}")
    return known[name]


def _resolve(option: dataclasses.Field[object], given: object) -> tuple[object, Origin]:
    """The option's value and where it is from: the argument, its variable, or the default."""
    parser: Parser = option.metadata["parser"]
    if not isinstance(given, _Unset):
        return _read(parser, given, option.name, f"Config({option.name}=...)"), "argument"
    variable: str = option.metadata["variable"]
    text = os.environ.get(variable, "")
    if text:
        return _read(parser, text, option.name, f"the variable {variable}"), "environment"
    return option.metadata["default"], "default"


def _read(parser: Parser, value: object, name: str, where: str) -> object:
    try:
        return parser.read(value)
    except (KeyError, TypeError, ValueError):
        raise INVALID_OPTION.error(
            name, where=where, found=repr(value), expected=parser.expected
        ) from None


def host_compiler() -> str | None:
    """What the variable CXX names: not an option of ours, but what build tools agree on."""
    return os.environ.get("CXX") or None
