import modelopt.torch.quantization as mtq
import pytest
import torch

from modelopt_nb import make_config, quantize


@pytest.mark.parametrize(
    ("scheme", "algorithm"),
    [("INT8_INT8", "max"), ("INT8_INT8", "smoothquant"), ("INT4 block", "awq_lite"), ("INT4 block", "svdquant")],
)
def test_an_error_after_calibration_leaves_the_model_unchanged(transformer, inputs, scheme, algorithm, monkeypatch):
    before = {name: value.clone() for name, value in transformer.state_dict().items()}
    classes = [type(module) for module in transformer.modules()]
    hooks = [len(module._forward_pre_hooks) for module in transformer.modules()]
    monkeypatch.setattr(mtq, "compress", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        quantize(transformer, make_config(scheme, algorithm=algorithm), lambda model: model(**inputs))
    state = transformer.state_dict()
    assert state.keys() == before.keys()
    assert [name for name, value in before.items() if not torch.equal(state[name], value)] == []
    assert [type(module) for module in transformer.modules()] == classes
    assert [len(module._forward_pre_hooks) for module in transformer.modules()] == hooks
