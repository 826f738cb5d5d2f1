"""Signing with a file that is no key."""

from pathlib import Path

from fuseline.artifact import signing


def program(tmp: Path) -> None:
    (tmp / "key.pem").write_text("my secret\n")
    signing.signed(b"{}", tmp / "key.pem")
