"""The library of chapter 10 against torch, and what its docstrings promise."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from solutions.residuals_and_norms import (
    LayerNorm,
    RMSNorm,
    init_scale,
    layer_norm_backward,
    residual,
)

NORMS = {"layer": (LayerNorm, nn.LayerNorm), "rms": (RMSNorm, nn.RMSNorm)}
each_norm = pytest.mark.parametrize("ours, theirs", NORMS.values(), ids=NORMS.keys())


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pair(ours, theirs, d, eps, dtype=torch.float64):
    """Our norm and torch's, with the same random parameters."""
    mine, torchs = ours(d, eps, dtype=dtype), theirs(d, eps=eps, dtype=dtype)
    for i, p in enumerate(torchs.parameters()):
        p.data = draw(d, dtype=dtype, seed=10 + i) + 1
    mine.load_state_dict(torchs.state_dict())
    return mine, torchs


# ----------------------------------------------------------------------------- both norms


@each_norm
@pytest.mark.parametrize("shape", [(6,), (1, 6), (2, 5, 6), (2, 3, 4, 6)])
@pytest.mark.parametrize("eps", [1e-8, 1e-5, 0.3])
def test_a_norm_is_torchs_in_outputs_and_in_all_gradients(ours, theirs, shape, eps):
    mine, torchs = pair(ours, theirs, 6, eps)
    x, cotangent = 3 * draw(*shape) + 1, draw(*shape, seed=1)
    found = []
    for norm in (mine, torchs):
        leaf = x.clone().requires_grad_()
        y = norm(leaf)
        found.append([y, *torch.autograd.grad(y, [leaf, *norm.parameters()], cotangent)])
    torch.testing.assert_close(*found)


@each_norm
def test_the_parameters_start_as_torchs(ours, theirs):
    torch.testing.assert_close(dict(ours(7).state_dict()), dict(theirs(7).state_dict()))


def test_the_defaults_of_eps_are_the_documented_ones():
    assert LayerNorm(3).eps == nn.LayerNorm(3).eps == 1e-5
    assert RMSNorm(3).eps == 1e-6


@each_norm
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-2, 1.0, 1e3])
def test_half_precision_is_computed_in_float32(ours, theirs, dtype, size):
    x = (size * draw(4, 5, 64)).to(dtype)
    norm = ours(64, dtype=dtype)
    found = norm(x)
    exact = ours(64, dtype=torch.float64)(x.double()).to(dtype)
    assert found.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found, exact, rtol=eps, atol=1e-6)  # one rounding, at the end
    torch.testing.assert_close(ours(64)(x), exact, rtol=eps, atol=1e-6)  # parameters in float32


@each_norm
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_of_the_tokens_is_kept(ours, theirs, dtype):
    assert ours(6, dtype=dtype)(draw(2, 6, dtype=dtype)).dtype == dtype


@each_norm
def test_parameters_are_made_where_and_as_asked(ours, theirs):
    for p in ours(5, device="meta", dtype=torch.float16).parameters():
        assert p.device.type == "meta" and p.dtype == torch.float16


@each_norm
@pytest.mark.parametrize("width", [1, 5, 7])
def test_a_wrong_width_is_refused_by_name(ours, theirs, width):
    with pytest.raises(ValueError, match=rf"width {width}, expected d_model=6"):
        ours(6)(draw(2, 3, width, dtype=torch.float32))


@each_norm
def test_a_token_does_not_depend_on_its_neighbours(ours, theirs):
    norm, x = ours(8, dtype=torch.float64), draw(3, 5, 8)
    changed = x.clone()
    changed[0, 2] *= 1e6
    before, after = norm(x), norm(changed)
    keep = torch.ones(3, 5, dtype=torch.bool)
    keep[0, 2] = False
    assert torch.equal(before[keep], after[keep])


@each_norm
def test_a_token_of_zeros_gives_no_nan_forwards_or_backwards(ours, theirs):
    x = torch.zeros(2, 4, requires_grad=True)
    y = ours(4)(x)
    y.sum().backward()
    assert (y == 0).all() and x.grad.isfinite().all()


@each_norm
@settings(max_examples=15, deadline=None)
@given(scale=st.floats(0.1, 100), seed=st.integers(0, 99))
def test_a_norm_does_not_see_a_positive_factor(ours, theirs, scale, seed):
    norm, x = ours(16, eps=1e-14, dtype=torch.float64), draw(3, 16, seed=seed)
    torch.testing.assert_close(norm(scale * x), norm(x))
    torch.testing.assert_close(norm(-scale * x), -norm(x))


@settings(max_examples=15, deadline=None)
@given(shift=st.floats(-1000, 1000), seed=st.integers(0, 99))
def test_layer_norm_does_not_see_a_shift_and_rms_norm_does(shift, seed):
    x = draw(3, 16, seed=seed)
    norm = LayerNorm(16, dtype=torch.float64)
    torch.testing.assert_close(norm(x + shift), norm(x))
    if abs(shift) > 0.1:
        rms = RMSNorm(16, dtype=torch.float64)
        assert not torch.allclose(rms(x + shift), rms(x), atol=1e-3)


def test_numbers_far_from_zero_lose_no_accuracy():
    x = draw(8, 32, dtype=torch.float32)
    far = x + 4096  # exact to 2e-4
    torch.testing.assert_close(LayerNorm(32)(far), LayerNorm(32)(x), rtol=0, atol=2e-3)


def test_on_centred_tokens_the_two_norms_are_one():
    x = draw(4, 5, 12)
    x = x - x.mean(-1, keepdim=True)
    options = {"eps": 1e-6, "dtype": torch.float64}
    torch.testing.assert_close(RMSNorm(12, **options)(x), LayerNorm(12, **options)(x))


def test_a_layer_norm_gives_mean_0_and_variance_1_over_d():
    y = LayerNorm(10, eps=1e-14, dtype=torch.float64)(5 * draw(3, 10) + 2)
    torch.testing.assert_close(y.mean(-1), torch.zeros(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(y.var(-1, correction=0), torch.ones(3).double())


# --------------------------------------------------------------------------- the backward


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 5, 6), (2, 3, 4, 6)])
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_the_backward_pass_is_autograds(shape, eps):
    x, grad, weight = draw(*shape), draw(*shape, seed=1), draw(6, seed=2)
    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    bias = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    y = F.layer_norm(leaves[0], (6,), leaves[1], bias, eps)
    expected = torch.autograd.grad(y, [*leaves, bias], grad)
    torch.testing.assert_close(layer_norm_backward(grad, x, weight, eps), expected)


def test_no_gradient_along_shift_or_stretch_and_half_of_it_for_a_token_twice_as_large():
    x, grad, ones = draw(20), draw(20, seed=1), torch.ones(20, dtype=torch.float64)
    back = layer_norm_backward(grad, x, ones, eps=0.0)[0]
    assert abs(back.sum()) < 1e-12 and abs(back @ x) < 1e-12
    torch.testing.assert_close(layer_norm_backward(grad, 2 * x, ones, eps=0.0)[0], back / 2)


# ------------------------------------------------------------------------ residual blocks


@pytest.mark.parametrize("norm_first", [True, False])
def test_two_residual_blocks_are_a_layer_of_torch(norm_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        12, 1, 20, dropout=0.0, batch_first=True, norm_first=norm_first, dtype=torch.float64
    )
    layer.train()  # torch's fast path, for evaluation only, is another computation

    def attend(x):
        return layer.self_attn(x, x, x, need_weights=False)[0]

    def think(x):
        return layer.linear2(layer.linear1(x).relu())

    norms = [LayerNorm(12, dtype=torch.float64) for _ in range(2)]
    x = draw(2, 5, 12)
    y = residual(x, attend, norms[0], norm_first)
    y = residual(y, think, norms[1], norm_first)
    torch.testing.assert_close(y, layer(x))


def test_the_stream_passes_a_silent_sublayer_bit_for_bit():
    x = draw(2, 5, 6)
    assert torch.equal(residual(x, torch.zeros_like, LayerNorm(6, dtype=torch.float64)), x)


def test_pre_norm_grows_and_post_norm_keeps_variance_one():
    torch.manual_seed(0)
    norm, x = LayerNorm(64), torch.randn(200, 64)
    variance = {}
    for norm_first in (True, False):
        y, generator = x, torch.Generator().manual_seed(1)
        for _ in range(24):
            weight = torch.randn(64, 64, generator=generator) / 8
            y = residual(y, lambda z, w=weight: z @ w, norm, norm_first)
        variance[norm_first] = y.var().item()
    assert abs(variance[True] - 25) < 3 and abs(variance[False] - 1) < 0.01


def test_with_the_initial_scale_the_variance_ends_at_two_whatever_the_depth():
    norm, x = LayerNorm(64), draw(200, 64, dtype=torch.float32)
    for layers in (2, 12, 100):
        y, generator = x, torch.Generator().manual_seed(layers)
        for _ in range(2 * layers):
            weight = init_scale(layers) * torch.randn(64, 64, generator=generator) / 8
            y = residual(y, lambda z, w=weight: z @ w, norm)
        assert abs(y.var().item() - 2) < 0.2, layers


def test_the_initial_scale_is_gpt_2s():
    # n_layer of the four models, against what Hugging Face's GPT-2 divides by.
    for n_layer in (12, 24, 36, 48):
        assert init_scale(n_layer) == pytest.approx(1 / math.sqrt(2 * n_layer), rel=1e-15)


@pytest.mark.parametrize("n_layers", [0, -1])
def test_a_model_without_layers_is_refused(n_layers):
    with pytest.raises(ValueError, match=f"n_layers={n_layers}"):
        init_scale(n_layers)
