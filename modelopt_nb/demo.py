"""``make demo``: run the first notebook without a browser and leave its page and its grid of pictures."""

from __future__ import annotations

import base64
import sys
import textwrap
from pathlib import Path

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "00_start_here.ipynb"


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


if __name__ == "__main__":
    run(NOTEBOOK, Path("output"))
    print("JupyterLab:  make lab", file=sys.stdout)
