"""Every parameter and buffer of a model is in its report once, with its bytes, and the reason if it stays dense."""

import copy

import diffusers
import pytest
import torch
from torch import nn

from modelopt_nb import layer_frame, make_config, plan, quantize, weight_bytes
from tests.architectures import BUILDERS, build


def wan_vae() -> nn.Module:
    """A Wan autoencoder: most of its convolutions are of a class of its own."""
    sizes = {"base_dim": 16, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [False]}
    return diffusers.AutoencoderKLWan(**sizes).eval()


class Odd(nn.Module):
    """Bare parameters, a shared weight and bias, an embedding, norms and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.b.weight, self.b.bias = self.a.weight, self.a.bias
        self.table = nn.Parameter(torch.randn(3, 64))
        self.embedding, self.head = nn.Embedding(8, 64), nn.Linear(64, 8, bias=False)
        self.head.weight = self.embedding.weight
        self.norm = nn.BatchNorm1d(64).half()
        self.register_buffer("position", torch.arange(5), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.c(self.b(self.a(x))))


def check(model: nn.Module, config, loop=None):
    before, tensors = weight_bytes(model), {**dict(model.named_parameters()), **dict(model.named_buffers())}
    dense = {id(tensor): tensor.nbytes for tensor in tensors.values()}
    report = quantize(model, config, loop)
    frame = report.frame
    assert frame.index.is_unique
    assert report.before == before and before.total == sum(dense.values()) == frame["bytes before"].sum()
    assert report.after == weight_bytes(model) and report.after.total == frame["bytes after"].sum()
    assert (frame["packed"] == (frame["reason"] == "")).all()
    rows = {id(model.get_submodule(x.name).weight) for x in report.layers}
    rows |= {id(tensor) for name, tensor in tensors.items() if name in {x.name for x in report.rest}}
    assert {id(p) for p in model.parameters()} <= rows
    return report


@pytest.mark.parametrize("name", BUILDERS)
def test_every_tensor_of_every_architecture(name):
    check(build(name)[0], make_config("INT8 channel"))


def test_scales_of_activations(transformer, inputs):
    report = check(transformer, make_config("INT8_INT8"), lambda model: model(**inputs))
    scales = [x for x in report.rest if x.reason == "the scale of activations"]
    assert len(scales) == len(report.packed) and {(x.dense_bytes, x.packed_bytes) for x in scales} == {(0, 4)}


def test_shared_bare_and_other_tensors():
    report = check(Odd(), make_config("INT8"))
    rows = report.frame
    assert rows["packed"].sum() == 1 and rows.loc["c", "packed"]
    assert rows.loc[["a", "b", "head"], "bytes after"].tolist() == [4 * 64 * 64, 0, 4 * 64 * 8]
    assert set(rows.index) - {"a", "b", "c", "head"} == {
        "a.bias", "c.bias", "table", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var",
        "norm.num_batches_tracked", "position",
    }  # fmt: skip
    assert rows.loc["table", ["kind", "shape", "bytes after"]].tolist() == ["Odd", (3, 64), 4 * 3 * 64]
    assert rows.loc["norm.weight", "kind"] == "BatchNorm1d" and "no weight of a linear" in rows.loc["table", "reason"]
    assert str(report).endswith("MiB of other tensors: 5 of BatchNorm1d, 2 of Odd, 2 of bias")


def test_layers_that_modelopt_does_not_know_are_layers():
    model = wan_vae()
    layers = {n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.Conv3d))}
    causal = {n for n, m in model.named_modules() if type(m).__name__ == "WanCausalConv3d"}
    planned = plan(model, make_config("INT8", modules_to_not_convert="decoder.conv_in"))
    assert {x.name for x in planned.layers} == layers == set(layer_frame(model).index)
    reasons = {x.name: x.reason for x in planned.layers}
    assert {reasons[name] for name in causal} == {"ModelOpt packs no WanCausalConv3d"}
    report = check(model, make_config("INT8"))
    assert (len(report.packed), len(report.layers)) == (6, 33) == (len(layers) - len(causal), len(layers))
    assert "packed 6 of 33 layers" in str(report) and "packs no WanCausalConv3d" in str(report)
    with pytest.raises(ValueError, match="would pack no layer of Sequential: ModelOpt packs no WanCausalConv3d"):
        plan(nn.Sequential(model.encoder.conv_in), make_config("INT8"))


def test_a_report_warns_if_over_a_fifth_of_the_weights_stay_dense(transformer):
    half = nn.Sequential(nn.Conv2d(64, 64, 1), nn.Flatten(), nn.Linear(64, 64))
    report = quantize(copy.deepcopy(half), make_config("NF4", pointwise_as_linear=False))
    assert report.warning.startswith("51% of the weights stay dense. The largest, 0: a convolution: blocks of 64")
    assert report.warning.endswith("pointwise_as_linear=True packs it if it has no stride")
    assert f"\n  warning: {report.warning}" in str(report)
    cases = {
        "disable_conv_quantization": make_config("INT8", disable_conv_quantization=True),
        "modules_to_not_convert: 2": make_config("INT8", "2"),
    }
    for why, config in cases.items():
        assert quantize(copy.deepcopy(half), config).warning.endswith(why)
    blocks = nn.Sequential(nn.Linear(64, 64), nn.Linear(48, 64))
    assert "multiple of the block size 64" in quantize(blocks, make_config("INT4", None, None, -1, 64)).warning
    for config in (make_config("NF4"), make_config("INT8")):
        whole = quantize(copy.deepcopy(half), config)
        assert whole.warning == "" and "warning" not in str(whole)
