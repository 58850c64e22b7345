"""``lasso``: the channels from which the next layers' outputs can be made with the fewest of them, by LASSO.

Each channel's contribution to the outputs gets a factor: ``|Y - sum_c b_c Z_c|^2 + alpha |b|_1`` is least for factors
of which the more are zero, the larger alpha is. The whole path of solutions from all zeros on is followed (least angle
regression), from sums of products alone, and ends where as many factors as channels are to stay are not zero.

Method: He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, section 3.1; the path
of Efron et al., "Least Angle Regression", 2004, in place of a search for alpha.
"""

from __future__ import annotations

import warnings

import numpy as np

from .registry import Mask, Selection, register_reconstruction, strongest

_LEAST = 1e-12  # of the largest contribution: channels below it do nothing


@register_reconstruction("lasso")
def lasso(task: Selection) -> Mask:
    """See the module."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import lars_path_gram

    inner, outer = task.products
    sizes = np.sqrt(np.diag(inner).clip(min=0))
    alive = np.flatnonzero(task.there & (sizes > _LEAST * max(sizes.max(), 1e-300)))
    scores = np.zeros(task.group.size)
    if len(alive) > task.count:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of channels that others can stand in for: they go
            _, _, path = lars_path_gram(
                Xy=outer[alive], Gram=inner[np.ix_(alive, alive)].copy(), n_samples=1, method="lasso"
            )
        counts = (path != 0).sum(0)
        enough = np.flatnonzero(counts >= task.count)
        factors = path[:, enough[0] if len(enough) else counts.argmax()]
        scores[alive] = np.abs(factors) * sizes[alive]
    else:
        scores[alive] = sizes[alive]
    tie = sizes / max(sizes.max(), 1e-300)  # where the path ends early, large contributions stay
    return strongest(np.where(scores > 0, 2 + scores / max(scores.max(), 1e-300), tie), task)
