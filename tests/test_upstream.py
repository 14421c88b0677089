import pytest
import torch

from modelopt_nb import make_config, quantize, upstream

BY_NAME = {repair.name: repair for repair in upstream.REPAIRS}


def nf4_reads_back():
    layer = torch.nn.Sequential(torch.nn.Linear(256, 128))
    weight = layer[0].weight.detach().clone()
    quantize(layer, make_config("NF4"))
    error = (upstream.read_packed(layer[0]) - weight).norm() / weight.norm()
    assert error < 0.12


def fp8_keeps_zeros():
    layer = torch.nn.Sequential(torch.nn.Linear(32, 4))
    with torch.no_grad():
        layer[0].weight[1] = 0
    quantize(layer, make_config("FP8", channel_quantize=0))
    assert layer(torch.ones(1, 32)).isfinite().all()
    assert (upstream.read_packed(layer[0])[1] == 0).all()


PROOFS = {"nf4-read-back": (nf4_reads_back, RuntimeError), "fp8-zeros": (fp8_keeps_zeros, AssertionError)}


def test_every_repair_has_a_proof_and_a_story():
    assert set(PROOFS) == set(BY_NAME)
    for repair in upstream.REPAIRS:
        assert repair.broken
        assert repair.versions
        assert repair.issue


@pytest.mark.parametrize("name", BY_NAME)
def test_proof_holds_with_the_repair_and_fails_without(name, monkeypatch):
    proof, failure = PROOFS[name]
    upstream.apply_repairs()
    repair = BY_NAME[name]
    if not repair.applied:
        pytest.skip(f"upstream has mended {name}")
    proof()
    repair.remove()
    repair.applied = False
    try:
        assert repair.needed()
        monkeypatch.setattr(upstream, "REPAIRS", tuple(r for r in upstream.REPAIRS if r is not repair))
        with pytest.raises(failure):
            proof()
    finally:
        monkeypatch.undo()
        upstream.apply_repairs()
    assert repair.applied
    assert not repair.needed()


def test_a_repair_steps_aside_where_it_is_not_needed(monkeypatch):
    repair = BY_NAME["nf4-read-back"]
    upstream.apply_repairs()
    repair.remove()
    repair.applied = False
    monkeypatch.setattr(type(repair), "needed", lambda self: False)
    upstream.apply_repairs()
    assert not repair.applied
    monkeypatch.undo()
    upstream.apply_repairs()
    assert repair.applied


def test_applying_twice_changes_nothing():
    from modelopt.torch.quantization.qtensor import NF4QTensor

    upstream.apply_repairs()
    first = NF4QTensor.dequantize
    upstream.apply_repairs()
    assert NF4QTensor.dequantize is first


def test_no_amax_beside_a_packed_weight(transformer):
    quantize(transformer, make_config("INT4"))
    assert not [name for name, _ in transformer.named_buffers() if name.endswith("weight_quantizer._amax")]
