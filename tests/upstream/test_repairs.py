import copy
import json
import os
import tempfile

import modelopt.torch.opt as mto
import pytest
import torch
from diffusers import NVIDIAModelOptConfig, SanaTransformer2DModel
from modelopt.torch.quantization.utils import is_quantized

from modelopt_nb import enable, make_config, quantize, quiet, repair_states, verbs, weight_bytes
from modelopt_nb.upstream.repairs.sixteen_bits import largest_tensor
from tests.architectures import build, run

BY_NAME = {repair.name: repair for repair in verbs.all_repairs()}


def read_packed(layer) -> torch.Tensor:
    return layer.weight_quantizer.dequantize(layer.weight)


def nf4_is_read_back():
    layer = torch.nn.Sequential(torch.nn.Linear(256, 128))
    weight = layer[0].weight.detach().clone()
    quantize(layer, make_config("NF4"))
    error = (read_packed(layer[0]) - weight).norm() / weight.norm()
    assert error < 0.12


def keeps_zeros(scheme):
    def proof():
        for rows in (slice(None), 1, slice(1, 3)):
            layer = torch.nn.Sequential(torch.nn.Linear(512, 4))
            with torch.no_grad():
                layer[0].weight[rows] = 0
            quantize(layer, make_config(scheme))
            assert layer(torch.ones(1, 512)).isfinite().all()
            assert (read_packed(layer[0])[rows] == 0).all()

    return proof


def scales_are_computed_in_float32():
    # the relative errors of float32 weights, or less: float16 holds few values this small
    cases = {"NF4": (2e-3, 0.093), "INT4 block": (2e-4, 0.097), "FP8": (1e-5, 0.027), "INT8": (1e-6, 0.010)}
    for scheme, (amax, error) in cases.items():
        layer = torch.nn.Sequential(torch.nn.Linear(128, 128)).half()
        weight = torch.randn(128, 128)
        layer[0].weight.data = weight = (weight / weight.abs().max() * amax).half()
        quantize(layer, make_config(scheme))
        assert read_packed(layer[0]).dtype == torch.float16
        assert (read_packed(layer[0]).float() - weight.float()).norm() / weight.float().norm() <= error


def mse_calibrates(quant_type):
    def proof():
        x, layer = torch.randn(64, 256), torch.nn.Sequential(torch.nn.Linear(256, 256))
        dense = layer(x).detach()
        config = make_config(quant_type, weight_only=False, activation_calibrator="mse")
        quantize(layer, config, lambda model: model(x))
        assert (layer(x) - dense).norm() / dense.norm() < (0.015 if quant_type == "INT8" else 0.05)

    return proof


def packing_keeps_calibrated_scales():
    import modelopt.torch.quantization as mtq

    for scheme in ("INT8", "INT8 channel", "INT8 block", "INT4 block"):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(256, 128))
        weight, config = model[0].weight.detach().clone(), make_config(scheme, algorithm="mse")
        rounded = torch.nn.Sequential(torch.nn.Linear(256, 128))
        rounded.load_state_dict(model.state_dict())
        with quiet():
            mtq.quantize(rounded, config.modelopt_config)
        expected = rounded[0].weight_quantizer(weight)
        quantize(model, config)
        torch.testing.assert_close(read_packed(model[0]), expected, rtol=0, atol=1e-6)


def rounding_makes_no_tensor_larger_than_the_weight(scheme):
    def proof():
        layer = torch.nn.Sequential(torch.nn.Linear(1024, 1024))
        assert largest_tensor(quantize, layer, make_config(scheme)) <= 2 * 1024 * 1024

    return proof


def packed_weights_have_the_dtype_they_are_read_as():
    model = torch.nn.Sequential(torch.nn.Linear(32, 4)).half()
    quantize(model, make_config("FP8"))
    assert model[0].weight.dtype == torch.float16


def copies_are_packed():
    model = torch.nn.Sequential(torch.nn.Linear(32, 4))
    quantize(model, make_config("FP8"))
    assert torch.equal(copy.deepcopy(model)(torch.ones(1, 32)), model(torch.ones(1, 32)))


def casts_keep_packed_weights():
    model = torch.nn.Sequential(torch.nn.Linear(32, 4))
    quantize(model, make_config("FP8"))
    before = read_packed(model[0])
    assert torch.equal(read_packed(model.half().float()[0]), before)


def diffusers_configuration_works():
    for quant_type in ("FP8", "INT4"):
        config = NVIDIAModelOptConfig(quant_type=quant_type, quant_method="modelopt")
        assert config.modelopt_config == make_config(quant_type).modelopt_config


def wrong_types_raise():
    with pytest.raises(ValueError, match="quant_type='FP4'"):
        NVIDIAModelOptConfig("FP4", modelopt_config={"quant_cfg": [1]})
    with pytest.raises(ValueError, match="chanel_quantize=0"):
        NVIDIAModelOptConfig("FP8", chanel_quantize=0, modelopt_config={"quant_cfg": [1]})


def configuration_becomes_json():
    config = NVIDIAModelOptConfig("NVFP4", modelopt_config=make_config("NVFP4").modelopt_config)
    again = NVIDIAModelOptConfig.from_dict(json.loads(json.dumps(config.to_dict(), sort_keys=True)))
    assert again.modelopt_config == config.modelopt_config


def loading_packs():
    model, inputs = build("Sana")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = SanaTransformer2DModel.from_pretrained(folder, quantization_config=make_config("FP8"))
        assert weight_bytes(loaded).by_dtype["float8_e4m3fn"] > 0
        run(loaded, inputs)


def packed_folders_load_next_to_modelopts_pickle():
    from modelopt.torch.opt import enable_huggingface_checkpointing

    enable_huggingface_checkpointing()
    model, inputs = build("Sana")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/dense")
        loaded = SanaTransformer2DModel.from_pretrained(f"{folder}/dense", quantization_config=make_config("FP8"))
        loaded.save_pretrained(f"{folder}/packed")
        assert os.path.exists(f"{folder}/packed/modelopt_state.pth")
        again = SanaTransformer2DModel.from_pretrained(f"{folder}/packed")
        assert torch.equal(run(again, inputs), run(loaded, inputs))


def an_interrupted_save_leaves_the_old_folder():
    model, inputs = build("Sana")
    other, _ = build("Sana")
    quantize(model, make_config("NVFP4"))
    quantize(other, make_config("FP8"))

    def interrupted():
        raise InterruptedError

    other.state_dict = interrupted
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/packed")
        with pytest.raises(InterruptedError):
            other.save_pretrained(f"{folder}/packed")
        assert torch.equal(run(SanaTransformer2DModel.from_pretrained(f"{folder}/packed"), inputs), run(model, inputs))
        assert os.listdir(folder) == ["packed"]


def test_dense_layers_keep_their_class():
    x = torch.randn(2, 64)

    def build_layers():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LayerNorm(64), torch.nn.Linear(64, 64))

    model = build_layers()
    quantize(model, make_config("FP8", modules_to_not_convert="2"))
    assert [is_quantized(layer) for layer in model] == [True, False, False]
    assert [vars(layer).keys() == vars(plain).keys() for layer, plain in zip(model, build_layers(), strict=True)][1:]
    with tempfile.TemporaryDirectory() as folder, quiet():
        mto.save(model, f"{folder}/model.pt")
        restored = mto.restore(build_layers(), f"{folder}/model.pt")
    assert torch.equal(restored(x), model(x))


#: Proofs by repair, each with the error that it raises without the repair.
PROOFS = {
    "nf4-read-back": [(nf4_is_read_back, RuntimeError)],
    "zeros": [(keeps_zeros(scheme), AssertionError) for scheme in ("FP8 channel", "NVFP4", "NF4")],
    "calibrated-scales": [
        (packing_keeps_calibrated_scales, AssertionError),
        (scales_are_computed_in_float32, (AssertionError, RuntimeError)),
    ],
    "histogram-mse": [(mse_calibrates("INT8"), AssertionError), (mse_calibrates("FP8"), ValueError)],
    "packed-modules": [
        (packed_weights_have_the_dtype_they_are_read_as, AssertionError),
        (copies_are_packed, TypeError),
        (casts_keep_packed_weights, Exception),
    ],
    "nf4-rounding": [(rounding_makes_no_tensor_larger_than_the_weight("NF4"), AssertionError)],
    "nvfp4-rounding": [(rounding_makes_no_tensor_larger_than_the_weight("NVFP4"), AssertionError)],
    "config-class": [
        (diffusers_configuration_works, TypeError),
        (wrong_types_raise, pytest.fail.Exception),
        (configuration_becomes_json, TypeError),
    ],
    "pack-while-loading": [(loading_packs, Exception)],
    "atomic-save": [(an_interrupted_save_leaves_the_old_folder, ValueError)],
    "restore-from-config": [(packed_folders_load_next_to_modelopts_pickle, Exception)],
}


def test_every_repair_has_a_proof_and_a_story():
    assert set(PROOFS) == set(BY_NAME) == set(repair_states())
    for repair in verbs.all_repairs():
        assert repair.broken and repair.versions and repair.issue


@pytest.mark.parametrize("name", BY_NAME)
def test_proofs_hold_with_the_repair_and_fail_without(name, monkeypatch):
    enable()
    repair = BY_NAME[name]
    if not repair.applied:
        pytest.skip(f"upstream has fixed {name}")
    for proof, _ in PROOFS[name]:
        proof()
    repair.remove()
    try:
        assert repair.needed()
        others = tuple(r for r in verbs.all_repairs() if r is not repair)
        monkeypatch.setattr(verbs, "all_repairs", lambda: others)
        for proof, failure in PROOFS[name]:
            with pytest.raises(failure):
                proof()
    finally:
        monkeypatch.undo()
        enable()
    assert repair.applied
    for proof, _ in PROOFS[name]:
        proof()


def test_a_repair_steps_aside_where_it_is_not_needed(monkeypatch):
    repair = BY_NAME["nf4-read-back"]
    enable()
    repair.remove()
    assert repair_states()["nf4-read-back"] == "needed; call enable()"
    monkeypatch.setattr(type(repair), "needed", lambda self: False)
    enable()
    assert not repair.applied
    assert repair_states()["nf4-read-back"] == "steps aside, upstream works"
    monkeypatch.undo()
    enable()
    assert repair.applied
