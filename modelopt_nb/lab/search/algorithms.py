"""Find out by trying which scheme and algorithm run on this machine."""

import copy
import itertools
from collections.abc import Iterable
from typing import Any

import pandas as pd
import torch

from modelopt_nb import ACTIVATION_SCALES, QUANT_TYPES, SCHEMES, ModelOptConfig, make_config, quantize, quiet

#: ModelOpt's algorithms for diffusion models that :func:`algorithm_table` tries.
ALGORITHMS = ("max", "mse", "smoothquant", "awq_lite", "svdquant")


def check_scheme(quant_type: str, **options: Any) -> str:
    """Pack and run a tiny linear layer: return ``"runs"``, ``"needs CUDA (...)"`` or ``"not supported (...)"``.

    The text in parentheses is the error. An algorithm that gives the same outputs as ``"max"`` is not supported either.
    Prints nothing and leaves torch's global random state unchanged.

    Args:
        quant_type: A quant type, a combined type or a scheme.
        options: As for :func:`modelopt_nb.make_config`.
    """
    if not isinstance(quant_type, str):
        raise TypeError(f"quant_type must be a string such as 'FP8', not {quant_type!r}")
    devices = list(range(torch.cuda.device_count()))  # torch.manual_seed seeds them all
    try:
        with torch.random.fork_rng(devices), torch.no_grad(), quiet():
            _try(quant_type, options, "cuda" if devices else "cpu")
    except Exception as error:  # any error is the answer
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        needs_cuda = any(word in reason.lower() for word in ("cuda", "triton", "gpu"))
        return f"needs CUDA ({reason})" if needs_cuda else f"not supported ({reason})"
    return "runs"


def _try(quant_type: str, options: dict[str, Any], device: str) -> None:
    """Raise unless a packed layer's outputs are close to the dense ones, and the algorithm changes them."""
    torch.manual_seed(0)
    dense = torch.nn.Sequential(torch.nn.Linear(256, 128)).to(device)
    x = torch.randn(4, 256, device=device)

    def packed_output(config: ModelOptConfig) -> torch.Tensor:
        model = copy.deepcopy(dense)
        quantize(model, config, lambda m: m(x))
        return model(x)

    config = make_config(quant_type, **options)
    output, reference = packed_output(config), dense(x)
    error = ((output - reference).norm() / reference.norm()).item()
    if not error < 0.3:  # also NaN
        raise ArithmeticError(f"relative output error {error:.2g}")
    as_max: dict[str, Any] = {**options, "algorithm": "max"}
    method = config.algorithm["method"]
    if method != "max" and torch.equal(output, packed_output(make_config(quant_type, **as_max))):
        raise ValueError(f"{method} changes nothing")


def algorithm_table(schemes: Iterable[str] = SCHEMES, activations: Iterable[str] = ("FP8", "INT8")) -> pd.DataFrame:
    """Try every algorithm with every scheme on a tiny layer: a frame of :func:`check_scheme`'s answers.

    A row per scheme, activation type and activation scale (both empty for weights only); a column per algorithm.
    """
    schemes, activations = list(schemes), list(activations)
    known = {
        "schemes": (schemes, SCHEMES),
        "activations": (activations, [t.name for t in QUANT_TYPES.values() if t.activations]),
    }
    for argument, (given, allowed) in known.items():
        if unknown := [name for name in given if name not in allowed]:
            raise ValueError(f"{argument} holds {unknown[0]!r}. Allowed: {', '.join(allowed)}")
    pairs = [("", ""), *itertools.product(activations, ACTIVATION_SCALES)]
    rows = {}
    for scheme, (kind, scale) in itertools.product(schemes, pairs):
        weights, sizes = SCHEMES[scheme]
        quant_type, options = (f"{weights}_{kind}", {**sizes, "activation_scale": scale}) if kind else (weights, sizes)
        rows[scheme, kind, scale] = {a: check_scheme(quant_type, algorithm=a, **options) for a in ALGORITHMS}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["scheme", "activations", "scale"])
