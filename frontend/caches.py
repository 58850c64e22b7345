"""Key-value caches of `transformers`: what they hold becomes inputs and outputs, as with other classes."""

from __future__ import annotations

import sys

from ..ir.foreign import UserObject


def register_caches(module: UserObject) -> None:
    """Let PyTorch look into the caches that a model of `transformers` may take or return.

    The package has the functions for this, but calls them in its own exporters only. Other models are left alone, and
    the package is not imported for them.
    """
    transformers = sys.modules.get("transformers")
    if transformers is None or not any(isinstance(part, transformers.PreTrainedModel) for part in module.modules()):
        return
    try:
        from transformers.integrations.executorch import register_dynamic_cache_export_support
    except ImportError:  # a version that has none
        return
    register_dynamic_cache_export_support()
    try:
        from transformers.exporters.exporter_dynamo import register_cache_pytrees_for_model
    except ImportError:  # this came later
        return
    register_cache_pytrees_for_model(module)
