"""Settings of agents on the task "calculator": what ``Task.settings`` gives for them."""

from __future__ import annotations

from typing import Any

SETTINGS: dict[str, dict[str, Any]] = {}
"""Agent -> what ``Task.settings`` gives."""
