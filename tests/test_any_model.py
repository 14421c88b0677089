"""Every notebook runs on other models by its parameters alone."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import io
import subprocess
import traceback
from pathlib import Path
from typing import Any

import diffusers
import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest

import modelopt_nb
from tests.lab import small_pipelines

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
ALGORITHM_TABLE = modelopt_nb.algorithm_table
FAMILIES = ("sd3", "flux", "sdxl", "wan")
#: Sizes that are the pipeline's own default and too large for a test.
SIZES = {
    "flux": (diffusers.FluxPipeline, {"height": 32, "width": 32, "max_sequence_length": 16}),
    "wan": (diffusers.WanPipeline, {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 16}),
}

pytestmark = pytest.mark.filterwarnings("ignore")  # of steps and prompts so few that statistics warn


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    """A folder with a small random pipeline."""
    folder = tmp_path_factory.mktemp(request.param)
    getattr(small_pipelines, request.param)().save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        if request.param in SIZES:
            pipeline, sizes = SIZES[request.param]
            parameters = inspect.signature(pipeline.__call__).parameters.values()
            defaults = tuple(sizes.get(p.name, p.default) for p in parameters if p.default is not p.empty)
            patch.setattr(pipeline.__call__.__wrapped__, "__defaults__", defaults)
        yield str(folder)


def fewer(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return a notebook's parameters with two steps and two prompts."""
    lists = ("PROMPTS", "CALIBRATE", "MEASURE", "HELD_OUT", "VARIANTS")
    lists = ("PROMPTS", "CALIBRATE", "MEASURE", "HELD_OUT", "VARIANTS")
    small = {name: value[:2] for name, value in parameters.items() if name in lists}
    return small | {"STEPS": 2}


def run_here(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``python -c`` in this process: a second one takes seconds to import torch."""
    errors = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(errors):
        patch.setattr("sys.argv", ["-c", *command[3:]])
        try:
            exec(compile(command[2], "-c", "exec"), {})
        except Exception:
            traceback.print_exc()
    return subprocess.CompletedProcess(command, int(bool(errors.getvalue())), "", errors.getvalue())


@functools.cache  # it says the same for each model
def algorithm_table(**options: Any) -> pd.DataFrame:
    return ALGORITHM_TABLE(**options)


def show(value: Any) -> None:
    """Ask for the text and the HTML that a notebook would show."""
    repr(value)
    getattr(value, "_repr_html_", lambda: None)()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_on_another_model(model, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", run_here)
    monkeypatch.setattr(modelopt_nb, "algorithm_table", algorithm_table)
    plt.switch_backend("agg")
    names: dict[str, Any] = {}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        tree = ast.parse("\n".join(line for line in cell.source.splitlines() if not line.startswith("%")))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, path.name, "exec"), names)
        if last:
            show(eval(compile(ast.Expression(last.value), path.name, "eval"), names))
        if "parameters" in cell.metadata.get("tags", []):
            names |= {"MODEL": model, **fewer(names)}
    plt.close("all")
