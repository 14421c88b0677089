"""It is done to the model: decide layer by layer, quantize, pack, and report."""

from __future__ import annotations

import contextlib
import fnmatch
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelopt_nb import upstream
from modelopt_nb.config import WeightSpec, excluded_modules
from modelopt_nb.memory import MIB, WeightBytes, weight_bytes

if TYPE_CHECKING:
    import pandas as pd
    from diffusers import NVIDIAModelOptConfig
    from torch import nn


@dataclass(frozen=True)
class Layer:
    """What becomes of one layer: ``reason`` says why it stays dense and is empty where it is packed.

    ``kind`` is the class of the layer, ``before`` and ``after`` are the bytes of its weight, scales included.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    reason: str
    before: int
    after: int

    @property
    def packed(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class Report:
    """What :func:`quantize` did: every quantizable layer, and the model's bytes before and after."""

    quant_type: str
    layers: tuple[Layer, ...]
    before: WeightBytes
    after: WeightBytes

    @property
    def frame(self) -> pd.DataFrame:
        """A row a layer: kind, shape, packed, reason where not, bytes before and after."""
        import pandas as pd

        columns = ["layer", "kind", "shape", "packed", "reason", "bytes before", "bytes after"]
        rows = [(x.name, x.kind, x.shape, x.packed, x.reason, x.before, x.after) for x in self.layers]
        return pd.DataFrame(rows, columns=columns).set_index("layer")

    @property
    def packed_of_bf16(self) -> float:
        """Bytes of the packed layers' weights, scales included, over what they take in bfloat16."""
        packed = [x for x in self.layers if x.packed]
        numel = 0
        for x in packed:
            count = 1
            for size in x.shape:
                count *= size
            numel += count
        return sum(x.after for x in packed) / (2 * numel)

    def __str__(self) -> str:
        packed = sum(x.packed for x in self.layers)
        text = (
            f"{self.quant_type}: packed {packed} of {len(self.layers)} layers, {self.before.total / MIB:.2f} MiB -> "
            f"{self.after.total / MIB:.2f} MiB ({self.after.bits_per_weight:.2f} bits a weight)"
        )
        for reason in dict.fromkeys(x.reason for x in self.layers if x.reason):
            names = [x.name for x in self.layers if x.reason == reason]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            text += f"\n  dense: {', '.join(names[:3])}{more}: {reason}"
        return text


def _pattern(name: str) -> str:
    """The quantizer pattern of one entry of ``modules_to_not_convert``, as Diffusers builds it."""
    return f"*{name}*"


def plan(model: nn.Module, config: NVIDIAModelOptConfig) -> tuple[list[Layer], list[dict[str, Any]]]:
    """Decide for every layer of ``model`` whether ``config`` packs it, without touching a weight.

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
    excluded = excluded_modules(config.modules_to_not_convert)
    for name in excluded:
        if not any(fnmatch.fnmatchcase(f"{layer}.weight_quantizer", _pattern(name)) for layer in layers):
            raise ValueError(
                f"modules_to_not_convert holds {name!r}, which matches no layer of {type(model).__name__}.{_nearest(name, layers)}"
            )
    entries = list(config.modelopt_config["quant_cfg"])
    decided = [_decide(name, module, entries, excluded, config) for name, module in layers.items()]
    if not any(layer.packed for layer in decided):
        reasons = sorted({layer.reason for layer in decided})
        raise ValueError(f"{config.quant_type} would pack no layer of {type(model).__name__}: {'; '.join(reasons)}")
    dense = [{"quantizer_name": f"{layer.name}.*", "enable": False} for layer in decided if not layer.packed]
    return decided, entries + dense


def _nearest(name: str, layers: dict[str, nn.Module]) -> str:
    import difflib

    parts = {part for layer in layers for part in (layer, *layer.split("."))}
    close = difflib.get_close_matches(name, sorted(parts), n=3, cutoff=0.4)
    return f" Nearest: {', '.join(close)}" if close else f" Its layers are named like {next(iter(layers))}"


def _decide(
    name: str, module: nn.Module, entries: list[dict[str, Any]], excluded: list[str], config: NVIDIAModelOptConfig
) -> Layer:
    from torch import nn

    cfg, reason = None, "no entry of the configuration enables it"
    for entry in entries:
        parent = entry.get("parent_class")
        if parent is not None and not upstream.is_of_class(module, parent):
            continue
        if fnmatch.fnmatchcase(f"{name}.weight_quantizer", entry["quantizer_name"]):
            if not entry.get("enable", True):
                cfg, reason = None, f"the configuration leaves {entry['quantizer_name']} dense"
            elif "cfg" in entry:
                cfg, reason = entry["cfg"], ""
    if isinstance(module, nn.modules.conv._ConvNd) and config.disable_conv_quantization:
        reason = "disable_conv_quantization"
    for pattern in excluded:
        if fnmatch.fnmatchcase(f"{name}.weight_quantizer", _pattern(pattern)):
            reason = f"modules_to_not_convert: {pattern}"
    shape, itemsize = tuple(module.weight.shape), module.weight.element_size()
    before = after = module.weight.numel() * itemsize
    if not reason:
        spec = WeightSpec.from_cfg(cfg)
        reason = spec.why_not(shape, itemsize) or ""
        after = before if reason else spec.packed_bytes(shape, itemsize)
    return Layer(name, type(module).__name__.removeprefix("Quant"), shape, reason, before, after)


def quantize(
    model: nn.Module, config: NVIDIAModelOptConfig, forward_loop: Callable[[nn.Module], None] | None = None
) -> Report:
    """Quantize a loaded model and really pack its weights (``mtq.quantize``, then ``mtq.compress``), in place.

    Args:
        model: Any model with linear layers or convolutions, on CPU or CUDA, in any float dtype.
        config: From :func:`modelopt_nb.make_config`.
        forward_loop: Called with the model to calibrate activations; ``config.forward_loop`` where None.

    Returns:
        What was packed, what stayed dense and why, and the bytes before and after.

    Raises:
        TypeError, ValueError: Before any weight is touched: not a ModelOpt config, nothing to quantize, a name in
            ``modules_to_not_convert`` that matches nothing.
    """
    import modelopt.torch.quantization as mtq

    if not hasattr(config, "modelopt_config"):
        raise TypeError(f"config={config!r} is not a ModelOpt configuration. Build one with make_config('FP8')")
    with quiet():
        upstream.apply_repairs()
    before = weight_bytes(model)
    decided, entries = plan(model, config)
    modelopt_config = {"quant_cfg": entries, "algorithm": config.modelopt_config["algorithm"]}
    with quiet():
        mtq.quantize(model, modelopt_config, forward_loop or config.forward_loop)
        # FP8 and NVFP4 have real low-precision matrix products on CUDA; elsewhere asking warns once a layer
        on_cuda = next(model.parameters()).is_cuda
        mtq.compress(model, mtq.config.CompressConfig(quant_gemm=on_cuda))
    upstream.drop_packed_amax(model)
    return Report(config.quant_type, tuple(_measure(model, layer) for layer in decided), before, weight_bytes(model))


def _measure(model: nn.Module, layer: Layer) -> Layer:
    """``layer`` with the bytes that its weight really takes now."""
    import dataclasses

    module = model.get_submodule(layer.name)
    if upstream.is_packed(module) != layer.packed:
        raise RuntimeError(f"ModelOpt {'did not pack' if layer.packed else 'packed'} {layer.name}, against the plan")
    tensors = [module.weight, *module.weight_quantizer.buffers()] if layer.packed else [module.weight]
    return dataclasses.replace(layer, after=sum(t.numel() * t.element_size() for t in tensors))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what ModelOpt prints and warns of on every call ("Inserted 60 quantizers", "experimental")."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.filterwarnings("ignore", message="Real quantization has been applied")
        warnings.filterwarnings("ignore", message="Skipping extension modelopt_cuda_ext")
        yield


@contextlib.contextmanager
def dequantized(model: nn.Module) -> Iterator[nn.Module]:
    """Hold a packed model's weights as dense tensors while a block of code runs, then pack them again.

    The model computes what it computes packed, bit for bit, without dequantizing at every call: made for drawing many
    pictures where there is room for the dense weights. Quantized activations stay quantized.
    """
    packed = {module: module.weight for module in model.modules() if upstream.is_packed(module)}
    try:
        for module in packed:
            upstream.unpack(module)
        yield model
    finally:
        for module, weight in packed.items():
            upstream.repack(module, weight)
