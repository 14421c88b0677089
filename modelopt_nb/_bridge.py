"""Transitional: the helper's new public names over the old modules."""

import copy
import fnmatch

from modelopt_nb import upstream
from modelopt_nb.config import WeightSpec as WeightLayout, patterns as as_patterns, make_config
from modelopt_nb.quantization import Plan, LayerPlan, check_runs as check_config, check_algorithm, NEED_LOOP, named as matching_layers, plan
from modelopt_nb.calibration import largest_inputs as input_amax
from modelopt_nb.memory import MIB, PeakMemory, tensor_bytes as tensor_memory
from modelopt_nb.upstream import quiet
from diffusers import NVIDIAModelOptConfig as ModelOptConfig


def round_weight(weight, layout):
    """The weight as packing and reading back leaves it; any shape, dtype kept."""
    import torch
    from torch import nn
    upstream.enable()
    cfg = layout.cfg
    model = nn.Sequential(nn.Linear(1, 1, bias=False)) if weight.ndim == 2 else nn.Sequential(getattr(nn, f"Conv{weight.ndim-2}d")(1, 1, 1, bias=False))
    model[0].weight = nn.Parameter(weight.detach().clone())
    entries = [{"quantizer_name": "*", "enable": False}, {"quantizer_name": "*weight_quantizer", "cfg": cfg}]
    upstream.insert_quantizers(model, entries, {"method": "max"})
    upstream.calibrate(model, {"method": "max"}, None)
    upstream.finish_packing(model)
    return upstream.read_packed(model[0])


def auto_quantize_scores(model, config, batches, loss, forward, layers):
    """ModelOpt's gradient score of each of ``layers`` that ``config`` packs, by name: the sum over ``batches``."""
    import modelopt.torch.quantization as mtq
    twin, disabled, names = copy.deepcopy(model), [], {}
    for layer in plan(model, config).layers:
        if not layer.packed or layer.name not in layers:
            disabled.append(layer.name)
        else:
            names[layer.name] = layer.name
            if layer.as_linear:
                upstream.make_linear(twin, layer.name, inside=True)
                names[f"{layer.name}.0"] = layer.name
    with upstream.quiet():
        _, state = mtq.auto_quantize(
            twin, constraints={"effective_bits": 16.0}, data_loader=batches, loss_func=loss,
            quantization_formats=[{"quant_cfg": config.modelopt_config["quant_cfg"][:3], "algorithm": "max"}],
            forward_step=forward, num_calib_steps=1, num_score_steps=len(batches), disabled_layers=disabled,
        )  # fmt: skip
    return {names[t["module_names"][0]]: max(t["scores"]) for t in state["candidate_stats"].values() if t["module_names"][0] in names}


def repair_states():
    """Every repair by name: on, needed, or stepping aside."""
    states = {}
    for repair in upstream.REPAIRS:
        if repair.applied:
            states[repair.name] = "on"
        else:
            with upstream.quiet():
                states[repair.name] = "needed; call enable()" if repair.needed() else "steps aside, upstream works"
    return states
