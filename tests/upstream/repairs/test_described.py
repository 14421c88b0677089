"""What would not load as it is, is refused before anything is written."""

import copy

import pytest
import torch
import transformers
from diffusers import AutoModel, ControlNetModel, DDIMScheduler, StableDiffusionControlNetPipeline, UNet2DConditionModel
from diffusers.configuration_utils import FrozenDict
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
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


OTHERS = {
    "removed": None,
    "another type": make_config("INT8"),
    "a dict of another type": make_config("INT8").to_dict(),
    "another method": {"quant_method": "bitsandbytes"},
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", ["Sana", "T5"])
def test_a_configuration_edited_by_hand(name, other, tmp_path):
    model, inputs = build(name)
    quantize(model, make_config("FP8"))
    model.save_pretrained(tmp_path / "old")
    files = {path: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    right = model.hf_quantizer.quantization_config.to_dict()
    for said in (OTHERS[other], right):
        if name == "Sana":
            model._internal_dict = FrozenDict({**model.config, "quantization_config": said})
        else:
            model.config.quantization_config = said
        if said == OTHERS[other]:
            with pytest.raises(
                ValueError, match="its config has another quantization_config, quant.*Allowed: that of its hf_quantizer"
            ):
                model.save_pretrained(tmp_path / "old")
            assert {path: path.read_bytes() for path in (tmp_path / "old").iterdir()} == files
    model.save_pretrained(tmp_path / "new")
    assert torch.equal(run(type(model).from_pretrained(tmp_path / "new"), inputs), run(model, inputs))


def test_saved_cast_and_saved_again(tmp_path):
    model, _ = build("Sana")
    quantize(model, make_config("FP8"))
    model.save_pretrained(tmp_path)
    model.to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.dtype == loaded.proj_out.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("edit", [{"num_layers": 2}, {"caption_channels": 64}])
def test_a_configuration_of_other_shapes(edit, tmp_path):
    model, _ = build("Sana")
    quantize(model, make_config("FP8"))
    model.register_to_config(**edit)
    with pytest.raises(ValueError, match="is not packed as its quantization_config says"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_several_controlnets(tmp_path):
    options = {"block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 32, "norm_num_groups": 8}
    blocks = ("DownBlock2D", "CrossAttnDownBlock2D")
    nets = MultiControlNetModel([ControlNetModel(down_block_types=blocks, **options) for _ in range(2)])
    unet = UNet2DConditionModel(down_block_types=blocks, up_block_types=("UpBlock2D",) * 2, **options)
    pipeline = StableDiffusionControlNetPipeline(
        None, None, None, unet, nets, DDIMScheduler(clip_sample=False, steps_offset=1), None, None, None, False
    )
    whole = copy.deepcopy(nets)
    quantize(whole, make_config("INT8"))  # as compare() does
    pipeline.register_modules(controlnet=whole)
    for save in (pipeline.save_pretrained, whole.save_pretrained):
        with pytest.raises(ValueError, match=r"is not packed as its.*not of parts or of several at once"):
            save(str(tmp_path / "whole"))
        assert not (tmp_path / "whole").exists()
    quantize(nets.nets[1], make_config("INT8"))
    pipeline.register_modules(controlnet=nets)
    pipeline.save_pretrained(tmp_path / "one")
    loaded = MultiControlNetModel.from_pretrained(str(tmp_path / "one/controlnet")).state_dict()
    assert loaded.keys() == nets.state_dict().keys()
    assert all(torch.equal(t, loaded[name]) for name, t in nets.state_dict().items() if "_quantizer" in name)
