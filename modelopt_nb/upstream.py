"""Repairs of ModelOpt and Diffusers: the one file that knows their insides.

Each repair says what is broken, in which versions and where upstream talks about it. `needed` finds out by trying,
so a repair steps aside on the day that upstream is fixed. Nothing is edited on disk.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import io
import json
import sys
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from modelopt_nb import config

if TYPE_CHECKING:
    import torch
    from torch import nn


class Repair(ABC):
    """One repair: what is ``broken``, in which ``versions``, and where upstream talks about it (``issue``).

    ``applied`` tells whether it is on in this process.
    """

    name: str
    broken: str
    versions: str
    issue: str
    applied = False

    @abstractmethod
    def needed(self) -> bool:
        """Whether the installed release still has the fault, found by trying it."""

    @abstractmethod
    def patches(self) -> list[tuple[Any, str, Any]]:
        """What takes the place of what: (owner, attribute or key, replacement)."""

    def apply(self) -> None:
        """Put the repair in place."""
        patches = self.patches()
        self._originals = [(owner, name, _get(owner).get(name, _ABSENT)) for owner, name, _ in patches]
        for owner, name, value in patches:
            _set(owner, name, value)
        self.applied = True

    def remove(self) -> None:
        """Take the repair out again."""
        for owner, name, value in reversed(self._originals):
            _set(owner, name, value)
        self.applied = False


_ABSENT = object()


def _get(owner: Any) -> Any:
    return owner if isinstance(owner, dict) else vars(owner)


def _set(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, dict):
        if value is _ABSENT:
            del owner[name]
        else:
            owner[name] = value
    elif value is _ABSENT:
        delattr(owner, name)
    else:
        setattr(owner, name, value)


class Nf4ReadBack(Repair):
    """NF4 weights of more than one scale block can be read back."""

    name = "nf4-read-back"
    broken = "NF4QTensor.dequantize flattens the int8 block scales before dividing by the double scale of each row"
    versions = "nvidia-modelopt 0.47.0 and earlier"
    issue = "not reported upstream; modelopt/torch/quantization/qtensor/nf4_tensor.py, _dequantize_scalers"

    def needed(self) -> bool:
        import torch
        from modelopt.torch.quantization.qtensor import NF4QTensor

        weight = torch.linspace(-1, 1, 64).reshape(2, 32)
        packed, scales = NF4QTensor.quantize(weight, 8, 2)
        scale, double, zeros = NF4QTensor.double_quantization(scales, 2, 8)
        blocks = {-1: 8, "scale_bits": 8, "scale_block_sizes": {-1: 2}}
        try:
            read = packed.dequantize(scale=scale, double_scale=double, scale_zeros=zeros, block_sizes=blocks)
        except RuntimeError:
            return True
        return not torch.allclose(read, weight, atol=0.2)

    def patches(self) -> list[tuple[Any, str, Any]]:
        from modelopt.torch.quantization.qtensor import NF4QTensor

        original = NF4QTensor.dequantize

        @functools.wraps(original)
        def dequantize(self: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> torch.Tensor:
            # One row of scales for each double scale; upstream then has nothing left to divide by.
            scale, double = kwargs["scale"], kwargs["double_scale"]
            rows = scale.reshape(double.numel(), -1) / double.reshape(-1, 1)
            return original(self, dtype, **kwargs | {"scale": rows, "double_scale": double.new_ones(())})

        return [(NF4QTensor, "dequantize", dequantize)]


class Fp8Zeros(Repair):
    """A weight, channel or block of zeros stays zeros in FP8."""

    name = "fp8-zeros"
    broken = "FP8QTensor.quantize divides zeros by a scale of zero, and the layer's outputs become NaN"
    versions = "nvidia-modelopt 0.47.0"
    issue = "not reported upstream; modelopt/torch/quantization/qtensor/fp8_tensor.py, quantize"

    def needed(self) -> bool:
        import torch
        from modelopt.torch.quantization.qtensor import FP8QTensor

        packed, scale = FP8QTensor.quantize(torch.zeros(2, 2))
        return bool(packed.dequantize(scale=scale).isnan().any())

    def patches(self) -> list[tuple[Any, str, Any]]:
        import torch
        from modelopt.torch.quantization.qtensor import FP8QTensor

        original = FP8QTensor.quantize

        @functools.wraps(original)
        def quantize(cls: type, input: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[Any, torch.Tensor]:
            packed, scales = original(input, *args, **kwargs)
            data = packed._quantized_data
            packed._quantized_data = torch.where(input == 0, torch.zeros_like(data), data)
            return packed, scales

        return [(FP8QTensor, "quantize", classmethod(quantize))]


class CalibratedScales(Repair):
    """INT8 and INT4 weights are packed with the scales that calibration found."""

    name = "calibrated-scales"
    broken = (
        "TensorQuantizer._real_quantize drops the amax of INT8 and INT4 weights, and packing takes each block's largest"
    )
    versions = "nvidia-modelopt 0.47.0 and earlier"
    issue = "not reported upstream; modelopt/torch/quantization/nn/modules/tensor_quantizer.py, _real_quantize"

    _amax: ContextVar[Any] = ContextVar("calibrated amax", default=None)

    def needed(self) -> bool:
        import torch
        from modelopt.torch.quantization.config import QuantizerAttributeConfig
        from modelopt.torch.quantization.nn import TensorQuantizer

        weight = torch.tensor([[1.0, -1.0]])
        quantizer = TensorQuantizer(QuantizerAttributeConfig(num_bits=8), amax=torch.tensor(0.5))
        quantizer._fake_quant = False
        with quiet():
            return bool(quantizer.dequantize(quantizer(weight)).max() > 0.6)

    def patches(self) -> list[tuple[Any, str, Any]]:
        from modelopt.torch.quantization.nn import TensorQuantizer
        from modelopt.torch.quantization.qtensor import int4_tensor, int8_tensor

        original = TensorQuantizer._real_quantize

        @functools.wraps(original)
        def _real_quantize(self: TensorQuantizer, inputs: torch.Tensor) -> Any:
            plain = self._num_bits in (4, 8) and not (self._block_sizes or {}).get("scale_bits")
            token = CalibratedScales._amax.set(self.amax if plain else None)
            try:
                return original(self, inputs)
            finally:
                CalibratedScales._amax.reset(token)

        def calibrated(largest: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
            @functools.wraps(largest)
            def reduce(*args: Any, **kwargs: Any) -> torch.Tensor:
                found, amax = largest(*args, **kwargs), CalibratedScales._amax.get()
                return found if amax is None or amax.numel() != found.numel() else amax.reshape(found.shape).to(found)

            return reduce

        reductions = [(int4_tensor, "reduce_amax"), (int8_tensor, "reduce_amax"), (int8_tensor, "reduce_block_amax")]
        return [
            (TensorQuantizer, "_real_quantize", _real_quantize),
            *((module, name, calibrated(getattr(module, name))) for module, name in reductions),
        ]


class ConfigFromType(Repair):
    """``NVIDIAModelOptConfig(quant_type="FP8")`` builds a configuration that the installed ModelOpt takes and can pack."""

    name = "config-from-type"
    broken = "get_config_from_quant_type spreads a list into a dict, and gives 4-bit types no block"
    versions = "diffusers 0.42.1 and earlier with nvidia-modelopt 0.44 and later"
    issue = "https://github.com/huggingface/diffusers/pull/14536, https://github.com/NVIDIA/Model-Optimizer/issues/2001"

    def needed(self) -> bool:
        from diffusers import NVIDIAModelOptConfig

        try:
            return not all(
                entry.get("cfg", {}).get("block_sizes", True)
                for entry in NVIDIAModelOptConfig("NVFP4").modelopt_config["quant_cfg"]
                if entry["quantizer_name"] == "*weight_quantizer"
            )
        except TypeError:
            return True

    def patches(self) -> list[tuple[Any, str, Any]]:
        from diffusers import NVIDIAModelOptConfig

        def get_config_from_quant_type(self: NVIDIAModelOptConfig) -> dict[str, Any]:
            asked = config.Blocks(
                self.channel_quantize, self.block_quantize, self.scale_channel_quantize, self.scale_block_quantize
            )
            chosen = self.calib_cfg | getattr(self, "_algorithm_arguments", {})
            scaled = getattr(self, "activation_scale", None), getattr(self, "activation_calibrator", "max")
            blocks, built = config.modelopt_config(self.quant_type, self.weight_only, asked, chosen, {}, *scaled)
            vars(self).update(vars(blocks))
            return built

        return [(NVIDIAModelOptConfig, "get_config_from_quant_type", get_config_from_quant_type)]


class NoSilentSubstitution(Repair):
    """Wrong arguments of ``NVIDIAModelOptConfig`` raise, and right ones are not dropped.

    Also keeps the caller's ``modules_to_not_convert`` as it was, hands further arguments to the algorithm, and lets a
    combined type such as ``FP8_INT8`` quantize activations without ``weight_only=False``.
    """

    name = "no-silent-substitution"
    broken = "_normalize_quant_type turns an unknown type into FP8 with a log line; unknown arguments vanish"
    versions = "diffusers 0.42.1 and earlier"
    issue = "not reported upstream; diffusers/quantizers/quantization_config.py, _normalize_quant_type"

    def needed(self) -> bool:
        import logging

        from diffusers import NVIDIAModelOptConfig

        log = logging.getLogger("diffusers.quantizers.quantization_config")
        before, log.disabled = log.disabled, True
        try:
            NVIDIAModelOptConfig("FP4", modelopt_config={"quant_cfg": []})
        except ValueError:
            return False
        finally:
            log.disabled = before
        return True

    def patches(self) -> list[tuple[Any, str, Any]]:
        from diffusers import NVIDIAModelOptConfig

        original = NVIDIAModelOptConfig.__init__
        known = inspect.signature(original)

        @functools.wraps(original)
        def __init__(self: NVIDIAModelOptConfig, *args: Any, **kwargs: Any) -> None:
            given = known.bind(self, *args, **kwargs).arguments
            given.pop("self")
            further = given.pop("kwargs", {})
            if further.pop("quant_method", "modelopt") != "modelopt":
                raise ValueError(f"quant_method={kwargs['quant_method']!r} is not 'modelopt'")
            self.packed_dtype = further.pop("packed_dtype", None)  # of the weights, when a checkpoint was packed
            vars(self).update({name: further.pop(name, default) for name, default in config.KIT_ARGUMENTS.items()})
            self.per_layer = config.mixed_schemes(self.per_layer)
            chosen = further.pop("calib_cfg", None) or given.get("algorithm", "max")
            chosen = config.calibration_algorithm(chosen, further)
            given["weight_only"] = config.only_weights(given["quant_type"], given.get("weight_only"))
            given["modules_to_not_convert"] = config.patterns(
                "modules_to_not_convert", given.get("modules_to_not_convert")
            )
            given["algorithm"] = chosen["method"]
            arguments = {name: value for name, value in chosen.items() if name != "method"}
            self._algorithm_arguments = arguments
            original(self, **given)
            del self._algorithm_arguments

        return [(NVIDIAModelOptConfig, "__init__", __init__)]


class ConfigAsJson(Repair):
    """A configuration with block sizes can be written as JSON and read from it."""

    name = "config-as-json"
    broken = "to_dict keeps block_sizes with integer and string keys, which JSON cannot sort; tuples come back as lists"
    versions = "diffusers 0.42.1 and earlier"
    issue = "not reported upstream; diffusers/quantizers/quantization_config.py, NVIDIAModelOptConfig"

    def needed(self) -> bool:
        from diffusers import NVIDIAModelOptConfig

        sizes = {-1: 16, "scale_bits": (4, 3)}
        entry = {"quantizer_name": "*", "cfg": {"num_bits": (2, 1), "block_sizes": sizes}}
        made = {"quant_cfg": [entry], "algorithm": {"method": "max"}}
        try:
            text = json.dumps(NVIDIAModelOptConfig("NVFP4", modelopt_config=made).to_dict(), sort_keys=True)
        except TypeError:
            return True
        return NVIDIAModelOptConfig.from_dict(json.loads(text)).modelopt_config != made

    def patches(self) -> list[tuple[Any, str, Any]]:
        from diffusers import NVIDIAModelOptConfig

        base = super(NVIDIAModelOptConfig, NVIDIAModelOptConfig)

        def to_dict(self: NVIDIAModelOptConfig) -> dict[str, Any]:
            kept = {name: value for name, value in vars(self).items() if name != "forward_loop"}
            return json.loads(json.dumps(_string_keys(kept | {"quant_method": "modelopt"})))

        def from_dict(cls: type, config_dict: dict, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
            restored = {name: _python_keys(value) for name, value in config_dict.items()}
            return base.from_dict.__func__(cls, restored, return_unused_kwargs, **kwargs)

        return [(NVIDIAModelOptConfig, "to_dict", to_dict), (NVIDIAModelOptConfig, "from_dict", classmethod(from_dict))]


def _string_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _string_keys(item) for key, item in value.items()}
    return [_string_keys(item) for item in value] if isinstance(value, (list, tuple)) else value


def _python_keys(value: Any) -> Any:
    """JSON's form of a ModelOpt configuration as Python's: axes are integers, (exponent, mantissa) are tuples."""
    if isinstance(value, dict):
        pairs = ((int(k) if k.lstrip("-").isdigit() else k, _python_keys(v)) for k, v in value.items())
        return {k: tuple(v) if k in ("num_bits", "scale_bits") and isinstance(v, list) else v for k, v in pairs}
    return [_python_keys(item) for item in value] if isinstance(value, list) else value


class PackWhileLoading(Repair):
    """``from_pretrained(..., quantization_config=...)`` packs each layer as its weight arrives.

    In Diffusers through its own quantizer for the method ``modelopt``, in Transformers, which has none, through a new one.
    """

    name = "pack-while-loading"
    broken = "mtq.compress skips the root of what it is given, and Diffusers gives it single layers: nothing is packed"
    versions = "diffusers 0.42.1 and earlier with nvidia-modelopt 0.39 and later"
    issue = "https://github.com/NVIDIA/Model-Optimizer/issues/2001"

    def needed(self) -> bool:
        import modelopt.torch.quantization as mtq
        from torch import nn

        model = nn.Sequential(nn.Linear(16, 16))
        entries = [{"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 8}}]
        mtq.quantize(model, {"quant_cfg": entries, "algorithm": "max"})
        mtq.compress(model[0])
        return not is_packed(model[0])

    def patches(self) -> list[tuple[Any, str, Any]]:
        from diffusers import NVIDIAModelOptConfig
        from diffusers.quantizers import auto
        from transformers.quantizers import auto as transformers_auto

        from modelopt_nb.loading import DiffusersQuantizer, TransformersQuantizer

        return [
            (auto.AUTO_QUANTIZER_MAPPING, "modelopt", DiffusersQuantizer),
            (transformers_auto.AUTO_QUANTIZER_MAPPING, "modelopt", TransformersQuantizer),
            (transformers_auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "modelopt", NVIDIAModelOptConfig),
        ]


class RestoreFromConfig(Repair):
    """A packed checkpoint whose config.json says how it was packed is restored from that, not from a pickle beside it.

    ModelOpt's ``enable_huggingface_checkpointing`` restores ``modelopt_state.pth`` into the model first; this leaves
    that file alone where the configuration is enough.
    """

    name = "restore-from-config"
    broken = "in the low-memory path a restored QTensorWrapper is rebuilt with requires_grad, which it does not take"
    versions = "nvidia-modelopt 0.47.0 and earlier with diffusers 0.42.1"
    issue = "not reported upstream; modelopt/torch/quantization/qtensor/base_qtensor.py, QTensorWrapper.__new__"

    def needed(self) -> bool:
        from modelopt.torch.quantization.qtensor import QTensorWrapper

        return "requires_grad" not in inspect.signature(QTensorWrapper.__new__).parameters

    def patches(self) -> list[tuple[Any, str, Any]]:
        from diffusers import NVIDIAModelOptConfig
        from modelopt.torch.opt.plugins import diffusers as plugin

        original = plugin._patch_model_init_for_modelopt

        @functools.wraps(original)
        def patch(cls: type, model_path: Any, *args: Any, **kwargs: Any) -> Any:
            if _says_how_it_was_packed(Path(model_path)):
                return contextlib.nullcontext()
            return original(cls, model_path, *args, **kwargs)

        return [
            (plugin, "_patch_model_init_for_modelopt", patch),
            # it warns wherever ModelOpt's pickles are not switched on, and nothing here needs them
            (NVIDIAModelOptConfig, "check_model_patching", lambda self, operation="loading": None),
        ]


def _says_how_it_was_packed(folder: Path) -> bool:
    try:
        saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (saved.get("quantization_config") or {}).get("quant_method") == "modelopt"


class PackedDtype(Repair):
    """A packed weight's ``dtype`` is the one it is read as, not the one that its bytes are stored in.

    Models ask a weight for its dtype and cast their inputs to it: T5 before its feed-forward output, Wan before its time
    embedder, and every pipeline through ``model.dtype``. An input cast to float8 fails or is ruined.
    """

    name = "packed-dtype"
    broken = "QTensorWrapper overrides dim() but not dtype, which stays that of the stored bytes"
    versions = "nvidia-modelopt 0.47.0 and earlier"
    issue = "not reported upstream; modelopt/torch/quantization/qtensor/base_qtensor.py, QTensorWrapper"

    def needed(self) -> bool:
        import torch
        from modelopt.torch.quantization.qtensor import FP8QTensor, QTensorWrapper

        return QTensorWrapper(FP8QTensor.quantize(torch.ones(2, 2))[0]).dtype != torch.float32

    def patches(self) -> list[tuple[Any, str, Any]]:
        import torch
        from modelopt.torch.quantization.qtensor import QTensorWrapper

        def dtype(self: QTensorWrapper) -> torch.dtype:
            return self.metadata["dtype"] if hasattr(self, "metadata") else torch.Tensor.dtype.__get__(self)

        return [(QTensorWrapper, "dtype", property(dtype))]


class SaveWhole(Repair):
    """A packed model or pipeline is saved whole or not at all, with a manifest that loading checks.

    See :mod:`modelopt_nb.saving`. What holds nothing packed is saved and loaded as upstream does.
    """

    name = "save-whole"
    broken = (
        "save_pretrained writes into the folder file by file: a process killed meanwhile leaves a mixture that loads"
    )
    versions = "diffusers 0.42.1 and transformers 5.14, and earlier"
    issue = "not reported upstream; diffusers/models/modeling_utils.py, ModelMixin.save_pretrained"

    def needed(self) -> bool:
        import tempfile

        from diffusers import ConfigMixin, ModelMixin

        class Interrupted(ModelMixin, ConfigMixin):
            config_name = "config.json"

            def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
                raise InterruptedError

        with tempfile.TemporaryDirectory() as folder:
            with contextlib.suppress(InterruptedError):
                Interrupted().save_pretrained(folder)
            return any(Path(folder).iterdir())

    def patches(self) -> list[tuple[Any, str, Any]]:
        from diffusers import DiffusionPipeline, ModelMixin
        from transformers import PreTrainedModel

        from modelopt_nb import saving
        from modelopt_nb.loading import DiffusersQuantizer

        def whole(original: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(original)
            def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
                parts = self.components.values() if isinstance(self, DiffusionPipeline) else [self]
                if not any(holds_packed(part) for part in parts):
                    return original(self, save_directory, *args, **kwargs)
                push = kwargs.pop("push_to_hub", False)
                names = ("commit_message", "private", "token", "create_pr")
                hub = {name: kwargs.pop(name) for name in names if name in kwargs}
                repo = kwargs.pop("repo_id", Path(save_directory).name)
                with saving.written_whole(save_directory) as beside:
                    original(self, str(beside), *args, **kwargs)
                    if parts == [self]:
                        saving.write_manifest(beside, type(self).__name__)
                return self.push_to_hub(repo, **hub) if push else None

            return save_pretrained

        load = vars(ModelMixin)["_load_pretrained_model"].__func__

        @functools.wraps(load)
        def checked(cls: type, model: nn.Module, state_dict: Any, files: list[str], *args: Any, **kwargs: Any) -> Any:
            if not isinstance(kwargs.get("hf_quantizer"), DiffusersQuantizer):  # which has done it by now
                saving.check(files, type(model).__name__)
            return load(cls, model, state_dict, files, *args, **kwargs)

        owners = (ModelMixin, DiffusionPipeline, PreTrainedModel)
        saves = [(owner, "save_pretrained", whole(vars(owner)["save_pretrained"])) for owner in owners]
        return [*saves, (ModelMixin, "_load_pretrained_model", classmethod(checked))]


REPAIRS: tuple[Repair, ...] = (
    Nf4ReadBack(),
    Fp8Zeros(),
    CalibratedScales(),
    PackedDtype(),
    NoSilentSubstitution(),
    ConfigFromType(),
    ConfigAsJson(),
    PackWhileLoading(),
    RestoreFromConfig(),
    SaveWhole(),
)


def enable() -> None:
    """Switch on every repair that the installed releases of ModelOpt and Diffusers need.

    Call it once, beside ``enable_huggingface_checkpointing()``; calling it again changes nothing. A repair that the
    installed releases do not need steps aside; :func:`modelopt_nb.doctor` tells which.
    """
    with quiet():
        for repair in REPAIRS:
            if not repair.applied and repair.needed():
                repair.apply()


class OtherThreads(io.TextIOBase):
    """Passes on what other threads print, such as a notebook's cells while a widget quantizes."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.held_back = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self.held_back else self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what ModelOpt prints and warns of on every call ("Inserted 60 quantizers", "experimental")."""
    from modelopt.torch.quantization import model_calib

    bar = functools.partial(model_calib.tqdm, disable=True)  # a line for every few layers
    held = contextlib.redirect_stdout(OtherThreads(sys.stdout))
    with warnings.catch_warnings(), held, mock.patch.object(model_calib, "tqdm", bar):
        warnings.filterwarnings("ignore", message="Real quantization has been applied")
        warnings.filterwarnings("ignore", message="Skipping extension modelopt_cuda_ext")
        warnings.filterwarnings("ignore", message="Received a module with monkey patched")
        warnings.filterwarnings("ignore", message=".*is not calibrated, skip smoothing")  # what stays dense
        warnings.filterwarnings("ignore", message="Received custom quantization formats")
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield


@contextlib.contextmanager
def undone_on_error(model: nn.Module) -> Iterator[None]:
    """Give ``model`` its own modules, weights and hooks back where the block of code raises."""
    before = [
        (
            module,
            module.__class__,
            {k: copy.copy(v) if isinstance(v, (dict, list, set)) else v for k, v in vars(module).items()},
        )
        for module in model.modules()
    ]
    data = [(parameter, parameter.data) for parameter in model.parameters()]
    try:
        yield
    except BaseException:
        for module, cls, state in before:
            module.__class__ = cls
            vars(module).clear()
            vars(module).update(state)
        for parameter, values in data:
            parameter.data = values
        raise


def insert_quantizers(model: nn.Module, entries: list[dict[str, Any]], algorithm: dict[str, Any]) -> None:
    """Replace ``model``'s layers by quantized ones, without calibrating; works on weights that are not there yet."""
    import modelopt.torch.opt as mto

    with quiet():
        mto.apply_mode(model, mode=[("quantize", {"quant_cfg": entries, "algorithm": algorithm})])


def pack_layer(layer: nn.Module, algorithm: dict[str, Any]) -> None:
    """Calibrate and pack the weight of one quantized layer of a model whose packing :func:`finish_packing` records."""
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.opt import ModeloptStateManager
    from modelopt.torch.quantization.qtensor.base_qtensor import pack_real_quantize_weight

    with quiet():
        mtq.calibrate(layer, algorithm)
        ModeloptStateManager.remove_state(layer)  # it is the model's to keep
        layer.weight_quantizer._fake_quant = False
        pack_real_quantize_weight(torch.nn.ModuleList([layer]))  # a container: the root itself would be skipped
    drop_packed_amax(layer)


def expect_packed(layer: nn.Module, spec: config.WeightSpec, saved: torch.dtype, dtype: torch.dtype) -> dict[str, Any]:
    """Prepare a quantized layer without weights for packed ones to arrive, as plain tensors without data.

    They were packed from weights of dtype ``saved`` and are to be read as ``dtype``. Returns what :func:`wrap_packed`
    has to know once they are there.
    """
    import torch
    from modelopt.torch.quantization import qtensor

    names = {(4, 3): "FP8QTensor", 8: "INT8QTensor", (2, 1): "NVFP4QTensor"}
    name = names.get(spec.num_bits) or ("NF4QTensor" if spec.scale_bits == 8 else "INT4QTensor")
    metadata = {"qtensor_class": getattr(qtensor, name), "shape": layer.weight.shape, "dtype": dtype}
    quantizer = layer.weight_quantizer
    quantizer._fake_quant, quantizer._dequantize = False, True
    packed = spec.packed_tensors(tuple(layer.weight.shape), str(saved).removeprefix("torch."))
    for tensor, (shape, kind) in packed.items():
        empty = torch.empty(shape, dtype=getattr(torch, kind), device="meta")
        if tensor == "weight":
            layer._parameters["weight"] = torch.nn.Parameter(empty, requires_grad=False)
        else:
            quantizer.register_buffer(tensor, empty)
    return metadata


def wrap_packed(layer: nn.Module, metadata: dict[str, Any]) -> None:
    """Make a packed weight of the plain tensor that arrived where :func:`expect_packed` prepared."""
    from modelopt.torch.quantization.qtensor import QTensorWrapper

    layer._parameters["weight"] = QTensorWrapper(layer._parameters["weight"].data, metadata=metadata)


def calibrate(
    model: nn.Module,
    algorithm: dict[str, Any],
    forward_loop: Callable[[nn.Module], None] | None,
    calibrator: str = "max",
    percentile: float = 99.9,
) -> None:
    """Let ModelOpt calibrate a model whose quantizers are in place; ``calibrator`` reads the histograms where there are some."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.calib import HistogramCalibrator
    from modelopt.torch.quantization.nn import TensorQuantizer

    found = [getattr(m, "_calibrator", None) for m in model.modules() if isinstance(m, TensorQuantizer)]
    histograms = [c for c in found if isinstance(c, HistogramCalibrator)]
    for c in histograms:  # mtq.calibrate asks a calibrator for its amax without saying how
        c.compute_amax = functools.partial(c.compute_amax, calibrator, percentile=percentile)
    try:
        with quiet():
            mtq.calibrate(model, algorithm, forward_loop)
    finally:
        for c in histograms:
            del c.compute_amax


def show_inputs(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> None:
    """Give the input quantizers of layers, by name, what they are to calibrate on, without running the layers."""
    for name, given in inputs.items():
        model.get_submodule(name).input_quantizer(given)


def cannot_round(cfg: dict[str, Any], device: torch.device) -> str:
    """Why ModelOpt cannot round activations to a format with scales of its own on a device, found by trying; or ""."""
    import torch
    from modelopt.torch.quantization.config import QuantizerAttributeConfig
    from modelopt.torch.quantization.nn import TensorQuantizer

    if not (cfg.get("block_sizes") or {}).get("scale_bits"):
        return ""
    try:
        with quiet():
            TensorQuantizer(QuantizerAttributeConfig(**cfg), amax=torch.ones(())).to(device)(
                torch.ones(1, 256, device=device)
            )
    except Exception as error:  # the reason is the answer, whatever it is
        return str(error)
    return ""


def has_smoothed(model: nn.Module) -> bool:
    """Whether calibration gave any layer a scale for the channels of its input."""
    quantizers = (getattr(module, "input_quantizer", None) for module in model.modules())
    return any(getattr(quantizer, "pre_quant_scale", None) is not None for quantizer in quantizers)


def finish_packing(model: nn.Module) -> None:
    """Pack what is quantized but not packed yet, and record on the model that it is packed."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.nn.modules.quant_linear import SVDQuantTensorQuantizer

    with quiet():
        # FP8 and NVFP4 have real low-precision matrix products on CUDA; elsewhere asking warns once a layer
        on_cuda = next(model.parameters()).is_cuda
        mtq.compress(model, mtq.config.CompressConfig(quant_gemm=on_cuda))
    drop_packed_amax(model)
    for module in model.modules():
        quantizer = getattr(module, "weight_quantizer", module)
        for name in LOW_RANK:
            tensor = vars(quantizer).pop(name.removeprefix("_"), None)
            if tensor is not None:  # an attribute, which neither state_dict nor a count of the bytes would see
                quantizer.__class__ = SVDQuantTensorQuantizer
                quantizer.register_buffer(
                    name, tensor.contiguous()
                )  # as it will be loaded, or it would round differently


LOW_RANK = ("_svdquant_lora_a", "_svdquant_lora_b")


def expect_low_rank(model: nn.Module) -> None:
    """Give the linear layers of a quantized model svdquant's low-rank branch, whose tensors are yet to arrive."""
    from modelopt.torch.quantization.conversion import create_and_replace_svdquant_linear_on_the_fly

    with quiet():
        create_and_replace_svdquant_linear_on_the_fly(model)


def drop_packed_amax(model: nn.Module) -> None:
    """Delete the amax buffers of packed weights.

    Packing turns each amax into a scale and keeps both, though reading a packed weight uses the scale alone: at one
    float32 for every block that is up to a bit a weight. So it does with what the calibration of an attention's q, k and v
    shared. ModelOpt 0.47.0 and earlier; not reported upstream.
    """
    for module in list(model.modules()):
        if hasattr(module, "_shared_quant_states") and holds_packed(module):
            del module._shared_quant_states
        if is_packed(module):
            for name in ("_amax", "_global_amax"):
                if hasattr(module.weight_quantizer, name):
                    delattr(module.weight_quantizer, name)


def is_packed(module: nn.Module) -> bool:
    """Whether ``module``'s weight is packed by ModelOpt."""
    from modelopt.torch.quantization.qtensor import QTensorWrapper

    return isinstance(getattr(module, "_parameters", {}).get("weight"), QTensorWrapper)


def holds_packed(model: Any) -> bool:
    """Whether ``model`` is a model with a packed layer in it."""
    return any(is_packed(module) for module in getattr(model, "modules", lambda: ())())


def read_packed(module: nn.Module) -> torch.Tensor:
    """The dequantized weight of a packed layer, as its forward pass reads it."""
    return module.weight_quantizer.dequantize(module.weight)


@contextlib.contextmanager
def unpacked(model: nn.Module) -> Iterator[None]:
    """Put the dense weights that packed ones are read as in their place while a block of code runs; outputs stay the same.

    A layer that quantizes nothing else is of its plain class meanwhile: a disabled quantizer still costs time at every call.
    """
    import torch
    from modelopt.torch.quantization.nn import QuantModule

    with contextlib.ExitStack() as stack:
        for module in [m for m in model.modules() if isinstance(m, QuantModule)]:
            if is_packed(module):
                dense, packed = read_packed(module), module._parameters.pop("weight")
                stack.callback(_pack_again, module, packed)
                module.weight_quantizer.disable()
                module.register_parameter("weight", torch.nn.Parameter(dense, requires_grad=False))
            if not _quantizes(module):
                stack.callback(setattr, module, "__class__", type(module))
                module.__class__ = module.get_original_cls_by_level(0)
        yield


def _pack_again(module: nn.Module, packed: torch.nn.Parameter) -> None:
    module._parameters.pop("weight", None)  # a packed layer packs or wraps whatever replaces a packed weight
    module.register_parameter("weight", packed)
    module.weight_quantizer.enable()


def _quantizes(module: nn.Module) -> bool:
    """Whether a quantized layer does more to its input, weight or output than its plain class."""
    from modelopt.torch.quantization.nn import TensorQuantizer

    quantizers = [q for q in module.modules() if isinstance(q, TensorQuantizer)]
    low_rank = any(getattr(q, "svdquant_lora_a", None) is not None for q in quantizers)
    return low_rank or any(q.is_enabled or getattr(q, "pre_quant_scale", None) is not None for q in quantizers)


def quantizable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers whose weights ModelOpt can pack, by name: linear layers and convolutions, not yet quantized or so."""
    from modelopt.torch.quantization.nn import QuantModule, QuantModuleRegistry
    from torch import nn

    convolutions = nn.modules.conv._ConvNd
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, convolutions))
        and (isinstance(module, QuantModule) or type(module) in QuantModuleRegistry)
        and getattr(module, "weight", None) is not None
    }


def without_weights(model: nn.Module) -> list[str]:
    """The modules that ModelOpt takes for quantizable and that have no weights to pack: norms, attentions and so on.

    A pattern such as ``*input_quantizer`` means them too, so that norms round what they are given, for nothing: no product of
    matrices follows.
    """
    from modelopt.torch.quantization.nn import QuantModuleRegistry

    layers = quantizable_layers(model)
    return [name for name, m in model.named_modules() if name not in layers and name and type(m) in QuantModuleRegistry]


def is_pointwise(module: nn.Module) -> bool:
    """Whether a convolution computes each pixel from that pixel alone: a linear layer over the channels."""
    from torch import nn

    return (
        isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        and {*module.kernel_size, *module.stride} == {1}
        and module.padding in ("valid", (0,) * len(module.kernel_size))
        and module.groups == 1
    )


def _channels_last(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (args[0].movedim(1, -1), *args[1:])


def _channels_second(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    return output.movedim(-1, 1)


def make_linear(model: nn.Module, name: str, inside: bool = False) -> None:
    """Put a linear layer in the place of a pointwise convolution; it takes and gives pictures as the convolution did.

    The channels are moved around the layer by hooks, so that to ModelOpt it is a linear layer like any other. A weight that is
    not there yet keeps the convolution's shape until it arrives. With ``inside`` the hooks are on a container with the linear
    layer in it, for those who hook the layer itself.
    """
    from torch import nn

    convolution = model.get_submodule(name)
    linear = nn.Linear(convolution.in_channels, convolution.out_channels, device="meta")
    weight = convolution.weight if convolution.weight.is_meta else nn.Parameter(convolution.weight.detach().flatten(1))
    linear.weight, linear.bias = weight.requires_grad_(convolution.weight.requires_grad), convolution.bias
    module = nn.Sequential(linear) if inside else linear
    module.register_forward_pre_hook(_channels_last)
    module.register_forward_hook(_channels_second)
    model.set_submodule(name, module.train(convolution.training))


def is_of_class(module: nn.Module, registered: str) -> bool:
    """Whether a ``parent_class`` entry of ModelOpt's configuration, such as ``nn.Conv2d``, means ``module``."""
    from torch import nn

    return registered.startswith("nn.") and isinstance(module, getattr(nn, registered[3:], ()))
