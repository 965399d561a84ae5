"""The reference of chapter 08: counts against PyTorch's, chunks against the whole, and memory."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from solutions.attention_bottleneck import (
    attention_flops,
    attention_memory,
    chunked_attention,
    chunked_entropy,
    crossover_length,
    fit_exponent,
    largest_context,
)
from solutions.masking import causal_mask, masked_attention, padding_mask
from solutions.peak_memory import PeakMemory
from solutions.self_attention import attention_entropy


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def qkv(*batch, t=7, s=9):
    return draw(*batch, t, 3, seed=1), draw(*batch, s, 3, seed=2), draw(*batch, s, 4, seed=3)


# ----------------------------------------------------------------------------- counting


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_flops_are_those_that_torch_counts_whatever_the_heads(heads):
    t, d = 11, 16
    x, maps = draw(t, d), draw(4, d, d)

    def counted(run):
        with FlopCounterMode(display=False) as counter:
            result = run()
        return counter.get_total_flops(), result

    first, (q, k, v) = counted(
        lambda: [(x @ w).view(t, heads, d // heads).transpose(0, 1) for w in maps[:3]]
    )
    attended, (output, _) = counted(lambda: masked_attention(q, k, v))
    last, _ = counted(lambda: output.transpose(0, 1).reshape(t, d) @ maps[3])
    counts = attention_flops(t, d)
    assert counts["projections"] == first + last
    assert counts["scores"] == counts["values"] == attended / 2


@pytest.mark.parametrize("t", [1, 2, 7, 100])
def test_causal_flops_are_counted_for_the_pairs_of_the_mask(t):
    assert attention_flops(t, 6, causal=True)["scores"] == 2 * 6 * causal_mask(t).sum()


@given(
    d=st.integers(1, 500),
    parameters=st.integers(1, 10**6).map(lambda n: 10 * n),
    causal=st.booleans(),
)
def test_at_the_crossover_pairs_cost_what_parameters_do(d, parameters, causal):
    t = crossover_length(d, parameters, causal=causal)
    pairs = t * (t + 1) / 2 if causal else t * t
    assert math.isclose(4 * pairs * d, 2 * t * parameters, rel_tol=1e-9, abs_tol=1e-6)


def test_the_layers_of_2017_cross_over_at_six_times_their_width():
    assert crossover_length(512, 12 * 512**2) == 3072
    assert crossover_length(512, 12 * 512**2, causal=True) == 6143


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("chunk", [None, 1, 4, 5, 99])
def test_the_memory_is_that_of_the_largest_scores_that_are_made(chunk, dtype):
    scores = draw(2, 3, 5, 7).to(dtype)
    parts = [scores] if chunk is None else scores.split(chunk, dim=2)
    largest = max(part.numel() * part.element_size() for part in parts)
    found = attention_memory(5, 7, batch=2, n_heads=3, chunk=chunk, itemsize=dtype.itemsize)
    assert found == largest


@given(
    budget=st.one_of(st.integers(0, 10_000), st.integers(0, 10**30)),
    n_heads=st.integers(1, 100),
    chunk=st.one_of(st.none(), st.integers(1, 1000)),
    itemsize=st.sampled_from([1, 2, 4, 8]),
)
def test_the_largest_context_fits_and_one_token_more_does_not(budget, n_heads, chunk, itemsize):
    options = {"n_heads": n_heads, "chunk": chunk, "itemsize": itemsize}
    t = largest_context(budget, **options)
    assert attention_memory(t, **options) <= budget < attention_memory(t + 1, **options)


# ----------------------------------------------------------------------- chunked attention

MASKS = {
    "none": None,
    "full": torch.rand(2, 7, 9, generator=torch.Generator().manual_seed(4)) < 0.6,
    "padding": padding_mask(torch.tensor([0, 6]), 9),
    "keys": torch.arange(9) != 4,
    "queries": torch.arange(7)[:, None] != 3,
    "one": torch.tensor(True),
}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_output_and_gradients_are_those_of_masked_attention(mask, causal, recompute):
    whole = mask
    if causal:
        whole = causal_mask(7, 9) if mask is None else mask & causal_mask(7, 9)
    leaves = [x.requires_grad_() for x in qkv(2)]
    expected, _ = masked_attention(*leaves, whole)
    wanted = torch.autograd.grad(expected.sin().sum(), leaves)
    for chunk in (1, 3, 7, 20):
        options = {"chunk": chunk, "causal": causal, "recompute": recompute}
        found = chunked_attention(*leaves, mask, **options)
        torch.testing.assert_close(found, expected)
        for a, b in zip(torch.autograd.grad(found.sin().sum(), leaves), wanted):
            torch.testing.assert_close(a, b)


@settings(deadline=None, max_examples=40)
@given(t=st.integers(1, 12), more=st.integers(0, 5), chunk=st.integers(1, 15), causal=st.booleans())
def test_the_size_of_the_chunk_makes_no_difference(t, more, chunk, causal):
    q, k, v = qkv(2, 3, t=t, s=t + more)
    one = chunked_attention(q, k, v, chunk=chunk, causal=causal)
    torch.testing.assert_close(one, chunked_attention(q, k, v, chunk=t, causal=causal))


def test_chunked_attention_is_torchs():
    q, k, v = qkv(2, 3, t=6, s=6)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(chunked_attention(q, k, v, chunk=4, causal=True), expected)


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_agree_with_central_differences(recompute):
    def attend(*x):
        return chunked_attention(*x, chunk=3, causal=True, recompute=recompute)

    assert torch.autograd.gradcheck(attend, [x.requires_grad_() for x in qkv(t=4, s=5)])


@pytest.mark.parametrize("chunk", [0, -2])
def test_a_chunk_below_one_is_refused_by_name(chunk):
    with pytest.raises(ValueError, match=f"chunk={chunk}"):
        chunked_attention(*qkv(), chunk=chunk)


def test_more_queries_than_keys_are_refused_if_causal():
    with pytest.raises(ValueError, match="7.*5"):
        chunked_attention(*qkv(s=5), chunk=2, causal=True)
    chunked_attention(*qkv(s=5), chunk=2)


def test_the_keys_after_a_causal_chunk_are_not_handed_over():
    seen = []

    def attend(q, k, v, mask=None):
        seen.append((q.shape[-2], k.shape[-2], v.shape[-2]))
        return masked_attention(q, k, v, mask)

    chunked_attention(*qkv(), chunk=3, causal=True, attend=attend)
    assert seen == [(3, 5, 5), (3, 8, 8), (1, 9, 9)]


# ------------------------------------------------------------------------------ memory


def peak(run):
    with PeakMemory() as memory:
        run()
    return memory.peak


def test_peak_memory_counts_what_exists_at_the_same_time():
    def one_after_the_other():
        for _ in range(5):
            torch.ones(1000)

    def together():
        return [torch.ones(1000) for _ in range(5)]

    def views():
        x = torch.ones(1000)
        return x[3:], x.view(10, 100).T, x.expand(7, 1000)

    assert peak(lambda: torch.ones(1000)) == 4000
    assert peak(together) == 20_000
    assert peak(views) == 4000
    assert peak(one_after_the_other) == 4000


def test_peak_memory_does_not_count_what_was_there_and_lets_go():
    x = torch.ones(1000)
    with PeakMemory() as memory:
        y = x * 2
        x.mul_(2)
        assert (memory.now, memory.peak) == (4000, 4000)
        del y
        assert (memory.now, memory.peak) == (0, 4000)
        z = x[:10] + 1  # noqa: F841
        assert (memory.now, memory.peak) == (40, 4000)


def test_peak_memory_sees_the_backward_pass():
    x = torch.ones(1000, requires_grad=True)
    assert peak(lambda: x.exp().sum().backward()) >= 8000  # the result, and the gradient


@pytest.mark.parametrize("training", [False, True])
def test_on_the_device_meta_the_same_is_counted(training):
    def run(device):
        q = torch.ones(64, 8, device=device, requires_grad=training)
        output = chunked_attention(q, q, q, chunk=16, causal=True, recompute=training)
        if training:
            output.sum().backward()

    assert peak(lambda: run("cpu")) == peak(lambda: run("meta"))


def growth(run):
    """How much more memory a run takes at four times the length."""
    return peak(lambda: run(4096)) / peak(lambda: run(1024))


def inputs(n, grad=False):
    return (torch.empty(n, 8, device="meta", requires_grad=grad) for _ in range(3))


def test_chunks_make_the_memory_linear_in_the_length():
    assert 15 < growth(lambda n: masked_attention(*inputs(n))) < 17
    for causal in (False, True):
        ratio = growth(lambda n, c=causal: chunked_attention(*inputs(n), chunk=64, causal=c))
        assert 3.5 < ratio < 4.5


@pytest.mark.parametrize("masked", [False, True])
def test_in_training_it_takes_recomputing_to_make_the_memory_linear(masked):
    def train(n, recompute):
        mask = torch.ones(n, dtype=torch.bool, device="meta") if masked else None
        options = {"chunk": 64, "causal": True, "recompute": recompute}
        chunked_attention(*inputs(n, grad=True), mask, **options).sum().backward()

    assert growth(lambda n: train(n, recompute=False)) > 10
    assert 3.5 < growth(lambda n: train(n, recompute=True)) < 4.5


def test_no_weights_are_kept():
    """With chunks of one query, the peak is far below one table."""
    q, k, v = (torch.randn(512, 8) for _ in range(3))
    assert peak(lambda: chunked_attention(q, k, v, chunk=1)) < attention_memory(512) / 10


# ------------------------------------------------------------------------------ entropy


@pytest.mark.parametrize("chunk", [1, 2, 5, 7, 30])
def test_chunked_entropy_is_that_of_the_whole_table(chunk):
    q, k, v = qkv(2)
    _, weights = masked_attention(q, k, v, causal_mask(7, 9))
    torch.testing.assert_close(chunked_entropy(q, k, chunk=chunk), attention_entropy(weights))


def test_equal_keys_give_the_logarithm_of_their_number():
    entropies = chunked_entropy(draw(6, 3), torch.zeros(6, 3, dtype=torch.float64), chunk=4)
    torch.testing.assert_close(entropies, torch.arange(1, 7, dtype=torch.float64).log())


# ------------------------------------------------------------------------------ the fit


@given(
    exponent=st.floats(-3, 3),
    factor=st.floats(1e-6, 1e6),
    lengths=st.lists(st.integers(1, 10**6), min_size=2, max_size=8, unique=True),
)
def test_a_power_law_is_found_again(exponent, factor, lengths):
    runs = [[factor * n**exponent] for n in lengths]
    found = fit_exponent(lengths, runs)
    assert found == pytest.approx((exponent, factor), rel=1e-6, abs=1e-6)


def test_the_fit_is_the_least_squares_line_of_torch():
    lengths, costs = [3, 8, 20, 50], [0.2, 1.5, 2.5, 90.0]
    x = torch.tensor(lengths).double().log()
    design = torch.stack([x, torch.ones(4)], dim=1)
    line = torch.linalg.lstsq(design, torch.tensor(costs).double().log()[:, None]).solution
    exponent, factor = fit_exponent(lengths, [[c] for c in costs])
    assert (exponent, math.log(factor)) == pytest.approx(tuple(line.flatten().tolist()))


def test_one_slow_run_of_three_changes_nothing():
    clean = [[2.0 * n**2] * 3 for n in (1, 4, 9)]
    slow = [[1000.0, *run[1:]] for run in clean]
    assert fit_exponent([1, 4, 9], slow) == fit_exponent([1, 4, 9], clean)
