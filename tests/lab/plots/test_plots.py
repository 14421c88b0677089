import dataclasses
import os

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from modelopt_nb import (
    Comparison,
    Report,
    Variant,
    WeightBytes,
    layer_frame,
    make_config,
    plot_difference,
    plot_errors,
    plot_format,
    plot_frontier,
    plot_grid,
    plot_layers,
    plot_pictures,
    plot_quality,
    plot_ranges,
    plot_schemes,
    plot_sensitivity,
)
from modelopt_nb.lab.plots.style import FALLBACK, STYLE

SIZE = WeightBytes({"float32": 4 * 2**20}, 2**20)


@pytest.fixture
def comparison() -> Comparison:
    images = [np.full((8, 8, 3), level, np.uint8) for level in (50, 200)]
    brighter = [image + 10 for image in images]
    report = Report("INT4", (), SIZE, SIZE, "W4")
    variants = [
        Variant("dense", SIZE, 1, 0.1, images, [], []),
        Variant("INT4", WeightBytes({"uint8": 2**20}, 2**20), 1, 0.1, brighter, [28.0, 30.0], [0.9, 0.9], report),
    ]
    return Comparison("transformer", ["a fox", "an owl"], [0, 1], 1, "CPU", variants)


def with_type(comparison: Comparison, quant_type: str) -> Comparison:
    report = Report(quant_type, (), SIZE, SIZE, "W4")
    dense, other = comparison.variants
    return dataclasses.replace(comparison, variants=[dense, dataclasses.replace(other, report=report)])


def shown(ax) -> np.ndarray:
    return np.asarray(ax.get_images()[0].get_array())


def test_grid_has_a_row_per_prompt_and_a_column_per_variant(comparison):
    axes = plot_grid(comparison).axes
    assert len(axes) == 4
    assert axes[0].get_title() == "dense\n4.0 MiB, the reference"
    assert axes[1].get_title() == "INT4\n1.0 MiB, 29.0 dB"
    assert [ax.get_ylabel() for ax in axes] == ["a fox", "", "an owl", ""]
    assert [ax.get_xlabel() for ax in axes] == ["", "28.0 dB", "", "30.0 dB"]
    assert [shown(ax)[0, 0, 0] for ax in axes] == [50, 60, 200, 210]
    assert len(plot_grid(comparison, rows=1).axes) == 2


def test_difference_is_amplified_around_grey(comparison):
    axes = plot_difference(comparison, row=1, gain=4).axes
    assert [shown(ax)[0, 0, 0] for ax in axes] == [200, 210, 128, 168]


def test_pictures_are_titled_by_their_names(comparison):
    axes = plot_pictures({"one": comparison.variants[0].images[0], "two": comparison.variants[1].images[0]}).axes
    assert [(ax.get_title(), shown(ax)[0, 0, 0]) for ax in axes] == [("one", 50), ("two", 60)]


def test_videos_show_a_strip_of_frames(comparison):
    video = np.stack([np.full((8, 8, 3), level, np.uint8) for level in (0, 100, 250)])
    variants = [dataclasses.replace(v, images=[video, video]) for v in comparison.variants]
    strip = shown(plot_grid(dataclasses.replace(comparison, variants=variants)).axes[0])
    assert strip[0, ::8, 0].tolist() == [0, 100, 250]


def test_quality_has_a_point_per_variant(comparison):
    (ax,) = plot_quality(comparison).axes
    assert "MiB" in ax.get_xlabel()
    assert "dB" in ax.get_ylabel()
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"dense", "INT4"}


@pytest.mark.parametrize(
    ("quant_type", "expected"), [("INT4", STYLE["INT4"]), ("NF4_INT8", STYLE["NF4"]), ("MXFP8", FALLBACK[0])]
)
def test_a_type_has_one_colour_in_every_plot(comparison, quant_type, expected):
    """A type without a colour of its own gets one of the fallback cycle."""
    points = plot_quality(with_type(comparison, quant_type)).axes[0].containers[0].lines[0]
    assert (points.get_color(), points.get_marker()) == expected
    weight = np.linspace(-1, 1, 64).reshape(4, 16)
    lines = plot_format(quant_type, np.array([-1, 0, 1]), weight, block=16).axes[0].collections[0]
    assert "#{:02x}{:02x}{:02x}".format(*(round(255 * c) for c in lines.get_color()[0][:3])) == expected[0]
    first, second = plot_errors(pd.DataFrame({"b": [0.2, 0.1], "a": [0.3, 0.4]}), quant_type).axes[0].lines
    assert first.get_color() == expected[0]
    assert list(second.get_ydata()) == [0.4, 0.3]  # in the order of the first column


def test_format_scales_each_block_by_its_amax():
    weight = np.array([[1.0, -2.0], [4.0, 8.0]])
    ax = plot_format("FP8", np.array([0.5]), weight, block=2).axes[0]
    bins = [bar.get_x() for bar in ax.patches if bar.get_height()]
    assert bins == pytest.approx([-1.0, 0.497, 0.99], abs=0.01)  # -2 is -1; 1 and 4 are 0.5; 8 is 1
    assert ax.patches[150].get_height() == 2


def test_schemes_show_the_classifier_with_intervals(comparison):
    with pytest.raises(ValueError, match="no column subject_ok"):
        plot_schemes(comparison)
    frame = comparison.frame.assign(subject_ok=[100.0, 50.0], background_ok=[100.0, 75.0])
    for column in ("subject_ok", "background_ok"):
        frame[f"{column} low"], frame[f"{column} high"] = frame[column] - 20, frame[column] + 10

    class Classified(Comparison):
        @property
        def frame(self) -> pd.DataFrame:
            return frame

    figure = plot_schemes(Classified(**{f.name: getattr(comparison, f.name) for f in dataclasses.fields(comparison)}))
    subject, background, psnr = figure.axes
    assert [label.get_text() for label in subject.get_yticklabels()] == [
        "INT4, 8.0 bits per weight", "dense, 32.0 bits per weight",
    ]  # fmt: skip
    assert list(subject.lines[0].get_xdata()) == [30.0, 60.0]
    assert list(background.lines[1].get_xdata()) == [75.0]
    assert [list(line.get_xdata()) for line in psnr.lines[:2]] == [[28.0, 30.0], [29.0]]
    assert "classifier" in subject.get_title()
    assert "2 prompts, 1 steps" in figure.get_supxlabel()


def test_frontier_has_a_line_per_family(comparison):
    (ax,) = plot_frontier(comparison, {"one type": ["INT4"]}).axes
    assert ax.lines[0].get_xydata().tolist() == [[1.0, 29.0]]
    assert [text.get_text() for text in ax.texts] == ["INT4"]
    assert len(plot_frontier(comparison, {f"family {i}": ["INT4"] for i in range(12)}).axes[0].lines) == 12


def test_layer_map_shows_the_bytes_of_each_kind_and_block(transformer):
    maps = {"NF4": make_config("NF4"), "excluded": make_config("NF4", modules_to_not_convert="attn1")}
    frames = {name: layer_frame(transformer, config) for name, config in maps.items()}
    axes = plot_layers(frames).axes
    for ax, frame in zip(axes, frames.values(), strict=True):
        cells = frame.groupby(["kind", frame["block"].notna()])["packed bytes"].sum() / 2**20
        assert sorted(text.get_text() for text in ax.texts) == sorted(f"{mib:.2f}" for mib in cells)
        kinds = [label.get_text() for label in axes[0].get_yticklabels()]
        x, y = 1, kinds.index("attention q")
        assert (shown(ax)[y, x] == 1) == frame.loc["transformer_blocks.0.attn1.to_q", "packed"]
        assert f"{frame['packed bytes'].sum() / 2**20:.1f} MiB" in ax.get_title()


def test_sensitivity_has_a_bar_per_group_the_worst_on_top():
    frame = pd.DataFrame({"error alone": [0.3, 0.1], "error per MiB saved": [2.0, 1.0]}, index=["ff", "attention"])
    left, right = plot_sensitivity(frame).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["attention", "ff"]
    assert [bar.get_width() for bar in left.patches] == [0.1, 0.3]
    assert [bar.get_width() for bar in right.patches] == [1.0, 2.0]


def test_ranges_are_shares_of_each_layers_amax():
    ranges = pd.DataFrame({0: [2.0, 1.0], 5: [4.0, 0.5]}, index=["a", "b"])
    left, right, _ = plot_ranges(ranges).axes
    assert shown(left).tolist() == [[0.5, 1.0], [1.0, 0.5]]
    assert [bar.get_width() for bar in right.patches] == [4.0, 1.0]


PRICES = ["a $5 and $9 tag", r"$\frac"]


def as_shown(figure) -> list[str]:
    """The texts of a figure that hold a dollar sign and are not parsed as formulas."""
    figure.savefig(os.devnull, format="png")
    visible = [text for text in figure.findobj(Text) if text.get_visible()]
    texts = [text for text in visible if any(price in text.get_text().replace("\n", " ") for price in PRICES)]
    assert not any(text.get_parse_math() for text in texts)
    return [text.get_text().replace("\n", " ") for text in texts]


def test_a_dollar_sign_is_shown(comparison):
    dense, other = comparison.variants
    priced = dataclasses.replace(
        comparison, prompts=PRICES, variants=[dense, dataclasses.replace(other, name=PRICES[1])]
    )
    assert len(as_shown(plot_grid(priced))) == 3
    assert len(as_shown(plot_difference(priced, row=1))) == 2
    assert as_shown(plot_pictures({PRICES[0]: dense.images[0]})) == [PRICES[0]]
    assert as_shown(plot_quality(priced)) == [PRICES[1]]
    assert sorted(as_shown(plot_frontier(priced, {PRICES[0]: [PRICES[1]]}))) == sorted(PRICES)
    errors = pd.DataFrame({PRICES[0]: [0.2, 0.1]})
    assert as_shown(plot_errors(errors, "INT4")) == [PRICES[0]]
    frame = pd.DataFrame({"error alone": [0.3], "error per MiB saved": [2.0]}, index=PRICES[1:])
    assert PRICES[1] in as_shown(plot_sensitivity(frame))


@pytest.mark.parametrize(("psnr", "middle", "shown_at_all"), [([np.inf, 30.0], 30.0, True), ([np.inf, np.inf], np.inf, False),
                                                     ([np.nan, np.nan], np.nan, False), ([np.nan, 30.0], 30.0, True)])  # fmt: skip
def test_equal_images_do_not_hide_the_others(comparison, psnr, middle, shown_at_all):
    dense, other = comparison.variants
    equal = dataclasses.replace(comparison, variants=[dense, dataclasses.replace(other, psnr=psnr)])
    assert f"{middle:.1f} dB" in plot_grid(equal).axes[1].get_title()
    for figure in (plot_quality(equal), plot_frontier(equal, {"family": ["INT4"]})):
        figure.savefig(os.devnull, format="png")
        (ax,) = figure.axes
        named = any("INT4 (not shown" in text.get_text() for text in ax.get_legend().get_texts())
        assert named != shown_at_all
        assert not shown_at_all or middle in [float(y) for line in ax.lines for y in line.get_ydata()]


def test_sensitivity_says_how_many_groups_it_shows():
    frame = pd.DataFrame({"error alone": range(5), "error per MiB saved": range(5)}, index=list("abcde"))
    assert plot_sensitivity(frame, rows=3).axes[0].get_ylabel() == "first 3 of 5 groups"
    assert plot_sensitivity(frame).axes[0].get_ylabel() == ""


def test_every_column_of_errors_is_shown():
    errors = pd.DataFrame(np.random.default_rng(0).random((3, 12)), columns=[f"scheme {i}" for i in range(12)])
    (ax,) = plot_errors(errors, "INT4").axes
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(errors) and len(ax.lines) == 12
