import pytest
import torch
from diffusers import ControlNetModel, NVIDIAModelOptConfig
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel

from modelopt_nb import dequantized, enable, make_config, plan, quantize, repair_states, weight_bytes
from modelopt_nb.upstream.layers import has_packed_layers
from tests.architectures import run
from tests.conftest import ALL_TYPES


def classes(model) -> dict[str, type]:
    return {name: type(module) for name, module in model.named_modules()}


@pytest.mark.parametrize("quant_type", [*ALL_TYPES, "INT8_INT8"])
def test_dequantized_models_compute_the_same_bit_for_bit(quant_type, transformer, inputs):
    plain = classes(transformer)
    pointwise = set(plan(transformer, make_config(quant_type)).pointwise)  # linear layers from now on
    quantize(transformer, make_config(quant_type), lambda model: model(**inputs))
    before, quantized, packed = weight_bytes(transformer), classes(transformer), run(transformer, inputs)
    with dequantized(transformer) as dense:
        assert not has_packed_layers(dense)
        # ModelOpt's classes cost time at every call, also where they quantize nothing
        changed = {name for name, cls in plain.items() if classes(dense)[name] is not cls}
        rounding = {
            n for n, m in dense.named_modules() if hasattr(m, "input_quantizer") and m.input_quantizer.is_enabled
        }
        assert changed == rounding | pointwise and bool(rounding) == (quant_type == "INT8_INT8")
        assert torch.equal(run(dense, inputs), packed)
    assert torch.equal(run(transformer, inputs), packed)
    assert weight_bytes(transformer) == before and classes(transformer) == quantized


def test_weights_are_packed_again_after_an_error(transformer, inputs):
    quantize(transformer, make_config("INT8"))
    before, packed = weight_bytes(transformer), run(transformer, inputs)
    with pytest.raises(KeyError), dequantized(transformer):
        raise KeyError
    assert weight_bytes(transformer) == before
    assert torch.equal(run(transformer, inputs), packed)


def test_one_configuration_quantizes_many_models(transformer):
    config = make_config("INT4")
    before = config.to_dict()
    reports = [quantize(model, config) for model in (transformer.half(), torch.nn.Sequential(torch.nn.Linear(128, 8)))]
    assert [report.packed[0].dtype for report in reports] == ["float16", "float32"]
    assert config.to_dict() == before
    assert transformer.config.quantization_config.packed_dtype == "float16"
    assert transformer.hf_quantizer.report == reports[0]


def test_the_loop_of_the_call_goes_before_that_of_the_configuration(transformer, inputs):
    calls = []
    config = make_config("INT8_INT8", forward_loop=lambda model: pytest.fail("the configuration's loop ran"))
    quantize(transformer, config, lambda model: calls.append(model(**inputs)))
    assert len(calls) == 1


def test_enabling_twice_changes_nothing():
    from diffusers.quantizers import auto
    from modelopt.torch.quantization.qtensor import NF4QTensor

    def patched() -> tuple:
        return NF4QTensor.dequantize, auto.AUTO_QUANTIZER_MAPPING["modelopt"], vars(NVIDIAModelOptConfig)["__init__"]

    enable()
    first = patched()
    enable()
    assert patched() == first


def test_repair_states_are_words():
    enable()
    states = repair_states()
    assert "nf4-read-back" in states and set(states.values()) <= {"on", "steps aside, upstream works"}


def test_a_model_without_a_config_packs_and_what_fails_at_the_end_is_undone(monkeypatch):
    """Diffusers' MultiControlNetModel is a ModelMixin without a config: it stayed packed after an AttributeError."""
    net = ControlNetModel(
        block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=8, norm_num_groups=4, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), conditioning_embedding_out_channels=(8, 8),
    )  # fmt: skip
    model = MultiControlNetModel([net])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with monkeypatch.context() as patch:
        patch.setattr("modelopt_nb.verbs._attach", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            quantize(model, make_config("INT8"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert quantize(model, make_config("INT8")).packed
