"""PyTorch models in, trainable modules out: `from_torch`, `to_torch`, and `load_model` for the command line."""

from .errors import Operator, UnsupportedError
from .export import Arguments, in_eval_mode, split_inputs
from .from_torch import from_torch
from .load import LoadedModel, load_model
from .to_torch import GraphModule, to_torch
