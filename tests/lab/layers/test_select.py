import pytest

from modelopt_nb import layer_frame, make_config, quantize, select
from tests.architectures import build


@pytest.mark.parametrize("name", ["Sana", "FLUX", "UNet2DCondition"])
def test_the_frame_is_what_quantize_does(name):
    model = build(name)[0]
    config = make_config("NVFP4", modules_to_not_convert=select(model, kind="attention *"))
    frame = layer_frame(model, config)
    report = quantize(model, config)
    assert list(frame["packed"]) == [x.packed for x in report.layers]
    assert list(frame["packed bytes"]) == [x.packed_bytes for x in report.layers]
    assert list(frame["dense bytes"]) == [x.dense_bytes for x in report.layers]
    assert list(frame["reason"]) == [x.reason for x in report.layers]


@pytest.mark.parametrize(
    "asked",
    [
        {"pattern": "attn.to_q"},
        {"pattern": "transformer_blocks.0.*to_?"},
        {"kind": "attention *"},
        {"kind": ["attention q", "feed-forward"], "blocks": -1},
        {"pattern": "proj_out"},
        {"pattern": "transformer_blocks.0", "kind": "modulation"},
        {"blocks": [0, -1]},
    ],
)
def test_selected_names_are_what_modules_to_not_convert_takes(asked):
    model = build("FLUX")[0]
    names = select(model, **asked)
    spared = layer_frame(model, make_config("FP8", modules_to_not_convert=names))
    assert names == [name for name, reason in spared["reason"].items() if reason.startswith("modules_to_not_convert")]


def test_selecting_by_pattern_kind_and_block():
    model = build("FLUX")[0]
    assert select(model, "proj_out") == ["proj_out"]  # the whole name of a module is that module
    assert select(model, "proj_ou") == ["single_transformer_blocks.0.proj_out", "proj_out"]
    assert select(model, kind="attention q", blocks=1) == ["single_transformer_blocks.0.attn.to_q"]
    assert select(model, "transformer_blocks.0", kind="attention k") == [
        "transformer_blocks.0.attn.to_k", "transformer_blocks.0.attn.add_k_proj",
    ]  # fmt: skip


@pytest.mark.parametrize("pattern", ["weight", "quantizer", "weight_quantizer"])
def test_a_pattern_is_matched_against_layer_names_alone(pattern):
    with pytest.raises(ValueError, match=f"pattern holds '{pattern}', which matches no layer"):
        select(build("FLUX")[0], pattern)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"pattern": "atn1.to_q"}, r"pattern holds 'atn1.to_q', which matches no layer .*Nearest: .*attn1"),
        ({"kind": "attnetion q"}, r"kind='attnetion q' matches no layer .*Nearest: attention q"),
        ({"blocks": 1}, r"blocks holds 1. Allowed for SanaTransformer2DModel: -1 to 0"),
        ({"blocks": "0"}, r"blocks holds '0'"),
        ({"pattern": "attn1", "kind": "convolution"}, r"match no layer together"),
        ({"pattern": ["attn1", 3]}, r"pattern holds 3"),
    ],
)
def test_wrong_selections(transformer, asked, message):
    with pytest.raises(ValueError, match=message):
        select(transformer, **asked)
