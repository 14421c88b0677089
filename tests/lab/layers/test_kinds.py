import pytest
import torch

from modelopt_nb import KINDS, layer_frame
from tests.architectures import BUILDERS, build

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


def test_layers_of_a_model_of_ones_own():
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Conv2d(16, 16, 1))
    assert list(layer_frame(model)["kind"]) == ["other", "pointwise convolution"]
