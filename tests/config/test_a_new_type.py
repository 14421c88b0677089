"""One row in QUANT_TYPES is all that a new quant type needs."""

import math

import pytest
import torch

from modelopt_nb import QUANT_TYPES, QuantType, make_config, quantize, weight_bytes
from tests.architectures import build, run

MXFP8 = QuantType(
    "MXFP8", (4, 3), 8, "float8_e4m3fn", "MXFP8QTensor", (("_scale", "grid", "uint8"),),
    block=32, scale_bits=(8, 0), dynamic_block=True,
)  # fmt: skip
MXFP4 = QuantType(
    "MXFP4", (2, 1), 4, "uint8", "MXFP4QTensor", (("_scale", "column", "uint8"),),
    block=32, scale_bits=(8, 0), dynamic_block=True,
)  # fmt: skip


@pytest.mark.parametrize(("row", "bits", "error"), [(MXFP8, 8.25, 0.03), (MXFP4, 4.25, 0.15)], ids=["MXFP8", "MXFP4"])
def test_a_row_packs_runs_saves_and_loads(row, bits, error, monkeypatch, tmp_path):
    monkeypatch.setitem(QUANT_TYPES, row.name, row)
    model, inputs = build("Sana")
    dense = run(model, inputs)
    model.save_pretrained(tmp_path / "dense")
    report = quantize(model, make_config(row.name))
    packed = run(model, inputs)
    assert 0 < (packed - dense).norm() / dense.norm() < error
    assert len(report.packed) == 16
    for layer in report.packed:
        assert layer.packed_bytes == layer.layout.bytes(layer.shape) == math.prod(layer.shape) * bits / 8
    model.save_pretrained(tmp_path / "packed")
    restored = type(model).from_pretrained(tmp_path / "packed")
    config = make_config(row.name)
    loaded = type(model).from_pretrained(tmp_path / "dense", quantization_config=config, dtype=torch.float32)
    for other in (restored, loaded):
        assert weight_bytes(other) == weight_bytes(model)
        assert torch.equal(run(other, inputs), packed)
