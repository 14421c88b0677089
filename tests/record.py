"""Strip noise from recorded notebooks: widget state, execution metadata, ids of widgets that no longer exist.

``python tests/record.py notebooks/*.ipynb`` rewrites them; with ``--check`` it only names what it would strip, and
fails if there is any. `make record` runs it after nbconvert, pre-commit with ``--check``. Needs nbformat alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nbformat

WIDGET = "application/vnd.jupyter.widget-view+json"


def strip(notebook: nbformat.NotebookNode) -> list[str]:
    """Remove noise from ``notebook`` in place; returns what was removed."""
    removed = []
    if notebook.metadata.pop("widgets", None) is not None:
        removed.append("metadata.widgets")
    for number, cell in enumerate(notebook.cells):
        if cell.metadata.pop("execution", None) is not None:
            removed.append(f"cell {number}: metadata.execution")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if len(data) > 1 and data.pop(WIDGET, None) is not None:  # its image or text stays
                removed.append(f"cell {number}: {WIDGET}")
    return removed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if there is noise")
    args = parser.parse_args()
    noisy = False
    for path in args.notebooks:
        notebook = nbformat.read(path, as_version=4)
        if removed := strip(notebook):
            noisy = True
            if args.check:
                print(f"{path}: {'; '.join(removed)}")
            else:
                nbformat.write(notebook, path)
    return int(args.check and noisy)


if __name__ == "__main__":
    sys.exit(main())
