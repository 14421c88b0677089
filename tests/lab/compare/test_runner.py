import contextlib
import copy
import gc
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DDIMScheduler

from modelopt_nb import (
    Comparison,
    activation_ranges,
    classify,
    compare,
    denoising_loop,
    fit_budget,
    generate,
    layer_frame,
    layer_groups,
    load_prompts,
    make_config,
    peak_memory,
    quantize,
    record_calls,
    replay_loop,
    select,
    sensitivity,
    weight_bytes,
    weight_errors,
)
from modelopt_nb.lab.compare import runner
from modelopt_nb.lab.compare.results import machine
from modelopt_nb.lab.compare.variants import COLUMNS
from modelopt_nb.lab.pipelines.load import with_component
from tests.lab.small_pipelines import smallest_unet, stable_diffusion

TAKEN = [column.name for column in COLUMNS]
TYPES = ["FP8", "NF4", "NVFP4"]
PROMPTS = ["a lemon on a blue background", "an owl on a red background"]


@pytest.fixture(scope="module")
def comparison(pipeline) -> Comparison:
    return compare(pipeline, TYPES, PROMPTS, seeds=5, steps=2, progress=False)


def test_one_row_per_variant_dense_first(comparison):
    frame = comparison.frame
    assert list(frame.index) == ["dense", *TYPES]
    assert list(frame.columns) == [
        "precision", "weights MiB", "bits per weight", "of bf16", "peak MiB", "s per step", "PSNR dB",
        "PSNR dB low", "PSNR dB high", "SSIM", "SSIM low", "SSIM high",
    ]  # fmt: skip
    assert frame.loc["dense", ["PSNR dB", "SSIM"]].isna().all()
    rest = frame.drop(index="dense")
    assert (rest["weights MiB"] < frame["weights MiB"]["dense"]).all()
    assert (rest["peak MiB"] < frame["peak MiB"]["dense"]).all()
    assert rest["PSNR dB"].between(5, 80).all()
    assert rest["SSIM"].between(0, 1).all()
    assert (frame["s per step"] > 0).all()


def test_the_table_names_the_machine(comparison):
    assert repr(comparison) == repr(comparison.table())
    for text in (repr(comparison), comparison._repr_html_()):
        for word in ("CPU", "float32", f"torch {torch.__version__}", "nvidia-modelopt", "diffusers", "2 steps"):
            assert word in text
    assert list(comparison.table("SSIM").frame.columns) == ["SSIM"]


def test_a_table_has_the_digits_of_its_columns(comparison):
    lines = repr(comparison.table("precision", "bits per weight", "s per step", "PSNR dB")).splitlines()
    dense, fp8, frame = lines[2].split(), lines[3].split(), comparison.frame
    assert dense == [
        "dense",
        "dense",
        f"{frame['bits per weight']['dense']:.2f}",
        f"{frame['s per step']['dense']:.4f}",
    ]
    assert fp8[1:3] == ["W8", f"{frame['bits per weight']['FP8']:.2f}"]
    assert fp8[4] == f"{frame['PSNR dB']['FP8']:.1f}"
    names = [column.name for column in COLUMNS]
    assert len(set(names)) == len(names) and set(frame.columns) <= set(names)


def test_images_are_those_of_the_pipeline_alone(comparison, pipeline):
    generators = [torch.Generator().manual_seed(5), torch.Generator().manual_seed(6)]
    alone = pipeline(PROMPTS, generator=generators, num_inference_steps=2, height=512, width=512).images
    for image, other in zip(comparison.images["dense"], alone, strict=True):
        assert np.array_equal(image, np.asarray(other))


def test_peak_is_that_of_generating_one_image(comparison, pipeline):
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    weights = sum(weight_bytes(part).total for part in parts if part is not pipeline.transformer)
    for name in ("dense", "NVFP4"):
        model = copy.deepcopy(pipeline.transformer)
        if name != "dense":
            quantize(model, make_config(name))
        with with_component(pipeline, "transformer", model), peak_memory() as peak:
            generate(pipeline, PROMPTS[:1], 5, steps=1)
        whole = (weights + weight_bytes(model).total + peak.tensors) / 2**20
        assert comparison.frame["peak MiB"][name] == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("component", ["text_encoder", "vae"])
def test_other_parts_of_a_pipeline(pipeline, component):
    frame = compare(pipeline, ["FP8"], PROMPTS[:1], steps=1, component=component, progress=False).frame
    part = getattr(pipeline, component)
    assert frame["weights MiB"]["dense"] == weight_bytes(part).mib > frame["weights MiB"]["FP8"]
    assert frame["peak MiB"]["dense"] > frame["peak MiB"]["FP8"]
    assert 20 < frame["PSNR dB"]["FP8"] < 80  # each variant uses its own component
    assert not {"encode_prompt", "decode"} & {*vars(pipeline), *vars(part)}


def test_images_are_those_of_the_packed_model(comparison, pipeline):
    model = copy.deepcopy(pipeline.transformer)
    quantize(model, make_config("NF4"))
    with with_component(pipeline, "transformer", model):
        packed = generate(pipeline, PROMPTS, 5, steps=2)
    for image, other in zip(comparison.images["NF4"], packed, strict=True):
        assert np.array_equal(image, other)


def test_the_pipeline_is_unchanged(comparison, pipeline):
    assert {p.dtype for p in pipeline.transformer.parameters()} == {torch.float32}
    assert weight_bytes(pipeline.transformer) == comparison.variants[0].weights
    assert "encode_prompt" not in vars(pipeline)
    assert getattr(pipeline, "_progress_bar_config", {}).get("disable") is not True


def test_measures_are_columns(pipeline):
    def mean_error(image, reference, prompt):
        return float("nan") if reference is None else np.abs(image.astype(int) - reference).mean() + len(prompt)

    compared = compare(pipeline, ["FP8"], PROMPTS, steps=1, progress=False, measures={"mean error": mean_error})
    dense, packed = compared.images["dense"], compared.images["FP8"]
    errors = [np.abs(a.astype(int) - b).mean() + len(p) for a, b, p in zip(packed, dense, PROMPTS, strict=True)]
    assert compared.frame["mean error"]["FP8"] == pytest.approx(np.mean(errors))
    assert np.isnan(compared.frame["mean error"]["dense"])


def test_an_interrupted_run_keeps_what_it_finished(pipeline, monkeypatch):
    started = []

    def interrupted(model, config):
        started.append(config.quant_type)
        if config.quant_type == "INT8":
            raise KeyboardInterrupt
        return quantize(model, config)

    monkeypatch.setattr(runner, "quantize", interrupted)
    with pytest.warns(UserWarning, match="2 of 4 variants are finished"):
        kept = compare(pipeline, ["FP8", "INT8", "INT4"], PROMPTS[:1], steps=1, progress=False)
    assert started == ["FP8", "INT8"]
    assert list(kept.frame.index) == ["dense", "FP8"]
    assert {p.dtype for p in pipeline.transformer.parameters()} == {torch.float32}


def test_what_does_not_agree_bit_for_bit_is_generated_packed(comparison, pipeline, monkeypatch):
    @contextlib.contextmanager
    def one_weight_off(model):
        with dequantized(model):
            if model is not pipeline.transformer:
                layer = model.get_submodule("transformer_blocks.0.attn1.to_v")
                layer.weight[0, 0] += 1
            yield model

    dequantized = runner.dequantized
    monkeypatch.setattr(runner, "dequantized", one_weight_off)
    again = compare(pipeline, ["FP8"], PROMPTS, seeds=5, steps=2, progress=False)
    for name in ("dense", "FP8"):
        assert all(np.array_equal(a, b) for a, b in zip(comparison.images[name], again.images[name], strict=True))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prompts": []}, ValueError, r"prompts=\[\]"),
        ({"prompts": 3}, ValueError, "prompts=3 is not a list of prompts"),
        ({"prompts": [3]}, ValueError, r"prompts=\[3\]"),
        ({"seeds": [1]}, ValueError, r"seeds=\[1\] has 1 entries for 2 prompts"),
        ({"seeds": 1.5}, ValueError, "seeds=1.5"),
        ({"seeds": [1, 2.5]}, ValueError, r"seeds=\[1, 2.5\]"),
        ({"steps": 2, "num_inference_steps": 2}, ValueError, "steps=2 and num_inference_steps=2 mean the same"),
        ({"num_inference_steps": 0}, ValueError, "steps=0"),
        ({"generator": None, "prompt": "a"}, ValueError, "generator, prompt cannot be passed on"),
        ({"variants": ["FP4"]}, ValueError, "quant_type='FP4'"),
        ({"variants": ["FP8_NVFP4"]}, ValueError, "quant_type='FP8_NVFP4' has activations .* on cpu: .*CUDA"),
        ({"variants": {"x": make_config("FP8", algorithm="awq_lite")}}, ValueError, "algorithm='awq_lite' needs"),
        ({"variants": "FP8"}, TypeError, "variants='FP8'"),
        ({"variants": {"mine": 3}}, TypeError, r"variants\['mine'\]=3"),
        ({"variants": ["FP8", "FP8"]}, ValueError, "'FP8' twice"),
        ({"variants": {"dense": "FP8"}}, ValueError, "'dense'"),
        ({"steps": 0}, ValueError, "steps=0"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        *(({"measures": {name: len}}, ValueError, f"measures contains {name}") for name in ("variant", *TAKEN)),
        ({"measures": {"mine": 3}}, TypeError, "measures={'mine': 3}"),
        ({"component": "unet"}, ValueError, "component='unet'"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_generated(pipeline, monkeypatch, arguments, error, message):
    monkeypatch.setattr(pipeline.transformer, "forward", lambda *a, **k: pytest.fail("it was generated"))
    with pytest.raises(error, match=message):
        compare(**{"pipeline": pipeline, "variants": ["FP8"], "prompts": PROMPTS} | arguments)


def test_a_config_that_fits_no_layer_is_refused_before_anything_is_generated(pipeline, monkeypatch):
    monkeypatch.setattr(pipeline.transformer, "forward", lambda *a, **k: pytest.fail("it was generated"))
    with pytest.raises(ValueError, match="'no_such_layer'"):
        compare(pipeline, {"x": make_config("FP8", modules_to_not_convert="no_such_layer")}, PROMPTS)


def test_a_variant_is_free_before_the_next_one_is_made(pipeline, monkeypatch):
    alive = []

    def tracked(model, config):
        assert not any(tensor() is not None for tensor in alive)
        report = quantize(model, config)
        alive.extend(weakref.ref(tensor) for tensor in [*model.parameters(), *model.buffers()])
        return report

    monkeypatch.setattr(runner, "quantize", tracked)
    gc.disable()
    try:
        compare(pipeline, ["INT8", "NF4"], PROMPTS[:1], steps=1, progress=False)
        assert len(alive) > 200
        assert not any(tensor() is not None for tensor in alive)
    finally:
        gc.enable()


def test_images_are_classified_if_it_is_known_what_they_show(pipeline):
    prompts = load_prompts("show", 2)
    comparison = compare(pipeline, ["FP8"], prompts, steps=2, progress=False)
    for name, images in comparison.images.items():
        correct = (classify(images)["subject"].array == prompts["subject"].array).mean()
        assert comparison.frame["subject_ok"][name] == pytest.approx(100 * correct)
    assert comparison.seeds == [0, 1]
    assert {"subject_ok low", "background_ok high"} <= set(comparison.frame.columns)
    assert not {"subject_ok low", "s per step"} & set(comparison.table().frame.columns)


def test_images_are_not_classified_otherwise(comparison, pipeline):
    assert "subject_ok" not in comparison.frame.columns
    other = type(pipeline)(**pipeline.components)  # the classifier knows nothing of other pipelines
    frame = compare(other, [], load_prompts("show", 1), steps=1, progress=False).frame
    assert "subject_ok" not in frame.columns


def test_a_callback_of_the_callers_runs_at_each_step(pipeline):
    steps = []
    compare(
        pipeline, [], PROMPTS[:1], steps=2, progress=False,
        callback_on_step_end=lambda pipe, step, time, tensors: (steps.append(step), tensors)[1],
    )  # fmt: skip
    assert steps[-3:] == [0, 1, 0]  # two of the image, one of the peak


def test_configs_by_name_calibrated_or_not(pipeline):
    with record_calls(pipeline, at=(0, 1)) as calls:
        denoising_loop(pipeline, PROMPTS[:1], steps=4)(pipeline.transformer)
    loop = replay_loop(calls)
    smooth = make_config("INT8", weight_only=False, algorithm="smoothquant", forward_loop=loop)
    frame = compare(pipeline, {"smooth": smooth, "FP8": "FP8"}, PROMPTS[:1], steps=2, progress=False).frame
    assert list(frame.index) == ["dense", "smooth", "FP8"]
    assert (frame["PSNR dB"].drop("dense") > 15).all()


def test_a_pipeline_is_not_a_model(pipeline):
    config = make_config("FP8")
    for verb in (
        layer_frame, select, layer_groups, lambda p: sensitivity(p, config, [None]), lambda p: weight_errors(p, config),
        lambda p: fit_budget(p, [None], mib=1), lambda p: activation_ranges(p, [None]), lambda p: quantize(p, config),
    ):  # fmt: skip
        with pytest.raises(
            TypeError, match="model is a SanaPipeline. Allowed: a model, such as a pipeline's transformer"
        ):
            verb(pipeline)


def test_a_model_is_not_a_pipeline(pipeline):
    for verb in (
        lambda m: compare(m, ["FP8"], PROMPTS),
        lambda m: generate(m, PROMPTS),
        lambda m: denoising_loop(m, PROMPTS),
    ):
        with pytest.raises(TypeError, match="pipeline is a SanaTransformer2DModel. Allowed: the pipeline"):
            verb(pipeline.transformer)
    with pytest.raises(TypeError, match="pipeline is a SanaTransformer2DModel"), record_calls(pipeline.transformer):
        pytest.fail("it recorded")


@pytest.fixture(scope="module")
def small():
    return stable_diffusion(DDIMScheduler(), smallest_unet())


@pytest.fixture(scope="module")
def plain(small) -> Comparison:
    return small_compare(small)


def small_compare(small, variants=("INT8", "FP8", "INT8 channel"), prompts=("cat", "dog"), **options) -> Comparison:
    return compare(small, list(variants), prompts, steps=2, progress=False, **options)


def images_of(monkeypatch, change) -> None:
    """Let ``change(variant's index, images)`` replace the images that compare generates."""
    runs = []

    def generated(self):
        runs.append(1)
        return change(len(runs) - 1, generate_images(self))

    generate_images = runner.Runner._generate
    monkeypatch.setattr(runner.Runner, "_generate", generated)


def test_a_variant_that_fails_is_named_and_the_others_are_kept(small, plain, monkeypatch):
    def broken(index, images):
        if index == 1:
            raise FloatingPointError("generated NaN for 'cat'")
        return images

    with (
        monkeypatch.context() as patch,
        pytest.warns(UserWarning, match="variant 'INT8' failed .*: FloatingPointError: gen"),
    ):
        images_of(patch, broken)
        kept = small_compare(small)
    assert list(kept.frame.index) == ["dense", "FP8", "INT8 channel"]
    pd.testing.assert_series_equal(kept.frame["PSNR dB"], plain.frame["PSNR dB"].drop("INT8"))


@pytest.mark.parametrize("wrong", [RuntimeError("out of memory"), None])
def test_a_measure_that_fails_costs_its_variant_alone(small, wrong):
    calls = []

    def measure(image, reference, prompt):
        calls.append(prompt)
        if len(calls) == 5:
            if wrong:
                raise wrong
            return None
        return 1

    with pytest.warns(
        UserWarning, match=f"variant 'FP8' failed .*: {'RuntimeError: out of' if wrong else 'TypeError: '}"
    ):
        frame = small_compare(small, measures={"mine": measure}).frame
    assert frame["mine"].to_dict() == {"dense": 1, "INT8": 1, "INT8 channel": 1}


def test_an_image_with_nan_is_named(small, monkeypatch):
    decode = small.vae.decode

    def nan_in_second(latents, *args, **kwargs):
        image = decode(latents, *args, **kwargs)[0]
        image[1:] = float("nan")
        return (image,)

    monkeypatch.setattr(small.vae, "decode", nan_in_second)
    with pytest.raises(FloatingPointError, match="generated NaN for 'dog'"):
        generate(small, ["cat", "dog"], steps=1)


def test_identical_images_are_counted_and_not_averaged(small, plain, monkeypatch):
    assert "identical" not in plain.frame
    dense = plain.images["dense"]
    images_of(monkeypatch, lambda index, images: [images, [dense[0], images[1]], dense, images][index])
    comparison = small_compare(small)
    frame = comparison.frame
    assert frame["identical"].to_dict() == {"dense": 0, "INT8": 1, "FP8": 2, "INT8 channel": 0}
    psnr = {v.name: v.psnr for v in plain.variants}
    assert frame["PSNR dB"]["INT8"] == psnr["INT8"][1]
    assert frame["PSNR dB"]["FP8"] == float("inf")
    assert frame["PSNR dB"]["INT8 channel"] == pytest.approx(np.median(psnr["INT8 channel"]))
    assert frame.loc["INT8 channel", ["PSNR dB low", "PSNR dB high"]].tolist() == sorted(psnr["INT8 channel"])
    assert frame.loc[["INT8", "FP8"], ["PSNR dB low", "PSNR dB high"]].isna().all(axis=None)  # one value, and none
    assert {"PSNR dB low", "SSIM high", "identical"} <= set(comparison.table().frame)


def test_the_caption_names_all_devices_and_dtypes():
    linear = torch.nn.Linear
    various = torch.nn.Sequential(linear(2, 2), linear(8, 8).bfloat16(), linear(4, 4, device="meta"))
    assert machine(various).startswith("CPU and META, bfloat16 and float32, torch ")
    assert machine(various[0]).startswith("CPU, float32, torch ")


@pytest.mark.cuda
def test_the_peak_does_not_depend_on_the_number_of_prompts():
    peaks = []
    for count in (1, 64):
        pipeline = stable_diffusion(DDIMScheduler()).to("cuda")
        run = runner.Runner(pipeline, "unet", [f"cat {i}" for i in range(count)], list(range(count)), 2, 4, {}, int)
        with run.caching():
            peaks.append(run.run("dense", None).peak)
    assert peaks[0] == peaks[1] > sum(weight_bytes(m).total for m in (pipeline.unet, pipeline.vae))


def test_black_images_are_named_and_not_perfect(small, monkeypatch):
    images_of(monkeypatch, lambda index, images: [images[0], 0 * images[1]])
    with pytest.warns(UserWarning) as caught:
        comparison = small_compare(small, ["INT8"])
    named = [text for w in caught if (text := str(w.message)).startswith("variant")]
    assert [text.split(" is of one colour")[0] for text in named] == [
        f"variant {name!r}: the image of 'dog'" for name in ("dense", "INT8")
    ]
    variant = comparison.variants[1]
    assert np.isnan(variant.psnr[1]) and np.isnan(variant.ssim[1])
    assert comparison.frame["PSNR dB"]["INT8"] == variant.psnr[0]
    assert comparison.frame["SSIM"]["INT8"] == variant.ssim[0] < 1


def test_an_interrupted_copy_leaves_the_model_on_its_device(small, monkeypatch):
    monkeypatch.setattr(runner.copy, "deepcopy", lambda model: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.warns(UserWarning, match="interrupted: 1 of 2"):
        assert list(small_compare(small, ["INT8"]).frame.index) == ["dense"]
    assert {p.device.type for p in small.unet.parameters()} == {"cpu"}


@pytest.mark.parametrize("component", ["vae", "unet"])
def test_compare_inside_a_recording(small, component):
    with record_calls(small, None, component=component) as calls:
        inside = small_compare(small, ["INT8"], component=component)
    assert calls
    alone = small_compare(small, ["INT8"], component=component)
    assert inside.frame["PSNR dB"]["INT8"] == alone.frame["PSNR dB"]["INT8"] < 80
