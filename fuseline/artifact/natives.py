"""Native code of an artifact, loaded from memory: a read-only root has no place for files."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from fuseline import errors
from fuseline.artifact.archive import Archive
from fuseline.artifact.manifest import Manifest
from fuseline.runtime.build import Library, load_library


def library(archive: Archive, manifest: Manifest, member: str) -> Library:
    """A shared object of an artifact, its digest checked; what was loaded once is shared.

    Raises:
        ArtifactError: FL1102 or FL1103.
        BuildError: FL0705, if the system refuses it.

    """
    return load_library(file_of(archive, manifest, member))


def file_of(archive: Archive, manifest: Manifest, member: str) -> Path:
    """A member as a file that the system can load.

    Raises:
        ArtifactError: FL1102 or FL1103.
        BuildError: FL0705, where there is no place for it.

    """
    known = manifest.members.get(member)
    if known is None:
        raise errors.ARTIFACT_DAMAGED.error(str(archive.path), found=f"no member {member!r}")
    data = archive.checked(member, known)
    return _file(known.sha256, Path(member).name[:64], data)


_FILES: dict[str, Path] = {}
"""What was made a file, by digest. Files stay open: to the loader of the system a path is a
library, and a number that is used again would be an earlier one's.
"""


def _file(digest: str, name: str, data: bytes) -> Path:
    """A file of this process's alone, in memory where the system has such files."""
    if digest not in _FILES:
        _FILES[digest] = _made(digest, name, data)
    return _FILES[digest]


def _made(digest: str, name: str, data: bytes) -> Path:
    try:
        if sys.platform == "linux":
            flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
            number = os.memfd_create(f"fuseline-{name}-{digest[:8]}", flags)
            with os.fdopen(os.dup(number), "wb") as file:
                file.write(data)
            _seal(number)
            return Path(f"/proc/self/fd/{number}")
        folder = Path(tempfile.mkdtemp(prefix="fuseline-"))
        (folder / name).write_bytes(data)
    except OSError as error:
        raise errors.LIBRARY_UNLOADABLE.error(name, found=str(error)) from error
    return folder / name


def _seal(number: int) -> None:
    """Have nobody write a file in memory any more."""
    if sys.platform == "linux":
        import fcntl

        every = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(number, fcntl.F_ADD_SEALS, every)


__all__ = ["file_of", "library"]
