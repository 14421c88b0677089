"""Save packed models atomically, and verify them on load."""

import contextlib
import functools
import inspect
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import AutoModel, ConfigMixin, DiffusionPipeline
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from modelopt_nb.upstream.layers import has_packed_layers
from modelopt_nb.upstream.repairs.atomic_save.atomic_folder import atomic_folder, load_whole, manifests
from modelopt_nb.upstream.repairs.atomic_save.manifest import (
    HUB,
    CheckpointError,
    verify,
    verify_cached_config,
    verify_config,
    write_manifest,
)
from modelopt_nb.upstream.repairs.base import Patch, Repair
from modelopt_nb.upstream.repairs.pack_while_loading.described import check_described, says_packed
from modelopt_nb.upstream.repairs.pack_while_loading.diffusers_quantizer import DiffusersQuantizer
from modelopt_nb.upstream.repairs.pack_while_loading.repair import model_classes


class AtomicSave(Repair):
    """Make ``save_pretrained`` of a packed model or pipeline atomic, with a manifest that loading verifies.

    A dense model is saved and loaded as upstream does, unless it replaces a packed one.
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

        bases = [DiffusionPipeline, *(model_class for model_class, _ in model_classes())]
        saves: list[Patch] = [(b, "save_pretrained", _atomic(vars(b)["save_pretrained"])) for b in bases]
        automatic = [AutoModel]
        if len(bases) > 2:
            from transformers.models.auto.auto_factory import _BaseAutoModelClass

            automatic.append(_BaseAutoModelClass)
        loaders = [(b, vars(b)["from_pretrained"].__func__) for b in (*bases, *automatic)]
        loads: list[Patch] = [(b, "from_pretrained", classmethod(_whole(original))) for b, original in loaders]
        return [*saves, *loads, (ModelMixin, "_load_pretrained_model", classmethod(verified))]


def _atomic(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def save_pretrained(model: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        is_pipeline = isinstance(model, DiffusionPipeline)
        parts = model.components if is_pipeline else {type(model).__name__: model}
        packed = {name: part for name, part in parts.items() if has_packed_layers(part) or says_packed(part)}
        if not packed and not manifests(Path(save_directory)):
            return original(model, save_directory, *args, **kwargs)
        for name, part in packed.items():
            check_described(name, part)
        given = signature.bind(model, save_directory, *args, **kwargs).arguments
        if not given.get("is_main_process", kwargs.get("is_main_process", True)):
            return None  # the main process writes all files
        push = kwargs.pop("push_to_hub", False)
        hub = {n: kwargs.pop(n) for n in ("commit_message", "private", "token", "create_pr") if n in kwargs}
        repo = kwargs.pop("repo_id", Path(save_directory).name)
        with atomic_folder(save_directory) as folder:
            original(model, str(folder), *args, **kwargs)
            if packed and not is_pipeline:
                write_manifest(folder, type(model).__name__)
        return model.push_to_hub(repo, **hub) if push else None

    return save_pretrained


def _whole(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
        names = "pretrained_model_name_or_path", "pretrained_model_or_path"
        source = next((x for x in (*args[:1], *map(kwargs.get, names)) if x is not None), None)
        hub = {n: kwargs[n] for n in ("token", "local_files_only") if kwargs.get(n) is not None}
        token = HUB.set({**(HUB.get() or {}), **hub})
        try:
            if not isinstance(source, (str, os.PathLike)) or not os.path.isdir(source):
                try:
                    return original(cls, *args, **kwargs)
                except Exception as error:
                    if not isinstance(error, CheckpointError) and isinstance(source, str):
                        verify_cached_config(source, kwargs)  # which would explain it better
                    raise
            folder = Path(source, kwargs.get("subfolder") or "")
            return load_whole(folder, lambda: verify_config(folder) or original(cls, *args, **kwargs))
        finally:
            HUB.reset(token)

    return from_pretrained
