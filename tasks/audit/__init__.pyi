from .findings import AuditReport, Finding
from .run import CHECKS, audit

__all__ = ["CHECKS", "AuditReport", "Finding", "audit"]
