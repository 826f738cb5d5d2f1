"""The cache: layers that are read, one that is written, and what stands in where it cannot be.

    cache = Cache.open(config.cache_dir, config.cache_base)
    entry = cache.get_or_build("kernel", {"source": digest, "flags": flags}, build)
    library = entry.file("kernel.o")

`build` is given an empty directory and writes plain files into it. Nothing is touched on disk
before the first look-up, nothing is written before the first build.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fuseline import errors
from fuseline.runtime.cache import location
from fuseline.runtime.cache.entry import DamagedEntryError, Entry, Factors, key_of
from fuseline.runtime.cache.entry import load as load_entry
from fuseline.runtime.cache.layer import Build, Layer, VanishedError, damage_of
from fuseline.runtime.cache.seen import trust_all
from fuseline.runtime.cache.why import Why, explain, near_names, nearest
from fuseline.runtime.fork import renew_in_children

logger = logging.getLogger(__name__)

LOCK_SECONDS = 120.0
"""How long another process is given to build an entry before it is built here as well."""


TRIES = 3
"""How often an entry is begun in a directory that is deleted meanwhile."""

_DAMAGE_HINT = (
    "it is built again when it is needed; to remove it now, delete this directory, or the whole "
    "cache with `fuseline cache clear`"
)
_BASE_HINT = (
    "it is built again, above this base, when it is needed; the base is never changed: replace it"
)


@dataclass
class Stats:
    """What a `Cache` object did: look-ups that hit, entries built here, seconds spent building."""

    hits: int = 0
    built: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Pruned:
    """What was removed: the number of entries, and their bytes."""

    entries: int
    bytes: int


class Cache:
    """A layered, content-addressed store of built things; see the module for how to use it.

    Safe to use from several threads and processes at once.
    """

    def __init__(self, root: Path | None, bases: Sequence[Path] = ()) -> None:
        self._given = root
        self.bases = tuple(bases)
        self._layers: list[Layer] | None = None
        self._loaded: dict[str, Entry] = {}
        self._given_up: set[Path] = set()
        self._reason = "it cannot be written"
        self._mutex = threading.Lock()
        self.stats = Stats()
        renew_in_children(self)

    def renew(self) -> None:
        """In a forked child: nobody else holds the lock there."""
        self._mutex = threading.Lock()

    @classmethod
    def open(cls, root: Path | None = None, bases: Sequence[Path] = ()) -> Cache:
        """A cache in `root` (None: the user's cache directory), with read-only layers below it.

        Nothing is looked at yet: what is wrong with a directory is said at the first use.
        """
        return cls(root, bases)

    @property
    def root(self) -> Path:
        """The directory that this cache reads first, whether or not it exists."""
        return self._given or location.user_cache()

    @property
    def layers(self) -> list[Layer]:
        """The directories in the order in which they are read.

        Warns, once, of a base that has nothing to read (FL0609).

        Raises:
            CacheError: FL0601, FL0602, FL0603, where one that was named cannot be meant.
        """
        if self._layers is None:
            with self._mutex:
                self._layers = self._layers or self._resolve()
        return self._layers

    def get(self, kind: str, factors: Factors) -> Entry | None:
        """The entry of these factors, checked; None if there is none that is whole."""
        return self._find(kind, key_of(kind, factors))

    def get_or_build(
        self, kind: str, factors: Factors, build: Build, *, lock_timeout: float = LOCK_SECONDS
    ) -> Entry:
        """The entry of these factors; `build` fills a directory with its files if there is none.

        Whatever `build` raises is passed on, and leaves no trace.

        Raises:
            CacheError: as `layers`; FL0605 where nothing can be written.
        """
        key = key_of(kind, factors)
        found = self._find(kind, key)
        if found is not None:
            self.stats.hits += 1
            return found
        started = time.perf_counter()
        entry, here = self._build(kind, key, factors, build, lock_timeout)
        if here:
            self.stats.built += 1
            self.stats.seconds += time.perf_counter() - started
        self._loaded[key] = entry
        return entry

    def entries(self) -> Iterator[Entry]:
        """Every entry that is described well enough to be listed; digests are not checked."""
        for entry, _ in self.layered():
            yield entry

    def layered(self) -> Iterator[tuple[Entry, Layer]]:
        """`entries`, each with the first layer that it is in."""
        seen: set[str] = set()
        for entry, layer in self._described():
            if entry.key not in seen:
                seen.add(entry.key)
                yield entry, layer

    def unlisted(self) -> Iterator[errors.Diagnostic]:
        """FL0606 for each entry that `entries` leaves out, as its description cannot be read."""
        for layer, kind, key, path in self._stored():
            try:
                load_entry(path, kind, key, trust=trust_all)
            except FileNotFoundError:
                continue  # removed meanwhile
            except (DamagedEntryError, OSError) as damage:
                yield damage_of(kind, path, damage, self._hint(layer))

    def verify(self) -> list[errors.Diagnostic]:
        """Check every byte of every entry in every layer; FL0606 for each that is damaged."""
        return [damage for damage in self.check() if damage is not None]

    def check(self) -> Iterator[errors.Diagnostic | None]:
        """`verify` entry by entry: None for each that is whole."""
        for layer, kind, key, path in self._stored():
            try:
                layer.verify(kind, key)
            except FileNotFoundError:
                continue  # removed meanwhile
            except DamagedEntryError as damage:
                yield damage_of(kind, path, damage, self._hint(layer))
            else:
                yield None

    def prune(self, *, max_bytes: int | None = None, older_than: float | None = None) -> Pruned:
        """Remove entries that were not used for `older_than` seconds, and of the others the longest
        unused ones, until at most `max_bytes` are left. Read-only layers are left alone.

        Raises:
            CacheError: FL0608, where some of them cannot be removed; the others are.
        """
        now, total = time.time(), 0
        removed, stuck = list[Entry](), list[Path]()
        for entry, layer in sorted(self._mine(), key=lambda item: item[0].used, reverse=True):
            unused = older_than is not None and now - entry.used > older_than
            if unused or (max_bytes is not None and total + entry.size > max_bytes):
                if self._remove(layer, entry):
                    removed.append(entry)
                else:
                    stuck.append(entry.path)
            else:
                total += entry.size
        if stuck:
            raise errors.CACHE_CANNOT_REMOVE.error(where=str(stuck[0]), found=_count(len(stuck)))
        return Pruned(len(removed), sum(entry.size for entry in removed))

    def clear(self) -> Pruned:
        """Remove everything from the layers that can be written.

        Raises:
            CacheError: FL0608, where that cannot be.
        """
        sizes = [entry.size for entry, _ in self._mine()]
        for layer in self.layers:
            if not layer.frozen and not layer.clear():
                found = _count(len(sizes))
                raise errors.CACHE_CANNOT_REMOVE.error(where=str(layer.root), found=found)
        self._loaded.clear()
        return Pruned(len(sizes), sum(sizes))

    def why(self, key_or_name: str) -> list[Why]:
        """For each entry whose key or name starts with the argument, or whose kind it is: the
        nearest other one of its kind and name, and the factors that differ.

        Raises:
            CacheError: FL0607, where no entry is meant.
        """
        everything = list(self.entries())
        meant = [
            entry
            for entry in everything
            if entry.key.startswith(key_or_name)
            or entry.name.startswith(key_or_name)
            or entry.kind == key_or_name
        ]
        if not meant:
            near = near_names(key_or_name, everything)
            expected = f"something like {', '.join(near)}" if near else None
            raise errors.CACHE_UNKNOWN_ENTRY.error(
                key_or_name, where=str(self.root), expected=expected
            )
        return [explain(entry, everything) for entry in meant]

    def nearest(self, kind: str, factors: Factors) -> Entry | None:
        """The entry of this kind whose factors differ least from those given."""
        return nearest(factors, (entry for entry in self.entries() if entry.kind == kind))

    def _find(self, kind: str, key: str) -> Entry | None:
        known = self._loaded.get(key)
        if known is not None and known.path.exists():
            return known
        for layer in self.layers:
            found = layer.find(kind, key)
            if found is not None:
                self._loaded[key] = found
                return found
        return None

    def _build(
        self, kind: str, key: str, factors: Factors, build: Build, lock_timeout: float
    ) -> tuple[Entry, bool]:
        _ = self.layers  # resolved before one is chosen
        tries: Counter[Path] = Counter()
        while True:
            layer = self._writable()
            tries[layer.root] += 1
            try:
                return layer.build(kind, key, factors, build, lock_timeout)
            except OSError as error:
                vanished = isinstance(error, VanishedError)
                if vanished and tries[layer.root] < TRIES:
                    continue
                if not vanished and error.errno not in location.CANNOT_WRITE:
                    raise
                self._give_up(layer, error)

    def _writable(self) -> Layer:
        """The layer that new entries go to; the last resort is a temporary directory, said once."""
        with self._mutex:
            for layer in self._layers or ():
                if not layer.frozen:
                    return layer
            for parent in location.TEMPORARY_PARENTS:
                root = location.temporary(parent)
                if root is not None and root not in self._given_up:
                    location.warn_once(self.root, self._reason)
                    layer = Layer(root)
                    self._layers = [layer, *(self._layers or ())]
                    return layer
        raise errors.CACHE_NOWHERE.error(where=str(self.root), found=self._reason)

    def _give_up(self, layer: Layer, error: OSError) -> None:
        """Write no more to a layer; what it holds is still read."""
        with self._mutex:
            layer.frozen = True
            self._given_up.add(layer.root)
            self._reason = error.strerror or str(error)

    def _resolve(self) -> list[Layer]:
        bases = self._resolve_bases()
        own = self._resolve_root()
        notes = None if own is None or own.frozen else own.root
        below = [Layer(base, frozen=True, notes=notes) for base in bases]
        return below if own is None else [own, *below]

    def _resolve_bases(self) -> list[Path]:
        """The bases that there are; of the others it is said that there is nothing to read."""
        found: list[Path] = []
        for base in self.bases:
            if base == self.root:
                continue  # which is read, and written, as the cache
            problem = location.check_base(base)
            if problem is None:
                found.append(base)
            else:
                location.warn_of_base(problem)
        return found

    def _resolve_root(self) -> Layer | None:
        """The layer of the cache directory; None where it cannot even be read."""
        if self._given is not None:
            location.check(self._given)
        else:
            try:
                location.check(self.root)
            except errors.CacheError as problem:  # nobody asked for this one: do without
                self._reason = str(problem.diagnostic)
                return None
        if reason := location.unreachable(self.root):
            self._reason = reason
            return None
        if location.is_read_only(self.root):
            self._reason = "it is read-only"
            return Layer(self.root, frozen=True)
        return Layer(self.root)

    def _stored(self) -> Iterator[tuple[Layer, str, str, Path]]:
        for layer in self.layers:
            for kind, key, path in layer.stored():
                yield layer, kind, key, path

    def _described(self) -> Iterator[tuple[Entry, Layer]]:
        for layer, kind, key, path in self._stored():
            try:
                yield load_entry(path, kind, key, trust=trust_all), layer
            except (DamagedEntryError, OSError) as error:
                logger.debug("%s entry %s in %s: %s", kind, key[:12], layer.root, error)

    def _mine(self) -> list[tuple[Entry, Layer]]:
        return [(entry, layer) for entry, layer in self._described() if not layer.frozen]

    def _hint(self, layer: Layer) -> str:
        """What to do about a damaged entry of a layer."""
        return _BASE_HINT if layer.frozen and layer.root in self.bases else _DAMAGE_HINT

    def _remove(self, layer: Layer, entry: Entry) -> bool:
        self._loaded.pop(entry.key, None)
        return layer.remove(entry.path)


def _count(entries: int) -> str:
    return f"{entries} {'entry' if entries == 1 else 'entries'} left"
