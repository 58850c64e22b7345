"""How many of PyTorch's operators give the right numbers for their samples.

    python -m tersor.tests.frontend.count_operators

Left out, as in `test_op_samples`, are those that draw random numbers, and of the others those of linear algebra and of
sparse tensors, unless ``--all`` is given.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter

from .refused_operators import REFUSED
from .test_op_samples import OPERATORS, converted, samples

_OUT_OF_SCOPE = ("linear algebra", "sparse", "random", "kernels of GPUs")


def verdict(name: str) -> str:
    """``right``, ``partly``, ``refused`` or ``wrong``: of the samples of an operator, by the reference interpreter."""
    try:
        found = [converted(OPERATORS[name], sample) is not None for sample in samples(OPERATORS[name])]
    except AssertionError:
        return "wrong"
    return "right" if all(found) else "partly" if any(found) else "refused"


def main() -> None:
    """Print the counts, and the names of those that are not right."""
    warnings.simplefilter("ignore")
    whole = "--all" in sys.argv[1:]
    names = [name for name in OPERATORS if whole or not REFUSED.get(name, "").startswith(_OUT_OF_SCOPE)]
    verdicts = {name: verdict(name) for name in names}
    counts = Counter(verdicts.values())
    share = counts["right"] / len(names)
    print(
        ", ".join(f"{count} {what}" for what, count in counts.items()), f"of {len(names)} operators: {share:.1%} right"
    )
    for what in ("wrong", "partly", "refused"):
        print(f"{what}:", *(name for name, found in verdicts.items() if found == what))


if __name__ == "__main__":
    main()
