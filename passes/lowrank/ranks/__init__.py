"""Rules for ranks: one a file."""

from . import energy, fixed, macs, sensitivity, vbmf  # registers rules
from .registry import Choice, RankRule, Request, parse_rank_rule, register_rank_rule
