"""Names for values whose types are others' affair, by where they come from; mypy takes them as they are used.

TVM has no annotations either: its classes are named where they occur, as in `tvm.IRModule`.
"""

from typing import Any

Json = Any  # what `json` reads and writes
Annotation = Any  # the type of a field, as `typing.get_type_hints` gives it: a class, a union, a generic
Instance = Any  # what an annotation describes, made of JSON or of text
UserObject = Any  # a model, inputs, a batch or a result, of whatever class the user has
Array = Any  # a torch tensor, a NumPy array, or anything with ``__dlpack__``
