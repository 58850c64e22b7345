# ruff: noqa: F403 (a new op is defined in its file, and named nowhere else)
"""The ops, one definition each, grouped by what they do.

Importing this package defines them all; `Op.kinds` lists them by name. To add an op, write its class in the file it
belongs to, give it its operands, attribute record, type rule, reference evaluation, cost and traits, and nothing else
in the IR needs to know it. See docs/architecture.md.
"""

from .activation import *
from .arithmetic import *
from .constant import *
from .convolution import *
from .data_movement import *
from .distance import *
from .fused import *
from .layer import *
from .lookup import *
from .matmul import *
from .normalization import *
from .order import *
from .packed import *
from .pooling import *
from .product import *
from .quantization import *
from .recurrent import *
from .reduction import *
from .resizing import *
from .special import *
