"""Ways to compute layers, one family a file. Importing this package registers all of them."""

from . import narrow, packed  # registers ways
from .registry import WAYS, LayerWay, WriteLayers, register_way
