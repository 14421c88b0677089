import pytest
import torch
from tests.architectures import BUILDERS, build

from modelopt_nb import KINDS, layer_frame, layer_groups, make_config, quantize, select
from modelopt_nb.config import names_layer
from modelopt_nb.selection import as_groups

KNOWN = {
    "SD3": {
        "pos_embed.proj": "embedding",
        "context_embedder": "embedding",
        "transformer_blocks.0.norm1.linear": "modulation",
        "transformer_blocks.0.attn.add_k_proj": "attention k",
        "transformer_blocks.0.attn.to_out.0": "attention out",
        "transformer_blocks.1.ff.net.0.proj": "feed-forward",
        "norm_out.linear": "modulation",
        "proj_out": "output projection",
    },
    "FLUX": {
        "x_embedder": "embedding",
        "single_transformer_blocks.0.attn.to_q": "attention q",
        "single_transformer_blocks.0.proj_mlp": "feed-forward",
        "single_transformer_blocks.0.proj_out": "feed-forward",
        "proj_out": "output projection",
    },
    "Sana": {
        "time_embed.linear": "modulation",
        "transformer_blocks.0.attn2.to_v": "cross-attention v",
        "transformer_blocks.0.ff.conv_inverted": "pointwise convolution",
        "transformer_blocks.0.ff.conv_depth": "convolution",
    },
    "UNet2DCondition": {
        "conv_in": "embedding",
        "down_blocks.0.resnets.0.conv1": "convolution",
        "down_blocks.0.resnets.0.time_emb_proj": "modulation",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k": "cross-attention k",
        "up_blocks.0.resnets.0.conv_shortcut": "pointwise convolution",
        "conv_out": "output projection",
    },
    "Wan": {
        "patch_embedding": "embedding",
        "condition_embedder.time_proj": "modulation",
        "blocks.0.attn1.to_q": "attention q",
        "blocks.0.attn2.to_q": "cross-attention q",
        "blocks.0.ffn.net.2": "feed-forward",
    },
    "LTX": {"transformer_blocks.0.attn2.to_q": "cross-attention q"},
    "DiT": {"proj_out_2": "output projection"},
    "T5": {"encoder.block.0.layer.0.SelfAttention.o": "attention out"},
    "CLIP": {"encoder.layers.0.mlp.fc1": "feed-forward"},
}


@pytest.mark.parametrize("name", BUILDERS)
def test_every_layer_has_a_kind(name):
    frame = layer_frame(build(name)[0])
    assert set(frame["kind"]) <= set(KINDS) - {"other"}
    assert frame.loc[list(KNOWN.get(name, {})), "kind"].to_dict() == KNOWN.get(name, {})
    # what is in no block is at the ends of the model, and blocks are counted without a gap
    numbers = sorted(frame["block"].dropna().unique())
    assert numbers == list(range(len(numbers)))


def test_a_unet_is_counted_down_middle_up():
    frame = layer_frame(build("UNet2DCondition")[0])
    parts = [frame.index[frame["block"] == i][0].split(".")[0] for i in range(5)]
    assert parts == ["down_blocks", "down_blocks", "mid_block", "up_blocks", "up_blocks"]


@pytest.mark.parametrize("name", ["Sana", "FLUX", "UNet2DCondition"])
def test_the_frame_is_what_quantize_does(name):
    model = build(name)[0]
    config = make_config("NVFP4", modules_to_not_convert=select(model, kind="attention *"))
    frame = layer_frame(model, config)
    report = quantize(model, config)
    assert list(frame["packed"]) == [x.packed for x in report.layers]
    assert list(frame["packed bytes"]) == [x.after for x in report.layers]
    assert list(frame["dense bytes"]) == [x.before for x in report.layers]
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


def test_a_whole_name_is_not_a_part_of_another():
    modules = {"blocks", "blocks.1", "blocks.10", "blocks.1.q", "blocks.10.q"}
    assert [names_layer("blocks.1", layer, modules) for layer in ("blocks.1.q", "blocks.10.q")] == [True, False]
    assert names_layer("locks.1", "blocks.10.q", modules)
    assert names_layer("blocks.1.q.weight", "blocks.1.q", modules)  # the name of a parameter, as the doc has it


def test_groups_hold_each_layer_once():
    model = build("Sana")[0]
    every = list(layer_frame(model).index)
    for by in ("layer", "block", "kind", "part"):
        groups = layer_groups(model, by)
        assert sorted(name for names in groups.values() for name in names) == sorted(every)
    assert list(layer_groups(model, "part")) == [
        "embedding", "modulation", "block 0 attention", "block 0 cross-attention", "block 0 pointwise convolution",
        "block 0 convolution", "output projection",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"pattern": "atn1.to_q"}, r"pattern holds 'atn1.to_q', which matches no layer .*Nearest: .*attn1"),
        ({"kind": "attnetion q"}, r"kind='attnetion q' fits no layer .*Nearest: attention q"),
        ({"blocks": 1}, r"blocks holds 1. Allowed for SanaTransformer2DModel: -1 to 0"),
        ({"blocks": "0"}, r"blocks holds '0'"),
        ({"pattern": "attn1", "kind": "convolution"}, r"fit no layer together"),
        ({"pattern": ["attn1", 3]}, r"pattern holds 3"),
    ],
)
def test_wrong_selections(transformer, asked, message):
    with pytest.raises(ValueError, match=message):
        select(transformer, **asked)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"a": "attn1", "b": "to_q"}, r"groups holds transformer_blocks.0.attn1.to_q twice: in 'a' and in 'b'"),
        ({"a": "attn7"}, r"groups\['a'\] holds 'attn7', which matches no layer"),
        ({"a": []}, r"groups\['a'\] is empty"),
        ("colour", r"by='colour' is not known. Allowed: layer, kind, block, part"),
    ],
)
def test_wrong_groups(transformer, groups, message):
    with pytest.raises(ValueError, match=message):
        as_groups(transformer, groups, layer_frame(transformer).index)


def test_layers_of_a_model_of_ones_own():
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Conv2d(16, 16, 1))
    assert list(layer_frame(model)["kind"]) == ["other", "pointwise convolution"]
