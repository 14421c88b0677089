"""The comparison of numbers within 10 %: what it lets pass, and what it does not."""

import nbformat
import pytest
from nbval.plugin import IPyNbCell, IPyNbFile

from tests.within_a_tenth import TAG, loosen

TABLE = "          median\nmax        0.0068\nmse       12.5\n"


@pytest.fixture
def cell(request, tmp_path):
    """A cell with the tag, as nbval collects it."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", metadata={"tags": [TAG]})])
    nbformat.write(notebook, tmp_path / "one.ipynb")
    parent = IPyNbFile.from_parent(request.session, path=tmp_path / "one.ipynb")
    parent.skip_compare, parent.sanitize_patterns = ("image/png",), {}
    item = IPyNbCell.from_parent(parent, name="Cell 0", cell_num=0, cell=notebook.cells[0], options={})
    loosen(item)
    return item


@pytest.mark.parametrize(
    ("text", "agrees"),
    [
        (TABLE, True),
        ("         median\nmax       0.0070\nmse       12.9\n", True),  # 3 %, and a narrower table
        (TABLE.replace("12.5", "14.0"), False),
        (TABLE.replace("0.0068", "0.0058"), False),
        (TABLE.replace("mse", "min"), False),
        (TABLE + "awq 1.0\n", False),
        (TABLE.replace("12.5", "nan"), False),
    ],
)
def test_numbers_near_agree_and_words_are_the_same(cell, text, agrees):
    recorded, now = ([nbformat.v4.new_output("stream", text=text)] for text in (TABLE, text))
    assert cell.compare_outputs(now, recorded) is agrees
