from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

ForwardLoop = Callable[["nn.Module"], None]


@contextlib.contextmanager
def largest_inputs(
    model: nn.Module, layers: Iterable[str], argument: str = "forward_loop"
) -> Iterator[dict[str, torch.Tensor]]:
    """Keep the largest absolute value of each channel that each of the ``layers`` is given while a block of code runs.

    Yields:
        By layer, for those that were reached: a tensor of the input's dtype, whose axes are the input's, all but that of
        the channels of length 1. This is all that max calibration asks of the inputs.

    Raises:
        FloatingPointError: A layer is given NaN or infinity, or the model or one of its parts gives it; ``argument`` is
            what is to blame for it.
    """
    import torch

    found: dict[str, torch.Tensor] = {}

    giving: list[str] = []

    def check() -> None:
        getting = [name for name, largest in found.items() if not largest.isfinite().all()]
        if getting or giving:
            which = f"{getting[0]} gets" if getting else f"{giving[0]} gives"
            raise FloatingPointError(f"{argument}: {which} NaN or infinity on what the model is shown")

    def watch(name: str, layer: nn.Module) -> Any:
        axis = 1 if isinstance(layer, torch.nn.modules.conv._ConvNd) else -1

        def before(module: nn.Module, args: tuple) -> None:
            given = torch.atleast_2d(args[0].detach())
            others = [i for i in range(given.ndim) if i != axis % given.ndim]
            largest = torch.maximum(given.amax(others, keepdim=True), -given.amin(others, keepdim=True))
            found[name] = torch.maximum(found[name], largest) if name in found else largest

        return layer.register_forward_pre_hook(before)

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            outputs = output.values() if isinstance(output, Mapping) else output
            for tensor in outputs if isinstance(output, (tuple, list, Mapping)) else [output]:
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and not tensor.isfinite().all():
                    giving.append(name)

        return hook

    parts = {type(model).__name__: model, **dict(model.named_children())}
    hooks = [part.register_forward_hook(after(name)) for name, part in parts.items()]
    hooks += [watch(name, model.get_submodule(name)) for name in layers]
    try:
        yield found
    except Exception:
        check()  # ModelOpt's own error, of NaN, names no layer
        raise
    else:
        check()
    finally:
        for hook in hooks:
            hook.remove()


def run_checked(loop: ForwardLoop, model: nn.Module, layers: Iterable[str]) -> dict[str, torch.Tensor]:
    """Run ``loop``, which has to reach all of the ``layers`` with finite numbers, or an error says what it did instead.

    Upstream goes on where a loop never calls the model, and leaves what it did not reach without a scale. Returns what
    :func:`largest_inputs` kept.
    """
    layers = list(layers)
    with largest_inputs(model, layers) as found:
        loop(model)
    missed = [name for name in layers if name not in found]
    if len(missed) == len(layers):
        raise ValueError(
            f"forward_loop={loop!r} did not call the {type(model).__name__} that it was given. Needed: a function that "
            "runs its argument on inputs, such as denoising_loop or replay_loop makes"
        )
    if missed:
        raise ValueError(
            f"forward_loop={loop!r} never reached {', '.join(missed[:3])}{f' and {len(missed) - 3} more' * (len(missed) > 3)}. "
            "Needed: inputs that use them, or modules_to_not_convert"
        )
    return found
