"""``python -m textenv.agents`` is the command ``textenv``."""

from __future__ import annotations

import sys

from textenv.agents.cli import main

sys.exit(main())
