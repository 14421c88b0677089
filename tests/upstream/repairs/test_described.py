"""What would not load as it is, is refused before anything is written."""

import copy

import pytest
import torch
import transformers
from diffusers import AutoModel
from torch import nn

from modelopt_nb import dequantized, enable, make_config, quantize
from tests.architectures import build, run


@pytest.fixture(autouse=True)
def enabled():
    enable()


@pytest.mark.parametrize("name", ["Sana", "T5"])
def test_a_model_that_says_it_is_packed_and_is_not(name, tmp_path):
    model, inputs = build(name)
    quantize(model, make_config("FP8"))
    new = model.from_config(model.config) if name == "Sana" else type(model)(copy.copy(model.config))
    for folder in (tmp_path / "new", tmp_path / "old"):
        with dequantized(model), pytest.raises(ValueError, match=r"no layer is, .*Allowed: outside dequantized\(\)"):
            model.save_pretrained(folder)
        with pytest.raises(ValueError, match=f"{type(model).__name__}: its quantization_config says that it is packed"):
            new.save_pretrained(folder)
        assert not folder.exists()
    model.save_pretrained(tmp_path / "new")
    assert torch.equal(run(type(model).from_pretrained(tmp_path / "new"), inputs), run(model, inputs))
    quantize(new.eval(), make_config("INT8"))  # which says what it is
    new.save_pretrained(tmp_path / "old")
    assert torch.equal(run(type(model).from_pretrained(tmp_path / "old"), inputs), run(new, inputs))


@pytest.mark.parametrize("name", ["SD3", "FLUX", "UNet2DCondition"])
def test_fused_projections(name, tmp_path):
    model, inputs = build(name)
    model.fuse_qkv_projections()
    quantize(model, make_config("INT8 channel"))
    with pytest.raises(ValueError, match="to_.*qkv.* is not packed as its.*Allowed: .*without fused projections"):
        model.save_pretrained(tmp_path / "fused")
    assert not (tmp_path / "fused").exists()
    model.unfuse_qkv_projections()
    if name == "FLUX":  # which then has no fused layers; the others keep them
        model.save_pretrained(tmp_path / "unfused")
        assert torch.equal(run(AutoModel.from_pretrained(str(tmp_path / "unfused")), inputs), run(model, inputs))


@pytest.mark.parametrize("name", ["SD3", "T5"])
def test_a_part_of_a_model(name, tmp_path):
    model, _ = build(name)
    quantize(model.transformer_blocks if name == "SD3" else model.encoder.block, make_config("INT8"))
    with pytest.raises(ValueError, match=r"is not packed as its.*Allowed: quantize\(\) of the whole model"):
        model.save_pretrained(tmp_path / "part")
    assert not (tmp_path / "part").exists()


class TiedConfig(transformers.PretrainedConfig):
    model_type = "tied"


class Tied(transformers.PreTrainedModel):
    """Two linear layers that share a weight, which Transformers ties after loading."""

    config_class = TiedConfig
    _tied_weights_keys = {"b.weight": "a.weight"}

    def __init__(self, config: TiedConfig) -> None:
        super().__init__(config)
        self.a, self.b, self.c = nn.Linear(128, 128), nn.Linear(128, 128), nn.Linear(128, 128)
        self.post_init()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.c(self.b(self.a(x))),)


def test_tied_weights_stay_dense_however_they_are_loaded(tmp_path):
    model, inputs = Tied(TiedConfig(tie_word_embeddings=True)).eval(), {"x": torch.randn(2, 128)}
    model.save_pretrained(tmp_path / "dense")
    report = quantize(model, make_config("FP8"))
    assert [layer.name for layer in report.packed] == ["c"]
    model.save_pretrained(tmp_path / "packed")
    loaded = [
        Tied.from_pretrained(tmp_path / "dense", quantization_config=make_config("FP8"), dtype=torch.float32),
        Tied.from_pretrained(tmp_path / "packed"),
    ]
    for other in loaded:
        assert other.a.weight is other.b.weight
        assert [x.reason for x in other.hf_quantizer.report.layers] == [x.reason for x in report.layers]
        assert torch.equal(run(other, inputs), run(model, inputs))
