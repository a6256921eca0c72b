"""Products of few rows: each row is what it is among many, to the bit, where this machine's larger products are so."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmsweep.models.few_rows import LEAST, SteadyLinear, linear, steady
from mmsweep.models.lora import Noise, PackedLoRALinear
from mmsweep.models.packing import merge

S, WIDTH = 4, 768


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture()
def base():
    torch.manual_seed(0)
    made = nn.Linear(WIDTH, WIDTH)
    x, g = torch.randn(2, S * LEAST, WIDTH)
    alike = all(
        torch.equal(made(x[: S * rows])[:rows], made(x[:rows]))
        and torch.equal((g[: S * rows] @ made.weight)[:rows], g[:rows] @ made.weight)
        for rows in (LEAST, LEAST + 4)
    )
    if not alike:
        pytest.skip("this processor's products of many rows are not equal to the bit either")
    return made


def value_and_gradient(module, x, grad):
    x = x.clone().requires_grad_()
    y = module(x)
    (x_grad,) = torch.autograd.grad(y, x, grad)
    return y.detach(), x_grad


@pytest.mark.parametrize("rows", range(1, LEAST + 4))
def test_a_row_is_the_same_among_others(rows, base):
    steady(base)
    x, grad = torch.randn(2, S * rows, 1, WIDTH)
    together = value_and_gradient(base, x, grad)
    for s in range(S):
        share = slice(s * rows, (s + 1) * rows)
        for whole, own in zip(together, value_and_gradient(base, x[share], grad[share]), strict=True):
            assert torch.equal(whole[share], own)


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_an_adapted_linear_of_few_samples_equals_its_slot(samples, base):
    base.requires_grad_(False)
    packs = [PackedLoRALinear(base, 2, 1.0, 0.0, Noise()) for _ in range(S)]
    for one in packs:
        for factor in (one.down, one.up):
            nn.init.normal_(factor.weight)
    both = merge(packs)
    x, grad = torch.randn(2, S * samples, 4, WIDTH)
    together = value_and_gradient(both, x, grad)
    for s, one in enumerate(packs):
        share = slice(s * samples, (s + 1) * samples)
        for whole, own in zip(together, value_and_gradient(one, x[share], grad[share]), strict=True):
            assert torch.equal(whole[share], own)


class Rows(TorchDispatchMode):
    """Of every product of two matrices."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.found.append(args[-2].shape[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("rows", [1, LEAST - 1, LEAST + 1])
def test_no_product_of_few_rows_is_computed(rows, adapted):
    base = nn.Linear(6, 5).requires_grad_(False)
    steady(base)
    module = PackedLoRALinear(base, 2, 1.0, 0.0, Noise()) if adapted else base
    with Rows() as seen:
        value, gradient = value_and_gradient(module, torch.randn(1, rows, 6), torch.randn(1, rows, 5))
    assert value.shape == (1, rows, 5) and gradient.shape == (1, rows, 6)
    assert seen.found == [max(rows, LEAST)] * 2


def test_it_is_the_linear_that_it_was():
    plain = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3, bias=False)).double()
    x = torch.randn(2, 3, 6, dtype=torch.double)
    before, names = plain(x), list(plain.state_dict())
    steady(plain)
    assert isinstance(plain[0], SteadyLinear) and isinstance(plain[2], SteadyLinear)
    assert list(plain.state_dict()) == names
    torch.testing.assert_close(plain(x), before)
    assert plain(x[:0]).shape == (0, 3, 3)
    assert torch.autograd.gradcheck(lambda v: linear(v, plain[0].weight, plain[0].bias), x.requires_grad_())
