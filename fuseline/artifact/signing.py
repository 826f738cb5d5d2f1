"""Signatures: who made an artifact.

A signature is of the manifest, and the manifest has size and digest of every other member and of
weights that lie beside the file. So whoever checks the signature, and then those, knows that every
byte that is used is what the owner of the key has signed: see `verified`. It says nothing of what
the code does: a signed artifact runs native code, as any other does.

Keys are those of Ed25519, in PEM files; the package ``cryptography`` (``pip install
'fuseline[sign]'``) is needed to sign and to check, and nowhere else.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fuseline import errors
from fuseline.artifact.archive import PAGE, Archive, Writer, damaged, replacing
from fuseline.artifact.codec import MalformedError, decode, encode, parse
from fuseline.artifact.manifest import SIGNATURE, Manifest, manifest_bytes, verify_members

PURPOSE = b"fuseline artifact, signature 1\0"
"""Before what is signed, so that a signature for something else is none of an artifact."""

MOST_SIGNATURE = 4096
MOST_KEY = 1 << 16


@dataclass(frozen=True)
class Signature:
    """What the member ``signature.json`` says.

    Attributes:
        algorithm: ``ed25519``.
        public: the public key, 32 bytes in hexadecimal.
        signature: of `PURPOSE` and the SHA-256 of the manifest, 64 bytes in hexadecimal.
    """

    algorithm: Literal["ed25519"]
    public: str
    signature: str

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the public key."""
        return fingerprint(bytes.fromhex(self.public))

    @classmethod
    def of(cls, archive: Archive) -> Signature | None:
        """What an archive says; None where it is not signed. Nothing is checked by that.

        Raises:
            ArtifactError: FL1102, if the member is not what it should be.

        """
        if SIGNATURE not in archive.names:
            return None
        try:
            if archive.size(SIGNATURE) > MOST_SIGNATURE:
                raise MalformedError(f"{SIGNATURE} is too large")
            found = decode(cls, parse(archive.read(SIGNATURE), SIGNATURE), SIGNATURE)
            for text, size in ((found.public, 32), (found.signature, 64)):
                if len(text) != 2 * size or set(text) - set("0123456789abcdef"):
                    raise MalformedError(f"{SIGNATURE} has no {size} bytes where it should")
        except (MalformedError, RecursionError) as error:
            raise damaged(archive.path, str(error)) from error
        return found


def fingerprint(public: bytes) -> str:
    """What people compare of a public key."""
    return f"sha256:{hashlib.sha256(public).hexdigest()}"


def check_key(key: Path) -> None:
    """Whether a file can sign; see `signed`, which raises the same."""
    _private(key)


def signed(manifest: bytes, key: Path) -> bytes:
    """The member `SIGNATURE` for a manifest.

    Args:
        manifest: the bytes of its member.
        key: a PEM file with a private key.

    Raises:
        ArtifactError: FL1112, if the key cannot be used.
        LoadError: FL0802, without the package that signs.

    """
    private = _private(key)
    found = Signature(
        "ed25519", _raw(private.public_key()).hex(), private.sign(_text(manifest)).hex()
    )
    return json.dumps(encode(found), separators=(",", ":"), sort_keys=True).encode()


def sign_file(path: Path, key: Path) -> str:
    """Sign an artifact that is there, in its place; a signature that it has goes.

    Returns:
        The key's fingerprint.

    Raises:
        ArtifactError: FL1101 to FL1104, if it cannot be read; FL1106, if it cannot be written;
            FL1112, if the key cannot be used.
        LoadError: FL0802, without the package that signs.

    """
    archive = Archive.open(path)
    text = manifest_bytes(archive)
    manifest = Manifest.read(archive, text)
    verify_members(archive, manifest)
    member = signed(text, key)
    with replacing(path) as file, Writer(file) as writer:
        for name in archive.names:
            if name != SIGNATURE:
                align = PAGE if name == manifest.weights.member else 0
                writer.add(name, archive.size(name), archive.parts(name), align)
        writer.add_bytes(SIGNATURE, member)
    found = Signature.of(Archive.open(path))
    assert found is not None, "it was written"
    return found.fingerprint


def verified(archive: Archive, key: Path) -> Manifest:
    """The manifest of an archive that was signed with a key; every byte of the file is read.

    Args:
        archive: of the file.
        key: a PEM file with a public key.

    Raises:
        ArtifactError: FL1111, if it is not signed, or with another key, or for another manifest;
            FL1103, if a member or the weights beside are others; FL1102 or FL1104, if the manifest
            is not what it should be; FL1112, if the key cannot be used.
        LoadError: FL0802, without the package that checks signatures.

    """
    text = manifest_bytes(archive)
    check_signature(archive, text, key)
    manifest = Manifest.read(archive, text)
    verify_members(archive, manifest)
    return manifest


def check_signature(archive: Archive, manifest: bytes, key: Path) -> None:
    """Whether the signature of an archive is of a manifest, and made with a key; see `verified`."""
    signature = Signature.of(archive)
    if signature is None:
        wanted = f"one by the key in {key}"
        raise errors.UNSIGNED.error(str(archive.path), found="no signature", expected=wanted)
    public = _public(key)
    found, wanted = "", _raw(public)
    if signature.public != wanted.hex():
        found = f"a signature by {signature.fingerprint}"
    else:
        try:
            public.verify(bytes.fromhex(signature.signature), _text(manifest))
        except _crypto("cryptography.exceptions").InvalidSignature:
            found = "a signature of another manifest"
    if found:
        expected = f"one by {fingerprint(wanted)}"
        raise errors.UNSIGNED.error(str(archive.path), found=found, expected=expected)


def _text(manifest: bytes) -> bytes:
    return PURPOSE + hashlib.sha256(manifest).digest()


def _private(path: Path) -> Any:
    data = _pem(path, "a private key")
    read = _crypto("cryptography.hazmat.primitives.serialization").load_pem_private_key
    kind = _crypto("cryptography.hazmat.primitives.asymmetric.ed25519").Ed25519PrivateKey
    return _key(path, "a private key", kind, lambda: read(data, password=None), data)


def _public(path: Path) -> Any:
    data = _pem(path, "a public key")
    read = _crypto("cryptography.hazmat.primitives.serialization").load_pem_public_key
    kind = _crypto("cryptography.hazmat.primitives.asymmetric.ed25519").Ed25519PublicKey
    return _key(path, "a public key", kind, lambda: read(data), data)


def _pem(path: Path, wanted: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_KEY)
    except OSError as error:
        raise errors.UNUSABLE_KEY.error(str(path), found=error.strerror) from error
    if b"-----BEGIN " not in data:
        found = f"{len(data)} bytes that are no PEM file"
        raise errors.UNUSABLE_KEY.error(str(path), found=found, expected=wanted)
    return data


def _key(path: Path, wanted: str, kind: type[Any], read: Callable[[], object], data: bytes) -> Any:
    try:
        found = read()
    except Exception as error:  # of half a dozen kinds, for what is no key
        said = _kind(data, str(error).partition("\n")[0], wanted)
        raise errors.UNUSABLE_KEY.error(str(path), found=said, expected=wanted) from error
    if not isinstance(found, kind):
        raise errors.UNUSABLE_KEY.error(
            str(path), found="a key of another algorithm", expected=f"{wanted} of Ed25519"
        )
    return found


def _kind(data: bytes, said: str, wanted: str) -> str:
    """What a file is that is not the key that is wanted."""
    words = {b"ENCRYPTED": "with a password", b"PRIVATE": "private", b"PUBLIC": "public"}
    for word, title in words.items():
        if word in data and (title == "with a password" or title not in wanted):
            return f"a key {title}" if " " in title else f"a {title} key"
    return f"no key ({said[:80]})" if said else "no key"


def _raw(public: Any) -> bytes:
    return public.public_bytes_raw()


def _crypto(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise errors.MISSING_PACKAGE.error(
            "cryptography", hint="pip install 'fuseline[sign]'"
        ) from error


__all__ = [
    "Signature",
    "check_key",
    "check_signature",
    "fingerprint",
    "sign_file",
    "signed",
    "verified",
]
