"""Leave the class of dense layers unchanged."""

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.quantization import conversion

from modelopt_nb.upstream.quantizers import PLAIN
from modelopt_nb.upstream.quiet import quiet
from modelopt_nb.upstream.repairs.base import Patch, Repair


class PlainLayers(Repair):
    """Save the states of quantizers that were taken from dense layers, which ``mto.restore`` asks for.

    :func:`modelopt_nb.upstream.quantizers.insert_quantizers` takes them.
    """

    name = "plain-layers"
    broken = "mtq.quantize wraps layers that stay dense, so that mtq.utils.is_quantized says True of them"
    versions = "nvidia-modelopt 0.47.0 and earlier"
    issue = "not reported upstream; modelopt/torch/quantization/conversion.py, replace_quant_module"

    def needed(self) -> bool:
        model = torch.nn.Sequential(torch.nn.Linear(2, 2, device="meta"))
        with quiet():
            mtq.quantize(model, {"quant_cfg": [{"quantizer_name": "*", "enable": False}], "algorithm": None})
        return mtq.utils.is_quantized(model)

    def patches(self) -> list[Patch]:
        original = conversion.quantizer_state
        return [(conversion, "quantizer_state", lambda model: original(model) | vars(model).get(PLAIN, {}))]
