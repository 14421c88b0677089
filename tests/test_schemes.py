import sys

import pandas as pd
import pytest

from modelopt_nb import schemes


def run(monkeypatch, folder, *arguments) -> bytes:
    monkeypatch.setattr(sys, "argv", ["schemes", *arguments, "--output", str(folder)])
    schemes.main()
    assert (folder / "table.png").stat().st_size > 10_000
    return (folder / "table.csv").read_bytes()


def test_two_runs_agree_exactly(tmp_path, monkeypatch, capsys):
    arguments = ("INT4", "FP8 channel", "--prompts", "3", "--steps", "2")
    first, again = (run(monkeypatch, tmp_path / name, *arguments) for name in ("first", "again"))
    assert first == again
    table = pd.read_csv(tmp_path / "first" / "table.csv", index_col=0)
    assert list(table.index) == ["dense", "INT4", "FP8 channel"]
    assert table["subject_ok"].between(table["subject_ok low"], table["subject_ok high"]).all()
    assert "3 prompts, 2 steps" in capsys.readouterr().out


def test_one_row_alone_is_the_row_of_the_table(tmp_path, monkeypatch):
    run(monkeypatch, tmp_path / "both", "INT4", "INT4 pointwise", "--prompts", "2", "--steps", "1")
    run(monkeypatch, tmp_path / "alone", "INT4 pointwise", "--prompts", "2", "--steps", "1")
    both, alone = (pd.read_csv(tmp_path / name / "table.csv", index_col=0) for name in ("both", "alone"))
    pd.testing.assert_frame_equal(both.loc[["dense", "INT4 pointwise"]], alone, check_dtype=False)
    assert both["weights MiB"]["INT4 pointwise"] < 0.4 * both["weights MiB"]["INT4"]


def test_a_scheme_that_is_named_twice_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="INT4 twice"):
        run(monkeypatch, tmp_path, "INT4", "INT4")


def test_an_unknown_scheme_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="FP4"):
        run(monkeypatch, tmp_path, "FP4")
