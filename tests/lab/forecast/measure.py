"""Measure what test_forecast.py compares with: ``python -m tests.lab.forecast.measure Sana-0.6B "INT8 channel"``.

Packs the transformer at full size, in bfloat16 with random weights, and prints its bytes. NF4 of SD3.5-medium takes six
minutes of one thread; the others, seconds to minutes.
"""

from __future__ import annotations

import sys

import torch

from modelopt_nb import make_config, quantize, weight_bytes
from modelopt_nb.lab.forecast.configs import read_parts


def main(name: str, *schemes: str) -> None:
    (part,) = (part for part in read_parts(name).parts if part.name == "transformer")
    for scheme in schemes:
        with torch.device("meta"):
            model = part.cls.from_config(dict(part.config)).to(torch.bfloat16)
        model = model.to_empty(device="cpu")
        for tensor in (*model.parameters(), *model.buffers()):
            torch.nn.init.normal_(tensor, std=0.02)
        quantize(model, make_config(scheme, pointwise_as_linear=True))
        print(f"{name}, {scheme}: {weight_bytes(model).total} bytes", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
