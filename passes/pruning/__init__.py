"""Channel pruning: which channels go together, how important they are, which stay, and removing the others.

Importing this package registers its passes and criteria.
"""

from . import prune, prune_blocks, reestimate_batchnorm  # registers passes
from .criteria import Criterion, Scoring, register_criterion
from .groups import ChannelGroup, ChannelMap, ChannelPlace, Layer, find_channels
