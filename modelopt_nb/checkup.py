"""What works on this machine: versions, repairs, and every scheme, found by trying it on a tiny layer."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from modelopt_nb import upstream
from modelopt_nb.config import ACTIVATION_SCALES, QUANT_TYPES, SCHEMES, make_config
from modelopt_nb.quantization import quantize

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from diffusers import NVIDIAModelOptConfig

PACKAGES = ("modelopt-nb", "torch", "diffusers", "nvidia-modelopt", "transformers", "accelerate")


def _layer() -> object:
    import torch

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.nn.Sequential(torch.nn.Linear(256, 128)).to(device)


def _verdict(work: Callable[[], None]) -> str:
    """``runs``, or why not, from trying."""
    try:
        with contextlib.redirect_stderr(upstream.OtherThreads(sys.stderr)):  # bars of a tiny layer
            work()
    except Exception as error:  # the reason is the answer, whatever it is
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        needs_cuda = any(word in reason.lower() for word in ("cuda", "triton", "gpu"))
        return f"needs CUDA ({reason})" if needs_cuda else f"not supported ({reason})"
    return "runs"


def try_scheme(quant_type: str, **options: Any) -> str:
    """Pack a tiny layer with ``quant_type`` (a type, a combined type or a scheme) and run it: ``runs``, or why not.

    ``options`` are those of :func:`modelopt_nb.make_config`. An algorithm that leaves the layer as ``"max"`` does is not
    supported either.
    """
    import torch

    def work() -> None:
        def packed(config: NVIDIAModelOptConfig) -> torch.Tensor:
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
            rows[scheme, kind, scale] = {a: try_scheme(combined, algorithm=a, **options) for a in ALGORITHMS}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["scheme", "activations", "scale"])


def repairs() -> dict[str, str]:
    """Every repair by name, and whether it is on, needed or steps aside."""
    states = {}
    for repair in upstream.REPAIRS:
        if repair.applied:
            states[repair.name] = "on"
        else:
            with upstream.quiet():
                states[repair.name] = "needed; call enable()" if repair.needed() else "steps aside, upstream works"
    return states


def doctor() -> None:
    """Print what works here: versions, device, each repair with its state, and every scheme, tried on a tiny layer.

    A scheme ``runs``, ``needs CUDA`` or is ``not supported``, with the error that trying it gave. Trying switches the
    repairs on, as :func:`modelopt_nb.quantize` does.
    """
    import torch

    print("versions:", ", ".join(f"{name} {version(name)}" for name in PACKAGES))
    print("device:  ", torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")
    print("\nrepairs")
    for name, state in repairs().items():
        print(f"  {name:24} {state}")
    weights = list(SCHEMES)
    activations = [f"{w}_{a}" for w in QUANT_TYPES for a, t in QUANT_TYPES.items() if t.activations]
    for title, names in (("weights", weights), ("weights_activations", activations)):
        print(f"\nschemes: {title}")
        for name in names:
            print(f"  {name:24} {try_scheme(name)}")
