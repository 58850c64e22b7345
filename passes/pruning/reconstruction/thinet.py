"""``thinet``: one channel after another goes, each time the one whose loss changes the next layers' outputs least.

With the contributions ``Z_c`` of the channels that went so far, and what earlier pruning has changed, the squared
change of the outputs is known for each further channel from sums of products.

Method: Luo, Wu, Lin, "ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression", ICCV 2017; all
weights are fitted again afterwards, not one factor for each channel.
"""

from __future__ import annotations

import numpy as np

from .registry import Mask, Selection, register_reconstruction


@register_reconstruction("thinet")
def thinet(task: Selection) -> Mask:
    """See the module."""
    inner, outer = task.products
    left = task.there.copy()
    rest = outer - inner[:, task.there].sum(1)  # of each channel with what the outputs lack
    while left.sum() > task.count:
        costs = np.where(left, np.diag(inner) + 2 * rest, np.inf)
        gone = int(costs.argmin())
        left[gone] = False
        rest = rest + inner[:, gone]
    return left
