"""A packed model is still a PyTorch module: compiled, copied, pickled, counted, cast and loaded into."""

import copy
import io
import pickle
import threading

import pytest
import torch
from torch import nn

from modelopt_nb import dequantized, enable, make_config, quantize, verbs, weight_bytes
from modelopt_nb.upstream.layers import is_packed
from tests.architectures import build, run
from tests.conftest import ALL_TYPES

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def small(quant_type: str, dtype: torch.dtype = torch.float32, **options) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 128), nn.SiLU(), nn.Linear(128, 64)).to(dtype).eval().requires_grad_(False)
    loop = (lambda m: m(torch.randn(4, 256, dtype=dtype))) if options else None
    quantize(model, make_config(quant_type, **options), loop)
    return model


@pytest.mark.parametrize("quant_type", ALL_TYPES)
def test_a_compiled_model_computes_the_same(quant_type):
    model, x = small(quant_type)[:1], torch.randn(3, 256)
    with torch.no_grad():
        expected, compiled = model(x), torch.compile(model, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, expected, rtol=0, atol=1e-5)
    assert model[0].weight.dtype == torch.float32 and model[0].weight.ndim == model[0].weight.dim() == 2


@pytest.mark.parametrize("quant_type", ["INT8", "NF4"])
def test_a_compiled_text_encoder(quant_type):
    model, inputs = build("T5")
    quantize(model, make_config(quant_type))
    expected = run(model, inputs)
    torch.testing.assert_close(run(torch.compile(model, backend="aot_eager"), inputs), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("quant_type", ALL_TYPES)
def test_copies_and_pickles_compute_the_same_and_share_nothing(quant_type):
    model, x = small(quant_type, modules_to_not_convert="2"), torch.randn(3, 256)
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(saved, weights_only=False)]
    for other in copies:
        assert is_packed(other[0]) and not is_packed(other[2])
        assert weight_bytes(other) == weight_bytes(model)
        assert torch.equal(other(x), model(x))
        with dequantized(other):
            assert torch.equal(other(x), model(x))
        before = copy.deepcopy(model.state_dict())
        other.load_state_dict({name: torch.zeros_like(t) for name, t in model.state_dict().items()})
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
        assert not other[0].bias.any() and not other[0]._parameters["weight"].data.any()
    layer = copy.deepcopy(model[0])
    assert torch.equal(layer(x), model[0](x)) and type(layer.weight) is type(model[0].weight)


def test_a_copy_of_a_whole_model_saves_as_it_does(transformer, inputs, tmp_path):
    quantize(transformer, make_config("NF4"))
    twin = pickle.loads(pickle.dumps(copy.deepcopy(transformer)))
    twin.save_pretrained(tmp_path)
    assert torch.equal(run(type(twin).from_pretrained(tmp_path), inputs), run(transformer, inputs))


@pytest.mark.parametrize("quant_type", ALL_TYPES)
@pytest.mark.parametrize("name", ["Sana", "T5"])
def test_parameters_are_counted_as_dense_ones(quant_type, name):
    model, _ = build(name)
    count, footprint = model.num_parameters(), model.get_memory_footprint()
    quantize(model, make_config(quant_type))
    assert model.num_parameters() == sum(p.numel() for p in model.parameters()) == count
    assert model.get_memory_footprint() < 0.7 * footprint
    assert all(p.ndim == p.dim() for p in model.parameters())


@pytest.mark.parametrize("quant_type", ALL_TYPES)
@pytest.mark.parametrize("to", DTYPES)
def test_casts_change_what_is_read_and_not_what_is_stored(quant_type, to):
    model, x = small(quant_type), torch.randn(3, 256)
    model.append(nn.Conv2d(4, 4, 3))
    stored, expected = {n: t.clone() for n, t in model.state_dict().items()}, model[:3](x)
    for cast in (lambda m: m.to(to), lambda m: m[0].to(dtype=to) and m[2].to(to) and m, lambda m: m.type(to)):
        other = copy.deepcopy(model)
        cast(other)
        for n, t in other.state_dict().items():
            if n in ("0.weight", "2.weight") or "weight_quantizer" in n:
                assert t.dtype == stored[n].dtype and torch.equal(t, stored[n])
        y = other[:3](x.to(to))
        assert y.dtype == other[0].weight.dtype == to
        assert (y.float() - expected).norm() / expected.norm() <= 4 * torch.finfo(to).eps
        if to == torch.float32:
            assert torch.equal(y, expected)
        assert torch.equal(other.float()[:3](x), expected) or to != torch.float32
    assert model.double()[0].weight.dtype == torch.float64


@pytest.mark.parametrize("quant_type", ALL_TYPES)
def test_a_model_goes_through_meta_and_to_empty(quant_type):
    model, x = small(quant_type), torch.randn(3, 256)
    state, expected = copy.deepcopy(model.state_dict()), model(x)
    model.to("meta")
    assert is_packed(model[0]) and all(t.is_meta for t in model.state_dict().values())
    model.to_empty(device="cpu").load_state_dict(state)
    assert torch.equal(model(x), expected)


def test_convolutions_are_cast_too():
    model = nn.Sequential(nn.Conv2d(8, 8, 3))
    quantize(model, make_config("FP8"))
    x = torch.randn(1, 8, 6, 6)
    expected = model(x)
    y = model.bfloat16()(x.bfloat16())
    assert (y.float() - expected).norm() / expected.norm() < 0.02
    assert torch.equal(copy.deepcopy(model)(x.bfloat16()), y)


@pytest.mark.parametrize("quant_type", ALL_TYPES)
def test_layerwise_casting_keeps_packed_weights(quant_type, transformer, inputs):
    quantize(transformer, make_config(quant_type))
    scales = {n: t.clone() for n, t in transformer.state_dict().items() if ".weight_quantizer." in n}
    layer = transformer.transformer_blocks[0].attn1.to_q
    stored, expected = layer._parameters["weight"].data.clone(), layer(torch.ones(1, 128))
    transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    run(transformer, inputs)
    state = transformer.state_dict()
    assert all(t.dtype == state[n].dtype and torch.equal(t, state[n]) for n, t in scales.items())
    assert torch.equal(layer._parameters["weight"].data, stored) and layer.bias is None
    assert torch.equal(layer(torch.ones(1, 128)), expected)


def test_a_cast_pipeline_keeps_packed_weights(pipeline):
    from diffusers import SanaPipeline

    parts = pipeline.components
    packed = SanaPipeline(**parts | {"transformer": copy.deepcopy(parts["transformer"])})
    quantize(packed.transformer, make_config("INT8"))
    stored = packed.transformer.transformer_blocks[0].attn1.to_q._parameters["weight"].data.clone()
    own = copy.deepcopy(parts["vae"]), copy.deepcopy(parts["text_encoder"])  # from_pipe casts what it shares
    for dtype in (torch.float32, torch.bfloat16):
        other = SanaPipeline.from_pipe(packed, torch_dtype=dtype, vae=own[0], text_encoder=own[1])
        layer = other.transformer.transformer_blocks[0].attn1.to_q
        assert torch.equal(layer._parameters["weight"].data, stored) and layer.weight.dtype == dtype
        assert layer.weight_quantizer._scale.dtype == torch.float32


@pytest.mark.parametrize("quant_type", ALL_TYPES)
@pytest.mark.parametrize("strict", [True, False])
def test_a_dense_state_dict_is_refused_and_nothing_changes(quant_type, strict):
    model, dense = small(quant_type), nn.Sequential(nn.Linear(256, 128), nn.SiLU(), nn.Linear(128, 64))
    before = copy.deepcopy(model.state_dict())
    parent = nn.ModuleDict({"inner": model})
    for owner, prefix in ((model, ""), (parent, "inner.")):
        given = {prefix + name: t for name, t in dense.state_dict().items()}
        with pytest.raises(ValueError, match=rf"state_dict: {prefix}0.weight is torch.float32 \(128, 256\).*quantize"):
            owner.load_state_dict(given, strict=strict)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    other = small(quant_type)
    other[0].bias.zero_()
    other.load_state_dict(before, strict=strict)
    assert torch.equal(other[0].bias, model[0].bias)


def test_a_dense_state_dict_of_a_convolution_is_refused():
    model = nn.Sequential(nn.Conv2d(8, 8, 3))
    dense = copy.deepcopy(model.state_dict())
    quantize(model, make_config("FP8"))
    with pytest.raises(ValueError, match="state_dict: 0.weight is torch.float32"):
        model.load_state_dict(dense, strict=False)


def test_two_threads_enable_once(monkeypatch):
    applied, inside, both = [], threading.Event(), threading.Barrier(2)

    class Slow(type(verbs.all_repairs()[0])):
        def apply(self):
            inside.wait(0.2)
            applied.append(threading.get_ident())
            self.applied = True

    slow = Slow()
    slow.needed = lambda: True
    monkeypatch.setattr(verbs, "all_repairs", lambda: (slow,))

    def work():
        both.wait()
        enable()
        assert slow.applied

    threads = [threading.Thread(target=work) for _ in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(applied) == 1
