"""It is done to the model: decide layer by layer, quantize, pack, and report."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import fnmatch
import math
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from modelopt_nb import upstream
from modelopt_nb.calibration import run_checked
from modelopt_nb.config import QUANT_TYPES, WeightSpec, make_config, names_layer, precision
from modelopt_nb.memory import MIB, WeightBytes, stored_dtype, weight_bytes

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch
    from diffusers import NVIDIAModelOptConfig
    from torch import nn


@dataclass(frozen=True)
class LayerPlan:
    """What becomes of one layer: ``reason`` says why it stays dense and is empty where it is packed.

    ``kind`` is the class of the layer, ``dtype`` that of its dense weight, ``before`` and ``after`` are the bytes of its
    weight, scales included, ``spec`` is how it is packed.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    reason: str
    dense_bytes: int
    packed_bytes: int
    layout: WeightSpec | None = None

    @property
    def packed(self) -> bool:
        return not self.reason

    @property
    def as_linear(self) -> bool:
        """Whether it is a pointwise convolution that is packed as the linear layer that it is."""
        return self.packed and self.kind.startswith("Conv") and len(self.shape) == 2


@dataclass(frozen=True)
class Report:
    """What :func:`quantize` did: every quantizable layer, and the model's bytes before and after.

    ``precision`` says what weights, and activations where they are, are rounded to, such as ``"W8A8 static tensor"``. It is what
    they are rounded to, not what is computed with: a packed layer dequantizes its weight, and its product is taken in the
    model's dtype, unless ModelOpt has a low-precision product for that layer on CUDA.
    """

    quant_type: str
    layers: tuple[LayerPlan, ...]
    before: WeightBytes
    after: WeightBytes
    precision: str

    @property
    def frame(self) -> pd.DataFrame:
        """A row a layer: kind, shape, packed, reason where not, bytes before and after."""
        import pandas as pd

        columns = ["layer", "kind", "shape", "packed", "reason", "bytes before", "bytes after"]
        rows = [(x.name, x.kind, x.shape, x.packed, x.reason, x.dense_bytes, x.packed_bytes) for x in self.layers]
        return pd.DataFrame(rows, columns=columns).set_index("layer")

    @property
    def packed(self) -> tuple[LayerPlan, ...]:
        """The layers that were packed."""
        return tuple(x for x in self.layers if x.packed)

    @property
    def packed_of_bf16(self) -> float:
        """Bytes of the packed layers' weights, scales included, over what they take in bfloat16."""
        return sum(x.packed_bytes for x in self.packed) / (2 * sum(math.prod(x.shape) for x in self.packed))

    @property
    def bytes(self) -> pd.Series:
        """Measured bytes of the packed layers against the arithmetic of their format: weights, scales, double scales."""
        import pandas as pd

        measured = sum(x.packed_bytes for x in self.packed)
        expected = sum(x.layout.packed_bytes(x.shape, x.dtype) for x in self.packed)
        return pd.Series(
            {
                "layers packed": len(self.packed),
                "layers dense": len(self.layers) - len(self.packed),
                "measured bytes": measured,
                "expected bytes": expected,
                "measured/expected": measured / expected,
                "bits per packed weight": 8 * measured / sum(math.prod(x.shape) for x in self.packed),
            }
        )

    def __str__(self) -> str:
        text = (
            f"{self.quant_type} ({self.precision}): packed {len(self.packed)} of {len(self.layers)} layers, {self.before.total / MIB:.2f} MiB -> "
            f"{self.after.total / MIB:.2f} MiB ({self.after.bits_per_weight:.2f} bits a weight)"
        )
        for reason in dict.fromkeys(x.reason for x in self.layers if x.reason):
            names = [x.name for x in self.layers if x.reason == reason]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            text += f"\n  dense: {', '.join(names[:3])}{more}: {reason}"
        return text


class Plan(NamedTuple):
    layers: list[LayerPlan]
    entries: list[dict[str, Any]]


def plan(model: nn.Module, config: NVIDIAModelOptConfig) -> Plan:
    """Decide for every layer of ``model`` whether ``config`` packs it, without touching a weight.

    Where activations are quantized, they are those of the layers that are packed.

    Returns the layers, with the expected bytes, and the ``quant_cfg`` entries that carry the decision out.

    Raises:
        ValueError: Where a name in ``modules_to_not_convert`` fits no layer, or no layer would be packed.
    """
    layers = upstream.quantizable_layers(model)
    if not layers:
        raise ValueError(
            f"model={type(model).__name__} has nothing to quantize. Needed: linear layers or convolutions, not quantized yet"
        )
    done = [name for name, module in layers.items() if upstream.is_packed(module)]
    if done:
        raise ValueError(f"model={type(model).__name__} is quantized already ({done[0]} is packed). Load a dense one")
    modules = {name for name, _ in model.named_modules()}
    excluded = {
        layer: pattern
        for pattern in config.modules_to_not_convert or ()
        for layer in named(model, "modules_to_not_convert", pattern, layers, modules)
    }
    in_fp32 = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    entries = [*config.modelopt_config["quant_cfg"], *_mixed_entries(model, config, layers, modules)]
    decided = [_decide(name, module, entries, excluded.get(name), in_fp32, config) for name, module in layers.items()]
    if not any(layer.packed for layer in decided):
        reasons = "; ".join(sorted({layer.reason for layer in decided}))
        raise ValueError(
            f"quant_type={config.quant_type!r} with channel_quantize={config.channel_quantize} and "
            f"block_quantize={config.block_quantize} would pack no layer of {type(model).__name__}: {reasons}"
        )
    names = [f"{name}.{which}_quantizer" for name in modules for which in ("input", "weight", "output")]
    # each entry costs ModelOpt a walk through the model, and most of what it leaves dense is in no diffusion model
    entries = [
        e for e in entries if e.get("enable", True) or "parent_class" in e or fnmatch.filter(names, e["quantizer_name"])
    ]
    off = [f"{layer.name}.*_quantizer" for layer in decided if not layer.packed]
    if any("cfg" in e and e["quantizer_name"].endswith("input_quantizer") for e in entries):
        off += [f"{name}.input_quantizer" for name in upstream.without_weights(model)]
    packed = [f"{layer.name}.{which}_quantizer" for layer in decided if layer.packed for which in ("input", "weight")]
    return Plan(decided, entries + [{"quantizer_name": x, "enable": False} for x in _of_all_blocks(off, packed)])


def _of_all_blocks(patterns: Iterable[str], spared: list[str]) -> list[str]:
    """Fewer patterns: one for all blocks of a kind, where it means none of the ``spared`` names."""
    wider = {pattern: re.sub(r"(?<=\.)\d+(?=\.)", "*", pattern) for pattern in patterns}
    return list(dict.fromkeys(p if fnmatch.filter(spared, wide) else wide for p, wide in wider.items()))


def named(model: nn.Module, argument: str, pattern: str, layers: Iterable[str], modules: Container[str]) -> list[str]:
    """The ``layers`` that ``pattern`` means. Raises ValueError, with the nearest names, where it means none."""
    hits = [layer for layer in layers if names_layer(pattern, layer, modules)]
    if not hits:
        raise ValueError(
            f"{argument} holds {pattern!r}, which matches no layer of {type(model).__name__}.{_nearest(pattern, layers)}"
        )
    return hits


def _mixed_entries(
    model: nn.Module, config: NVIDIAModelOptConfig, layers: Iterable[str], modules: Container[str]
) -> list[dict[str, Any]]:
    """The quantizer entries of ``config.per_layer``, one or two a layer."""
    entries, taken = [], {}
    for scheme, patterns in (getattr(config, "per_layer", None) or {}).items():
        cfgs = [e for e in make_config(scheme).modelopt_config["quant_cfg"] if "cfg" in e]
        for pattern in patterns:
            for layer in named(model, f"per_layer[{scheme!r}]", pattern, layers, modules):
                if taken.setdefault(layer, scheme) != scheme:
                    raise ValueError(f"per_layer names {layer} twice: under {taken[layer]!r} and under {scheme!r}")
                entries.append({"quantizer_name": f"{layer}.input_quantizer", "enable": False})
                entries += [e | {"quantizer_name": layer + e["quantizer_name"].replace("*", ".")} for e in cfgs]
    return entries


def _nearest(name: str, layers: Iterable[str]) -> str:
    import difflib

    parts = {part for layer in layers for part in (layer, *layer.split("."))}
    close = difflib.get_close_matches(name, sorted(parts), n=3, cutoff=0.4)
    return f" Nearest: {', '.join(close)}" if close else f" Its layers are named like {next(iter(layers))}"


def _decide(
    name: str,
    module: nn.Module,
    entries: list[dict[str, Any]],
    excluded: str | None,
    in_fp32: set[str],
    config: NVIDIAModelOptConfig,
) -> LayerPlan:
    from torch import nn

    linear = getattr(config, "pointwise_as_linear", False) and upstream.is_pointwise(module)
    cfg, reason = None, "no entry of the configuration enables it"
    for entry in entries:
        parent = entry.get("parent_class")
        if parent is not None and not (parent == "nn.Linear" if linear else upstream.is_of_class(module, parent)):
            continue
        if fnmatch.fnmatchcase(f"{name}.weight_quantizer", entry["quantizer_name"]):
            if not entry.get("enable", True):
                cfg, reason = None, f"the configuration leaves {entry['quantizer_name']} dense"
            elif "cfg" in entry:
                cfg, reason = entry["cfg"], ""
    if isinstance(module, nn.modules.conv._ConvNd) and config.disable_conv_quantization and not linear:
        reason = "disable_conv_quantization"
    if excluded is not None:
        reason = f"modules_to_not_convert: {excluded}"
    if set(name.split(".")) & in_fp32:
        reason = f"{', '.join(sorted(set(name.split('.')) & in_fp32))}: the model's class keeps it in float32"
    shape, dtype = tuple(module.weight.shape), str(module.weight.dtype).removeprefix("torch.")
    before = after = module.weight.numel() * module.weight.element_size()
    spec = None
    if not reason:
        spec, flat = WeightSpec.from_cfg(cfg), (shape[0], shape[1]) if linear else shape
        reason = spec.why_not(flat, dtype) or ""
        shape = shape if reason else flat
        after = before if reason else spec.packed_bytes(shape, dtype)
    return LayerPlan(name, type(module).__name__.removeprefix("Quant"), shape, dtype, reason, before, after, spec)


def quantize(
    model: nn.Module, config: NVIDIAModelOptConfig, forward_loop: Callable[[nn.Module], None] | None = None
) -> Report:
    """Quantize a loaded model and really pack its weights (``mtq.quantize``, then ``mtq.compress``), in place.

    Args:
        model: Any model with linear layers or convolutions, on CPU or CUDA, in any float dtype.
        config: From :func:`modelopt_nb.make_config`.
        forward_loop: Called with the model to calibrate activations; ``config.forward_loop`` where None. Once, with the
            model still dense, for max calibration; as often as the algorithm asks for otherwise.

    Returns:
        What was packed, what stayed dense and why, and the bytes before and after.

    Raises:
        TypeError, ValueError: Before any weight is touched: not a ModelOpt config, nothing to quantize, a name in
            ``modules_to_not_convert`` that matches nothing, an algorithm without what it needs. And as :func:`calibrate` does;
            whatever is raised, also by the loop, leaves the model as it was.
    """
    if not hasattr(config, "modelopt_config"):
        raise TypeError(f"config={config!r} is not a ModelOpt configuration. Build one with make_config('FP8')")
    from modelopt_nb import loading

    upstream.enable()
    layers, entries = plan(model, config)
    algorithm, loop = config.modelopt_config["algorithm"], forward_loop or config.forward_loop
    check_algorithm(config, loop)
    with upstream.undone_on_error(model):
        for layer in layers:
            if layer.as_linear:
                upstream.make_linear(model, layer.name)
        largest = None
        if loop is not None and _asks_for_the_largest_alone(config, entries):
            largest = run_checked(loop, model, [x.name for x in layers if x.packed])
        upstream.insert_quantizers(model, entries, algorithm)
        calibrate(model, config, layers, loop, largest)
        upstream.finish_packing(model)
        report = measured(model, config, layers)
    loading.attach(model, config, report)
    return report


def check_runs(model: nn.Module, config: NVIDIAModelOptConfig) -> None:
    """Refuse a configuration that ``model`` cannot be quantized with, or that packs but does not run where ``model`` is.

    Raises:
        ValueError: As :func:`plan` and :func:`check_algorithm` do; or activations in a format that ModelOpt cannot round to
            on the device of ``model``.
    """
    _, entries = plan(model, config)
    check_algorithm(config, config.forward_loop)
    device = next(model.parameters()).device
    inputs = (e["cfg"] for e in entries if "cfg" in e and e["quantizer_name"].endswith("input_quantizer"))
    if why := next(filter(None, (upstream.cannot_round(cfg, device) for cfg in inputs)), ""):
        raise ValueError(
            f"quant_type={config.quant_type!r} has activations that cannot be rounded on {device}: {why} "
            "Allowed here: activations in FP8 or INT8, or weights alone"
        )


def _asks_for_the_largest_alone(config: NVIDIAModelOptConfig, entries: list[dict[str, Any]]) -> bool:
    """Whether calibration asks nothing of a loop but the largest inputs of layers, which the dense model tells faster."""
    enabled = [e for e in entries if "cfg" in e]
    static = [
        e for e in enabled if e["cfg"].get("type") != "dynamic" and e["quantizer_name"].endswith("input_quantizer")
    ]
    known = all(e["quantizer_name"].endswith(("weight_quantizer", "input_quantizer")) for e in enabled)
    largest = config.modelopt_config["algorithm"]["method"] == getattr(config, "activation_calibrator", "max") == "max"
    return bool(static) and known and largest


def check_algorithm(config: NVIDIAModelOptConfig, loop: Callable[[nn.Module], None] | None) -> None:
    """Refuse an algorithm that cannot do its work with ``config``.

    Raises:
        ValueError: It needs a forward loop and there is none, or quantized activations and there are none.
    """
    method = config.modelopt_config["algorithm"]["method"]
    if loop is None and method in NEED_LOOP:
        raise ValueError(f"algorithm={method!r} needs a forward_loop, such as denoising_loop(pipeline, prompts)")
    entries = config.modelopt_config["quant_cfg"]
    inputs = [e["cfg"] for e in entries if e["quantizer_name"] == "*input_quantizer" and "cfg" in e]
    if method == "smoothquant" and not (inputs and inputs[0]["num_bits"] == 8 and config.quant_type.startswith("INT8")):
        raise ValueError(
            "algorithm='smoothquant' moves what is hard to round from INT8 activations to INT8 weights, in ModelOpt, and "
            f"quant_type={config.quant_type!r}, weight_only={config.weight_only} is not that. Allowed: 'INT8' with weight_only=False"
        )
    if method in NEED_LOOP and any(cfg.get("block_sizes") and "scale_bits" not in cfg["block_sizes"] for cfg in inputs):
        raise ValueError(
            f"algorithm={method!r} scales the channels of activations, which cannot be scaled by token too. Allowed with it: "
            "activation_scale='static tensor', 'dynamic tensor' or 'static channel'"
        )
    if method == "mse" and config.quant_type.split("_")[0] == "NF4":
        raise ValueError(
            "algorithm='mse' changes nothing in NF4, whose packing takes each block's largest. Allowed: 'max'"
        )


#: Algorithms that look at activations.
NEED_LOOP = ("smoothquant", "awq_lite", "awq_clip", "awq_full", "svdquant", "gptq", "local_hessian")


def calibrate(
    model: nn.Module,
    config: NVIDIAModelOptConfig,
    layers: Sequence[LayerPlan],
    loop: Callable[[nn.Module], None] | None,
    largest: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Run ModelOpt's calibration on a model with quantizers in place.

    Where ``largest``, the largest inputs that each layer has, were found already, they are all that the quantizers are shown.

    Raises:
        ValueError: A loop that does not reach every layer that is to be packed, or an algorithm that fails on this scheme.
        FloatingPointError: NaN while the loop runs.
    """
    algorithm, inside = config.modelopt_config["algorithm"], []

    def run(model: nn.Module) -> None:
        inside.append(True)
        if largest is None:
            run_checked(loop, model, [x.name for x in layers if x.packed])
        else:
            upstream.show_inputs(model, largest)
        inside.clear()

    method = algorithm["method"]
    try:
        scaled = getattr(config, "activation_calibrator", "max"), getattr(config, "percentile", 99.9)
        upstream.calibrate(model, algorithm, run if loop else None, *scaled)
    except Exception as error:
        if inside:  # the loop's own error, as it is
            raise
        raise ValueError(
            f"algorithm={method!r} cannot be used with quant_type={config.quant_type!r}: {error}"
        ) from error
    if method in ("smoothquant", "awq_lite", "svdquant") and not upstream.has_smoothed(model):
        raise ValueError(
            f"algorithm={method!r} changes nothing with quant_type={config.quant_type!r} and activation_scale="
            f"{getattr(config, 'activation_scale', None)!r}. Allowed: 'max', or another of algorithm_table()"
        )


def measured(model: nn.Module, config: NVIDIAModelOptConfig, layers: list[LayerPlan]) -> Report:
    """The report of a model that was packed as ``layers`` plan."""
    after = weight_bytes(model)
    layers = [_measure(model, layer) for layer in layers]
    dense = Counter(after.by_dtype)
    for name, buffer in model.named_buffers():
        if "_quantizer." in name:  # scales, which the dense model has not
            dense[stored_dtype(buffer)] -= buffer.numel() * buffer.element_size()
    for layer in layers:
        if layer.packed:
            weight = model.get_submodule(layer.name).weight
            dense[stored_dtype(weight)] -= weight.numel() * weight.element_size()
            dense[layer.dtype] += layer.dense_bytes
    before = WeightBytes({dtype: size for dtype, size in dense.items() if size}, after.weights)
    quant_type = "per_layer" if getattr(config, "per_layer", None) else config.quant_type
    rounded = precision(config, (x.layout for x in layers if x.packed))
    return Report(quant_type, tuple(layers), before, after, rounded)


def _measure(model: nn.Module, layer: LayerPlan) -> LayerPlan:
    """``layer`` with the bytes that its weight really takes now."""
    module = model.get_submodule(layer.name)
    if upstream.is_packed(module) != layer.packed:
        raise RuntimeError(f"ModelOpt {'did not pack' if layer.packed else 'packed'} {layer.name}, against the plan")
    tensors = [module.weight, *module.weight_quantizer.buffers()] if layer.packed else [module.weight]
    return dataclasses.replace(layer, packed_bytes=sum(t.numel() * t.element_size() for t in tensors))


@contextlib.contextmanager
def dequantized(model: nn.Module) -> Iterator[nn.Module]:
    """Hold a packed model's weights as dense tensors while a block of code runs, then pack them again.

    The model computes what it computes packed, bit for bit, without dequantizing at every call: made for drawing many
    pictures where there is room for the dense weights. Quantized activations stay quantized.
    """
    with upstream.unpacked(model):
        yield model


def weight_errors(model: nn.Module, config: NVIDIAModelOptConfig) -> pd.Series:
    """The relative error of every weight that ``config`` packs: the norm of the change over the norm of the weight.

    ``model`` stays dense: one layer at a time is copied and packed. The index names the layers. Activations and
    calibration play no part.
    """
    import pandas as pd
    from torch import nn

    errors = {}
    layers, entries = plan(model, config)
    for layer in layers:
        if layer.packed:
            weight = model.get_submodule(layer.name).weight.detach().reshape(layer.shape)
            alone = nn.Sequential(copy.deepcopy(model.get_submodule(layer.name)))
            if layer.as_linear:
                upstream.make_linear(alone, "0")
            quantizer = f"{layer.name}.weight_quantizer"
            cfgs = [e["cfg"] for e in entries if "cfg" in e and fnmatch.fnmatchcase(quantizer, e["quantizer_name"])]
            _pack_all(alone, cfgs[-1])
            change = upstream.read_packed(alone[0]) - weight
            errors[layer.name] = (change.float().norm() / weight.float().norm()).item()
    return pd.Series(errors, name="relative error").rename_axis("layer")


def representable_values(quant_type: str) -> np.ndarray:
    """Every value that one block of a type can hold, as parts of the block's largest: sorted, within -1 to 1.

    Found by packing a fine ramp of weights and reading it back, so it is what ModelOpt does and not a table.
    """
    import numpy as np
    import torch
    from torch import nn

    half = np.unique(np.concatenate([np.geomspace(1e-6, 1, 2**14), np.linspace(0, 1, 2**14)]))
    ramp = torch.from_numpy(np.concatenate([-half[::-1], half])).float()  # both signs, so an even number
    model = nn.Sequential(nn.Linear(len(ramp), 1, bias=False))
    model[0].weight = nn.Parameter(ramp[None])
    block = {"channel_quantize": -1, "block_quantize": len(ramp)} if QUANT_TYPES[quant_type].needs_block else {}
    _pack_all(model, make_config(quant_type, **block).modelopt_config["quant_cfg"][1]["cfg"])
    read = upstream.read_packed(model[0]).double().flatten()
    return np.unique((read / read.abs().max()).numpy().round(7))


def _pack_all(model: nn.Module, cfg: dict[str, Any]) -> None:
    """Pack the weight of every layer of ``model`` as ModelOpt's ``cfg`` says."""
    upstream.enable()
    entries = [{"quantizer_name": "*", "enable": False}, {"quantizer_name": "*weight_quantizer", "cfg": cfg}]
    upstream.insert_quantizers(model, entries, {"method": "max"})
    upstream.calibrate(model, {"method": "max"}, None)
    upstream.finish_packing(model)
