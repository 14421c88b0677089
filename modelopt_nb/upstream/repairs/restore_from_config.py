"""Restore a packed checkpoint from its configuration, not from a pickle."""

import contextlib
import functools
import inspect
import json
from pathlib import Path
from typing import Any

from diffusers import NVIDIAModelOptConfig
from modelopt.torch.opt.plugins import diffusers as plugin
from modelopt.torch.quantization.qtensor import QTensorWrapper

from modelopt_nb.upstream.repairs.base import Patch, Repair


class RestoreFromConfig(Repair):
    """Ignore ``modelopt_state.pth`` if config.json holds a ModelOpt configuration.

    ModelOpt's ``enable_huggingface_checkpointing`` would restore that file into the model first.
    """

    name = "restore-from-config"
    broken = "in the low-memory path a restored QTensorWrapper is rebuilt with requires_grad, which it does not take"
    versions = "nvidia-modelopt 0.47.0 and earlier with diffusers 0.42.1"
    issue = "not reported upstream; modelopt/torch/quantization/qtensor/base_qtensor.py, QTensorWrapper.__new__"

    def needed(self) -> bool:
        return "requires_grad" not in inspect.signature(QTensorWrapper.__new__).parameters

    def patches(self) -> list[Patch]:
        original = plugin._patch_model_init_for_modelopt

        @functools.wraps(original)
        def patch(cls: type, model_path: Any, *args: Any, **kwargs: Any) -> Any:
            if _has_modelopt_config(Path(model_path)):
                return contextlib.nullcontext()
            return original(cls, model_path, *args, **kwargs)

        return [
            (plugin, "_patch_model_init_for_modelopt", patch),
            # warns wherever ModelOpt's pickles are not switched on, and nothing here needs them
            (NVIDIAModelOptConfig, "check_model_patching", lambda self, operation="loading": None),
        ]


def _has_modelopt_config(folder: Path) -> bool:
    try:
        saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (saved.get("quantization_config") or {}).get("quant_method") == "modelopt"
