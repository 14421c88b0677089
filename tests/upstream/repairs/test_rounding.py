"""Rounding by table gives the bits that ModelOpt's own functions give."""

import contextlib

import pytest
import torch
from modelopt.torch.quantization.qtensor import NF4QTensor, NVFP4QTensor, nf4_tensor

from modelopt_nb import quiet, verbs
from modelopt_nb.upstream.repairs import nf4_rounding, nvfp4_rounding, sixteen_bits

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
REPAIRS = {r.name: r for r in verbs.all_repairs() if r.name in ("nf4-rounding", "nvfp4-rounding", "zeros")}


@pytest.fixture(params=[False, True], ids=["alone", "with zeros repaired"])
def both(request, monkeypatch):
    """Return a function that calls another with and without the repair ``name``."""
    for module in (nf4_rounding, nvfp4_rounding):
        monkeypatch.setattr(module, "CHUNK", 50_000)  # does not divide the weight

    def call(name, function):
        for repair in verbs.all_repairs():
            if repair.applied:
                repair.remove()
        with contextlib.ExitStack() as stack, quiet():
            if request.param:
                REPAIRS["zeros"].apply()
                stack.callback(REPAIRS["zeros"].remove)
            upstream = function()
            REPAIRS[name].apply()
            stack.callback(REPAIRS[name].remove)
            return upstream, function()

    yield call
    verbs.enable()


def weights(dtype: torch.dtype, block: int) -> torch.Tensor:
    """Random weights of many sizes, with zeros of both signs, subnormals, blocks of zeros, NaN and infinity."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(160, 1024, generator=generator) * torch.logspace(-6, 2, 160).unsqueeze(-1)
    w[3] = w[3].round()
    w[7], w[8, ::2], w[9] = 0, -0.0, torch.linspace(-1, 1, 1024)
    w[10, 5], w[11, 6], w[12, 7] = float("nan"), float("inf"), -float("inf")
    w[13] *= 1e-38
    w[14].view(-1, block)[:] = torch.tensor(nf4_tensor.nf4_table.float().tolist() * block)[:block]
    return w.to(dtype)


def bits(found) -> list[torch.Tensor]:
    packed, *scales = found
    return [packed._quantized_data, *(s.view(torch.uint8) if s.dtype == torch.float8_e4m3fn else s for s in scales)]


def same(expected, found):
    for a, b in zip(bits(expected), bits(found), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("block", "rows"), [(64, 256), (32, 8), (256, 7)])
def test_nf4(dtype, block, rows, both):
    w = weights(dtype, block)
    same(*both("nf4-rounding", lambda: NF4QTensor.quantize(w, block, rows)))


def test_nf4_next_to_the_bounds(both):
    values = nf4_tensor.nf4_table.float()
    middle = (values[1:] + values[:-1]) / 2
    near = [middle]
    for to in (2.0, -2.0):
        step = middle
        for _ in range(3):
            step = torch.nextafter(step, torch.tensor(to))
            near.append(step)
    tiny = torch.tensor([1e-45, -1e-45, 1e-38, -1e-38, 0.0, -0.0, 1.0, -1.0])
    w = torch.cat([*near, values, tiny])
    w = torch.cat([w, w.new_ones(256 - len(w))])
    same(*both("nf4-rounding", lambda: NF4QTensor.quantize(w, 256, 1)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("block", "known"), [(16, False), (32, True)])
def test_nvfp4(dtype, block, known, both):
    w = weights(dtype, block)
    finite = w.nan_to_num(nan=1, posinf=2, neginf=-2)
    for x in (w, finite, finite.view(160, 4, 256), finite[:16] * 0):
        double = torch.tensor(1e-3) if known else None  # smaller than the largest weight has it
        same(*both("nvfp4-rounding", lambda: NVFP4QTensor.quantize(x, block, None, double)))  # noqa: B023


def test_nvfp4_next_to_the_bounds():
    bounds = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.75, 2.5, 3.0, 3.5, 5.0, 6.0, 7.0, 448.0])
    near = [bounds, torch.nextafter(bounds, bounds + 1), torch.nextafter(bounds, bounds - 1)]
    x = torch.cat([*near, torch.tensor([1e-45, 1e-38, float("nan"), float("inf")]), torch.randn(100_000) * 3])
    x = torch.cat([x, -x])
    codes = sixteen_bits.by_table(lambda v: NVFP4QTensor._cast_fp4(v.clone()), x)
    assert torch.equal(codes, NVFP4QTensor._cast_fp4(x.clone()))


def test_other_tensors_are_left_to_upstream(both):
    w = weights(torch.float32, 16)[:6].double()
    same(*both("nvfp4-rounding", lambda: NVFP4QTensor.quantize(w, 16)))
    same(*both("nf4-rounding", lambda: NF4QTensor.quantize(w, 64, 4)))
    odd = w[:, :1000].float()
    same(*both("nvfp4-rounding", lambda: NVFP4QTensor.quantize(odd, 16)))
    same(*both("nf4-rounding", lambda: NF4QTensor.quantize(odd, 64, 4)))
