"""The reference of chapter 07: against other ways to compute it, and what it promises."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from solutions.masking import causal_mask, masked_attention
from solutions.positional_encoding import (
    AddedPositions,
    AlibiPositions,
    LearnedPositions,
    Positions,
    RotaryPositions,
    alibi_bias,
    alibi_slopes,
    apply_rope,
    biased_attention,
    ntk_base,
    positions_named,
    rope_angles,
    sinusoidal_encoding,
    to_halves,
    to_interleaved,
)

SCHEMES = ["none", "sinusoidal", "learned", "rope", "alibi"]
both_pairings = pytest.mark.parametrize("interleaved", [True, False])


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def named(name, max_length=64):
    return positions_named(name, d_model=24, n_heads=3, max_length=max_length)


# --------------------------------------------------------------------------- sinusoidal


def test_the_encoding_is_the_papers_formula():
    found = sinusoidal_encoding(torch.arange(50), 12, dtype=torch.float64)
    for p in range(50):
        for i in range(6):
            angle = p / 10_000 ** (2 * i / 12)
            assert math.isclose(found[p, 2 * i], math.sin(angle), abs_tol=1e-12)
            assert math.isclose(found[p, 2 * i + 1], math.cos(angle), abs_tol=1e-12)


def test_an_encoding_holds_the_sines_and_cosines_of_the_rope_angles():
    positions = torch.tensor([[0, 7], [123, 9]])
    angles = rope_angles(positions, 10, base=500.0)
    found = sinusoidal_encoding(positions, 10, base=500.0, dtype=torch.float64)
    assert torch.equal(found[..., 0::2], angles.sin())
    assert torch.equal(found[..., 1::2], angles.cos())


def test_all_encodings_are_equally_long():
    norms = sinusoidal_encoding(torch.arange(1000), 32).norm(dim=-1)
    torch.testing.assert_close(norms, torch.full((1000,), 4.0))


def test_a_shift_of_the_positions_is_a_rotation_of_the_encoding():
    """The remark of Vaswani et al. 2017: PE(p + k) is a linear function of PE(p)."""
    positions = torch.arange(100)
    here = sinusoidal_encoding(positions, 8, dtype=torch.float64)
    there = sinusoidal_encoding(positions + 13, 8, dtype=torch.float64)
    # sine stands first in a pair, so the pair turns backwards
    torch.testing.assert_close(apply_rope(here, -rope_angles(torch.tensor(13), 8)), there)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_an_encoding_has_the_dtype_asked_for(dtype):
    assert sinusoidal_encoding(torch.arange(3), 4, dtype=dtype).dtype == dtype


@given(st.integers(0, 20_000_000), st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_far_positions_are_right_to_the_last_digits_of_float32(p, i):
    found = sinusoidal_encoding(torch.tensor(p), 16)[2 * i].item()
    assert abs(found - math.sin(p * 10_000 ** (-2 * i / 16))) < 2e-7


def test_in_float32_angles_of_a_million_are_off_by_hundredths():
    exact = rope_angles(torch.tensor(1_000_003), 8)
    rounded = torch.tensor(1_000_003.0) * (10_000 ** (-torch.arange(4) / 4)).float()
    off = (exact - rounded).abs().max()
    assert 0.001 < off < 0.04


# ------------------------------------------------------------------------------ learned


def test_a_learned_table_is_an_embedding_that_refuses_what_it_does_not_hold():
    table = LearnedPositions(9, 4)
    positions = torch.tensor([[8, 0, 3], [3, 3, 1]])
    assert torch.equal(table(positions), F.embedding(positions, table.weight))
    for outside in (-1, 9, 1000):
        with pytest.raises(ValueError, match=f"position {outside} .*max_length=9"):
            table(torch.tensor([1, outside, 2]))
    assert table(torch.zeros(0, dtype=torch.long)).shape == (0, 4)


def test_a_learned_table_starts_small_and_takes_dtype_and_device():
    table = LearnedPositions(400, 50, dtype=torch.float64)
    assert table.weight.dtype == torch.float64
    assert abs(table.weight.std() - 0.02) < 1e-3
    assert LearnedPositions(3, 2, device="meta").weight.is_meta


# --------------------------------------------------------------------------------- RoPE


def rotation_matrix(angles, interleaved):
    """The K by K matrix of one position, written out."""
    half = len(angles)
    matrix = torch.zeros(2 * half, 2 * half, dtype=torch.float64)
    for i, angle in enumerate(angles.tolist()):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        matrix[a, a] = matrix[b, b] = math.cos(angle)
        matrix[a, b], matrix[b, a] = -math.sin(angle), math.sin(angle)
    return matrix


@both_pairings
def test_rope_is_a_block_diagonal_rotation(interleaved):
    x, angles = draw(5, 8), rope_angles(torch.tensor([0, 1, 5, 40, 999]), 8)
    found = apply_rope(x, angles, interleaved)
    for t in range(5):
        torch.testing.assert_close(found[t], rotation_matrix(angles[t], interleaved) @ x[t])
    assert torch.equal(found[0], x[0]), "position 0 turns nothing"


@both_pairings
@given(st.integers(0, 10**6), st.integers(0, 200), st.integers(-(10**5), 10**6))
@settings(max_examples=40, deadline=None)
def test_scores_depend_on_the_distance_alone(interleaved, m, distance, shift):
    q, k = draw(1, 16, seed=1), draw(1, 16, seed=2)

    def score(m, n):
        at_m, at_n = (rope_angles(torch.tensor([p]), 16) for p in (m, n))
        return apply_rope(q, at_m, interleaved) @ apply_rope(k, at_n, interleaved).T

    one, other = score(m, m - distance), score(m + shift, m + shift - distance)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-7)


@both_pairings
def test_rope_keeps_lengths_and_is_undone_by_negative_positions(interleaved):
    x, positions = draw(2, 3, 50, 8), torch.arange(50)
    turned = apply_rope(x, rope_angles(positions, 8), interleaved)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(apply_rope(turned, rope_angles(-positions, 8), interleaved), x)


@both_pairings
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_far_positions_lose_no_more_than_the_dtype_does(interleaved, dtype):
    x, angles = draw(4, 8), rope_angles(torch.tensor([9, 131_071, 1_000_003, 9_999_999]), 8)
    found = apply_rope(x.to(dtype), angles, interleaved)
    assert found.dtype == dtype
    expected = apply_rope(x, angles, interleaved)
    assert (found.double() - expected).abs().max() < 8 * torch.finfo(dtype).eps


@both_pairings
def test_rope_gradients_agree_with_central_differences(interleaved):
    x, angles = draw(2, 3, 4).requires_grad_(), draw(3, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda *inputs: apply_rope(*inputs, interleaved), (x, angles))


def test_interpolated_positions_get_the_angles_of_earlier_ones():
    squeezed = rope_angles(torch.arange(0, 400, 4), 8, scale=4.0)
    assert torch.equal(squeezed, rope_angles(torch.arange(100), 8))


@pytest.mark.parametrize("scale", [2.0, 8.0])
def test_the_ntk_base_slows_the_slowest_pair_by_scale_and_the_fastest_not_at_all(scale):
    one = torch.tensor(1)
    ratio = rope_angles(one, 16) / rope_angles(one, 16, base=ntk_base(10_000.0, scale, 16))
    assert ratio[0] == 1 and math.isclose(ratio[-1], scale, rel_tol=1e-12)
    assert (ratio.diff() > 0).all()


# --------------------------------------------------------------------- the two pairings


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_converted_weights_give_the_scores_of_the_old_ones(n_heads, half, d_model):
    x = draw(2, 5, d_model, seed=3)
    w_q, w_k = (draw(n_heads * 2 * half, d_model, seed=s) for s in (1, 2))
    b_q, b_k = (draw(n_heads * 2 * half, seed=s) for s in (4, 5))
    angles = rope_angles(torch.arange(5), 2 * half)

    def scores(interleaved, *weights):
        w_q, b_q, w_k, b_k = weights
        q = F.linear(x, w_q, b_q).unflatten(-1, (n_heads, -1)).transpose(1, 2)
        k = F.linear(x, w_k, b_k).unflatten(-1, (n_heads, -1)).transpose(1, 2)
        return apply_rope(q, angles, interleaved) @ apply_rope(k, angles, interleaved).mT

    weights = w_q, b_q, w_k, b_k
    converted = [to_halves(w, n_heads) for w in weights]
    torch.testing.assert_close(scores(False, *converted), scores(True, *weights))
    for back, old in zip((to_interleaved(w, n_heads) for w in converted), weights):
        assert torch.equal(back, old)


def test_without_converting_the_scores_are_others():
    x, (w_q, w_k) = draw(5, 8), draw(2, 8, 8, seed=1)
    angles = rope_angles(torch.arange(5), 8)
    one, other = (apply_rope(x @ w_q, angles, i) @ apply_rope(x @ w_k, angles, i).T
                  for i in (True, False))  # fmt: skip
    assert (one - other).abs().max() > 1


@pytest.mark.parametrize("convert", [to_halves, to_interleaved])
@pytest.mark.parametrize("rows, n_heads", [(14, 4), (15, 5)])
def test_rows_that_make_no_heads_are_refused_by_name(convert, rows, n_heads):
    with pytest.raises(ValueError, match=f"{rows} rows .*n_heads={n_heads}"):
        convert(torch.zeros(rows, 3), n_heads)


# -------------------------------------------------------------------------------- ALiBi


def published_slopes(n):
    """The rule as the code published with Press et al. 2022 has it, in other words."""

    def power_of_two(n):
        start = 2 ** -(2 ** -(math.log2(n) - 3))
        return [start ** (h + 1) for h in range(n)]

    if math.log2(n).is_integer():
        return power_of_two(n)
    p = 2 ** math.floor(math.log2(n))
    return power_of_two(p) + published_slopes(2 * p)[0::2][: n - p]


@pytest.mark.parametrize("n_heads", range(1, 70))
def test_slopes_are_the_published_ones(n_heads):
    torch.testing.assert_close(alibi_slopes(n_heads), torch.tensor(published_slopes(n_heads)))
    assert len(set(alibi_slopes(n_heads).tolist())) == n_heads, "no two heads alike"


def test_slopes_of_twelve_heads_written_out():
    whole = [1 / 2**h for h in range(1, 9)]
    halves = [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    torch.testing.assert_close(alibi_slopes(12), torch.tensor(whole + halves))


def test_the_bias_falls_on_both_sides_and_takes_offsets_and_batches():
    slopes = alibi_slopes(4)
    whole = alibi_bias(torch.arange(9), torch.arange(9), slopes)
    assert torch.equal(whole, whole.mT) and (whole.diagonal(dim1=1, dim2=2) == 0).all()
    last = alibi_bias(torch.tensor([8]), torch.arange(9), slopes)
    assert torch.equal(last, whole[:, 8:])
    positions = torch.arange(9).expand(2, 9)
    assert torch.equal(alibi_bias(positions, positions, slopes), whole.expand(2, 4, 9, 9))


def test_under_a_causal_mask_the_bias_may_as_well_count_from_the_first_key():
    """As the published code does: a softmax does not see what a whole row has in common."""
    q, k, v = (draw(4, 7, 6, seed=s) for s in (1, 2, 3))
    slopes, at = alibi_slopes(4).double(), torch.arange(7)
    one, _ = biased_attention(q, k, v, alibi_bias(at, at, slopes), causal_mask(7))
    other, _ = biased_attention(q, k, v, slopes[:, None, None] * at, causal_mask(7))
    torch.testing.assert_close(one, other)


# ------------------------------------------------------------------------------ one API


def test_attention_with_a_bias_is_torchs():
    q, k, v = draw(2, 3, 5, 8, seed=1), draw(2, 3, 7, 8, seed=2), draw(2, 3, 7, 4, seed=3)
    bias, mask = draw(3, 5, 7, seed=4), causal_mask(5, 7)
    added = bias.masked_fill(~mask, -torch.inf)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=added)
    output, weights = biased_attention(q, k, v, bias, mask)
    torch.testing.assert_close(output, expected)
    assert (weights.masked_select(~mask) == 0).all()
    for found, plain in zip(biased_attention(q, k, v, None, mask), masked_attention(q, k, v, mask)):
        assert torch.equal(found, plain)


def attend(scheme, x, start=0, kept=None):
    """One layer of three heads of width 8 with identity weights, causal, from a position on."""
    positions = torch.arange(start, start + x.shape[-2])
    x = scheme.embed(x, positions)
    heads = x.unflatten(-1, (3, 8)).transpose(-3, -2)  # (*batch, H, T, K)
    k, v = scheme.rotate(heads, positions), heads
    if kept:
        k, v = torch.cat([kept[0], k], -2), torch.cat([kept[1], v], -2)
    total = k.shape[-2]
    bias = scheme.bias(positions, torch.arange(start + x.shape[-2] - total, positions[-1] + 1))
    mask = causal_mask(len(positions), total)
    output, _ = biased_attention(scheme.rotate(heads, positions), k, v, bias, mask)
    return output.transpose(-3, -2).flatten(-2), (k, v)


@pytest.mark.parametrize("name", SCHEMES)
def test_any_scheme_goes_on_from_a_cache_as_if_it_had_read_all_at_once(name):
    scheme, x = named(name), draw(2, 9, 24)
    whole, _ = attend(scheme, x)
    first, kept = attend(scheme, x[:, :5])
    second, kept = attend(scheme, x[:, 5:6], 5, kept)
    third, _ = attend(scheme, x[:, 6:], 6, kept)
    torch.testing.assert_close(torch.cat([first, second, third], 1), whole)


@pytest.mark.parametrize("name", SCHEMES)
def test_relative_schemes_do_not_see_where_a_text_starts_and_absolute_ones_do(name):
    scheme, x = named(name), draw(2, 9, 24)
    with torch.no_grad():
        here, there = attend(scheme, x)[0], attend(scheme, x, start=20)[0]
    unchanged = torch.allclose(here, there, atol=1e-9)
    assert unchanged == (name in ("none", "rope", "alibi"))


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_that_tells_order_gives_a_shuffled_past_another_output(name):
    scheme, x = named(name), draw(9, 24)
    shuffled = torch.cat([x[:8].flip(0), x[8:]])
    with torch.no_grad():
        same = torch.allclose(attend(scheme, x)[0][8], attend(scheme, shuffled)[0][8], atol=1e-6)
    assert same == (name == "none")


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_scheme_keeps_the_dtype_of_a_model(name, dtype):
    scheme, x = named(name), draw(2, 9, 24, dtype=dtype)
    assert attend(scheme, x)[0].dtype == dtype


def test_only_the_learned_table_has_parameters_and_a_place_in_checkpoints():
    for name in SCHEMES:
        keys = list(named(name).state_dict())
        assert keys == (["encoding.weight"] if name == "learned" else [])
    assert isinstance(named("none"), Positions) and isinstance(named("rope"), RotaryPositions)
    assert isinstance(named("alibi"), AlibiPositions) and isinstance(
        named("learned"), AddedPositions
    )
    with pytest.raises(ValueError, match="'xpos'.*alibi"):
        named("xpos")


def test_positions_of_a_batch_may_differ_from_text_to_text():
    """Padded at the front, each text starts elsewhere."""
    x, positions = draw(2, 3, 5, 8), torch.tensor([[0, 1, 2, 3, 4], [0, 0, 0, 1, 2]])
    found = RotaryPositions(8).rotate(x, positions[:, None])  # (B, 1, T) for (B, H, T, K)
    for b in range(2):
        assert torch.equal(found[b], RotaryPositions(8).rotate(x[b], positions[b]))
