import math

import pytest

from modelopt_nb import QUANT_TYPES, SCHEMES, WeightLayout, make_config

SHAPE = (64, 256)


def layout(scheme: str, **options) -> WeightLayout:
    return WeightLayout.from_cfg(make_config(scheme, **options).modelopt_config["quant_cfg"][1]["cfg"])


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("FP8", 64 * 256 + 4),
        ("INT8 channel", 64 * 256 + 4 * 64),
        ("INT8 block", 64 * 256 + 4 * 64 * 2),
        ("INT4", 64 * 256 // 2 + 4 * 64 * 2),
        ("NF4", 64 * 256 // 2 + 256 + 4 + 4),
        ("NVFP4", 64 * 256 // 2 + 64 * 16 + 4),
    ],
)
def test_bytes_by_hand(scheme, expected):
    assert layout(scheme).bytes(SHAPE) == expected


def test_tensors_by_hand():
    assert layout("INT8 channel").tensors((64, 32, 3, 3), "bfloat16") == {
        "weight": ((64, 32, 3, 3), "int8"),
        "_scale": ((64, 1, 1, 1), "bfloat16"),
    }
    assert layout("INT8", channel_quantize=-1).tensors(SHAPE)["_scale"] == ((1, 256), "float32")
    assert layout("INT4").tensors(SHAPE) == {"weight": ((64, 128), "uint8"), "_scale": ((128, 1), "float32")}
    assert layout("NF4").tensors((24, 256), "float16") == {  # 96 blocks: one row of scales, not full
        "weight": ((24 * 128,), "uint8"),
        "_scale": ((1, 256), "int8"),
        "_double_scale": ((1,), "float32"),
        "_scale_zeros": ((), "float32"),
    }
    assert layout("NVFP4").tensors(SHAPE) == {
        "weight": ((64, 128), "uint8"),
        "_scale": ((64, 16), "float8_e4m3fn"),
        "_double_scale": ((), "float32"),
    }


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bytes_are_those_of_the_tensors(scheme):
    sizes = {"float32": 4, "bfloat16": 2}
    for dtype in sizes:
        tensors = layout(scheme).tensors(SHAPE, dtype).values()
        assert layout(scheme).bytes(SHAPE, dtype) == sum(math.prod(s) * sizes.get(kind, 1) for s, kind in tensors)
    assert layout(scheme).type is QUANT_TYPES[scheme.split()[0]]


@pytest.mark.parametrize(
    ("scheme", "shape", "reason"),
    [
        ("INT4", (8, 100), "its axis -1, 100, is not a multiple of the block size 128"),
        ("INT4", (8, 128, 3, 3), "a convolution: blocks of 128 run along its kernel's width, 3"),
        ("FP8", (1, 1), "it would not shrink: 4 bytes dense, 5 packed"),
        ("INT4", (8, 128), ""),
        ("FP8", (8, 8, 3, 3), ""),
    ],
)
def test_why_a_weight_stays_dense(scheme, shape, reason):
    assert layout(scheme).why_dense(shape) == reason


def test_an_axis_that_the_weight_does_not_have():
    assert layout("INT8", channel_quantize=1).why_dense((8,)) == "it has no axis 1"


@pytest.mark.parametrize(
    "cfg",
    [
        {"num_bits": 3},
        {"num_bits": (5, 2)},
        {"num_bits": (2, 1), "block_sizes": {-1: 16, "scale_bits": (5, 2)}},
        {"num_bits": 8, "block_sizes": {-1: 16, 0: 16}},
        [{"num_bits": 8}, {"num_bits": 4}],
    ],
)
def test_a_format_that_cannot_be_packed(cfg):
    with pytest.raises(ValueError, match="cannot be packed here. Allowed: the formats of FP8, INT8, INT4, NF4, NVFP4"):
        WeightLayout.from_cfg(cfg)
