"""There is no way to the driver."""

from pathlib import Path
from unittest import mock

from fuseline.runtime.gpu import driver


def program(tmp: Path) -> None:
    with mock.patch.object(driver, "has_bindings", return_value=False):
        driver.driver.__wrapped__()
