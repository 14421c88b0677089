"""The form of the committed notebooks; what they compute is checked by nbval."""

from pathlib import Path

import nbformat
import pytest

from tests.record import strip
from tests.within_a_tenth import TAG

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
LONGEST = 15  # lines; a longer cell means that the package lacks a verb

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_no_cell_is_long(path):
    lengths = {cell.id: len(cell.source.splitlines()) for cell in code_cells(path)}
    assert not {name: lines for name, lines in lengths.items() if lines > LONGEST}


def test_outputs_are_of_one_run_from_top_to_bottom(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)


def test_outputs_hold_no_errors_and_no_warnings(path):
    outputs = [output for cell in code_cells(path) for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


def test_no_output_is_noise(path):
    assert strip(nbformat.read(path, as_version=4)) == []


def test_numbers_are_compared_within_a_tenth_only_after_activations_are_quantized(path):
    for number, cell in enumerate(cells := code_cells(path)):
        if TAG in cell.metadata.get("tags", []):
            assert any("weight_only=False" in before.source for before in cells[: number + 1]), cell.id


def test_every_cell_is_checked_by_nbval(path):
    """Only times may differ between runs."""
    for cell in code_cells(path):
        tags = cell.metadata.get("tags", [])
        assert "NBVAL_" not in cell.source
        assert not {"nbval-skip", "skip-execution", "raises-exception"} & set(tags)
        assert "nbval-ignore-output" not in tags or "timing" in tags, cell.id


def test_parameters_are_in_one_cell_near_the_top(path):
    cells = code_cells(path)
    (index,) = (i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", []))
    assert index <= 2


def test_the_versions_come_first(path):
    assert any("version(name)" in cell.source for cell in code_cells(path)[:2])
