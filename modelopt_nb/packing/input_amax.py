"""Collect the amax of layer inputs while a forward loop runs."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from modelopt_nb.upstream.layers import check_model


@contextlib.contextmanager
def input_amax(
    model: nn.Module, layers: Iterable[str], argument: str = "forward_loop"
) -> Iterator[dict[str, torch.Tensor]]:
    """Collect the amax of the inputs of ``layers`` while the block runs. Max calibration needs nothing else.

    Yields the amax per channel of every layer that was reached, in the input's dtype and with as many axes.

    Raises:
        FloatingPointError: NaN or infinity in a layer's input, or in the output of the model or one of its children.
            The message blames ``argument``.
    """
    check_model(model)
    layers, modules = list(layers), dict(model.named_modules())
    if unknown := [name for name in layers if name not in modules]:
        raise ValueError(f"layers holds {unknown[0]!r}, which matches no layer of {type(model).__name__}")
    found: dict[str, torch.Tensor] = {}
    bad: list[str] = []

    def check() -> None:
        wrong = [f"{name} gets" for name, amax in found.items() if not amax.isfinite().all()] or bad
        if wrong:
            raise FloatingPointError(f"{argument}: {wrong[0]} NaN or infinity on the calibration data")

    def before(name: str, axis: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            given = torch.atleast_2d(args[0].detach())
            others = [i for i in range(given.ndim) if i != axis % given.ndim]
            amax = torch.maximum(given.amax(others, keepdim=True), -given.amin(others, keepdim=True))
            found[name] = torch.maximum(found[name], amax) if name in found else amax

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            outputs = output.values() if isinstance(output, Mapping) else output
            for tensor in outputs if isinstance(output, (tuple, list, Mapping)) else [output]:
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and not tensor.isfinite().all():
                    bad.append(f"{name} returns")

        return hook

    parts = {type(model).__name__: model, **dict(model.named_children())}
    with contextlib.ExitStack() as hooks:
        for name, part in parts.items():
            hooks.callback(part.register_forward_hook(after(name)).remove)
        for name in layers:
            axis = 1 if isinstance(modules[name], nn.modules.conv._ConvNd) else -1
            hooks.callback(modules[name].register_forward_pre_hook(before(name, axis)).remove)
        try:
            yield found
        except Exception:
            check()  # ModelOpt's own error of NaN names no layer
            raise
        check()


def run_forward_loop(
    loop: Callable[[nn.Module], None], model: nn.Module, layers: Iterable[str]
) -> dict[str, torch.Tensor]:
    """Run ``loop`` and return the :func:`input_amax` of ``layers``. Raises ValueError if it does not reach them all."""
    layers = list(layers)
    with input_amax(model, layers) as found:
        loop(model)
    missed = [name for name in layers if name not in found]
    if len(missed) == len(layers):
        needed = "a function that runs its argument on inputs, such as denoising_loop or replay_loop makes"
        raise ValueError(f"forward_loop={loop!r} did not call the {type(model).__name__} that it got. Needed: {needed}")
    if missed:
        more = f" and {len(missed) - 3} more" if len(missed) > 3 else ""
        needed = "inputs that use them, or modules_to_not_convert"
        raise ValueError(f"forward_loop={loop!r} never reached {', '.join(missed[:3])}{more}. Needed: {needed}")
    return found
