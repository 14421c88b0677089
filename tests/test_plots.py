import numpy as np
import pandas as pd
import pytest

from modelopt_nb import (
    layer_frame,
    make_config,
    plot_difference,
    plot_frontier,
    plot_grid,
    plot_layers,
    plot_quality,
    plot_ranges,
    plot_sensitivity,
)
from modelopt_nb.comparison import Comparison, Variant
from modelopt_nb.memory import WeightBytes
from modelopt_nb.quantization import Report

SIZE = WeightBytes({"float32": 4 * 2**20}, 2**20)


@pytest.fixture
def comparison() -> Comparison:
    pictures = [np.full((8, 8, 3), level, np.uint8) for level in (50, 200)]
    brighter = [picture + 10 for picture in pictures]
    report = Report("INT4", (), SIZE, SIZE, "W4")
    variants = [
        Variant("dense", SIZE, 1, 0.1, pictures, [], []),
        Variant("INT4", WeightBytes({"uint8": 2**20}, 2**20), 1, 0.1, brighter, [28.0, 30.0], [0.9, 0.9], report),
    ]
    return Comparison("transformer", ["a fox", "an owl"], [0, 1], 1, "CPU", variants)


def drawn(ax) -> np.ndarray:
    return np.asarray(ax.get_images()[0].get_array())


def test_grid_has_a_row_a_prompt_and_a_column_a_variant(comparison):
    axes = plot_grid(comparison).axes
    assert len(axes) == 4
    assert axes[0].get_title() == "dense\n4.0 MiB, the reference"
    assert axes[1].get_title() == "INT4\n1.0 MiB, 29.0 dB"
    assert [ax.get_ylabel() for ax in axes] == ["a fox", "", "an owl", ""]
    assert [ax.get_xlabel() for ax in axes] == ["", "28.0 dB", "", "30.0 dB"]
    assert [drawn(ax)[0, 0, 0] for ax in axes] == [50, 60, 200, 210]
    assert len(comparison.grid(rows=1).axes) == 2


def test_difference_is_amplified_around_grey(comparison):
    axes = plot_difference(comparison, row=1, gain=4).axes
    assert [drawn(ax)[0, 0, 0] for ax in axes] == [200, 210, 128, 168]


def test_quality_has_a_point_a_variant(comparison):
    (ax,) = plot_quality(comparison).axes
    assert "MiB" in ax.get_xlabel()
    assert "dB" in ax.get_ylabel()
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"dense", "INT4"}


def test_videos_show_their_middle_frame(comparison):
    import dataclasses

    video = np.stack([np.full((8, 8, 3), level, np.uint8) for level in (0, 100, 250)])
    comparison.variants = [dataclasses.replace(v, images=[video, video]) for v in comparison.variants]
    assert drawn(plot_grid(comparison).axes[0])[0, 0, 0] == 100


def test_layer_map_says_the_bytes_of_each_kind_and_block(transformer):
    maps = {"NF4": make_config("NF4"), "spared": make_config("NF4", modules_to_not_convert="attn1")}
    frames = {name: layer_frame(transformer, config) for name, config in maps.items()}
    axes = plot_layers(frames).axes
    for ax, frame in zip(axes, frames.values(), strict=True):
        cells = frame.groupby(["kind", frame["block"].notna()])["packed bytes"].sum() / 2**20
        assert sorted(text.get_text() for text in ax.texts) == sorted(f"{mib:.2f}" for mib in cells)
        kinds = [label.get_text() for label in axes[0].get_yticklabels()]
        x, y = 1, kinds.index("attention q")
        assert (drawn(ax)[y, x] == 1) == frame.loc["transformer_blocks.0.attn1.to_q", "packed"]
        assert f"{frame['packed bytes'].sum() / 2**20:.1f} MiB" in ax.get_title()


def test_sensitivity_has_a_bar_a_group_the_worst_on_top():
    frame = pd.DataFrame({"error alone": [0.3, 0.1], "error per MiB saved": [2.0, 1.0]}, index=["ff", "attention"])
    left, right = plot_sensitivity(frame).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["attention", "ff"]
    assert [bar.get_width() for bar in left.patches] == [0.1, 0.3]
    assert [bar.get_width() for bar in right.patches] == [1.0, 2.0]


def test_frontier_has_a_line_a_family(comparison):
    (ax,) = plot_frontier(comparison, {"one type": ["INT4"]}).axes
    assert ax.lines[0].get_xydata().tolist() == [[1.0, 29.0]]
    assert [text.get_text() for text in ax.texts] == ["INT4"]


def test_ranges_are_shares_of_each_layers_largest():
    ranges = pd.DataFrame({0: [2.0, 1.0], 5: [4.0, 0.5]}, index=["a", "b"])
    left, right, _ = plot_ranges(ranges).axes
    assert drawn(left).tolist() == [[0.5, 1.0], [1.0, 0.5]]
    assert [bar.get_width() for bar in right.patches] == [4.0, 1.0]
