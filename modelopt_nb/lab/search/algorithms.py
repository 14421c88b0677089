"""Find out by trying which scheme and algorithm run on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from modelopt_nb import ACTIVATION_SCALES, SCHEMES, ModelOptConfig, make_config, quantize

if TYPE_CHECKING:
    import pandas as pd
    import torch


def _layer() -> object:
    import torch

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.nn.Sequential(torch.nn.Linear(256, 128)).to(device)


def _verdict(work: Callable[[], None]) -> str:
    """``runs``, or why not, from trying."""
    try:
        work()
    except Exception as error:  # the reason is the answer, whatever it is
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        needs_cuda = any(word in reason.lower() for word in ("cuda", "triton", "gpu"))
        return f"needs CUDA ({reason})" if needs_cuda else f"not supported ({reason})"
    return "runs"


def check_scheme(quant_type: str, **options: Any) -> str:
    """Pack a tiny layer with ``quant_type`` (a type, a combined type or a scheme) and run it: ``runs``, or why not.

    ``options`` are those of :func:`modelopt_nb.make_config`. An algorithm that leaves the layer as ``"max"`` does is not
    supported either.
    """
    import torch

    def work() -> None:
        def packed(config: ModelOptConfig) -> torch.Tensor:
            model = _layer()
            quantize(model, config, lambda m: m(x))
            return model(x)

        model = _layer()
        x = torch.randn(4, 256, device=next(model.parameters()).device)
        with torch.no_grad():
            dense, config = model(x), make_config(quant_type, **options)
            output = packed(config)
            error = ((output - dense).norm() / dense.norm()).item()
            if not error < 0.3:
                raise ArithmeticError(f"relative output error {error:.2g}")
            method = config.modelopt_config["algorithm"]["method"]
            if method != "max" and torch.equal(
                output, packed(make_config(quant_type, **options | {"algorithm": "max"}))
            ):
                raise ValueError(f"{method} changes nothing")

    return _verdict(work)


#: ModelOpt's algorithms for diffusion models that :func:`algorithm_table` tries.
ALGORITHMS = ("max", "mse", "smoothquant", "awq_lite", "svdquant")


def algorithm_table(
    schemes: Iterable[str] = tuple(SCHEMES), activations: Iterable[str] = ("FP8", "INT8")
) -> pd.DataFrame:
    """Which algorithm goes with which scheme, found by trying each on a tiny layer: ``runs``, or why not.

    A row a scheme and an activation type with a way to scale it (both empty for weights alone), a column an algorithm.
    """
    import pandas as pd

    ways = [("", ""), *((kind, scale) for kind in activations for scale in ACTIVATION_SCALES)]
    rows = {}
    for scheme in schemes:
        name, chosen = SCHEMES[scheme]
        for kind, scale in ways:
            options = chosen | ({"activation_scale": scale} if kind else {})
            combined = f"{name}_{kind}" if kind else name
            rows[scheme, kind, scale] = {a: check_scheme(combined, algorithm=a, **options) for a in ALGORITHMS}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["scheme", "activations", "scale"])
