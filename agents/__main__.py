"""``python -m textenv.agents`` is the command ``textenv``."""

from __future__ import annotations

import sys

from textenv.agents.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
