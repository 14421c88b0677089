"""Save packed models atomically, and verify them on load."""

import contextlib
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import ConfigMixin, DiffusionPipeline
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from modelopt_nb.upstream.layers import has_packed_layers
from modelopt_nb.upstream.packed_weights import packed_dtype
from modelopt_nb.upstream.repairs.atomic_save.atomic_folder import atomic_folder
from modelopt_nb.upstream.repairs.atomic_save.manifest import verify, write_manifest
from modelopt_nb.upstream.repairs.base import Patch, Repair
from modelopt_nb.upstream.repairs.pack_while_loading.diffusers_quantizer import DiffusersQuantizer
from modelopt_nb.upstream.repairs.pack_while_loading.repair import model_classes


class AtomicSave(Repair):
    """Make ``save_pretrained`` of a packed model or pipeline atomic, with a manifest that loading verifies.

    A dense model is saved and loaded as upstream does.
    """

    name = "atomic-save"
    broken = (
        "save_pretrained writes into the folder file by file: a process killed meanwhile leaves a mixture that loads"
    )
    versions = "diffusers 0.42.1 and transformers 5.14, and earlier"
    issue = "not reported upstream; diffusers/models/modeling_utils.py, ModelMixin.save_pretrained"

    def needed(self) -> bool:
        class Interrupted(ModelMixin, ConfigMixin):
            config_name = "config.json"

            def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
                raise InterruptedError

        with tempfile.TemporaryDirectory() as folder:
            with contextlib.suppress(InterruptedError):
                Interrupted().save_pretrained(folder)
            return any(Path(folder).iterdir())

    def patches(self) -> list[Patch]:
        load = vars(ModelMixin)["_load_pretrained_model"].__func__

        @functools.wraps(load)
        def verified(cls: type, model: nn.Module, state_dict: Any, files: list[str], *args: Any, **kwargs: Any) -> Any:
            if not isinstance(kwargs.get("hf_quantizer"), DiffusersQuantizer):  # which has verified it by now
                verify(files, type(model).__name__)
            return load(cls, model, state_dict, files, *args, **kwargs)

        owners = [DiffusionPipeline, *(model_class for model_class, _ in model_classes())]
        saves: list[Patch] = [(o, "save_pretrained", _atomic(vars(o)["save_pretrained"])) for o in owners]
        return [*saves, (ModelMixin, "_load_pretrained_model", classmethod(verified))]


def _atomic(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def save_pretrained(model: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        is_pipeline = isinstance(model, DiffusionPipeline)
        if not any(has_packed_layers(part) for part in (model.components.values() if is_pipeline else [model])):
            return original(model, save_directory, *args, **kwargs)
        if not is_pipeline and (quantizer := getattr(model, "hf_quantizer", None)):
            quantizer.quantization_config.packed_dtype = packed_dtype(model)  # casts may have changed it
        push = kwargs.pop("push_to_hub", False)
        names = ("commit_message", "private", "token", "create_pr")
        hub = {name: kwargs.pop(name) for name in names if name in kwargs}
        repo = kwargs.pop("repo_id", Path(save_directory).name)
        with atomic_folder(save_directory) as folder:
            original(model, str(folder), *args, **kwargs)
            if not is_pipeline:
                write_manifest(folder, type(model).__name__)
        return model.push_to_hub(repo, **hub) if push else None

    return save_pretrained
