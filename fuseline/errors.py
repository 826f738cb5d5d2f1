"""What can go wrong, in one form: diagnostics, their codes, the exceptions that carry them.

A user's mistake, or an environment that lacks something, gives a `Diagnostic` with a stable code.
The code is declared once, in the catalogue at the end of this module, and used there where the
mistake is found:

    raise UNKNOWN_PASS.error(subject="fuse-qknorm", where="FUSELINE_DISABLE", expected="...")

Bugs of ours are `InternalError`, which has no code: there is nothing that a user could look up.
"""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Diagnostic:
    """One problem: its code, what it is, where it is, what was found and expected, what to do."""

    code: str
    title: str
    where: str | None = None
    found: str | None = None
    expected: str | None = None
    hint: str | None = None
    excerpt: str | None = None
    """Lines of a text that show the place, printed below."""

    def __str__(self) -> str:
        place = f" in {self.where}" if self.where else ""
        seen = [
            f"{label} {text}"
            for label, text in (("found", self.found), ("expected", self.expected))
            if text
        ]
        detail = f": {', '.join(seen)}" if seen else ""
        hint = f" Hint: {self.hint.rstrip('.')}." if self.hint else ""
        excerpt = f"\n{self.excerpt}" if self.excerpt else ""
        return f"{self.code} {self.title}{place}{detail}".rstrip(".") + f".{hint}{excerpt}"

    def to_dict(self) -> dict[str, str]:
        """The parts that are present, for JSON."""
        return {name: value for name, value in vars(self).items() if value is not None}


class FuselineError(Exception):
    """Base of the errors that a user can do something about; carries the `Diagnostic`."""

    def __init__(self, diagnostic: Diagnostic) -> None:
        super().__init__(diagnostic)
        self.diagnostic = diagnostic

    def __str__(self) -> str:
        return str(self.diagnostic)


class UsageError(FuselineError):
    """An option, a name or an argument that cannot be what was meant."""


class CaptureError(FuselineError):
    """The program cannot be traced, or the trace cannot be imported."""


class IRError(FuselineError):
    """IR text that does not parse, or IR that breaks its own rules."""


class PassError(FuselineError):
    """A pass that cannot do what it was asked to do."""


class BuildError(FuselineError):
    """A kernel that cannot be generated, compiled or loaded."""


class CacheError(FuselineError):
    """A cache directory or entry that cannot be used."""


class InputError(FuselineError):
    """A call of a compiled program with inputs that it does not take."""


class IndexInputError(InputError, IndexError):
    """An index among the inputs that is outside of what it is an index into."""


class OverlapError(InputError):
    """Arguments that share memory where the program was compiled for some that do not."""


class DeviceError(FuselineError):
    """A GPU, its driver, or a kernel on it."""


class LoadError(FuselineError):
    """A model, or a file of one, that cannot be read."""


class ArtifactError(FuselineError):
    """A file of compiled code that cannot be written, read, or run here."""


class FuselineWarning(UserWarning):
    """A documented fallback was taken; the argument is the `Diagnostic` that says which."""


class InternalError(RuntimeError):
    """A bug of fuseline. Says where it happened, what was saved, and how to replay it.

    Args:
        message: what was violated.
        stage: the pass or stage that was running.
        reproducer: the file that was saved, if one could be.
        command: the one command that replays the failure on a CPU.
    """

    def __init__(
        self,
        message: str,
        *,
        stage: str | None = None,
        reproducer: Path | None = None,
        command: str | None = None,
    ) -> None:
        super().__init__(message)
        self.stage = stage
        self.reproducer = reproducer
        self.command = command

    def __str__(self) -> str:
        lines = [f"internal error{f' in {self.stage}' if self.stage else ''}: {self.args[0]}"]
        if self.reproducer:
            lines.append(f"  saved:  {self.reproducer}")
        if self.command:
            lines.append(f"  replay: {self.command}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Code:
    """A declared code: its title, its meaning for the docs, its exception, a usual hint."""

    code: str
    title: str
    meaning: str
    kind: type[FuselineError]
    hint: str | None = None

    def __post_init__(self) -> None:
        if self.code in CATALOGUE:
            raise ValueError(f"{self.code} is declared twice")
        CATALOGUE[self.code] = self

    def diagnostic(
        self,
        subject: str | None = None,
        *,
        where: str | None = None,
        found: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> Diagnostic:
        """A diagnostic of this code; `subject` names the thing, after the title."""
        title = f"{self.title} {subject}" if subject else self.title
        return Diagnostic(self.code, title, where, found, expected, hint or self.hint)

    def error(
        self,
        subject: str | None = None,
        *,
        where: str | None = None,
        found: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
        excerpt: str | None = None,
    ) -> FuselineError:
        """The exception to raise for this code."""
        said = self.diagnostic(subject, where=where, found=found, expected=expected, hint=hint)
        return self.kind(replace(said, excerpt=excerpt))

    def warn(
        self,
        subject: str | None = None,
        *,
        where: str | None = None,
        found: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        """Warn that a documented fallback is taken, at the line of the user's that led to it."""
        text = self.diagnostic(subject, where=where, found=found, expected=expected, hint=hint)
        warn(text)


def warn(problem: Diagnostic) -> None:
    """Warn of a problem at the line that led to it: the nearest outside of this package and of
    torch.
    """
    torch = getattr(sys.modules.get("torch"), "__file__", None)
    inside = tuple(f"{Path(file).parent}{os.sep}" for file in (__file__, torch) if file)
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith((*inside, "<eval_with_key>")):
        level, frame = level + 1, frame.f_back
    warnings.warn(FuselineWarning(problem), stacklevel=level)


CATALOGUE: dict[str, Code] = {}
"""Every declared code, in order; `docs/errors.md` is built from it."""


# ------------------------------------------------------------- FL01xx: options and command lines

INVALID_OPTION = Code(
    "FL0101",
    "invalid value for the option",
    "An option was given a value that it cannot take, by argument or by environment variable.",
    UsageError,
)
UNKNOWN_OPTION = Code(
    "FL0102",
    "unknown option",
    "A name that is no field of `fuseline.Config` was given as an option. A variable of the "
    "environment that looks like one is only warned of, at the first compilation.",
    UsageError,
    hint="`fuseline doctor` lists the options, with the variable that sets each",
)
BAD_ARGUMENT = Code(
    "FL0103",
    "wrong argument",
    "An argument of a `fuseline` command cannot be what was meant.",
    UsageError,
)
UNKNOWN_PASS = Code(
    "FL0104",
    "unknown pass",
    "The option `disable`, or a pipeline, names something that is no pass of this compiler.",
    UsageError,
)
UNKNOWN_MODULE = Code(
    "FL0105",
    "unknown module",
    "The option `eager` names a module path that the compiled module does not have.",
    UsageError,
)
BAD_PIPELINE = Code(
    "FL0106",
    "wrong pipeline",
    "The text of a pipeline cannot be read, or gives a pass an option that it does not have.",
    UsageError,
    hint="`fuseline opt --list-passes` shows the passes and their options",
)
UNKNOWN_PATTERN = Code(
    "FL0107",
    "unknown pattern",
    "The option `require` names something that no site of a report has, or `graph_break`, which is "
    "no pattern: what is there is only ever missed.",
    UsageError,
)
PAGE_IN_USE = Code(
    "FL0108",
    "another process writes the page",
    "Two processes have the same file in the option `html`. The one that was first keeps it, and "
    "the other has its page beside it, in a file with a number.",
    UsageError,
)


# ------------------------------------------------------------------------------------ FL03xx: IR

NOT_IR = Code(
    "FL0301",
    "this is no IR",
    "A text that should be a func of the IR cannot be read. What is shown below is the line, with "
    "a caret where the text stops being one.",
    IRError,
)
INVALID_IR = Code(
    "FL0302",
    "invalid IR",
    "A text is a func of the IR, but breaks a rule: a size that nothing gives, say, or a buffer "
    "read by an op that has no such effect.",
    IRError,
)
UNKNOWN_SIZE = Code(
    "FL0303",
    "a size that only the data tells",
    "A pass cannot go on with a func that holds a size which no argument gives. A compilation "
    "ends its graph there, and goes on behind it.",
    PassError,
)


# ------------------------------------------------------------------------------- FL04xx: passes

NOT_FUSED = Code(
    "FL0401",
    "not all patterns that the option require names were fused",
    "A pattern that the option `require` names has sites that were missed, fewer fused ones than "
    "it asks for, or no site at all, in the graphs of one call.",
    PassError,
    hint="`fuseline explain --missed` shows every site that was missed, with what was seen there",
)
OWN_PASS = Code(
    "FL0402",
    "a pass of your own failed:",
    "A pass that is no part of fuseline raised, or left a func that breaks the rules of the IR. "
    "The line that raised is named; where what it returned is wrong, or what it left, the line on "
    "which its `rewrite` or `run` is defined. The func before the pass is saved.",
    PassError,
)
BROKEN_NUMBERS = Code(
    "FL0410",
    "numbers break at",
    "Under `check_numerics`, a rewrite gave a value that is further from the float64 oracle than "
    "the rule allows: `tolerance` times eager's own error, plus one unit in the last place; the "
    "same bits where data is only moved.",
    PassError,
)


# ------------------------------------------------------------------------ FL05xx: code generation

NOT_BATCH_INVARIANT = Code(
    "FL0501",
    "not batch invariant:",
    "Under `batch_invariant`, something in a program does not promise that the bits of a row are "
    "its own, whatever rows are beside it: a kernel, a step that torch runs, a graph that is not "
    "compiled at all, or a file that was exported without the option.",
    BuildError,
    hint="leave the module that has it out of the graph with Config(eager=...), where torch then "
    "promises nothing, or compile without batch_invariant",
)

# ------------------------------------------------------------------------- FL06xx: the code cache

CACHE_NOT_A_DIRECTORY = Code(
    "FL0601",
    "the cache path is not a directory",
    "The path that was given for the cache is a file, or lies below one.",
    CacheError,
    hint="name another directory with FUSELINE_CACHE_DIR, or remove the file",
)
CACHE_INSECURE = Code(
    "FL0602",
    "another user can write to the cache directory",
    "Built code is loaded into the process, so a cache that others can change is refused.",
    CacheError,
    hint="`chmod 700` it if it is yours, or name another with FUSELINE_CACHE_DIR",
)
CACHE_IN_PACKAGE = Code(
    "FL0603",
    "the cache directory lies inside the installed package",
    "Nothing is ever written below the installed package.",
    CacheError,
    hint="name another directory with FUSELINE_CACHE_DIR",
)
CACHE_FALLBACK = Code(
    "FL0604",
    "the cache directory cannot be used, a temporary one stands in until the process ends",
    "The cache is full, read-only, or not ours to write, so built code is not kept.",
    CacheError,
    hint="free some space, or name another directory with FUSELINE_CACHE_DIR",
)
CACHE_NOWHERE = Code(
    "FL0605",
    "there is no place to write built code",
    "Neither the cache directory nor any temporary directory can be written.",
    CacheError,
    hint="free some space, or name a directory with FUSELINE_CACHE_DIR",
)
CACHE_DAMAGED_ENTRY = Code(
    "FL0606",
    "damaged cache entry",
    "An entry is not what its digests say, or others can write to it; it is built again.",
    CacheError,
)
CACHE_UNKNOWN_ENTRY = Code(
    "FL0607",
    "no cache entry",
    "A name or key was given that no entry of the cache has.",
    CacheError,
    hint="`fuseline cache list` shows what there is",
)
CACHE_CANNOT_REMOVE = Code(
    "FL0608",
    "cache entries cannot be removed",
    "The system does not let this user delete them: perhaps they were built by another.",
    CacheError,
    hint="remove them as the user that owns them",
)

CACHE_BASE_EMPTY = Code(
    "FL0609",
    "nothing can be read from this base of the cache",
    "A warning. A directory of the option `cache_base` is not there, cannot be looked at, or holds "
    "no entries that this version reads: what it should have brought is built here.",
    CacheError,
    hint="correct FUSELINE_CACHE_BASE, or fill that directory as FUSELINE_CACHE_DIR",
)
CACHE_FILE_DAMAGED = Code(
    "FL0610",
    "not a whole file of cache entries",
    "The file is not what `fuseline cache export` wrote: cut short, changed, or made by something "
    "else. Nothing was imported.",
    CacheError,
    hint="export it again, or copy it again and compare digests (sha256sum) on both machines",
)
CACHE_FILE_VERSION = Code(
    "FL0611",
    "cache entries of another version",
    "The file, or an entry in it, was written by a fuseline whose cache has another form.",
    CacheError,
    hint="export with the version of fuseline that is to import",
)
CACHE_FILE_TOO_LARGE = Code(
    "FL0612",
    "too much to import or export",
    "The file holds more than the limits allow, or more than the disk has room for; nothing was "
    "written.",
    CacheError,
)
CACHE_FILE_CANNOT = Code(
    "FL0613",
    "cannot write cache entries",
    "The system refused to write the exported file, or the entries that were to be imported.",
    CacheError,
)

# ------------------------------------------------------------- FL07xx: compilers and native code

NO_COMPILER = Code(
    "FL0701",
    "no C++ compiler was found",
    "Native code cannot be built; models run through the plain operations instead.",
    BuildError,
    hint="install one, such as the package g++, or name it with the variable CXX",
)
COMPILER_UNUSABLE = Code(
    "FL0702",
    "unusable C++ compiler",
    "The compiler that was named or found does not run, or is neither GCC nor Clang.",
    BuildError,
    hint="check the variable CXX, or install the package g++",
)
COMPILE_FAILED = Code(
    "FL0703",
    "cannot compile",
    "The C++ compiler refused a source, or did not come to an end.",
    BuildError,
)
LINK_FAILED = Code(
    "FL0704",
    "cannot link",
    "The objects of a piece could not be linked to a shared object.",
    BuildError,
)
LIBRARY_UNLOADABLE = Code(
    "FL0705",
    "cannot load built code",
    "The operating system refused a shared object, as it does below a noexec mount.",
    BuildError,
)
KERNEL_REFUSED = Code(
    "FL0706",
    "cannot compile for a GPU",
    "Triton, the assembler behind it, or NVRTC refused a generated kernel.",
    BuildError,
)
NO_TRITON = Code(
    "FL0707",
    "Triton is not installed",
    "Kernels for a GPU cannot be built; models run through the plain operations instead.",
    BuildError,
    hint="install it: pip install 'fuseline[cuda]'",
)
NO_NVRTC = Code(
    "FL0708",
    "NVRTC is not installed",
    "Kernels in CUDA C++ cannot be built; those in Triton do the same work.",
    BuildError,
    hint="install it: pip install 'fuseline[cuda]'",
)
TRITON_INTERPRETS = Code(
    "FL0709",
    "Triton interprets kernels in this process",
    "TRITON_INTERPRET is, or was, set where Triton was imported: it builds nothing then.",
    BuildError,
    hint="unset the variable TRITON_INTERPRET, and begin a new process",
)


# ------------------------------------------------------------------- FL08xx: models and their files

UNKNOWN_MODEL = Code(
    "FL0801",
    "no such model",
    "The name given as a model is neither `smollm2`, nor a directory, nor a GGUF file, an ONNX "
    "model or a program of torch.export, nor `module:function`.",
    LoadError,
)
MISSING_PACKAGE = Code(
    "FL0802",
    "missing package",
    "Reading this kind of model, or a signature, needs a package that is not installed.",
    LoadError,
)
NOT_A_MODEL_DIRECTORY = Code(
    "FL0803",
    "not a Hugging Face model directory",
    "The directory has no `config.json`, or transformers cannot read a causal language model and "
    "its weights from it.",
    LoadError,
)
NOT_GGUF = Code(
    "FL0804",
    "not a GGUF file",
    "The file does not start as a GGUF file does, is cut short, or contradicts itself.",
    LoadError,
    hint="download the file again, and compare its size and digest with the publisher's",
)
UNSUPPORTED_GGUF = Code(
    "FL0805",
    "unsupported GGUF file",
    "The file is a GGUF file, but transformers has no model for its architecture, or cannot read "
    "its tensors.",
    LoadError,
)
BAD_MODEL_FUNCTION = Code(
    "FL0806",
    "cannot use the model function",
    "The module cannot be imported, has no such function, or the function raised an error or "
    "returned something else than a model and its inputs.",
    LoadError,
    hint="return (model, args), (model, kwargs) or (model, args, kwargs)",
)
NOT_A_TEXT_MODEL = Code(
    "FL0807",
    "not a model that generates text",
    "`generate` needs a causal language model of transformers and its tokenizer.",
    LoadError,
)
TOO_LONG = Code(
    "FL0808",
    "prompt and answer are too long",
    "The prompt and the tokens asked for do not fit the positions that the model has.",
    UsageError,
)

BAD_INPUTS = Code(
    "FL0809",
    "the model does not run on its inputs",
    "The model as it was given, not compiled, raises an error when it is called with its inputs.",
    LoadError,
    hint="call the model in Python to see the whole traceback",
)

OTHER_FILE = Code(
    "FL0810",
    "this command does not take",
    "The file is of a kind that other commands take: an artifact has no model to look into, and an "
    "ONNX model no tokenizer.",
    LoadError,
)
NOT_A_PROGRAM = Code(
    "FL0811",
    "cannot read the exported program",
    "The file is not what `torch.export.save` writes, is damaged, or is of a version of torch that "
    "the installed one does not read.",
    LoadError,
    hint="save the program again with the version of torch that is installed here",
)

ONNX_FILE = Code(
    "FL0820",
    "cannot read the ONNX model",
    "The file is no ONNX model, is damaged, lacks data that it points to, or is for a version of "
    "the standard operators that is not read.",
    LoadError,
    hint="`onnx.checker.check_model` and `onnx.version_converter.convert_version` may help",
)
ONNX_UNSUPPORTED = Code(
    "FL0821",
    "unsupported in ONNX:",
    "The model has an operator, a use of one, or a type of input that fuseline has no meaning for: "
    "control flow that only data decides, sequences, strings, element types that the IR lacks.",
    LoadError,
)
ONNX_DATA = Code(
    "FL0822",
    "a shape is data:",
    "A shape, or another thing that must be known when a model is imported, is computed from the "
    "data of an input.",
    LoadError,
    hint="give the input's value: import_onnx(model, values={name: tensor})",
)
ONNX_SIZE = Code(
    "FL0824",
    "cannot compile the ONNX model",
    "A size in the model is told by the data of a run alone, so memory cannot be planned.",
    LoadError,
    hint="OnnxProgram.run runs it, op by op; experts that fuseline has written have no such size "
    "if exported with --dense-experts",
)
BAD_REPRODUCER = Code(
    "FL0830",
    "not a reproducer",
    "A file that should hold IR, with or without the head of a reproducer, does not; or the file "
    "of arguments that it names is not there, or another one.",
    LoadError,
)
ONNX_INPUT = Code(
    "FL0823",
    "unexpected input of an ONNX model",
    "An input is missing, unknown, of another type than the model says, or has another value than "
    "the one that the model was imported with; or a size is asked for that the file does not leave "
    "open.",
    InputError,
)

# -------------------------------------------------------------------- FL09xx: arguments at run time

ARGUMENT_COUNT = Code(
    "FL0901",
    "wrong number of arguments",
    "A compiled program was called with more or fewer tensors than it was compiled for.",
    InputError,
)
ARGUMENT_MISMATCH = Code(
    "FL0902",
    "unexpected argument",
    "The element type, the dims or the device of an argument are not those compiled for, or a "
    "dynamic size lies outside the range compiled for.",
    InputError,
    hint="compile for these inputs, or with dynamic shapes",
)
ARGUMENTS_OVERLAP = Code(
    "FL0904",
    "arguments share memory",
    "An argument that the program writes shares memory with another one, and did not when the "
    "program was compiled, so the order of reads and writes is not the one it was compiled for.",
    OverlapError,
    hint="pass a copy of one of them",
)
INDEX_OUTSIDE = Code(
    "FL0905",
    "index out of range",
    "A token id, a cache position or another index is negative or not below the size of what it is "
    "an index into. What else the call writes in place may have been written.",
    IndexInputError,
    hint="check token ids against the vocabulary, and numbers of adapters against how many are in "
    "use; a cache that is full takes no more: reset it, or make it longer (max_cache_len, or for a "
    "file --decode static:LENGTH)",
)
TWO_FORMS_OF_CACHE = Code(
    "FL0906",
    "a cache in two forms",
    'Under `cache="latent"` one program keeps the latents of a cache, and another one its keys and '
    "values: neither would see what the other has written.",
    InputError,
    hint="begin with a new cache, and compile what fills it and what reads it with the same option",
)
NO_LATENTS = Code(
    "FL0907",
    'cache="latent" changes nothing in',
    "A warning. No cache that the program writes is expanded from a latent, or none that is may be "
    "replaced, so that all of them stay as the model has them.",
    InputError,
    hint="`report()` lists what was looked at, and why it stays; leave the option out otherwise",
)
CANNOT_PACK = Code(
    "FL0903",
    "runs op by op, as it cannot pack the",
    "A warning. Weights that were merged into one product were moved apart, and cannot be moved "
    "back, as others hold their memory too. What runs op by op is slower, and right.",
    InputError,
    hint="compile again when nothing else holds them, such as a state_dict",
)

# ------------------------------------------------------------------------------- FL10xx: GPUs

NO_DRIVER = Code(
    "FL1001",
    "no CUDA driver",
    "Nothing can be run on a GPU; building for one needs no driver.",
    DeviceError,
    hint="run on a machine with an NVIDIA GPU and its driver, with the package cuda-bindings",
)
KERNEL_UNLOADABLE = Code(
    "FL1002",
    "the driver does not load kernel",
    "The GPU is another one than the kernel was built for, or the driver is too old for it.",
    DeviceError,
    hint="compile with target='auto', which takes the GPU at hand, or update the driver",
)
LAUNCH_FAILED = Code(
    "FL1003",
    "the driver refused a launch",
    "A kernel was not started, or an earlier one failed: what is computed since is not valid.",
    DeviceError,
    hint="run again with CUDA_LAUNCH_BLOCKING=1, which names the kernel at fault",
)
BUILT_FOR_ANOTHER = Code(
    "FL1005",
    "built for a GPU, and run op by op here:",
    "Kernels were built for a GPU, and the tensors are elsewhere, nothing can launch the kernels, "
    "or the driver does not load one of them.",
    DeviceError,
    hint="the kernels are in the cache; to run them, move the model and its inputs to the GPU",
)
ARGUMENT_MOVED = Code(
    "FL1006",
    "runs without graphs, as this argument moves from call to call:",
    "Graphs read weights, state and large inputs where they were at the time of recording.",
    DeviceError,
    hint="keep it in one place (write into it), or compile with graphs='none'",
)
NOT_RECORDED = Code(
    "FL1007",
    "runs without graphs for these sizes",
    "The device, or a library, refused to record the work, or has no memory for it.",
    DeviceError,
    hint="compile with graphs='none' to leave it at that",
)
CANNOT_RECORD = Code(
    "FL1008",
    "no full graph, because of",
    "A step cannot be recorded, and graphs='full' allows none between two recordings.",
    DeviceError,
    hint="compile with graphs='piecewise', which runs such steps between two graphs",
)
TOO_LARGE = Code(
    "FL1009",
    "sizes beyond what can be counted by kernel",
    "Rows, elements of a row and blocks are counted in 32 bits; offsets in memory have 64.",
    DeviceError,
    hint="call with fewer tokens at once",
)
NO_ROOM = Code(
    "FL1010",
    "no memory on the device for a call",
    "The temporaries and results of a program do not fit beside what the device holds already. "
    "It is a `torch.OutOfMemoryError`, too.",
    DeviceError,
    hint="call it with fewer tokens, or make room: graphs='none' frees what graphs hold",
)
UNKNOWN_GPU = Code(
    "FL1004",
    "no kernels for this GPU",
    "Kernels are generated for the GPUs that the option target names.",
    DeviceError,
    hint="run the model on the CPU, or on one of these GPUs",
)


# ---------------------------------------------------------------------------- FL11xx: artifacts

ARTIFACT_UNREADABLE = Code(
    "FL1101",
    "cannot read the artifact",
    "The file is not there, or may not be read.",
    ArtifactError,
)
ARTIFACT_DAMAGED = Code(
    "FL1102",
    "no artifact, or a damaged one:",
    "The file is not what `fuseline export` writes: cut off, changed, or of another kind.",
    ArtifactError,
    hint="export the model again, or copy the file again",
)
ARTIFACT_DIGEST = Code(
    "FL1103",
    "a part of the artifact was changed:",
    "The bytes of a member have another digest than the manifest says. Nothing of it was run.",
    ArtifactError,
    hint="copy the file again from where it was made",
)
ARTIFACT_SCHEMA = Code(
    "FL1104",
    "an artifact of another version:",
    "Artifacts are read by the version of fuseline that wrote them, and by those that have the "
    "same schema version.",
    ArtifactError,
    hint="export the model again with this version, or install the one that wrote the file",
)
NO_BINARY = Code(
    "FL1105",
    "nothing in the artifact runs here:",
    "The file has binaries for other processors or GPUs only.",
    ArtifactError,
    hint="export with a target for this machine: `fuseline doctor` names it",
)
ARTIFACT_UNWRITABLE = Code(
    "FL1106",
    "cannot write the artifact",
    "The file, or a temporary one beside it, cannot be written.",
    ArtifactError,
)
CANNOT_EXPORT = Code(
    "FL1107",
    "cannot export",
    "The program cannot be captured whole, or has a part that an artifact cannot hold.",
    ArtifactError,
)
WRONG_CALL = Code(
    "FL1108",
    "called unlike the example of the export:",
    "A loaded program takes what it was exported with: as many arguments, in the same nesting.",
    ArtifactError,
    hint="pass by keyword what the export was given by keyword (`--input` does that)",
)
NOT_IN_ONNX = Code(
    "FL1109",
    "cannot be written as ONNX:",
    "The program has an operator of torch, a size, or a way of using state that the standard "
    "operators have no form for.",
    ArtifactError,
    hint="export without --format onnx, which keeps such operators, or leave that part out",
)
UNSIGNED = Code(
    "FL1111",
    "not signed with the key that was asked for:",
    "The artifact has no signature, one of another key, or one of another manifest. The manifest "
    "has the digests of everything else. Nothing of the file was run.",
    ArtifactError,
    hint="get the file from its author, and compare the key's fingerprint with theirs",
)
UNUSABLE_KEY = Code(
    "FL1112",
    "cannot use the key",
    "The file is no key of Ed25519 in the PEM format: a private one without a password to sign, a "
    "public one to check.",
    ArtifactError,
    hint="`openssl genpkey -algorithm ed25519` makes a private key, and `openssl pkey -pubout` the "
    "public one of it",
)
