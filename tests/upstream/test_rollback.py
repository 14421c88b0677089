import copy

import modelopt.torch.quantization as mtq
import pytest
import torch

from modelopt_nb import enable, make_config, quantize
from modelopt_nb.packing.packer import Packer


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


@pytest.mark.parametrize(
    ("scheme", "algorithm"),
    [("INT8_INT8", "max"), ("INT8_INT8", "smoothquant"), ("INT4 block", "awq_lite"), ("INT4 block", "svdquant")],
)
def test_an_interrupt_at_any_call_of_a_hook_leaves_the_model_unchanged(scheme, algorithm):
    model, x, calls = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)), torch.randn(4, 64), [0]
    config = make_config(scheme, algorithm=algorithm)

    def hook(module, args, output):
        calls[0] -= 1
        if not calls[0]:
            raise KeyboardInterrupt

    def loop(model):
        handles = [part.register_forward_hook(hook) for part in model.modules() if not list(part.children())]
        handles += [part.register_forward_hook(hook) for part in model]
        try:
            model(x)
        finally:
            for handle in handles:
                handle.remove()

    def state():
        tensors = {name: value.tolist() for name, value in model.state_dict().items()}
        modules = [(type(m), vars(m).keys(), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
        return tensors, modules, [id(p) for p in model.parameters()]

    before = state()
    quantize(copy.deepcopy(model), config, loop)
    most = -calls[0]
    assert most >= 4
    for call in range(1, most + 1):
        calls[0] = call
        with pytest.raises(KeyboardInterrupt):
            quantize(model, config, loop)
        assert state() == before, call
    calls[0] = 0
    quantize(model, config, loop)


def test_full_memory_while_loading_names_the_weight(transformer, tmp_path, monkeypatch):
    transformer.save_pretrained(tmp_path)

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    enable()
    monkeypatch.setattr(Packer, "pack", full)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        type(transformer).from_pretrained(tmp_path, quantization_config=make_config("FP8"))
    (note,) = caught.value.__notes__
    assert note.startswith("memory is full in ") and note.endswith(".weight of SanaTransformer2DModel")
