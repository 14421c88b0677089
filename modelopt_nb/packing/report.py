"""Report what was packed, what stayed dense and why, and the bytes."""

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from modelopt_nb.config.activations import ACTIVATION_SCALES
from modelopt_nb.config.config import ModelOptConfig
from modelopt_nb.memory.weight_bytes import WeightBytes, stored_dtype, tensor_bytes, weight_bytes
from modelopt_nb.packing.plan import LayerPlan, Plan
from modelopt_nb.upstream.layers import is_packed

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Report:
    """What :func:`modelopt_nb.quantize` did: every quantizable layer, and the model's bytes before and after.

    ``precision`` says what weights and activations are rounded to, such as ``"W8A8 static tensor"``. A packed layer
    multiplies in the model's dtype, unless ModelOpt has a low-precision product for it on CUDA.
    """

    quant_type: str
    layers: tuple[LayerPlan, ...]
    before: WeightBytes
    after: WeightBytes
    precision: str

    @classmethod
    def measure(cls, model: nn.Module, config: ModelOptConfig, plan: Plan) -> "Report":
        """Measure a model that was packed as ``plan`` says. Raises RuntimeError if it was not."""
        after, layers = weight_bytes(model), tuple(_measured(model, layer) for layer in plan.layers)
        dense = Counter(after.by_dtype)
        for name, tensor in model.named_buffers():
            dense[stored_dtype(tensor)] -= tensor_bytes(tensor) if "_quantizer." in name else 0  # scales
        for layer in (x for x in layers if x.packed):
            weight: Any = model.get_submodule(layer.name).weight
            dense[stored_dtype(weight)] -= tensor_bytes(weight)
            dense[layer.dtype] += layer.dense_bytes
        before = WeightBytes({dtype: size for dtype, size in dense.items() if size}, after.weights)
        quant_type = "per layer" if config.per_layer else config.quant_type
        return cls(quant_type, layers, before, after, _precision(config, plan))

    @property
    def packed(self) -> tuple[LayerPlan, ...]:
        """The layers that were packed."""
        return tuple(x for x in self.layers if x.packed)

    @property
    def frame(self) -> "pd.DataFrame":
        """A row per layer: kind, shape, packed, reason if not, bytes before and after."""
        import pandas as pd

        fields = {"name": "layer", "dense_bytes": "bytes before", "packed_bytes": "bytes after"}
        frame = pd.DataFrame([vars(x) for x in self.layers]).rename(columns=fields).set_index("layer")
        return frame[["kind", "shape", "packed", "reason", "bytes before", "bytes after"]]

    @property
    def packed_of_bf16(self) -> float:
        """Bytes of the packed layers' weights, scales included, over their bytes in bfloat16."""
        return sum(x.packed_bytes for x in self.packed) / (2 * sum(math.prod(x.shape) for x in self.packed))

    def __str__(self) -> str:
        text = f"{self.quant_type} ({self.precision}): packed {len(self.packed)} of {len(self.layers)} layers, "
        text += (
            f"{self.before.mib:.2f} MiB -> {self.after.mib:.2f} MiB ({self.after.bits_per_weight:.2f} bits per weight)"
        )
        for reason in dict.fromkeys(x.reason for x in self.layers if x.reason):
            names = [x.name for x in self.layers if x.reason == reason]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            text += f"\n  dense: {', '.join(names[:3])}{more}: {reason}"
        return text


def _measured(model: nn.Module, layer: LayerPlan) -> LayerPlan:
    module: Any = model.get_submodule(layer.name)
    if is_packed(module) != layer.packed:
        raise RuntimeError(f"ModelOpt {'did not pack' if layer.packed else 'packed'} {layer.name}, against the plan")
    tensors = [module.weight, *module.weight_quantizer.buffers()] if layer.packed else [module.weight]
    return replace(layer, packed_bytes=sum(map(tensor_bytes, tensors)))


def _precision(config: ModelOptConfig, plan: Plan) -> str:
    bits = sorted({layout.type.bits for layout in plan.layouts.values()})
    weights = f"W{bits[0]}" if len(bits) == 1 else f"W{bits[0]}-{bits[-1]}"
    if (cfg := config.input_cfg) is None:
        return weights
    width = cfg["num_bits"] if isinstance(cfg["num_bits"], int) else sum(cfg["num_bits"]) + 1
    scale = {k: v for k, v in cfg.items() if k in ("type", "axis", "block_sizes") and v is not None}
    names = (name for name, (linear, _) in ACTIVATION_SCALES.items() if linear == scale)
    return f"{weights}A{width} {next(names, 'dynamic block')}"
