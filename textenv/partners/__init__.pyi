from .partner import Partner, Reply
from .registry import describe, make_partner, partner_names, register_partner

__all__ = [
    "Partner",
    "Reply",
    "describe",
    "make_partner",
    "partner_names",
    "register_partner",
]
