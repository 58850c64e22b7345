"""Low-rank layers: how a weight is factorized, how ranks are chosen, and replacing layers by their factors.

Importing this package registers its pass, methods and rank rules.
"""

from . import low_rank  # registers the pass
from .candidate import Candidate, find_candidates
from .methods import Factorization, register_method
from .ranks import RankRule, register_rank_rule
from .spectrum import Spectrum
