import subprocess
import sys

import nbformat
import pandas as pd
import pytest

from modelopt_nb import QUANT_TYPES, SCHEMES, doctor, repair_states
from modelopt_nb.lab.cli import NOTEBOOK, demo, main


def schemes(folder, *arguments: str) -> pd.DataFrame:
    main(["schemes", *arguments, "--output", str(folder)])
    assert (folder / "table.png").stat().st_size > 10_000
    return pd.read_csv(folder / "table.csv", index_col=0)


def test_one_scheme_alone_has_the_numbers_of_the_table(tmp_path, capsys):
    both = schemes(tmp_path / "both", "INT8", "INT4", "--prompts", "2", "--steps", "1")
    alone = schemes(tmp_path / "alone", "INT4", "--prompts", "2", "--steps", "1")
    assert list(both.index) == ["dense", "INT8", "INT4"]
    pd.testing.assert_frame_equal(both.loc[["dense", "INT4"]], alone, check_dtype=False, check_exact=True)
    assert both["weights MiB"]["INT4"] < 0.6 * both["weights MiB"]["INT8"]
    assert both["subject_ok"].between(both["subject_ok low"], both["subject_ok high"]).all()
    assert "s per step" not in both.columns  # differs from run to run
    assert "2 prompts, 1 steps" in capsys.readouterr().out


@pytest.mark.parametrize(("names", "message"), [(["INT4", "INT4"], "INT4 twice"), (["FP4"], "quant_type='FP4'")])
def test_wrong_schemes_are_refused(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        schemes(tmp_path, *names)
    assert not list(tmp_path.iterdir())


def test_doctor_prints_everything(capsys):
    doctor()
    printed = capsys.readouterr().out
    for word in ("torch", "nvidia-modelopt", "device", *repair_states(), *SCHEMES, *QUANT_TYPES):
        assert word in printed
    assert printed.count("runs") >= 12


def test_demo_writes_the_page_and_the_grid_and_prints_the_table(tmp_path, capsys):
    """On a notebook with the same tags; the notebook tests execute the real one."""
    tags = [tag for cell in nbformat.read(NOTEBOOK, as_version=4).cells for tag in cell.metadata.get("tags", [])]
    assert (tags.count("grid"), tags.count("table")) == (1, 1)
    plot = "%matplotlib inline\nfrom matplotlib.figure import Figure\nfigure = Figure()\nfigure.subplots()\nfigure"
    cells = {"grid": plot, "table": "import pandas\npandas.DataFrame({'MiB': [25]})"}
    document = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source, metadata={"tags": [tag]}) for tag, source in cells.items()]
    )
    nbformat.write(document, tmp_path / "short.ipynb")
    page = demo(tmp_path / "short.ipynb", tmp_path / "output")
    assert page == tmp_path / "output" / "short.html"
    assert "<table" in page.read_text(encoding="utf-8")
    assert (tmp_path / "output" / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert "   MiB\n0   25" in capsys.readouterr().out


def test_help_is_quick_and_names_the_commands():
    code = (
        "import sys, modelopt_nb.lab.cli as cli\ntry: cli.main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(command in printed for command in ("demo", "schemes", "doctor"))
    run = [sys.executable, "-m", "modelopt_nb", "schemes", "--help"]
    assert "--prompts" in subprocess.run(run, capture_output=True, text=True, check=True).stdout
