"""What works on this machine: versions, repairs, and every scheme, found by trying it on a tiny layer."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

from modelopt_nb import upstream
from modelopt_nb.config import QUANT_TYPES, SCHEMES, make_config
from modelopt_nb.quantization import quantize

PACKAGES = ("modelopt-nb", "torch", "diffusers", "nvidia-modelopt", "transformers", "accelerate")


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


def try_scheme(quant_type: str) -> str:
    """Pack a tiny layer with ``quant_type`` (a type, a combined type or a scheme) and run it: ``runs``, or why not."""
    import torch

    def work() -> None:
        model = _layer()
        x = torch.randn(4, 256, device=next(model.parameters()).device)
        with torch.no_grad():
            dense = model(x)
            quantize(model, make_config(quant_type), lambda m: m(x))
            error = ((model(x) - dense).norm() / dense.norm()).item()
        if not error < 0.3:
            raise ArithmeticError(f"relative output error {error:.2g}")

    return _verdict(work)


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
