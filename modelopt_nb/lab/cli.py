"""Command line: demo, schemes, doctor."""

from __future__ import annotations

import argparse
import base64
import textwrap
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from modelopt_nb import QUANT_TYPES, SCHEMES, make_config, repair_states
from modelopt_nb.lab.compare.runner import compare
from modelopt_nb.lab.pipelines.load import load_pipeline
from modelopt_nb.lab.pipelines.prompts import load_prompts
from modelopt_nb.lab.plots.quality import plot_schemes
from modelopt_nb.lab.search.algorithms import check_scheme

if TYPE_CHECKING:
    pass

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "00_start_here.ipynb"


def run(notebook: Path, output: Path) -> Path:
    """Execute ``notebook``, print the table of its cell tagged ``table`` and write the figure of the one tagged ``grid``.

    Returns the HTML page. ``output`` is a folder; it is made where it is missing.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter
    from tqdm import tqdm

    document = nbformat.read(notebook, as_version=4)
    cells = sum(cell.cell_type == "code" for cell in document.cells)
    with tqdm(total=cells, desc=notebook.stem, unit="cell") as bar:

        def describe(cell: nbformat.NotebookNode, **_: object) -> None:
            bar.set_postfix_str(textwrap.shorten(cell.source, 40), refresh=True)

        client = NotebookClient(
            document,
            timeout=None,
            resources={"metadata": {"path": str(notebook.parent)}},
            on_cell_execute=describe,
            on_cell_executed=lambda cell, **_: bar.update(cell.cell_type == "code"),
        )
        client.execute()

    output.mkdir(parents=True, exist_ok=True)
    page, grid = output / f"{notebook.stem}.html", output / "grid.png"
    page.write_text(HTMLExporter().from_notebook_node(document)[0], encoding="utf-8")
    grid.write_bytes(base64.b64decode(_result(document, "grid")["image/png"]))
    print(f"\n{_result(document, 'table')['text/plain']}\n\npictures: {grid}\nnotebook: {page}")
    return page


def _result(document: object, tag: str) -> dict[str, str]:
    """What the last output of the cell with ``tag`` shows, by MIME type."""
    (cell,) = (c for c in document.cells if tag in c.metadata.get("tags", []))
    return cell.outputs[-1].data


POINTWISE = " pointwise"  # after a scheme's name


def main() -> None:

    fewer = [f"{name}{POINTWISE}" for name, t in QUANT_TYPES.items() if t.needs_block]
    parser = argparse.ArgumentParser(prog="python -m modelopt_nb.schemes", description=__doc__)
    parser.add_argument(
        "schemes",
        nargs="*",
        default=[*SCHEMES, *fewer],
        help=f"of: {', '.join(SCHEMES)}; with '{POINTWISE}' its 1x1 convolutions are packed as linear layers "
        f"(all of them, and {', '.join(fewer)})",
    )
    parser.add_argument("--prompts", type=int, default=128, help="how many of the measure split, up to 256 (128)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (20)")
    parser.add_argument("--output", type=Path, default=Path("output/schemes"), help="folder of table.csv and table.png")
    args = parser.parse_args()
    if twice := {name for name in args.schemes if args.schemes.count(name) > 1}:
        raise ValueError(f"schemes names {', '.join(sorted(twice))} twice. Allowed: each once")

    prompts = load_prompts("measure", args.prompts)
    configs = {
        name: make_config(name.removesuffix(POINTWISE), pointwise_as_linear=name.endswith(POINTWISE))
        for name in args.schemes
    }
    comparison = compare(load_pipeline(), configs, prompts, steps=args.steps, batch_size=8)
    args.output.mkdir(parents=True, exist_ok=True)
    comparison.frame.drop(columns=list(comparison.COSTS)).to_csv(args.output / "table.csv", float_format="%.6g")
    plot_schemes(comparison).savefig(args.output / "table.png", dpi=120)
    print(comparison.table())
    print(f"\n{args.output / 'table.csv'}, {args.output / 'table.png'}")


PACKAGES = ("modelopt-nb", "torch", "diffusers", "nvidia-modelopt", "transformers", "accelerate")


def doctor() -> None:
    """Print what works here: versions, device, each repair with its state, and every scheme, tried on a tiny layer.

    A scheme ``runs``, ``needs CUDA`` or is ``not supported``, with the error that trying it gave. Trying switches the
    repairs on, as :func:`modelopt_nb.quantize` does.
    """
    import torch

    print("versions:", ", ".join(f"{name} {version(name)}" for name in PACKAGES))
    print("device:  ", torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")
    print("\nrepairs")
    for name, state in repair_states().items():
        print(f"  {name:24} {state}")
    weights = list(SCHEMES)
    activations = [f"{w}_{a}" for w in QUANT_TYPES for a, t in QUANT_TYPES.items() if t.activations]
    for title, names in (("weights", weights), ("weights_activations", activations)):
        print(f"\nschemes: {title}")
        for name in names:
            print(f"  {name:24} {check_scheme(name)}")
