"""What an audit found: `Finding` and `AuditReport`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from textenv.utils.checks import check_choice
from textenv.utils.terminal import text_table

if TYPE_CHECKING:
    from rich.table import Table

SEVERITIES = ("error", "warning", "skipped", "ok")
"""Worst first. An error breaks training or its reproducibility; a warning may be meant."""


@dataclass(frozen=True)
class Finding:
    """The outcome of a check.

    Raises:
        ValueError: if the severity is unknown.
    """

    check: str
    """Name of the check."""
    severity: str
    """One of ``SEVERITIES``."""
    text: str
    """What was found; why, if the check was skipped."""

    def __post_init__(self) -> None:
        check_choice("severity", self.severity, SEVERITIES)


@dataclass
class AuditReport:
    """All findings about one environment, at least one for each check, and what was measured."""

    name: str
    """Of the task."""
    findings: list[Finding] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    """Measured values by name: JSON values. Latencies are in milliseconds."""

    def of(self, severity: str) -> list[Finding]:
        """The findings of a severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.of("error")

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        found = [{"check": f.check, "severity": f.severity, "text": f.text} for f in self.findings]
        return {"task": self.name, "ok": self.ok, "findings": found, "figures": self.figures}

    def table(self) -> Table:
        """One line for each finding, in the order of the checks."""
        rows = [[finding.check, finding.severity, finding.text] for finding in self.findings]
        return text_table(["check", "result", "found"], rows, title=self.name, max_chars=400)

    def __str__(self) -> str:
        return "\n".join(f"{f.check}: {f.severity}: {f.text}" for f in self.findings)
