"""The forecast against published parameter counts, and against what packing measures."""

import json

import diffusers
import pandas as pd
import pytest
import torch

from modelopt_nb import SCHEMES, afford, architectures, describe_layers, forecast, make_config, plan, quantize
from modelopt_nb import weight_bytes as measured_bytes
from modelopt_nb.lab.forecast.configs import SHIPPED, read_parts
from modelopt_nb.lab.forecast.forecast import parse_memory
from modelopt_nb.lab.forecast.meta import _build, _representatives
from tests.architectures import build

ENTRIES = {name: json.loads((SHIPPED / f"{name}.json").read_text()) for name in architectures()}
#: Bytes measured once by packing bfloat16 models of full size with random weights: measure.py does it again.
MEASURED = {
    "Sana-0.6B": {
        "FP8": 592478900, "FP8 channel": 593729344, "FP8 block": 694623808, "INT8": 592478900,
        "INT8 channel": 593729344, "INT8 block": 694623808, "INT4": 446307904, "INT4 block": 335994688,
        "NVFP4": 335995832, "NVFP4 block": 335995832, "NF4": 308489650, "NF4 double block": 317715390,
    },
    "SD3.5-medium": {
        "FP8": 2697505936, "FP8 channel": 2699990400, "FP8 block": 2732630400, "INT8": 2697505936,
        "INT8 channel": 2699990400, "INT8 block": 2732630400, "INT4": 1611768192, "INT4 block": 1716849024,
        "NVFP4": 1716850588, "NVFP4 block": 1716850588, "NF4": 1612042622, "NF4 double block": 1647343214,
    },
}  # fmt: skip

#: Two blocks of these have all kinds of layers.
NARROW = {
    "Sana-0.6B": {"num_attention_heads": 8, "num_cross_attention_heads": 4, "cross_attention_head_dim": 64,
                  "cross_attention_dim": 256, "caption_channels": 256},
    "SD3.5-medium": {"num_attention_heads": 4, "caption_projection_dim": 256, "joint_attention_dim": 512,
                     "pos_embed_max_size": 64, "dual_attention_layers": [0]},
}  # fmt: skip


@pytest.fixture(scope="module")
def flux():
    return forecast("flux.1-DEV", memory="24 GiB")


@pytest.mark.parametrize("name", ENTRIES)
def test_parameter_counts_are_within_one_percent_of_the_published_ones(name):
    counts = {c.name: c.parameters for c in forecast(name, ["FP8"]).components}
    published = {n: c["parameters"] for n, c in ENTRIES[name]["components"].items() if c["parameters"]}
    assert counts.keys() == ENTRIES[name]["components"].keys()
    assert published.keys() & {"transformer", "unet"}
    assert {n: counts[n] / size for n, size in published.items()} == pytest.approx(
        dict.fromkeys(published, 1), rel=0.01
    )


def test_every_shipped_number_has_its_source():
    assert len(ENTRIES) >= 12
    for entry in ENTRIES.values():
        assert entry["size"]["source"].startswith("https://")
        for component in entry["components"].values():
            assert component["source"].startswith("https://")
            assert component["parameters"] is None or component["parameters_source"].startswith("https://")


@pytest.mark.parametrize("name", MEASURED)
def test_bytes_are_those_that_packing_measures_at_full_size(name):
    (part,) = (c for c in forecast(name).components if c.name == "transformer")
    assert part.packed == pytest.approx(MEASURED[name], rel=0.01)


@pytest.mark.parametrize("name", ["Sana-0.6B", "SD3.5-medium"])
def test_bytes_are_those_that_packing_measures_on_two_narrow_blocks(name):
    (part,) = (p for p in read_parts(name).parts if p.name == "transformer")
    config = {**part.config, "num_layers": 2, "_class_name": part.cls.__name__}
    config |= NARROW[name]
    dense = forecast({"transformer": config}).components[0]
    for scheme in ("INT8 channel", "NF4"):
        model = part.cls.from_config({k: v for k, v in config.items() if k[0] != "_"}).to(torch.bfloat16)
        assert measured_bytes(model).total == dense.dense
        quantize(model, make_config(scheme, pointwise_as_linear=True))
        assert dense.packed[scheme] == measured_bytes(model).total


@pytest.mark.parametrize("name", ["UNet2DCondition", "AutoencoderKL", "T5", "CLIP", "Wan"])
def test_one_layer_stands_for_all_that_differ_by_their_block(name):
    model, _ = build(name)
    described = describe_layers(model.to(torch.bfloat16))
    rows, counts = _representatives(described)
    for scheme in ("FP8 block", "INT4"):
        config = make_config(scheme, pointwise_as_linear=True)
        whole, few = plan(described, config).layers, plan(rows, config).layers
        assert sum(x.packed_bytes for x in whole) == sum(x.packed_bytes * counts[x.name] for x in few)


def test_no_weight_is_made():
    (part,) = (p for p in read_parts("FLUX.1-dev").parts if p.name == "text_encoder_2")
    model = _build(part.cls, dict(part.config), torch.bfloat16)
    assert {p.device.type for p in (*model.parameters(), *model.buffers())} == {"meta"}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_the_frame_adds_up(flux):
    frame = flux.frame
    assert list(frame.index) == ["dense", *SCHEMES]
    parts = frame[["transformer GiB", "text_encoder GiB", "text_encoder_2 GiB", "vae GiB"]]
    assert frame["weights GiB"]["dense"] == pytest.approx(parts.loc["dense"].sum())
    fp8 = parts.loc["dense"].sum() - parts["transformer GiB"]["dense"] + parts["transformer GiB"]["FP8"]
    assert frame["weights GiB"]["FP8"] == pytest.approx(fp8)
    proj_out = 38 * 15360 * 3072  # of the single blocks, which ModelOpt's configuration leaves dense
    assert parts["transformer GiB"]["FP8"] == pytest.approx((11.9e9 + proj_out) / 2**30, rel=0.01)
    assert (frame["needed GiB"] - frame["weights GiB"]).tolist() == pytest.approx([flux.activations / 2**30] * 13)
    assert (frame["encoders too GiB"] <= frame["weights GiB"]).all()


def test_what_fits():
    fits = {memory: forecast("FLUX.1-dev", memory=memory).frame["fits"] for memory in ("80 GiB", "24 GiB", "8 GiB")}
    assert set(fits["80 GiB"]) == {"yes"}
    assert fits["24 GiB"][["dense", "FP8", "NVFP4"]].tolist() == ["no", "encoders too", "yes"]
    assert fits["8 GiB"][["FP8", "NVFP4"]].tolist() == ["no", "no"]
    assert forecast("FLUX.1-dev", ["NVFP4"], "24 GiB", margin=0.9).frame["fits"]["NVFP4"] == "no"


def test_what_stays_dense_has_its_reason_and_the_bytes_add_up(flux):
    dense = flux.dense.loc["NVFP4"]
    text = " ".join(reason for _, reason in dense.index)
    assert "neither a linear layer nor a convolution" in text and "the configuration leaves *proj_out.* dense" in text
    (part,) = (c for c in forecast("Sana-0.6B").components if c.name == "transformer")
    for scheme, reasons in part.reasons.items():
        assert 0 < sum(size for _, size in reasons.values()) < part.packed[scheme]


def test_activations_grow_with_the_size_and_are_called_an_estimate(flux):
    large = forecast("FLUX.1-dev", ["FP8"], height=2048, width=2048, batch=2)
    assert large.activations == pytest.approx(4 * flux.activations, rel=0.2)
    video = forecast("Wan2.2-T2V-A14B", ["FP8"])
    assert video.quantized == ("transformer", "transformer_2") and "81 frames" in video.size
    for text in (repr(flux), flux._repr_html_()):
        assert "estimate" in text and "1024 x 1024" in text and "NF4 double block" in text


def test_the_estimate_of_denoising_is_within_a_factor_of_two():
    """Of the tensors that two blocks of SD3.5's width make, at 1,024 tokens."""
    from modelopt_nb import peak_memory

    config = {"num_layers": 2, "num_attention_heads": 12, "attention_head_dim": 64, "joint_attention_dim": 512,
              "caption_projection_dim": 768, "pooled_projection_dim": 64, "sample_size": 64, "in_channels": 4,
              "out_channels": 4, "pos_embed_max_size": 64}  # fmt: skip
    model = diffusers.SD3Transformer2DModel(**config)
    known = forecast(model, ["FP8"], dtype=torch.float32, height=512, width=512, batch=1)
    with torch.no_grad(), peak_memory() as peak:
        model(torch.randn(1, 4, 64, 64), torch.randn(1, 512, 512), torch.randn(1, 64), torch.tensor([500.0]))
    assert 0.5 < known.activations / peak.tensors < 2


def test_the_table_of_published_pipelines():
    table = afford(["SDXL", "FLUX.1-dev"], ["8 GiB", "80 GiB"])
    expected = pd.DataFrame({"8 GiB": ["FP8", "no"], "80 GiB": ["dense", "dense"]}, ["SDXL", "FLUX.1-dev"])
    pd.testing.assert_frame_equal(table, expected.rename_axis("model"))


@pytest.mark.parametrize(
    ("text", "size"), [("24 GiB", 24 * 2**30), ("24GB", 24 * 10**9), ("1.5 TiB", 3 * 2**39), (4096, 4096), ("8 B", 8)]
)
def test_memory(text, size):
    assert parse_memory(text) == size
