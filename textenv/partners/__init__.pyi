from .partner import Partner, Reply
from .registry import describe, make_partner, partner_names, register_partner
from .tool_schemas import register_tool
from .tools import ToolsPartner

__all__ = [
    "Partner",
    "Reply",
    "ToolsPartner",
    "describe",
    "make_partner",
    "partner_names",
    "register_partner",
    "register_tool",
]
