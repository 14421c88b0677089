import contextlib

import numpy as np
import pytest
import torch
from tests.conftest import ALL_TYPES

from modelopt_nb import compare, make_config, weight_bytes
from modelopt_nb.comparison import Comparison

PROMPTS = ["a lemon on a blue background", "an owl on a red background"]


@pytest.fixture(scope="module")
def comparison(pipeline) -> Comparison:
    return compare(pipeline, ALL_TYPES, PROMPTS, seeds=5, steps=3, progress=False)


def test_a_row_a_variant_dense_first(comparison):
    frame = comparison.frame
    assert list(frame.index) == ["dense", *ALL_TYPES]
    assert list(frame.columns) == [
        "precision", "weights MiB", "bits per weight", "of bf16", "peak MiB", "s per step", "PSNR dB", "SSIM",
    ]  # fmt: skip
    assert frame.loc["dense", ["PSNR dB", "SSIM"]].isna().all()
    rest = frame.drop(index="dense")
    assert (rest["weights MiB"] < frame["weights MiB"]["dense"]).all()
    assert (rest["peak MiB"] < frame["peak MiB"]["dense"]).all()
    assert rest["PSNR dB"].between(5, 80).all()
    assert rest["SSIM"].between(0, 1).all()
    assert (frame["s per step"] > 0).all()


def test_the_table_says_the_machine(comparison):
    for text in (repr(comparison.table()), comparison.table()._repr_html_()):
        for word in ("CPU", "float32", f"torch {torch.__version__}", "nvidia-modelopt", "diffusers", "3 steps"):
            assert word in text
    assert list(comparison.table("SSIM").frame.columns) == ["SSIM"]


def test_pictures_are_those_of_the_pipeline_alone(comparison, pipeline):
    generators = [torch.Generator().manual_seed(5), torch.Generator().manual_seed(6)]
    alone = pipeline(PROMPTS, generator=generators, num_inference_steps=3, height=512, width=512).images
    for picture, image in zip(comparison.images["dense"], alone, strict=True):
        assert np.array_equal(picture, np.asarray(image))


def test_peak_is_that_of_drawing_a_whole_picture(comparison, pipeline):
    from copy import deepcopy

    from modelopt_nb import peak_memory, quantize
    from modelopt_nb.pipeline import draw, swapped

    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    weights = sum(weight_bytes(part).total for part in parts if part is not pipeline.transformer)
    for name in ("dense", "NVFP4"):
        model = deepcopy(pipeline.transformer)
        if name != "dense":
            quantize(model, make_config(name))
        with swapped(pipeline, "transformer", model), peak_memory() as peak:
            draw(pipeline, PROMPTS[:1], [5], num_inference_steps=1)
        whole = (weights + weight_bytes(model).total + peak.tensors) / 2**20
        assert comparison.frame["peak MiB"][name] == pytest.approx(whole, rel=2e-4)


@pytest.mark.parametrize("component", ["text_encoder", "vae"])
def test_other_parts_of_a_pipeline(pipeline, component):
    frame = compare(pipeline, ["FP8"], PROMPTS, steps=2, component=component, progress=False).frame
    part = getattr(pipeline, component)
    assert frame["weights MiB"]["dense"] == weight_bytes(part).mib > frame["weights MiB"]["FP8"]
    assert frame["peak MiB"]["dense"] > frame["peak MiB"]["FP8"]
    assert 20 < frame["PSNR dB"]["FP8"] < 80  # each variant draws with its own part
    assert not {"encode_prompt", "decode"} & {*vars(pipeline), *vars(part)}


def test_pictures_are_those_of_the_packed_model(comparison, pipeline):
    from copy import deepcopy

    from modelopt_nb import quantize
    from modelopt_nb.pipeline import draw, swapped

    model = deepcopy(pipeline.transformer)
    quantize(model, make_config("NF4"))
    with swapped(pipeline, "transformer", model):
        packed = draw(pipeline, PROMPTS, [5, 6], num_inference_steps=3)
    for picture, other in zip(comparison.images["NF4"], packed, strict=True):
        assert np.array_equal(picture, other)


def test_the_pipeline_is_as_it_was(comparison, pipeline):
    assert {p.dtype for p in pipeline.transformer.parameters()} == {torch.float32}
    assert weight_bytes(pipeline.transformer) == comparison.variants[0].weights
    assert "encode_prompt" not in vars(pipeline)
    assert getattr(pipeline, "_progress_bar_config", {}).get("disable") is not True


def test_configs_by_name(pipeline):
    variants = {"small blocks": make_config("INT4", channel_quantize=-1, block_quantize=32), "FP8": "FP8"}
    compared = compare(pipeline, variants, PROMPTS[:1], steps=1, progress=False)
    assert list(compared.frame.index) == ["dense", "small blocks", "FP8"]


def test_extra_measures_are_columns(pipeline):
    def mean_error(picture, reference, prompt):
        return float("nan") if reference is None else np.abs(picture.astype(int) - reference).mean() + len(prompt)

    compared = compare(pipeline, ["FP8"], PROMPTS, steps=1, progress=False, extra={"mean error": mean_error})
    dense, packed = compared.images["dense"], compared.images["FP8"]
    errors = [np.abs(a.astype(int) - b).mean() + len(p) for a, b, p in zip(packed, dense, PROMPTS, strict=True)]
    assert compared.frame["mean error"]["FP8"] == pytest.approx(np.mean(errors))
    assert np.isnan(compared.frame["mean error"]["dense"])


def test_an_interrupted_run_keeps_what_it_finished(pipeline, monkeypatch):
    from modelopt_nb import comparison as module

    drawn = []

    def interrupted(model, config):
        drawn.append(config.quant_type)
        if config.quant_type == "INT8":
            raise KeyboardInterrupt
        return quantize(model, config)

    quantize = module.quantize
    monkeypatch.setattr(module, "quantize", interrupted)
    with pytest.warns(UserWarning, match="2 of 4 variants are finished"):
        kept = compare(pipeline, ["FP8", "INT8", "INT4"], PROMPTS[:1], steps=1, progress=False)
    assert drawn == ["FP8", "INT8"]
    assert list(kept.frame.index) == ["dense", "FP8"]
    assert {p.dtype for p in pipeline.transformer.parameters()} == {torch.float32}


def test_what_does_not_agree_bit_for_bit_is_drawn_packed(comparison, pipeline, monkeypatch):
    from modelopt_nb import comparison as module

    @contextlib.contextmanager
    def one_weight_off(model):
        with dequantized(model):
            if model is not pipeline.transformer:
                layer = model.get_submodule("transformer_blocks.0.attn1.to_v")
                layer.weight[0, 0] += 1
            yield model

    dequantized = module.dequantized
    monkeypatch.setattr(module, "dequantized", one_weight_off)
    again = compare(pipeline, ["FP8"], PROMPTS, seeds=5, steps=3, progress=False)
    for name in ("dense", "FP8"):
        assert all(np.array_equal(a, b) for a, b in zip(comparison.images[name], again.images[name], strict=True))


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"prompts": []}, ValueError, r"prompts=\[\]"),
        ({"prompts": "a fox"}, ValueError, "prompts='a fox'"),
        ({"prompts": [3]}, ValueError, r"prompts=\[3\]"),
        ({"seeds": [1]}, ValueError, "seeds has 1 entries for 2 prompts"),
        ({"variants": ["FP4"]}, ValueError, "quant_type='FP4'"),
        ({"variants": ["FP8_NVFP4"]}, ValueError, "quant_type='FP8_NVFP4' has activations .* on cpu: .*CUDA"),
        ({"variants": {"x": make_config("FP8", algorithm="awq_lite")}}, ValueError, "algorithm='awq_lite' needs"),
        ({"variants": "FP8"}, TypeError, "variants='FP8'"),
        ({"variants": {"mine": 3}}, TypeError, r"variants\['mine'\]=3"),
        ({"variants": ["FP8", "FP8"]}, ValueError, "'FP8' twice"),
        ({"variants": {"dense": "FP8"}}, ValueError, "'dense'"),
        ({"steps": 0}, ValueError, "steps=0"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"extra": {"SSIM": len}}, ValueError, "extra names SSIM"),
        ({"component": "unet"}, ValueError, "component='unet'"),
    ],
)
def test_wrong_input_is_named_before_anything_is_drawn(pipeline, monkeypatch, arguments, error, said):
    monkeypatch.setattr(pipeline.transformer, "forward", lambda *a, **k: pytest.fail("it was drawn"))
    with pytest.raises(error, match=said):
        compare(**{"pipeline": pipeline, "variants": ["FP8"], "prompts": PROMPTS} | arguments)


def test_a_config_that_fits_no_layer_is_named_before_anything_is_drawn(pipeline, monkeypatch):
    monkeypatch.setattr(pipeline.transformer, "forward", lambda *a, **k: pytest.fail("it was drawn"))
    with pytest.raises(ValueError, match="'no_such_layer'"):
        compare(pipeline, {"x": make_config("FP8", modules_to_not_convert="no_such_layer")}, PROMPTS)


def test_a_variant_is_gone_when_the_next_one_comes(pipeline, monkeypatch):
    import gc
    import weakref

    from modelopt_nb import comparison

    alive, quantize = [], comparison.quantize

    def watched(model, config):
        assert not any(tensor() is not None for tensor in alive)
        report = quantize(model, config)
        alive.extend(weakref.ref(tensor) for tensor in [*model.parameters(), *model.buffers()])
        return report

    monkeypatch.setattr(comparison, "quantize", watched)
    gc.disable()
    try:
        compare(pipeline, ["INT8", "INT4", "NF4"], PROMPTS[:1], steps=1, progress=False)
        assert len(alive) > 300
        assert not any(tensor() is not None for tensor in alive)
    finally:
        gc.enable()
