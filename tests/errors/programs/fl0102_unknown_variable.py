"""A variable that looks like an option and is none: compiling warns of it once."""

import os
from pathlib import Path

from fuseline.config import warn_of_unknown_variables


def program(tmp: Path) -> None:
    del tmp
    os.environ["FUSELINE_TREADS"] = "2"
    warn_of_unknown_variables.cache_clear()
    warn_of_unknown_variables()
    warn_of_unknown_variables()
