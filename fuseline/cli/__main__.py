"""``python -m fuseline.cli`` is the same as ``fuseline``."""

import sys

from fuseline.cli.program import main

sys.exit(main())
