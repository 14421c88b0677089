"""Pack the layers of a model while its weights arrive, whichever library reads them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modelopt_nb.config.config import ModelOptConfig
from modelopt_nb.packing.calibrate import calibrate, check_algorithm
from modelopt_nb.packing.plan import plan
from modelopt_nb.packing.report import Report
from modelopt_nb.upstream import packed_weights
from modelopt_nb.upstream.layers import make_linear
from modelopt_nb.upstream.quantizers import insert_quantizers
from modelopt_nb.upstream.repairs.atomic_save.manifest import tensor_shapes, verify, verify_tensors
from modelopt_nb.upstream.repairs.pack_while_loading.dtypes import main_dtype, stored_dtypes


class Packer:
    """Pack one model, layer by layer: the whole dense model is never in memory.

    With a forward loop the layers wait and are packed together, after one calibration of the whole dense model.
    """

    plan_of = staticmethod(plan)

    def __init__(self, config: ModelOptConfig, model: nn.Module, files: Sequence[Path], pre_quantized: bool) -> None:
        if pre_quantized:
            verify(files, type(model).__name__)
        else:
            check_algorithm(config, config.forward_loop)
        self.config, self.model, self.pre_quantized = config, model, pre_quantized
        self.dtypes = stored_dtypes(files) if pre_quantized else {}
        self.plan = plan(model, config, self.dtypes)
        self.metadata: dict[str, dict[str, Any]] = {}
        for name in self.plan.pointwise:
            make_linear(model, name)
        insert_quantizers(model, self.plan.entries, config.algorithm)

    def is_packed_weight(self, name: str) -> bool:
        """Return whether a parameter is the weight of a layer to be packed."""
        layer, _, tensor = name.rpartition(".")
        return tensor == "weight" and layer in self.plan.layouts

    def keeps_dtype(self, name: str) -> bool:
        """Return whether a tensor of a checkpoint stays in its dtype: all do, unless another dtype is asked for."""
        exact = ("._amax", *(f"weight_quantizer.{scale}" for scale in packed_weights.SCALES))
        return self.as_saved or name.endswith(exact) or self.is_packed_weight(name)

    def expect(self, files: Sequence[Path], names: Sequence[str] = ()) -> None:
        """Prepare for the tensors of a packed checkpoint, by ``names`` and, in safetensors, by their descriptions."""
        if self.config.algorithm["method"] == "svdquant":
            packed_weights.expect_low_rank(self.model)
        shapes, saved, dtypes = tensor_shapes(files), self.config.packed_dtype, self.dtypes
        packed = [x for x in self.plan.layers if x.packed]
        main = main_dtype({x.name: x.dtype for x in packed})
        self.as_saved = bool(saved) and main == main_dtype(saved)
        by_layer = saved if self.as_saved and isinstance(saved, dict) else {}
        for x in packed:
            if x.layout is not None:
                layer: Any = self.model.get_submodule(x.name)
                layer._parameters["weight"] = nn.Parameter(layer.weight.reshape(x.shape), requires_grad=False)
                scales = (dtypes.get(f"{x.name}.weight_quantizer.{name}") for name, *_ in x.layout.type.scales)
                tensors = x.layout.tensors(x.shape, x.dtype, next(filter(None, scales), None))
                dtype = getattr(torch, by_layer.get(x.name, x.dtype))
                metadata = packed_weights.expect_packed(layer, x.layout.type.qtensor, tensors, dtype)
                self.metadata[x.name] = metadata
        for name, shape in (dict.fromkeys(names, ()) | shapes).items():
            owner, _, tensor = name.rpartition(".")
            if owner.endswith("input_quantizer") or tensor in packed_weights.LOW_RANK:  # what calibration found
                empty = torch.empty(tuple(shape), dtype=getattr(torch, dtypes.get(name) or main), device="meta")
                self.model.get_submodule(owner).register_buffer(tensor, empty)
        if names:
            verify_tensors(files, self.model.state_dict(), {f"{name}.weight" for name in self.plan.layouts})
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if dtypes.get(name) and (self.keeps_dtype(name) or "_quantizer." in name):
                dtype = dtypes[name] if self.keeps_dtype(name) else main
                tensor.data = tensor.data.to(getattr(torch, dtype))

    def pack(self, name: str, weight: torch.Tensor) -> None:
        """Pack a weight that has arrived, unless a forward loop will calibrate the whole model."""
        name = name.rpartition(".")[0]
        layer = self.model.get_submodule(name)
        weight = weight.flatten(1) if name in self.plan.pointwise else weight
        layer._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
        if self.config.forward_loop is None:
            packed_weights.pack_layer(layer, self.config.algorithm)

    def finish(self) -> Report:
        """Calibrate and pack layers that wait for the forward loop, mark the model as packed, and return its report."""
        _align(self.model)
        for name, metadata in self.metadata.items():
            packed_weights.wrap_packed(self.model.get_submodule(name), metadata, self.plan.layouts[name].type.stored)
        if not self.pre_quantized and self.config.forward_loop is not None:
            calibrate(self.model, self.config, self.plan, self.config.forward_loop)
        packed_weights.finish_packing(self.model)
        self.config.packed_dtype, self.config.forward_loop = packed_weights.packed_dtype(self.model), None
        return Report.measure(self.model, self.config, self.plan)


def _align(model: nn.Module) -> None:
    """Copy tensors that lie unaligned in the mapped checkpoint file, where some CPU kernels round differently."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()
