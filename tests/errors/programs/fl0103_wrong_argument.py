"""An option on the command line that is not NAME=VALUE."""

from argparse import Namespace
from pathlib import Path

from fuseline.cli.arguments import options


def program(tmp: Path) -> None:
    del tmp
    options(Namespace(set=["verify"]))
