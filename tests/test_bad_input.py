"""Wrong calls of every public verb: the error names argument, value and what is allowed, and nothing has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

import modelopt_nb as nb
from modelopt_nb import ModelCall, make_config
from tests.lab.small_pipelines import stable_diffusion
from tests.upstream.repairs.test_users_files import tree

NAN, INF = float("nan"), float("inf")
ERRORS = TypeError, ValueError, FileNotFoundError, ModuleNotFoundError  # CheckpointError is a ValueError
FP8 = make_config("FP8")
IMAGE = np.zeros((16, 16, 3), np.uint8)


class World:
    """What the wrong calls are about: a pipeline, its UNet, a packed model, calls, a comparison's parts, a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.pipeline = folder, stable_diffusion(DDIMScheduler())
        self.model, self.linear = self.pipeline.unet, nn.Linear(64, 64)
        self.net = nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 128)).eval()
        self.meta = nn.Sequential(nn.Linear(64, 64, device="meta"))
        self.packed = nn.Sequential(nn.Linear(64, 64))
        nb.quantize(self.packed, FP8)
        self.x = torch.ones(2, 128)
        self.calls = [ModelCall(0, (self.x,), {})]
        (folder / "mine.txt").write_text("mine")
        (folder / "empty").mkdir()
        self.loop = lambda model: model(self.x)

    def state(self) -> Any:
        parts = [*self.pipeline.components.values(), self.net, self.linear, self.packed]
        modules = [m for part in parts if isinstance(part, nn.Module) for m in part.modules()]
        tensors = [t for m in modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
        return (
            [(type(m), len(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules],
            [(id(t), t.data_ptr(), t._version) for t in tensors],
            tree(self.folder),
        )


def config(message: str, quant_type: Any = "FP8", **arguments: Any) -> tuple:
    """A row of make_config."""
    shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return (f"make_config({quant_type!r}, {shown})", lambda w: make_config(quant_type, **arguments), message)


BLOCK = {"channel_quantize": -1, "block_quantize": 32}
CONFIG = [
    config("quant_type must be a string such as 'FP8', not 8", 8),
    config("quant_type must be a string such as 'FP8', not None", None),
    config(r"quant_type must be a string such as 'FP8', not \['FP8'\]", ["FP8"]),
    config("quant_type='' is not known. Allowed: FP8, INT8", ""),
    config("quant_type='fp8' is not known. Allowed: FP8", "fp8"),
    config("quant_type='FP4' is not known. Allowed: FP8", "FP4"),
    config(r"quant_type='FP8_INT9' \('INT9' in it\) is not known. Allowed: ", "FP8_INT9"),
    config("quant_type='FP8_INT8_FP8' is not known. Allowed: ", "FP8_INT8_FP8"),
    config("quant_type='INT8 chanel' is not a scheme. Allowed: FP8, FP8 channel", "INT8 chanel"),
    config("quant_type='INT8 channel' is a scheme, which sets the axes", "INT8 channel", channel_quantize=0),
    config("quant_type: NF4 is for weights only. Allowed for activations: FP8, INT8, NVFP4", "INT8_NF4"),
    config("quant_type: INT4 is for weights only. Allowed", "INT4", weight_only=False),
    config("weight_only=True contradicts quant_type='FP8_INT8'.*Allowed: False or None", "FP8_INT8", weight_only=True),
    *(config(f"channel_quantize={x!r} is not supported here. Allowed: 0, 1, -1 or None", channel_quantize=x) for x in (2, "0", True, -3)),
    config("channel_quantize=0 is not supported here. Allowed: -1 or None", "INT4", channel_quantize=0, block_quantize=32),
    *(config(f"block_quantize={x!r} is not a block size. Allowed: a whole number of 2", channel_quantize=-1, block_quantize=x)
      for x in (0, -32, 1, 2.5, "32", True, NAN)),
    config("block_quantize=32 needs channel_quantize", "INT8", block_quantize=32),
    config("block_quantize=7 is odd.*Allowed: even sizes", "INT4", channel_quantize=-1, block_quantize=7),
    config("scale_channel_quantize=-1 does not apply to FP8. Allowed with: NF4", **BLOCK, scale_block_quantize=8, scale_channel_quantize=-1),
    config("scale_block_quantize=0 is not a block size. Allowed", "NF4", **BLOCK, scale_block_quantize=0, scale_channel_quantize=-1),
    config("scale_channel_quantize=0 is not supported here. Allowed: -1", "NF4", **BLOCK, scale_channel_quantize=0, scale_block_quantize=8),
    config("scale_block_quantize=8 need each other", "NF4", **BLOCK, scale_block_quantize=8),
    *(config(f"percentile={x!r} is not allowed. Allowed: above 0, up to 100", percentile=x) for x in (0, -1, 101, NAN, INF, "99", True, None)),
    config("activation_scale='static' is not known. Allowed: static tensor", "INT8", weight_only=False, activation_scale="static"),
    config("activation_scale=3 is not known. Allowed", "INT8", weight_only=False, activation_scale=3),
    config("activation_scale='dynamic token'.*quant_type='INT8' has none. Allowed with weight_only=False", "INT8", activation_scale="dynamic token"),
    config("activation_calibrator='mean' is not known. Allowed: max, percentile", "INT8", weight_only=False, activation_calibrator="mean"),
    config("activation_calibrator='entropy' counts the steps.*Allowed: max", "FP8", weight_only=False, activation_calibrator="entropy"),
    config("activation_calibrator='mse' makes a histogram.*Allowed", "INT8_NVFP4", activation_calibrator="mse"),
    config("does not apply to NVFP4.*Allowed: None", "INT8_NVFP4", activation_scale="static tensor"),
    config("algorithm='awq' is not known to ModelOpt. Allowed: .*awq_lite", algorithm="awq"),
    config("algorithm=3 is not one. Allowed: a name", algorithm=3),
    config("algorithm=None is not one. Allowed: a name", algorithm=None),
    config(r"algorithm=\['max'\] is not one. Allowed: a name", algorithm=["max"]),
    config(r"algorithm=\{'alpha': 1\} is not one. Allowed: a name", algorithm={"alpha": 1}),
    config("alpha='much'|'smoothquant' does not take.*alpha", "INT8", algorithm="smoothquant", alpha="much"),
    config("chanel_quantize=0 is not an argument of algorithm 'max'. Allowed", chanel_quantize=0),
    config("forward_loop=3 cannot be called with a model", forward_loop=3),
    config("quant_method='gguf' is not 'modelopt'", quant_method="gguf"),
    *(config(f"modules_to_not_convert holds {x!r}. Allowed: module names or patterns", modules_to_not_convert=[x]) for x in (3, "", " ", None)),
    config("modules_to_not_convert=3 .*Allowed: module names or patterns", modules_to_not_convert=3),
    config("per_layer='attn1' .*Allowed: .*dict", per_layer="attn1"),
    config("per_layer=3 .*Allowed: .*dict", per_layer=3),
    config("quant_type='INT9' is not known. Allowed", per_layer={"INT9": "attn1"}),
    config(r"per_layer\['INT8'\] is empty. Allowed: names", per_layer={"INT8": []}),
    config(r"per_layer\['INT8'\] holds 3. Allowed", per_layer={"INT8": [3]}),
    config(r"per_layer\['INT8'\]=3 .*Allowed: ", per_layer={"INT8": 3}),
    config("modelopt_config=3 .*Allowed: .*dict", modelopt_config=3),
    config("modelopt_config=.* is not ModelOpt's. Allowed: quant_cfg", modelopt_config={"quant_config": []}),
    *(config(f"weight_only={x!r} .*Allowed: True, False or None", weight_only=x) for x in ("no", 3)),
    *(config(f"{name}='no' .*Allowed: True, False or None", **{name: "no"}) for name in ("disable_conv_quantization", "pointwise_as_linear")),
]  # fmt: skip

ONE = "Allowed: a model, such as a pipeline's transformer"
MODEL_VERBS = {
    "quantize": lambda m, w: nb.quantize(m, FP8),
    "plan": lambda m, w: nb.plan(m, FP8),
    "describe_layers": lambda m, w: nb.describe_layers(m),
    "weight_bytes": lambda m, w: nb.weight_bytes(m),
    "layer_frame": lambda m, w: nb.layer_frame(m),
    "layer_groups": lambda m, w: nb.layer_groups(m),
    "select": lambda m, w: nb.select(m, "attn1"),
    "weight_errors": lambda m, w: nb.weight_errors(m, FP8),
    "activation_ranges": lambda m, w: nb.activation_ranges(m, w.calls),
    "sensitivity": lambda m, w: nb.sensitivity(m, FP8, w.calls),
    "fit_budget": lambda m, w: nb.fit_budget(m, w.calls, mib=1),
    "export": lambda m, w: nb.export(m, FP8, w.folder / "new"),
    "dequantized": lambda m, w: enter(nb.dequantized(m)),
    "input_amax": lambda m, w: enter(nb.input_amax(m, ["0"])),
}
MODELS = [
    row
    for verb, call in MODEL_VERBS.items()
    for row in (
        (f"{verb}(pipeline)", lambda w, c=call: c(w.pipeline, w), f"model is a StableDiffusionPipeline. {ONE}"),
        (f"{verb}('model')", lambda w, c=call: c("model", w), f"model is a str. {ONE}"),
    )
]
DENSE_ONLY = {name: MODEL_VERBS[name] for name in ("quantize", "plan", "weight_errors", "sensitivity", "fit_budget", "export")}  # fmt: skip
MODELS += [
    (f"{verb}(packed)", lambda w, c=call: c(w.packed, w), "model=Sequential is quantized already.*Load a dense one")
    for verb, call in DENSE_ONLY.items()
]
MODELS += [
    (f"{verb}(no layers)", lambda w, c=call: c(nn.LayerNorm(4), w), "model=LayerNorm has nothing to quantize. Needed")
    for verb, call in DENSE_ONLY.items()
]
META = {name: MODEL_VERBS[name] for name in ("quantize", "weight_errors", "activation_ranges", "sensitivity", "fit_budget", "export")}  # fmt: skip
MODELS += [
    (f"{verb}(meta)", lambda w, c=call: c(w.meta, w), "model=Sequential .*meta device.*weights")
    for verb, call in META.items()
]
MODELS += [
    (f"{verb}(a bare layer)", lambda w, c=MODEL_VERBS[verb]: c(w.linear, w), "model=Linear is a layer.*Sequential")
    for verb in ("quantize", "plan")
]
MODELS += [
    (f"{verb}(model, {x!r})", lambda w, v=verb, x=x: getattr(nb, v)(w.net, x, *rest(w, v)), "config=.* is not a ModelOpt configuration. Build one with make_config")
    for verb in ("quantize", "plan", "weight_errors", "layer_frame", "sensitivity", "export") for x in ("FP8", {}, 3) if (verb, x) != ("layer_frame", {})
]  # fmt: skip


def rest(w: World, verb: str) -> tuple:
    return {"sensitivity": (w.calls,), "export": (w.folder / "new",)}.get(verb, ())


def enter(context: Any, *_: Any) -> None:
    with context:
        pytest.fail("it was entered")


QUANTIZE = [
    ("quantize: a loop that is none", lambda w: nb.quantize(w.net, FP8, 3), "forward_loop=3 cannot be called with a model"),
    ("quantize: no loop", lambda w: nb.quantize(w.net, make_config("INT8", weight_only=False)), "static activation scales need a forward_loop.*Allowed without"),
    ("quantize: awq without a loop", lambda w: nb.quantize(w.net, make_config("INT4", algorithm="awq_lite")), "algorithm='awq_lite' needs a forward_loop"),
    ("quantize: a lazy loop", lambda w: nb.quantize(w.net, make_config("INT8", weight_only=False), lambda m: None), "forward_loop=.* did not call the Sequential.*Needed"),
    ("quantize: a loop over a part", lambda w: nb.quantize(w.net, make_config("INT8", weight_only=False), lambda m: m[0](w.x)), "forward_loop=.* never reached.*Needed"),
    ("quantize: no such layer", lambda w: nb.quantize(w.model, make_config("FP8", "atn1")), "modules_to_not_convert holds 'atn1', which matches no layer.*Nearest: attn1"),
    ("quantize: all excluded", lambda w: nb.quantize(w.net, make_config("FP8", "*")), "quant_type='FP8'.* would pack no layer of Sequential: modules_to_not_convert"),
    ("quantize: blocks that do not fit", lambda w: nb.quantize(w.net, make_config("FP8", channel_quantize=-1, block_quantize=999)), "block_quantize=999 would pack no layer"),
    ("quantize: per_layer twice", lambda w: nb.quantize(w.model, make_config("NF4", per_layer={"INT8": "attn1", "FP8": "to_q"})), "per_layer names .*attn1.to_q twice: under 'INT8' and under 'FP8'"),
    ("quantize: per_layer of no layer", lambda w: nb.quantize(w.model, make_config("NF4", per_layer={"INT8": "atn1"})), r"per_layer\['INT8'\] holds 'atn1'.*Nearest: attn1"),
    ("quantize: smoothquant of weights", lambda w: nb.quantize(w.net, make_config("INT8", algorithm="smoothquant"), w.loop), "algorithm='smoothquant' is for INT8 weights and activations.*Allowed: 'INT8', weight_only=False"),
    ("quantize: mse of NF4", lambda w: nb.quantize(w.net, make_config("NF4", algorithm="mse")), "algorithm='mse' changes nothing in NF4.*Allowed: 'max'"),
    ("check_algorithm: no loop", lambda w: nb.check_algorithm(make_config("INT4", algorithm="svdquant"), None), "algorithm='svdquant' needs a forward_loop"),
    ("check_algorithm: a scheme", lambda w: nb.check_algorithm("FP8", None), "config='FP8' is not a ModelOpt configuration. Build one"),
    ("input_amax: no such layer", lambda w: enter(nb.input_amax(w.net, ["9"])), "layers holds '9', which matches no layer"),
    ("config_code('FP8')", lambda w: nb.config_code("FP8"), "config='FP8' is not a ModelOpt configuration. Build one"),
]  # fmt: skip


def asked(verb: str, message: str, **arguments: Any) -> tuple:
    """A row of generate, denoising_loop or compare."""
    first = ("cat",) if "prompts" not in arguments else (arguments.pop("prompts"),)
    middle = (["FP8"],) if verb == "compare" else ()
    middle = (arguments.pop("variants"),) if "variants" in arguments else middle
    name = f"{verb}({', '.join(map(repr, (*middle, *first)))}, {arguments})"
    return (name, lambda w: getattr(nb, verb)(w.pipeline, *middle, *first, **arguments), message)


GENERATE = [
    row
    for verb in ("generate", "denoising_loop", "compare")
    for row in (
        *(asked(verb, r"prompts=.* is not a list of prompts. Allowed: one or more strings", prompts=x) for x in ([], 3, [3], None)),
        asked(verb, r"seeds=\[1, 2\] has 2 entries for 1 prompts. Allowed", seeds=[1, 2]),
        *(asked(verb, f"seeds={x!r}.*Allowed: one whole number", seeds=x) for x in (1.5, "one", NAN)),
        *(asked(verb, f"steps={x!r} is not allowed. Allowed: 1 to 1000", steps=x) for x in (0, -1, 1001, 2.5, "2", NAN, True)),
        *(asked(verb, f"batch_size={x!r} is not allowed. Allowed: 1 to", batch_size=x) for x in (0, 1.5, "4")),
        asked(verb, "steps=2 and num_inference_steps=2 mean the same. Allowed: one", steps=2, num_inference_steps=2),
        asked(verb, "generator cannot be passed on. Allowed", generator=None),
        (f"{verb}(unet)", lambda w, v=verb: getattr(nb, v)(w.model, *((["FP8"],) if v == "compare" else ()), ["cat"]),
         "pipeline is a UNet2DConditionModel. Allowed: the pipeline"),
        (f"{verb}('pipeline')", lambda w, v=verb: getattr(nb, v)("pipeline", *((["FP8"],) if v == "compare" else ()), ["cat"]),
         "pipeline is a str. Allowed: "),
    )
] + [
    asked("compare", "variants='FP8' is neither a list", variants="FP8"),
    asked("compare", "variants=3 is neither a list", variants=3),
    asked("compare", "quant_type='FP4' is not known. Allowed", variants=["FP4"]),
    asked("compare", "variants contains 'FP8' twice", variants=["FP8", "FP8"]),
    asked("compare", "variants contains 'dense' twice", variants={"dense": "FP8"}),
    asked("compare", r"variants\['mine'\]=3 is not a configuration. Build one", variants={"mine": 3}),
    asked("compare", "algorithm='awq_lite' needs a forward_loop", variants={"x": make_config("INT4", algorithm="awq_lite")}),
    asked("compare", "'nope', which matches no layer", variants={"x": make_config("FP8", "nope")}),
    asked("compare", "measures contains SSIM, already a column. Allowed: other names", measures={"SSIM": len}),
    asked("compare", "measures={'mine': 3} is not a function", measures={"mine": 3}),
    asked("compare", "component='transformer' is not a model of StableDiffusionPipeline. Allowed: ", component="transformer"),
    asked("denoising_loop", "component='scheduler' is not a model of StableDiffusionPipeline. Allowed: ", component="scheduler"),
]  # fmt: skip

LAB = [
    ("record_calls(unet)", lambda w: enter(nb.record_calls(w.model)), "pipeline is a UNet2DConditionModel. Allowed: the pipeline"),
    ("record_calls: component", lambda w: enter(nb.record_calls(w.pipeline, component="x")), "component='x' is not a model of .*Allowed"),
    *((f"record_calls(keep={x!r})", lambda w, x=x: enter(nb.record_calls(w.pipeline, x)), f"keep={x!r} is not allowed. Allowed: a whole number") for x in (0, -1, 1.5, "3", True)),
    *((f"record_calls(at={x!r})", lambda w, x=x: enter(nb.record_calls(w.pipeline, at=x)), "at=.* is not allowed. Allowed: one or more shares") for x in ((), (2,), (-0.1,), (NAN,), 0.5, "half", ("a",))),
    ("replay_loop([])", lambda w: nb.replay_loop([]), "inputs is empty. Allowed: calls from record_calls"),
    ("replay_loop(3)", lambda w: nb.replay_loop(3), "inputs=3 .*Allowed: calls from record_calls"),
    ("load_calls: no file", lambda w: nb.load_calls(w.folder / "no.pt"), "path=.*no.pt.*Allowed: a file that save_calls"),
    ("load_calls: another file", lambda w: nb.load_calls(w.folder / "mine.txt"), "path=.*mine.txt.*Allowed: a file that save_calls"),
    ("save_calls: no calls", lambda w: nb.save_calls([3], w.folder / "x.pt"), "calls holds 3. Allowed: calls"),
    ("save_calls: a folder", lambda w: nb.save_calls(w.calls, w.folder / "empty"), "path=.*empty.* is a folder. Allowed"),
    *((f"{verb}: calls={x!r}", lambda w, v=verb, x=x: {"sensitivity": lambda: nb.sensitivity(w.net, FP8, x), "fit_budget": lambda: nb.fit_budget(w.net, x, mib=0.01), "activation_ranges": lambda: nb.activation_ranges(w.net, x)}[v](), "calls .*Allowed: calls of the model, from record_calls")
      for verb in ("sensitivity", "fit_budget", "activation_ranges") for x in ([], [3], 3)),
    ("sensitivity: groups", lambda w: nb.sensitivity(w.net, FP8, w.calls, "row"), "by='row' is not known. Allowed: layer"),
    ("sensitivity: groups of no layer", lambda w: nb.sensitivity(w.net, FP8, w.calls, {"a": "9"}), r"groups\['a'\] holds '9', which matches no layer"),
    ("sensitivity: an empty group", lambda w: nb.sensitivity(w.net, FP8, w.calls, {"a": []}), r"groups\['a'\] is empty. Allowed"),
    ("sensitivity: groups=3", lambda w: nb.sensitivity(w.net, FP8, w.calls, 3), "groups=3 .*Allowed"),
    *((f"fit_budget(mib={x!r})", lambda w, x=x: nb.fit_budget(w.net, w.calls, mib=x), f"mib={x!r} (cannot be met|is not).*Allowed") for x in (-1, 0, 99, NAN, INF, "1", True)),
    *((f"fit_budget(bits_per_weight={x!r})", lambda w, x=x: nb.fit_budget(w.net, w.calls, bits_per_weight=x), f"bits_per_weight={x!r} (cannot be met|is not).*Allowed") for x in (1, NAN, "8")),
    ("fit_budget: groups twice", lambda w: nb.fit_budget(w.net, w.calls, mib=1, groups={"a": "0", "b": "*"}), "groups holds 0 twice: in 'a' and in 'b'"),
    ("fit_budget: neither", lambda w: nb.fit_budget(w.net, w.calls), "mib=None and bits_per_weight=None: give one of them"),
    ("fit_budget: both", lambda w: nb.fit_budget(w.net, w.calls, mib=1, bits_per_weight=8), "mib=1 and bits_per_weight=8: give one of them"),
    ("fit_budget: dense alone", lambda w: nb.fit_budget(w.net, w.calls, mib=1, candidates=["dense"]), "candidates=.* holds no quant type.*Allowed"),
    ("fit_budget: one string", lambda w: nb.fit_budget(w.net, w.calls, mib=1, candidates="INT8"), "candidates='INT8'.*Allowed: a list"),
    ("fit_budget: a candidate", lambda w: nb.fit_budget(w.net, w.calls, mib=1, candidates=["INT5"]), "quant_type='INT5' is not known. Allowed"),
    ("fit_budget: method", lambda w: nb.fit_budget(w.net, w.calls, mib=1, method="guess"), "method='guess' is not known. Allowed: 'output'"),
    ("fit_budget: gradients of NVFP4", lambda w: nb.fit_budget(w.net, w.calls, mib=1, candidates=["NVFP4"], method="auto_quantize"), "method='auto_quantize' cannot try NVFP4.*Allowed with it"),
    ("fit_budget: errors", lambda w: nb.fit_budget(w.net, w.calls, bits_per_weight=20, candidates=["INT8", "dense"], errors=pd.DataFrame()), "errors are of groups and candidates other than"),
    ("layer_groups: by", lambda w: nb.layer_groups(w.net, "row"), "by='row' is not known. Allowed: layer"),
    ("select: pattern", lambda w: nb.select(w.model, "atn1"), "pattern holds 'atn1', which matches no layer.*Nearest: attn1"),
    ("select: kind", lambda w: nb.select(w.model, kind="attn"), "kind='attn' matches no layer.*Nearest"),
    *((f"select(blocks={x!r})", lambda w, x=x: nb.select(w.model, blocks=x), f"blocks holds {x!r}. Allowed for UNet2D") for x in (99, "1", 1.5)),
    ("check_scheme: no string", lambda w: nb.check_scheme(8), "quant_type must be a string such as 'FP8', not 8"),
    ("algorithm_table: scheme", lambda w: nb.algorithm_table(["INT9"]), "schemes holds 'INT9'. Allowed: FP8"),
    ("algorithm_table: one string", lambda w: nb.algorithm_table("INT8"), "schemes holds 'I'|schemes='INT8'.*Allowed"),
    ("algorithm_table: activations", lambda w: nb.algorithm_table(["INT8"], ["INT9"]), "activations holds 'INT9'. Allowed: FP8"),
    ("export: NF4", lambda w: nb.export(w.net, make_config("NF4"), w.folder / "new"), "config='NF4'.*cannot export it. Allowed: FP8"),
    ("export: FP8 block", lambda w: nb.export(w.net, make_config("FP8", **BLOCK), w.folder / "new"), "config='FP8', block_quantize=32.*cannot export it. Allowed"),
    ("export: no loop", lambda w: nb.export(w.net, make_config("INT8", weight_only=False), w.folder / "new"), "static activation scales need a forward_loop.*Allowed"),
    ("export: awq without a loop", lambda w: nb.export(w.net, make_config("INT4", algorithm="awq_lite"), w.folder / "new"), "algorithm='awq_lite' needs a forward_loop"),
    ("load_pipeline: no folder", lambda w: nb.load_pipeline(w.folder / "no"), "name_or_path=.*is not a pipeline folder.*Allowed"),
    ("load_pipeline: an empty folder", lambda w: nb.load_pipeline(w.folder / "empty"), "name_or_path=.*is not a pipeline folder.*Allowed"),
    ("load_pipeline: a name", lambda w: nb.load_pipeline("sana"), "name_or_path='sana' is not a pipeline folder.*Allowed"),
    ("load_prompts: split", lambda w: nb.load_prompts("train"), "split='train' is not known. Allowed: "),
    *((f"load_prompts(n={x!r})", lambda w, x=x: nb.load_prompts("show", x), f"n={x!r} is not allowed for split='show'. Allowed: 1 to 12") for x in (0, -1, 13, "3", 1.5)),
    ("load_classifier: folder", lambda w: nb.load_classifier(w.folder), "path=.* is not a classifier's folder. Allowed"),
    *((f"{verb}: {what}", lambda w, v=verb, a=a: getattr(nb, v)(*a), message)
      for verb in ("psnr", "ssim") for what, a, message in (
          ("float", (IMAGE / 255, IMAGE), "image is float64 of shape.*Allowed: uint8"),
          ("sizes", (IMAGE[1:], IMAGE), "image has shape .*Allowed: equal shapes"),
          ("None", (IMAGE, None), "reference is .*Allowed: uint8"))),
    ("lpips: net", lambda w: nb.lpips("resnet"), "net='resnet' is not known. Allowed: alex"),
    ("clip_score", lambda w: nb.clip_score("no/clip"), "name_or_path='no/clip' is not on this machine; get it"),
    ("representable_values", lambda w: nb.representable_values("FP4"), "quant_type='FP4' is not known. Allowed"),
    ("Explorer: variant", lambda w: nb.Explorer(w.pipeline, ["FP4"]), "scheme='FP4' is not known. Allowed"),
    ("Explorer: steps", lambda w: nb.Explorer(w.pipeline, ["FP8"], steps=0), "steps=0 is not allowed. Allowed"),
    ("Explorer: guidance", lambda w: nb.Explorer(w.pipeline, ["FP8"], guidance=-1), "guidance=-1 is not allowed. Allowed"),
    ("Explorer(unet)", lambda w: nb.Explorer(w.model), "pipeline is a UNet2DConditionModel. Allowed"),
    ("BlindTest: pictures", lambda w: nb.BlindTest(w.pipeline, ["FP8"], ["cat"], 4), "pictures=4 is not allowed. Allowed: 2 or 3"),
    ("BlindTest: prompts", lambda w: nb.BlindTest(w.pipeline, ["FP8"]), "prompts=None is not allowed.*Allowed"),
    ("BlindTest: variants", lambda w: nb.BlindTest(w.pipeline, [], ["cat"]), "variants.*Allowed"),
]  # fmt: skip

WRONG = [*CONFIG, *MODELS, *QUANTIZE, *GENERATE, *LAB]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    nb.enable()
    return World(tmp_path_factory.mktemp("world"))


def test_the_table_is_long_and_names_each_call_once():
    names = [name for name, *_ in WRONG]
    assert len(names) >= 150 and len(set(names)) == len(names)


@pytest.mark.parametrize(("call", "message"), [pytest.param(*row[1:], id=row[0]) for row in WRONG])
def test_a_wrong_call_is_clear_and_changes_nothing(world: World, call: Any, message: str) -> None:
    before = world.state()
    with pytest.raises(ERRORS, match=message):
        call(world)
    assert world.state() == before


@pytest.mark.parametrize("prompts", [["cat"], ("cat",), pd.Series(["cat"]), np.array(["cat"]), "cat"])
@pytest.mark.parametrize("seeds", [None, 0, np.int64(0), [0], np.array([0]), torch.tensor([0]), pd.Series([0])])
def test_every_kind_of_list_is_accepted(world: World, prompts: Any, seeds: Any) -> None:
    nb.denoising_loop(world.pipeline, prompts, seeds, num_inference_steps=np.int64(2))
