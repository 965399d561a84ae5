"""The reference of chapter 01 against torch's own layers, and what its docstrings promise."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from solutions.self_attention import attention
from solutions.why_transformers import (
    attention_pool,
    backward_through_time,
    max_path_length,
    parallel_scan,
    rnn,
    rnn_cell,
    sequential_steps,
)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def weights(d=3, n=4):
    return draw(d, n, seed=1), draw(n, n, seed=2) / n**0.5, draw(n, seed=3)


def in_torch(d=3, n=4):
    """An nn.RNN, and its weights as ours."""
    torch.manual_seed(0)
    layer = nn.RNN(d, n, batch_first=True, dtype=torch.float64)
    w_x, w_h, b_ih, b_hh = layer.parameters()
    return layer, (w_x.T, w_h.T, b_ih + b_hh)


# ------------------------------------------------------------------------------ recurrence


def test_one_step_is_that_of_torchs_cell():
    cell = nn.RNNCell(3, 4, dtype=torch.float64)
    x, h = draw(2, 3), draw(2, 4, seed=9)
    ours = rnn_cell(x, h, cell.weight_ih.T, cell.weight_hh.T, cell.bias_ih + cell.bias_hh)
    torch.testing.assert_close(ours, cell(x, h))


@pytest.mark.parametrize("shape", [(), (1,), (2, 5)])
def test_a_cell_takes_any_leading_axes(shape):
    x, h, w = draw(*shape, 3), draw(*shape, 4, seed=9), weights()
    flat = rnn_cell(x.reshape(-1, 3), h.reshape(-1, 4), *w)
    torch.testing.assert_close(rnn_cell(x, h, *w), flat.reshape(*shape, 4))


@pytest.mark.parametrize("b, t", [(1, 1), (2, 7), (5, 1), (3, 40)])
@pytest.mark.parametrize("given_state", [False, True])
def test_rnn_is_torchs_in_states_last_state_and_all_gradients(b, t, given_state):
    layer, ours = in_torch()
    x, h = draw(b, t, 3), draw(b, 4, seed=9) if given_state else None
    gradients = []
    for read in (
        lambda x, h: layer(x, None if h is None else h[None]),
        lambda x, h: rnn(x, *ours, h),
    ):
        inputs = [y.clone().requires_grad_() for y in (x, h) if y is not None]
        states, last = read(inputs[0], inputs[1] if given_state else None)
        loss = (states * draw(b, t, 4, seed=5)).sum() + (last * draw(b, 4, seed=6)).sum()
        wanted = [*inputs, *layer.parameters()]
        gradients.append((states, last.reshape(b, 4), *torch.autograd.grad(loss, wanted)))
    for theirs, found in zip(*gradients):
        torch.testing.assert_close(found, theirs)


def test_a_reading_may_stop_anywhere_and_go_on():
    x, w = draw(2, 9, 3), weights()
    whole, last = rnn(x, *w)
    for t in range(1, 9):
        first, h = rnn(x[:, :t], *w)
        second, end = rnn(x[:, t:], *w, h)
        torch.testing.assert_close(torch.cat([first, second], 1), whole)
        torch.testing.assert_close(end, last)


def test_later_tokens_do_not_change_earlier_states():
    x, w = draw(2, 9, 3), weights()
    changed = x.clone()
    changed[:, 5:] += 1
    assert torch.equal(rnn(x, *w)[0][:, :5], rnn(changed, *w)[0][:, :5])


def test_backward_through_time_is_what_autograd_finds():
    x, (w_x, w_h, b), grad_last = draw(2, 12, 3), weights(), draw(2, 4, seed=7)
    h = torch.zeros(2, 4, dtype=torch.float64)
    states = []
    for x_t in x.unbind(1):
        h = rnn_cell(x_t, h, w_x, w_h, b).requires_grad_()
        states.append(h)
    expected = torch.autograd.grad((h * grad_last).sum(), states)
    found = backward_through_time(grad_last, torch.stack(states, 1).detach(), w_h)
    torch.testing.assert_close(found, torch.stack(expected, 1))


def test_gradients_shrink_at_least_as_fast_as_the_bound_says():
    x, (w_x, w_h, b) = draw(3, 30, 3), weights()
    w_h = 0.8 * w_h / torch.linalg.matrix_norm(w_h, 2)
    states, last = rnn(x, w_x, w_h, b)
    sizes = backward_through_time(torch.ones_like(last), states, w_h).norm(dim=-1)
    assert (sizes[:, :-1] <= 0.8 * sizes[:, 1:] + 1e-15).all()


# ------------------------------------------------------------------------------- attention


def test_pooling_is_attention_with_a_single_query():
    q, k, v = draw(2, 3, 4), draw(2, 3, 7, 4, seed=1), draw(2, 3, 7, 5, seed=2)
    pooled, shares = attention_pool(q, k, v)
    expected, theirs = attention(q[..., None, :] * math.sqrt(4), k, v)  # which divides by √4
    torch.testing.assert_close(pooled, expected[..., 0, :])
    torch.testing.assert_close(shares, theirs[..., 0, :])


def test_pooling_is_torchs_in_values_and_gradients():
    inputs = [draw(2, 4), draw(2, 7, 4, seed=1), draw(2, 7, 5, seed=2)]
    results = []
    for way in (
        lambda q, k, v: attention_pool(q, k, v)[0],
        lambda q, k, v: F.scaled_dot_product_attention(q[:, None], k, v, scale=1.0)[:, 0],
    ):
        leaves = [y.clone().requires_grad_() for y in inputs]
        pooled = way(*leaves)
        results.append((pooled, *torch.autograd.grad((pooled * draw(2, 5, seed=3)).sum(), leaves)))
    for found, expected in zip(*results):
        torch.testing.assert_close(found, expected)


def test_weights_sum_to_one_for_scores_of_any_size():
    for size in (0.0, 1.0, 100.0):
        pooled, shares = attention_pool(
            size * draw(2, 4), size * draw(2, 7, 4, seed=1), draw(2, 7, 5, seed=2)
        )
        assert pooled.isfinite().all() and (shares >= 0).all()
        torch.testing.assert_close(shares.sum(-1), torch.ones(2, dtype=torch.float64))


def test_shuffled_tokens_are_pooled_to_the_same():
    q, k, v = draw(2, 4), draw(2, 7, 4, seed=1), draw(2, 7, 5, seed=2)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    pooled, shares = attention_pool(q, k, v)
    again, shuffled = attention_pool(q, k[:, order], v[:, order])
    torch.testing.assert_close(again, pooled)
    torch.testing.assert_close(shuffled, shares[:, order])


# -------------------------------------------------------------------------------- counting


@settings(deadline=None)
@given(st.sampled_from(["rnn", "cnn", "attention"]), st.integers(1, 20), st.integers(1, 6))
def test_sequential_steps_are_the_longest_chain_of_a_grid(layer, n, n_layers):
    below = [0] * n
    for _ in range(n_layers):
        row = []
        for t in range(n):
            needs = [below[t], *row[-1:]] if layer == "rnn" else below
            row.append(1 + max(needs))
        below = row
    assert sequential_steps(layer, n, n_layers) == below[-1]


@settings(deadline=None)
@given(st.sampled_from(["cnn", "dilated cnn"]), st.integers(1, 400), st.integers(2, 6))
def test_as_many_layers_as_counted_see_all_tokens_and_one_less_does_not(layer, n, width):
    def seen(layers):
        reach = {0}
        for i in range(layers):
            apart = width**i if layer == "dilated cnn" else 1
            reach = {r + apart * j for r in reach for j in range(width) if r + apart * j < n}
        return len(reach)

    layers = max_path_length(layer, n, width)
    assert seen(layers) == n
    assert layers == 1 or seen(layers - 1) < n


@pytest.mark.parametrize("width, power", [(2, 29), (3, 12), (5, 3), (10, 15)])
def test_path_lengths_are_exact_at_powers_of_the_width(width, power):
    assert max_path_length("dilated cnn", width**power, width) == power
    assert max_path_length("dilated cnn", width**power + 1, width) == power + 1


def test_the_path_is_n_in_a_recurrence_and_1_in_attention():
    assert [max_path_length("rnn", n) for n in (1, 7, 10**6)] == [1, 7, 10**6]
    assert {max_path_length("attention", n) for n in (1, 7, 10**6)} == {1}


@pytest.mark.parametrize("count", [sequential_steps, max_path_length])
def test_an_unknown_layer_is_refused_by_name(count):
    with pytest.raises(ValueError, match="layer='perceptron': expected"):
        count("perceptron", 5)


# ---------------------------------------------------------------------------- parallel scan


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(0, 1000))
def test_a_scan_is_the_loop(n, seed):
    a, x = draw(2, n, 3, seed=seed), draw(2, n, 3, seed=seed + 1)
    h, loop = torch.zeros(2, 3, dtype=torch.float64), []
    for t in range(n):
        h = a[:, t] * h + x[:, t]
        loop.append(h)
    torch.testing.assert_close(parallel_scan(a, x), torch.stack(loop, 1))


def test_a_scan_with_factors_of_one_is_a_cumulative_sum():
    x = draw(2, 13, 3)
    torch.testing.assert_close(parallel_scan(torch.ones_like(x), x), x.cumsum(1))


def test_a_scan_multiplies_as_many_times_as_it_has_rounds(monkeypatch):
    rounds = []
    cat = torch.cat
    monkeypatch.setattr(torch, "cat", lambda *args, **kw: rounds.append(1) or cat(*args, **kw))
    parallel_scan(draw(1, 1000, 2), draw(1, 1000, 2))
    assert len(rounds) == 2 * 10


def test_gradients_of_a_scan_agree_with_central_differences():
    inputs = [draw(2, 6, 2, seed=s).requires_grad_() for s in (1, 2)]
    assert torch.autograd.gradcheck(parallel_scan, inputs)
