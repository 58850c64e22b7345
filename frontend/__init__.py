"""PyTorch and ONNX models in, trainable modules out; and `load_model` for the command line."""

from .errors import Operator, UnsupportedError
from .export import Arguments, in_eval_mode, split_inputs
from .from_onnx import from_onnx
from .from_torch import from_torch
from .load import LoadedModel, load_model, load_onnx
from .save import check_module_path, save_module
from .to_onnx import to_onnx
from .to_torch import GraphModule, to_torch
