"""Carry out a plan on a loaded model, all or nothing."""

from torch import nn

from modelopt_nb.config.config import ModelOptConfig
from modelopt_nb.packing.calibrate import ForwardLoop, calibrate, needs_only_amax
from modelopt_nb.packing.input_amax import run_forward_loop
from modelopt_nb.packing.plan import Plan
from modelopt_nb.packing.report import Report
from modelopt_nb.upstream.layers import make_linear
from modelopt_nb.upstream.packed_weights import finish_packing
from modelopt_nb.upstream.quantizers import insert_quantizers
from modelopt_nb.upstream.rollback import rollback_on_error


def pack(model: nn.Module, config: ModelOptConfig, plan: Plan, loop: ForwardLoop | None) -> Report:
    """Quantize and pack a dense model in place. An error restores the model."""
    with rollback_on_error(model):
        for name in plan.pointwise:
            make_linear(model, name)
        only_amax = loop is not None and needs_only_amax(config, plan)
        amax = run_forward_loop(loop, model, plan.layouts) if loop and only_amax else None
        insert_quantizers(model, plan.entries, config.algorithm)
        calibrate(model, config, plan, loop, amax)
        finish_packing(model)
        return Report.measure(model, config, plan)
