import pytest
import torch

from modelopt_nb import ALGORITHMS, SCHEMES, algorithm_table, check_scheme
from modelopt_nb.lab.search import algorithms


@pytest.mark.parametrize("scheme", [*SCHEMES, "FP8_INT8", "INT8_INT8"])
def test_what_runs(scheme):
    assert check_scheme(scheme) == "runs"


def test_reasons_come_from_trying(monkeypatch):
    assert check_scheme("FP9").startswith("not supported (ValueError: quant_type='FP9'")

    def broken(*_):
        raise RuntimeError("this kernel needs CUDA\nand more")

    monkeypatch.setattr(algorithms, "quantize", broken)
    assert check_scheme("FP8") == "needs CUDA (RuntimeError: this kernel needs CUDA)"


def test_a_scheme_with_wrong_outputs_does_not_run(monkeypatch):
    monkeypatch.setattr(algorithms, "quantize", lambda model, config, loop: model[0].weight.data.zero_())
    assert check_scheme("FP8").startswith("not supported (ArithmeticError")


def test_the_table_has_a_row_per_scheme_and_activation_scale():
    table = algorithm_table(["INT8 channel"], ["INT8"])
    assert list(table.columns) == list(ALGORITHMS)
    assert table.index.names == ["scheme", "activations", "scale"]
    assert table.loc[("INT8 channel", "", ""), "max"] == "runs"
    assert (table.loc[("INT8 channel", "INT8", "static tensor"), ["max", "smoothquant"]] == "runs").all()
    assert "changes nothing" in table.loc[("INT8 channel", "INT8", "dynamic tensor"), "smoothquant"]


def test_checking_is_silent_and_leaves_the_random_state(capfd):
    state = torch.random.get_rng_state()
    for algorithm in ALGORITHMS:
        check_scheme("INT4", algorithm=algorithm)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")
