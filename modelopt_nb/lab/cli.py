"""Run the demo, measure all schemes, or report what works on this machine: demo, schemes, doctor."""

from __future__ import annotations

import argparse
import base64
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "00_start_here.ipynb"
PACKAGES = ("modelopt-nb", "torch", "diffusers", "nvidia-modelopt", "transformers", "accelerate")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; ``argv`` defaults to ``sys.argv[1:]``."""
    parser = argparse.ArgumentParser(prog="python -m modelopt_nb", description=__doc__)
    add = parser.add_subparsers(required=True, metavar="COMMAND").add_parser

    command = add("demo", help="run the first notebook; print its table, write grid.png and the HTML page")
    command.add_argument("--output", type=Path, default=Path("output"), help="folder to write to (output)")
    command.set_defaults(run=lambda args: demo(NOTEBOOK, args.output))

    command = add("schemes", help="measure schemes on the embedded pipeline; write table.csv, table.png")
    names = "a scheme's name, such as 'INT4 block' (default: all schemes)"
    command.add_argument("schemes", nargs="*", metavar="SCHEME", help=names)
    number = "number of prompts of the measure split, up to 256 (128)"
    command.add_argument("--prompts", type=int, default=128, help=number)
    command.add_argument("--steps", type=int, default=20, help="denoising steps (20)")
    folder = Path("output/schemes")
    command.add_argument("--output", type=Path, default=folder, help=f"folder to write to ({folder})")
    command.set_defaults(run=lambda args: schemes(args.schemes, args.prompts, args.steps, args.output))

    command = add("doctor", help="print versions, device, repairs, and which schemes run here")
    command.set_defaults(run=lambda args: doctor())

    args = parser.parse_args(argv)
    args.run(args)


def demo(notebook: Path, output: Path) -> Path:
    """Execute ``notebook`` and return its HTML page in the folder ``output``, which is created.

    Prints the text of the cell tagged ``table`` and writes the figure of the cell tagged ``grid`` to ``grid.png``.
    """
    import nbformat
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import ExecutePreprocessor
    from tqdm import tqdm

    document = nbformat.read(notebook, as_version=4)
    with tqdm(total=sum(cell.cell_type == "code" for cell in document.cells), desc=notebook.stem, unit="cell") as bar:
        runner = ExecutePreprocessor(timeout=None, on_cell_executed=lambda **_: bar.update())
        runner.preprocess(document, {"metadata": {"path": str(notebook.parent)}})

    output.mkdir(parents=True, exist_ok=True)
    page, grid = output / f"{notebook.stem}.html", output / "grid.png"
    page.write_text(HTMLExporter().from_notebook_node(document)[0], encoding="utf-8")
    grid.write_bytes(base64.b64decode(_output_of(document, "grid")["image/png"]))
    print(f"\n{_output_of(document, 'table')['text/plain']}\n\nimages:   {grid}\nnotebook: {page}")
    return page


def _output_of(document: NotebookNode, tag: str) -> dict[str, str]:
    """Return the last output of the cell with ``tag``, by MIME type."""
    (cell,) = (c for c in document.cells if tag in c.metadata.get("tags", []))
    return cell.outputs[-1].data


def schemes(names: Sequence[str], prompts: int, steps: int, output: Path) -> None:
    """Compare schemes on the embedded pipeline; print the table, write ``table.csv`` and ``table.png`` into ``output``.

    ``names`` and their default are as on the command line; ``prompts`` is a number. Raises ValueError for an unknown or
    repeated scheme, before any image is generated.
    """
    from modelopt_nb import SCHEMES
    from modelopt_nb.lab.compare.results import TIMINGS
    from modelopt_nb.lab.compare.runner import compare
    from modelopt_nb.lab.pipelines.load import load_pipeline
    from modelopt_nb.lab.pipelines.prompts import load_prompts
    from modelopt_nb.lab.plots.quality import plot_schemes

    names = names or list(SCHEMES)
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"schemes names {', '.join(sorted(repeated))} twice. Allowed: each once")
    comparison = compare(load_pipeline(), names, load_prompts("measure", prompts), steps=steps, batch_size=8)
    output.mkdir(parents=True, exist_ok=True)
    table, figure = output / "table.csv", output / "table.png"
    comparison.frame.drop(columns=list(TIMINGS)).to_csv(table, float_format="%.6g")
    plot_schemes(comparison).savefig(figure, dpi=120)
    print(f"{comparison.table()}\n\n{table}, {figure}")


def doctor() -> None:
    """Print versions, device, the state of each repair, and whether each scheme runs on a tiny layer.

    A scheme ``runs``, ``needs CUDA`` or is ``not supported``, with the error. Like :func:`modelopt_nb.quantize`, it
    switches the repairs on, after their states are printed.
    """
    import torch

    from modelopt_nb import QUANT_TYPES, SCHEMES, repair_states
    from modelopt_nb.lab.search.algorithms import check_scheme

    print("versions:", ", ".join(f"{name} {version(name)}" for name in PACKAGES))
    print("device:  ", torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")
    print("\nrepairs")
    for name, state in repair_states().items():
        print(f"  {name:24} {state}")
    combined = [f"{w}_{a}" for w in QUANT_TYPES for a, t in QUANT_TYPES.items() if t.activations]
    for title, names in (("weights", SCHEMES), ("weights_activations", combined)):
        print(f"\nschemes: {title}")
        for name in names:
            print(f"  {name:24} {check_scheme(name)}")
