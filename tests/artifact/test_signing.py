"""Signatures: what is signed with a key is loaded, and nothing else is."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import fuseline
from fuseline.artifact import signing
from fuseline.artifact.archive import Archive
from fuseline.artifact.manifest import MANIFEST, SIGNATURE
from fuseline.artifact.signing import Signature, sign_file
from fuseline.cli import main
from fuseline.errors import ArtifactError, LoadError
from tests.artifact.mutate import Good
from tests.artifact.small import make, shared

Print = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def crypto() -> Any:
    """The package, which is an extra; `make setup` installs it."""
    pytest.importorskip("cryptography", reason="signing needs the package cryptography")
    return importlib.import_module("cryptography.hazmat.primitives")


class Keys:
    """A pair of PEM files."""

    def __init__(self, crypto: Any, folder: Path, name: str, password: bytes | None = None) -> None:
        serialization: Any = importlib.import_module(f"{crypto.__name__}.serialization")
        ed25519: Any = importlib.import_module(f"{crypto.__name__}.asymmetric.ed25519")
        key = ed25519.Ed25519PrivateKey.generate()
        pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        hidden = serialization.NoEncryption()
        if password is not None:
            hidden = serialization.BestAvailableEncryption(password)
        self.private, self.public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
        self.private.write_bytes(key.private_bytes(pem, form, hidden))
        public_form = serialization.PublicFormat.SubjectPublicKeyInfo
        self.public.write_bytes(key.public_key().public_bytes(pem, public_form))


@pytest.fixture
def keys(crypto: Any, tmp_path: Path) -> Keys:
    return Keys(crypto, tmp_path, "mine")


@pytest.fixture
def signed(keys: Keys, tmp_path: Path) -> Path:
    path = tmp_path / "signed.fuse"
    shutil.copy(shared(), path)
    sign_file(path, keys.private)
    return path


def test_a_signed_file_is_loaded(signed: Path, keys: Keys) -> None:
    model = fuseline.load(signed, verify_key=keys.public)
    assert model(torch.ones(2, 16))["y"].shape == (2, 16)
    assert fuseline.load(signed)(torch.ones(2, 16))["y"].shape == (2, 16)


def test_signing_changes_nothing_else_and_is_reproducible(
    signed: Path, keys: Keys, tmp_path: Path
) -> None:
    before, after = Archive.open(shared()), Archive.open(signed)
    assert after.names == [*before.names, SIGNATURE]
    assert all(before.read(name) == after.read(name) for name in before.names)
    data = signed.read_bytes()
    assert sign_file(signed, keys.private).startswith("sha256:")
    assert signed.read_bytes() == data


def test_an_unsigned_file_is_refused(keys: Keys) -> None:
    with pytest.raises(ArtifactError, match="FL1111.*found no signature"):
        fuseline.load(shared(), verify_key=keys.public)


def test_another_key_is_refused(crypto: Any, signed: Path, tmp_path: Path) -> None:
    other = Keys(crypto, tmp_path, "other")
    with pytest.raises(ArtifactError, match="FL1111.*a signature by sha256:.*one by sha256:"):
        fuseline.load(signed, verify_key=other.public)


def test_a_signature_of_another_file_is_refused(signed: Path, keys: Keys, tmp_path: Path) -> None:
    """Its manifest is another: the members are those that this one says."""
    good = Good(make(tmp_path / "other.fuse", licence="another"))
    good.members[SIGNATURE] = Archive.open(signed).read(SIGNATURE)
    path = tmp_path / "mixed.fuse"
    path.write_bytes(resigned(good, good.members[SIGNATURE]))
    with pytest.raises(ArtifactError, match="FL1111.*a signature of another manifest"):
        fuseline.load(path, verify_key=keys.public)


def resigned(good: Good, signature: bytes, manifest: Any = None) -> bytes:
    """A file whose manifest is another, with a signature behind it."""
    import io

    from fuseline.artifact.archive import PAGE, Writer

    out = io.BytesIO()
    writer = Writer(out)
    for name, data in good.members.items():
        if name not in (MANIFEST, SIGNATURE):
            writer.add_bytes(name, data, PAGE if name == "weights.safetensors" else 0)
    text = good.members[MANIFEST] if manifest is None else json.dumps(manifest).encode()
    writer.add_bytes(MANIFEST, text)
    writer.add_bytes(SIGNATURE, signature)
    writer.end()
    return out.getvalue()


def test_every_member_is_covered(signed: Path, keys: Keys, tmp_path: Path) -> None:
    """One bit of each is another, weights included, of which loading reads no digest otherwise."""
    archive, data = Archive.open(signed), signed.read_bytes()
    path = tmp_path / "changed.fuse"
    for name in archive.names:
        at = data.index(archive.read(name)) + archive.size(name) // 2
        path.unlink(missing_ok=True)
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(ArtifactError, match="FL1102|FL1103|FL1111"):
            fuseline.load(path, verify_key=keys.public)


def test_no_byte_of_the_file_may_change(signed: Path, keys: Keys, tmp_path: Path) -> None:
    """What no member has, headers and padding, is refused, or says nothing that is used."""
    data = signed.read_bytes()
    inside = bytearray(len(data))
    archive = Archive.open(signed)
    for name in archive.names:
        if member := archive.read(name):
            at = data.index(member)
            inside[at : at + len(member)] = b"\1" * len(member)
    path = tmp_path / "changed.fuse"
    outside = [at for at in range(len(data)) if not inside[at]]
    taken = 0
    for at in outside[:: max(1, len(outside) // 300)]:
        path.unlink(missing_ok=True)
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        try:
            found = signing.verified(Archive.open(path), keys.public)
        except ArtifactError:
            continue
        taken += 1
        assert found == signing.verified(archive, keys.public)
    assert taken < 60, "the versions and attributes in headers of a zip tell us nothing"


def test_weights_beside_are_covered(keys: Keys, tmp_path: Path) -> None:
    path = make(tmp_path / "model.fuse", embed_weights=False)
    sign_file(path, keys.private)
    assert fuseline.load(path, verify_key=keys.public)(torch.ones(2, 16))["y"].shape == (2, 16)
    (weights,) = tmp_path.glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ArtifactError, match="FL1103.*safetensors"):
        fuseline.load(path, verify_key=keys.public)
    weights.write_bytes(data[:-1])
    with pytest.raises(ArtifactError, match="FL1102.*bytes in the place of"):
        fuseline.load(path, verify_key=keys.public)
    weights.unlink()
    with pytest.raises(ArtifactError, match="FL1101"):
        fuseline.load(path, verify_key=keys.public)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"algorithm": "rsa"}, "algorithm"),
        ({"public": "ab" * 31}, "has no 32 bytes"),
        ({"signature": "AB" * 64}, "has no 64 bytes"),
        ({"more": 1}, "'more'"),
        ({"is": "Manifest"}, "not a Signature"),
        ({"public": "x" * 5000}, "too large"),
    ],
)
def test_signatures_that_are_none(
    change: dict[str, object], said: str, signed: Path, keys: Keys, tmp_path: Path
) -> None:
    good = Good(signed)
    member = json.dumps(json.loads(good.members[SIGNATURE]) | change).encode()
    path = tmp_path / "odd.fuse"
    path.write_bytes(resigned(good, member))
    with pytest.raises(ArtifactError, match=f"FL1102.*{said}"):
        fuseline.load(path, verify_key=keys.public)


def test_keys_that_cannot_be_used(crypto: Any, signed: Path, keys: Keys, tmp_path: Path) -> None:
    rsa: Any = importlib.import_module(f"{crypto.__name__}.asymmetric.x25519")
    serialization: Any = importlib.import_module(f"{crypto.__name__}.serialization")
    other = tmp_path / "x25519.pem"
    public = rsa.X25519PrivateKey.generate().public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    other.write_bytes(public.public_bytes(serialization.Encoding.PEM, form))
    cut = tmp_path / "cut.pem"
    cut.write_text("-----BEGIN PUBLIC KEY-----\nMCow")
    for path, said in (
        (tmp_path / "none.pem", "No such file"),
        (tmp_path, "Is a directory"),
        (signed, "no PEM file"),
        (keys.private, "found a private key, expected a public key"),
        (other, "a key of another algorithm"),
        (cut, "found no key"),
    ):
        with pytest.raises(ArtifactError, match=f"FL1112.*{said}"):
            fuseline.load(signed, verify_key=path)
    locked = Keys(crypto, tmp_path, "locked", b"secret")
    for path, said in ((locked.private, "a key with a password"), (keys.public, "a public key")):
        with pytest.raises(ArtifactError, match=f"FL1112.*{said}"):
            sign_file(signed, path)


def test_a_damaged_file_is_not_signed(keys: Keys, tmp_path: Path) -> None:
    path = tmp_path / "changed.fuse"
    data = bytearray(shared().read_bytes())
    data[data.index(Archive.open(shared()).read("weights.safetensors")) + 500] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="FL1103"):
        sign_file(path, keys.private)
    assert path.read_bytes() == data


def test_without_the_package(signed: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(signing.importlib, "import_module", absent)
    with pytest.raises(LoadError, match=r"FL0802 missing package cryptography.*fuseline\[sign\]"):
        signing.verified(Archive.open(signed), keys.public)
    found = Signature.of(Archive.open(signed))
    assert found is not None, "what a file says of its signature is read without it"


def test_inspect_shows_and_checks_the_signature(
    crypto: Any, signed: Path, keys: Keys, tmp_path: Path, capsys: Print
) -> None:
    found = Signature.of(Archive.open(signed))
    assert found is not None
    assert main(["inspect", str(signed)]) == 0
    shown = capsys.readouterr().out
    assert f"ed25519, key {found.fingerprint}, not checked" in shown
    assert main(["inspect", str(signed), "--verify-key", str(keys.public)]) == 0
    assert f"ed25519, key {found.fingerprint}, checked" in capsys.readouterr().out
    other = Keys(crypto, tmp_path, "other")
    assert main(["inspect", str(signed), "--verify-key", str(other.public)]) == 1
    assert "FL1111" in capsys.readouterr().err
    assert main(["inspect", str(shared()), "--verify-key", str(keys.public), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "FL1111"
