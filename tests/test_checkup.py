import pytest

from modelopt_nb import QUANT_TYPES, SCHEMES, checkup, doctor, try_scheme


@pytest.mark.parametrize("scheme", [*SCHEMES, "FP8_INT8", "INT8_INT8"])
def test_what_runs(scheme):
    assert try_scheme(scheme) == "runs"


def test_reasons_come_from_trying(monkeypatch):
    assert try_scheme("FP9").startswith("not supported (ValueError: quant_type='FP9'")

    def broken(*_):
        raise RuntimeError("this kernel needs CUDA\nand more")

    monkeypatch.setattr(checkup, "quantize", broken)
    assert try_scheme("FP8") == "needs CUDA (RuntimeError: this kernel needs CUDA)"


def test_a_scheme_that_ruins_the_outputs_does_not_run(monkeypatch):
    def ruin(model, config, loop):
        model[0].weight.data.zero_()

    monkeypatch.setattr(checkup, "quantize", ruin)
    assert try_scheme("FP8").startswith("not supported (ArithmeticError")


def test_doctor_tells_everything(capsys):
    doctor()
    said = capsys.readouterr().out
    for word in ("torch", "nvidia-modelopt", "device", *checkup.repairs(), *SCHEMES, *QUANT_TYPES):
        assert word in said
    assert said.count("runs") >= 12
