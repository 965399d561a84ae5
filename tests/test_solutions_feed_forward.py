"""The reference of chapter 09 against PyTorch's own, and what its docstrings promise."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from solutions.feed_forward import (
    FeedForward,
    SwiGLU,
    collapse,
    gelu,
    memory_contributions,
    swiglu_hidden_size,
    trigger_examples,
)

FORMS = ["none", "tanh"]


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ------------------------------------------------------------------------- activations


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_gelu_is_torchs_in_both_forms_and_every_dtype(form, dtype):
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64).to(dtype)
    found, expected = gelu(x, form), F.gelu(x, approximate=form)
    assert found.dtype == dtype
    # In half precision torch computes in float32; ours stays in the dtype.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=8 * eps, atol=8 * eps)


@pytest.mark.parametrize("form", FORMS)
def test_gelu_is_x_far_above_zero_and_zero_far_below(form):
    x = torch.tensor([1e2, 1e4, 1e30])
    assert torch.equal(gelu(x, form), x) and (gelu(-x, form) == 0).all()


def test_the_two_forms_differ_by_less_than_half_a_thousandth_and_are_not_the_same():
    x = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
    gap = (gelu(x) - gelu(x, "tanh")).abs()
    assert 4e-4 < gap.max() < 5e-4


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_gelu_agree_with_central_differences(form):
    x = (3 * draw(4, 5)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: gelu(x, form), x)


@pytest.mark.parametrize("form", ["sigmoid", "Tanh", None])
def test_any_other_form_is_refused_by_name(form):
    with pytest.raises(ValueError, match=f"approximate={form!r}, expected 'none' or 'tanh'"):
        gelu(draw(3), form)


# ---------------------------------------------------------------------------- the layers


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "activation, module",
    [("relu", nn.ReLU()), ("gelu", nn.GELU()), ("gelu_tanh", nn.GELU(approximate="tanh"))],
)
def test_feed_forward_is_torchs_linear_activation_linear(activation, module, bias):
    layer = FeedForward(6, 10, activation, bias, dtype=torch.float64)
    theirs = nn.Sequential(layer.w_in, module, layer.w_out)
    x = draw(2, 5, 6)
    torch.testing.assert_close(layer(x), theirs(x))
    assert len(list(layer.parameters())) == (4 if bias else 2)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_feed_forward_is_that_of_torchs_encoder_layer(activation):
    theirs = nn.TransformerEncoderLayer(
        8, 2, 20, dropout=0.0, activation=activation, batch_first=True, dtype=torch.float64
    )
    layer = FeedForward(8, 20, activation, dtype=torch.float64)
    layer.w_in.load_state_dict(theirs.linear1.state_dict())
    layer.w_out.load_state_dict(theirs.linear2.state_dict())
    x = draw(2, 5, 8)
    torch.testing.assert_close(layer(x), theirs._ff_block(x))


def test_an_unknown_activation_is_refused_by_name():
    with pytest.raises(ValueError, match=r"activation='swish', expected one of \['relu', 'gelu'"):
        FeedForward(4, 8, "swish")


def test_swiglu_is_its_equation_with_the_weights_of_a_llama():
    layer = SwiGLU(6, 9, dtype=torch.float64)
    gate, up, down = draw(9, 6, seed=1), draw(9, 6, seed=2), draw(6, 9, seed=3)
    layer.load_state_dict(
        {"gate_proj.weight": gate, "up_proj.weight": up, "down_proj.weight": down}
    )
    x = draw(2, 5, 6)
    z = x @ gate.T
    torch.testing.assert_close(layer(x), (z / (1 + (-z).exp()) * (x @ up.T)) @ down.T)


def test_a_gate_of_ones_would_make_swiglu_a_single_linear_map():
    """Where silu(z) is a constant, what is left is linear: the gate is the non-linearity."""
    layer = SwiGLU(4, 6, dtype=torch.float64)
    x = draw(5, 4)
    whole = F.silu(layer.gate_proj(x)) * layer.up_proj(x)
    torch.testing.assert_close(layer(x), layer.down_proj(whole))
    weight, bias = collapse(
        layer.up_proj.weight,
        torch.zeros(6, dtype=torch.float64),
        layer.down_proj.weight,
        torch.zeros(4, dtype=torch.float64),
    )
    torch.testing.assert_close(layer.down_proj(layer.up_proj(x)), F.linear(x, weight, bias))


LAYERS = {
    "relu": lambda: FeedForward(6, 11, dtype=torch.float64),
    "gelu_tanh": lambda: FeedForward(6, 11, "gelu_tanh", dtype=torch.float64),
    "swiglu": lambda: SwiGLU(6, 11, dtype=torch.float64),
}
each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())


@each_layer
def test_a_token_gets_the_same_output_alone_and_in_company(make):
    layer, x = make(), draw(2, 3, 5, 6)
    together = layer(x)
    for place in [(0, 0, 0), (1, 2, 4), (0, 1, 3)]:
        torch.testing.assert_close(layer(x[place]), together[place], rtol=1e-13, atol=1e-14)


@each_layer
def test_shuffled_tokens_give_shuffled_outputs(make):
    layer, x = make(), draw(7, 6)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x[order]), layer(x)[order], rtol=1e-13, atol=1e-14)


@each_layer
def test_gradients_of_a_layer_agree_with_central_differences(make):
    layer = make()
    x = draw(3, 6).requires_grad_()
    names = list(dict(layer.named_parameters()))

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values)), x)

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()))


@pytest.mark.parametrize("layer", [FeedForward, SwiGLU])
def test_device_and_dtype_reach_every_parameter(layer):
    made = layer(4, 6, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in made.parameters()} == {("meta", torch.bfloat16)}


# -------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    "arguments, width",
    [
        ((4096,), 11008),  # LLaMA 7B
        ((5120,), 13824),  # LLaMA 13B
        ((8192,), 22016),  # LLaMA 65B
        ((4096, 1024, 1.3), 14336),  # Llama 3 8B
        ((8192, 4096, 1.3), 28672),  # Llama 3 70B
        ((16384, 4096, 1.2), 53248),  # Llama 3 405B
    ],
)
def test_the_widths_of_the_llamas(arguments, width):
    assert swiglu_hidden_size(*arguments) == width


@given(st.integers(1, 20_000), st.integers(1, 512))
@settings(max_examples=200, deadline=None)
def test_the_width_is_the_lowest_multiple_that_is_not_below_two_thirds(d_model, multiple_of):
    width = swiglu_hidden_size(d_model, multiple_of)
    least = 8 * d_model // 3
    assert isinstance(width, int) and width % multiple_of == 0
    assert width - multiple_of < least <= width


@pytest.mark.parametrize("d_model", [3, 48, 96, 768])
def test_two_thirds_of_the_width_make_a_gated_layer_as_large_as_a_plain_one(d_model):
    plain = FeedForward(d_model, 4 * d_model, bias=False)
    gated = SwiGLU(d_model, swiglu_hidden_size(d_model, multiple_of=1))
    count = [sum(p.numel() for p in layer.parameters()) for layer in (plain, gated)]
    assert count[0] == count[1] == 8 * d_model**2


# ------------------------------------------------------------------------- looking inside


def test_two_linear_layers_are_one():
    first, second = (nn.Linear(a, b, dtype=torch.float64) for a, b in [(4, 9), (9, 3)])
    weight, bias = collapse(first.weight, first.bias, second.weight, second.bias)
    x = draw(2, 5, 4)
    torch.testing.assert_close(F.linear(x, weight, bias), second(first(x)))


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_the_memories_add_up_to_the_layer(batch):
    layer = FeedForward(4, 9, dtype=torch.float64)
    x = draw(*batch, 4)
    parts = memory_contributions(x, layer.w_in.weight, layer.w_in.bias, layer.w_out.weight)
    assert parts.shape == (*batch, 9, 4)
    torch.testing.assert_close(parts.sum(-2) + layer.w_out.bias, layer(x))


def test_a_unit_whose_key_does_not_fit_adds_nothing():
    layer = FeedForward(4, 9, dtype=torch.float64)
    x = draw(6, 4)
    parts = memory_contributions(x, layer.w_in.weight, layer.w_in.bias, layer.w_out.weight)
    silent = layer.w_in(x) <= 0
    assert silent.any() and (parts[silent] == 0).all() and (parts[~silent] != 0).all()


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.data())
@settings(max_examples=60, deadline=None)
def test_trigger_examples_are_the_first_of_all_tokens_in_order(b, t, f, data):
    k = data.draw(st.integers(1, b * t))
    coefficients = draw(b, t, f, seed=data.draw(st.integers(0, 99)))
    found = trigger_examples(coefficients, k)
    assert found.shape == (f, k, 2) and not found.is_floating_point()
    for unit in range(f):
        values = torch.stack([coefficients[i, j, unit] for i, j in found[unit].tolist()])
        expected = coefficients[..., unit].flatten().sort(descending=True).values[:k]
        assert torch.equal(values, expected)
