"""What a campaign starts to see that it tells of failures; it imports nothing, as it is spawned."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any


def work(base: Path, seed: int, numbers: range, pipe: Any) -> None:
    """Fail at file 1 by an exception, at 2 by a crash, and at 4 by no end."""
    del base, seed
    pipe.send((-1, "", "", True, 0, 0))
    for number in numbers:
        if number == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 4:
            time.sleep(1000)
        fine = number != 1
        pipe.send((number, "kind", "loaded" if fine else "KeyError: #", fine, 0, 0))
    pipe.send((-2, "", "", True, 1, 1))
    pipe.close()
