"""More tokens than the model has positions."""

from pathlib import Path

from fuseline.cli.generate import run
from fuseline.cli.output import Output
from fuseline.cli.program import parser
from tests.cli.helpers import save_directory


def program(tmp: Path) -> None:
    save_directory(tmp)
    arguments = ["generate", str(tmp), "--prompt", "The sea is", "--tokens", "600"]
    run(parser().parse_args(arguments), Output())
