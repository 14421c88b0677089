"""Count the bytes of a model's weights."""

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from modelopt_nb.upstream.layers import check_model

MIB = 2**20


@dataclass(frozen=True)
class WeightBytes:
    """The bytes of a model's parameters and buffers, by dtype, and the count of its ``weights``.

    A byte with two 4-bit weights counts as two weights. Scales and other buffers add bytes and no weights.
    """

    by_dtype: dict[str, int]
    weights: int

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(self.by_dtype.values())

    @property
    def mib(self) -> float:
        """All bytes, in MiB."""
        return self.total / MIB

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight, scales and buffers included."""
        return 8 * self.total / self.weights if self.weights else 0.0

    @property
    def of_bf16(self) -> float:
        """All bytes over those of the same weights in bfloat16."""
        return self.bits_per_weight / 16


def stored_dtype(tensor: torch.Tensor) -> str:
    """Return the dtype of a tensor's bytes, by name. The ``dtype`` of a packed weight is the one it is read as."""
    return str(vars(torch._C.TensorBase)["dtype"].__get__(tensor)).removeprefix("torch.")


def weight_bytes(model: nn.Module) -> WeightBytes:
    """Count the bytes of ``model``'s parameters and buffers by dtype. Shared tensors count once."""
    check_model(model)
    parameters = {id(p): p for p in model.parameters()}
    by_dtype: Counter[str] = Counter()
    for tensor in (parameters | {id(b): b for b in model.buffers()}).values():
        by_dtype[stored_dtype(tensor)] += tensor.nbytes
    shapes = (getattr(p, "metadata", {"shape": p.shape})["shape"] for p in parameters.values())  # packed: the dense one
    return WeightBytes(dict(by_dtype), sum(map(math.prod, shapes)))
