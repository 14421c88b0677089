"""A dtype is remembered and never guessed: saving, loading and running in any of three."""

import copy
import functools
import itertools
import json

import pytest
import torch
from diffusers import AutoModel, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from modelopt_nb import SCHEMES, enable, make_config, quantize, weight_bytes
from modelopt_nb.upstream.layers import is_packed
from modelopt_nb.upstream.repairs.atomic_save.manifest import write_manifest
from tests.architectures import build, run
from tests.conftest import ALL_TYPES

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(autouse=True)
def enabled():
    enable()


class TwoLayers(ModelMixin, ConfigMixin):
    """The smallest model that Diffusers saves."""

    config_name = "config.json"

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(256, 128), nn.Conv2d(64, 64, 1), nn.LayerNorm(8)


class Net(ModelMixin, ConfigMixin):
    """Layers of each kind: one has so few weights that some schemes pack it only in float32, one is kept in float32."""

    config_name = "config.json"
    _keep_in_fp32_modules = ["kept"]

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(256, 128), nn.Linear(128, 256, bias=False), nn.LayerNorm(256)
        self.convolution, self.few, self.kept = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Linear(256, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.second(torch.tanh(self.first(x))).reshape(-1, 4, 8, 8)
        x = self.norm(self.few(self.convolution(x)).reshape(-1, 256))
        return x, self.kept(x.to(self.kept.weight.dtype))


def dense(model: nn.Module, dtype: torch.dtype, folder) -> nn.Module:
    """Load in ``dtype``: a cast would also reach buffers that are not saved."""
    model.save_pretrained(folder / "dense")
    return type(model).from_pretrained(str(folder / "dense"), torch_dtype=dtype)


def read(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: m.weight_quantizer.dequantize(m.weight) for n, m in model.named_modules() if is_packed(m)}


def stored(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t for n, t in model.state_dict().items() if "weight_quantizer" in n or is_packed_key(model, n)}


def is_packed_key(model: nn.Module, name: str) -> bool:
    owner, _, tensor = name.rpartition(".")
    return tensor == "weight" and is_packed(model.get_submodule(owner))


def assert_close(found: nn.Module, expected: nn.Module, dtype: torch.dtype, coarser: torch.dtype) -> None:
    """What is stored is equal, and what is read is so to one rounding."""
    old, new = stored(expected), stored(found)
    assert old.keys() == new.keys()
    assert all(t.dtype == new[n].dtype and torch.equal(t, new[n]) for n, t in old.items())
    weights = read(found)
    for name, weight in read(expected).items():
        assert weights[name].dtype == dtype
        if dtype == weight.dtype:
            assert torch.equal(weights[name], weight)
        else:
            error = (weights[name].float() - weight.float()).abs().max() / weight.float().abs().max()
            assert error <= 2 * torch.finfo(coarser).eps


@pytest.fixture(scope="module")
def packed_nets(tmp_path_factory):
    """Return a packed model of a scheme and a dtype, the folder it is saved in, and the function that loads it."""
    enable()

    @functools.cache
    def packed(scheme: str, dtype: str) -> tuple[nn.Module, str]:
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("net")
        model = dense(Net(), DTYPES[dtype], folder)
        quantize(model, make_config(scheme))
        model.save_pretrained(folder)
        return model, str(folder)

    @functools.cache
    def loaded(scheme: str, saved: str, dtype: str) -> nn.Module:
        return Net.from_pretrained(packed(scheme, saved)[1], torch_dtype=DTYPES[dtype])

    return packed, loaded


@pytest.mark.parametrize("running", DTYPES)
@pytest.mark.parametrize("loading", DTYPES)
@pytest.mark.parametrize("saving", DTYPES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_saving_loading_and_running_in_three_dtypes(scheme, saving, loading, running, packed_nets):
    packed, loaded = packed_nets
    model, again = copy.deepcopy(packed(scheme, saving)[0]), copy.deepcopy(loaded(scheme, saving, loading))
    assert again.first.bias.dtype == DTYPES[loading] and again.kept.weight.dtype == torch.float32
    for each in (model, again):
        nn.Module.to(each, DTYPES[running])  # Diffusers refuses to cast a model that was packed while loading
    weights, x = read(again), torch.randn(3, 256, dtype=DTYPES[running])
    assert weights.keys() == read(model).keys() and {w.dtype for w in weights.values()} == {DTYPES[running]}
    assert all(torch.equal(weights[name], weight) for name, weight in read(model).items())
    with torch.no_grad():
        found, expected = again(x), model(x)
    eps = max(torch.finfo(DTYPES[dtype]).eps for dtype in (loading, running))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == DTYPES[running] and one.isfinite().all()
        assert torch.equal(one, other) if saving == loading else (one - other).norm() <= eps * other.norm()


@pytest.mark.parametrize("quant_type", ALL_TYPES)
@pytest.mark.parametrize(("first", "second"), itertools.pairwise([*DTYPES, "float32"]))
def test_saved_in_one_dtype_loaded_in_another_saved_and_loaded_again(quant_type, first, second, tmp_path):
    model, to = TwoLayers().to(DTYPES[first]), DTYPES[second]
    quantize(model, make_config(quant_type))
    model.save_pretrained(tmp_path / "one")
    loaded = TwoLayers.from_pretrained(tmp_path / "one", torch_dtype=to)
    coarser = max(DTYPES[first], to, key=lambda dtype: torch.finfo(dtype).eps)
    assert loaded.dtype == to
    assert_close(loaded, model, to, coarser)
    loaded.save_pretrained(tmp_path / "two")
    again = TwoLayers.from_pretrained(tmp_path / "two")
    assert again.dtype == to and weight_bytes(again) == weight_bytes(loaded)
    assert_close(again, loaded, to, to)
    back = TwoLayers.from_pretrained(tmp_path / "two", torch_dtype=DTYPES[first])
    assert_close(back, model, DTYPES[first], coarser)


@pytest.mark.parametrize("quant_type", ALL_TYPES)
@pytest.mark.parametrize(("first", "second"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_text_encoders_are_read_in_the_dtype_that_is_asked_for(quant_type, first, second, tmp_path):
    model, inputs = build("T5")
    model, to = model.to(DTYPES[first]), DTYPES[second]
    quantize(model, make_config(quant_type))
    model.save_pretrained(tmp_path / "one")
    loaded = type(model).from_pretrained(tmp_path / "one", dtype=to)
    assert {p.dtype for p in loaded.parameters()} == {to} == {run(loaded, inputs).dtype}
    assert_close(loaded, model, to, torch.bfloat16)
    loaded.save_pretrained(tmp_path / "two")
    again = type(model).from_pretrained(tmp_path / "two")
    assert again.dtype == to and torch.equal(run(again, inputs), run(loaded, inputs))


def test_one_configuration_for_two_loads(transformer, inputs, tmp_path):
    transformer.save_pretrained(tmp_path / "dense")
    config = make_config("INT4", modules_to_not_convert=["attn2"], forward_loop=lambda model: model)
    config.forward_loop, before = None, config.to_dict()
    dtypes = [torch.float32, torch.bfloat16]
    models = [
        AutoModel.from_pretrained(str(tmp_path / "dense"), quantization_config=config, torch_dtype=dtype)
        for dtype in dtypes
    ]
    assert config.to_dict() == before
    config.modules_to_not_convert.append("attn1")
    for model, dtype in zip(models, dtypes, strict=True):
        model.save_pretrained(tmp_path / str(dtype))
        again = AutoModel.from_pretrained(str(tmp_path / str(dtype)))
        assert again.dtype == dtype
        x = {n: t.to(dtype) if n != "timestep" else t for n, t in inputs.items()}
        assert torch.equal(run(again, x), run(model, x))


def test_a_configuration_is_copied_deeply(transformer, tmp_path):
    config = make_config("INT4", modules_to_not_convert=["attn2"])
    quantize(transformer, config)
    config.modules_to_not_convert.append("attn1")
    transformer.save_pretrained(tmp_path)
    assert len(AutoModel.from_pretrained(str(tmp_path)).hf_quantizer.report.packed) == 11


@pytest.mark.parametrize("quant_type", ALL_TYPES)
def test_layers_of_two_dtypes(quant_type, transformer, tmp_path):
    model = dense(transformer, torch.bfloat16, tmp_path)
    attention = model.transformer_blocks[0].attn2
    attention.to_k.float(), attention.to_v.float(), model.time_embed.float()
    quantize(model, make_config(quant_type, modules_to_not_convert="time_embed"))
    model.save_pretrained(tmp_path / "both")
    config = json.loads((tmp_path / "both" / "config.json").read_text())["quantization_config"]
    assert config["packed_dtype"]["transformer_blocks.0.attn2.to_k"] == "float32"
    assert config["packed_dtype"]["transformer_blocks.0.attn2.to_q"] == "bfloat16"
    again = AutoModel.from_pretrained(str(tmp_path / "both"))
    weights, restored = read(model), read(again)
    assert {n: w.dtype for n, w in weights.items()} == {n: w.dtype for n, w in restored.items()}
    assert all(torch.equal(weight, restored[name]) for name, weight in weights.items())
    assert [(n, p.dtype, p.requires_grad) for n, p in model.named_parameters()] == [
        (n, p.dtype, p.requires_grad) for n, p in again.named_parameters()
    ]
    assert weight_bytes(again) == weight_bytes(model)
    whole = AutoModel.from_pretrained(str(tmp_path / "both"), torch_dtype=torch.float32)
    assert {w.dtype for w in read(whole).values()} == {whole.time_embed.linear.weight.dtype} == {torch.float32}


@pytest.mark.parametrize("quant_type", ALL_TYPES)
def test_a_cast_model_saves_its_new_dtype(quant_type, transformer, tmp_path):
    quantize(transformer, make_config(quant_type))
    transformer.to(torch.bfloat16)
    transformer.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(str(tmp_path))
    assert again.dtype == torch.bfloat16
    assert_close(again, transformer, torch.bfloat16, torch.bfloat16)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("quant_type", "options"),
    [("INT4", {"algorithm": "svdquant"}), ("INT8", {"algorithm": "smoothquant", "weight_only": False})],
)
def test_calibrated_scales_in_other_dtypes(quant_type, options, dtype, transformer, inputs, tmp_path):
    model, to = dense(transformer, DTYPES[dtype], tmp_path), DTYPES[dtype]
    tmp_path /= "packed"
    x = {n: t.to(to) if n != "timestep" else t for n, t in inputs.items()}
    quantize(model, make_config(quant_type, **options), lambda m: m(**x))
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(str(tmp_path))
    assert weight_bytes(again) == weight_bytes(model) and torch.equal(run(again, x), run(model, x))
    wide, expected = AutoModel.from_pretrained(str(tmp_path), torch_dtype=torch.float32), run(model, x).float()
    assert (run(wide, inputs) - expected).norm() / expected.norm() < 0.05
    assert torch.equal(run(copy.deepcopy(wide), inputs), run(wide, inputs))


@pytest.mark.parametrize("scheme", ["FP8 channel", "INT8", "INT4", "NF4"])
def test_a_folder_of_the_first_version(scheme, tmp_path):
    """Its scales are in float16 for a float16 model."""
    model = dense(Net(), torch.float16, tmp_path)
    quantize(model, make_config(scheme))
    for name, tensor in model.state_dict(keep_vars=True).items():
        if "weight_quantizer" in name and tensor.dtype == torch.float32:
            tensor.data = tensor.data.half()
    model.save_pretrained(tmp_path)
    (tmp_path / "modelopt_nb.json").unlink()
    write_manifest(tmp_path, "Net")
    again, x = Net.from_pretrained(tmp_path), torch.randn(3, 256).half()
    assert_close(again, model, torch.float16, torch.float16)
    assert torch.equal(run(again, {"x": x}), run(model, {"x": x}))
    wide = Net.from_pretrained(tmp_path, torch_dtype=torch.float32)
    assert_close(wide, model, torch.float32, torch.float16)


def test_loading_a_packed_model_is_still_refused_a_cast_by_diffusers(transformer, tmp_path):
    quantize(transformer, make_config("FP8"))
    transformer.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(str(tmp_path))
    for cast in (loaded.half, loaded.float, lambda: loaded.to(torch.bfloat16)):
        with pytest.raises(ValueError, match="quantized model"):
            cast()


WO = "encoder.block.0.layer.1.DenseReluDense.wo"


@pytest.mark.parametrize("quant_type", ["FP8", "INT8", "NVFP4"])
@pytest.mark.parametrize("loading", DTYPES)
@pytest.mark.parametrize("saving", DTYPES)
def test_what_transformers_keeps_in_float32(saving, loading, quant_type, tmp_path):
    model, inputs = build("T5")
    model.save_pretrained(tmp_path / "dense")
    load = functools.partial(type(model).from_pretrained, dtype=DTYPES[saving])
    plain, config = load(tmp_path / "dense"), make_config(quant_type)
    direct = load(tmp_path / "dense", quantization_config=config)
    report = quantize(plain, config)
    assert direct.hf_quantizer.report == report and torch.equal(run(direct, inputs), run(plain, inputs))
    (wo,) = (x for x in report.layers if x.name == WO)
    assert wo.packed == (saving == "bfloat16") and wo.dtype == ("bfloat16" if wo.packed else "float32")
    direct.save_pretrained(tmp_path / "packed")
    again = type(model).from_pretrained(tmp_path / "packed", dtype=DTYPES[loading])
    expected = torch.bfloat16 if loading == "bfloat16" else torch.float32  # in float16 the class asks for float32
    assert again.get_submodule(WO).weight.dtype == expected and is_packed(again.get_submodule(WO)) == wo.packed
    found, output = run(again, inputs).float(), run(direct, inputs).float()
    assert torch.equal(found, output) if saving == loading else (found - output).norm() < 0.02 * output.norm()
    again.save_pretrained(tmp_path / "again")
    assert torch.equal(run(type(model).from_pretrained(tmp_path / "again"), inputs), run(again, inputs))
