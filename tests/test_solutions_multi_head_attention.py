"""The reference of chapter 06 against PyTorch's own, and what its docstrings promise."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from solutions.masking import causal_mask, masked_attention, padding_mask
from solutions.multi_head_attention import (
    MultiHeadAttention,
    head_contributions,
    merge_heads,
    split_heads,
    state_from_torch,
)
from solutions.self_attention import SelfAttention


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def pair(d_model=12, n_heads=3, bias=True):
    """PyTorch's layer, with biases that count, and ours with its weights."""
    torch.manual_seed(0)
    options = {"batch_first": True, "dtype": torch.float64}
    theirs = nn.MultiheadAttention(d_model, n_heads, bias=bias, **options)
    if bias:
        nn.init.normal_(theirs.in_proj_bias)
        nn.init.normal_(theirs.out_proj.bias)
    ours = MultiHeadAttention(d_model, n_heads, bias=bias, dtype=torch.float64)
    ours.load_state_dict(state_from_torch(theirs.state_dict()))
    return ours, theirs


def forbidden(mask, batch=2, n_heads=3, t=5, s=7):
    """A mask of this course as PyTorch's layer wants it."""
    return ~mask.expand(batch, n_heads, t, s).flatten(0, 1)


# --------------------------------------------------------------------- split and merge

sizes = st.integers(1, 5)


@settings(max_examples=50, deadline=None)
@given(st.lists(sizes, max_size=3), sizes, sizes, sizes)
def test_number_i_of_head_h_is_feature_h_times_K_plus_i_and_merging_undoes_it(batch, t, h, k):
    x = draw(*batch, t, h * k)
    heads = split_heads(x, h)
    assert heads.shape == (*batch, h, t, k)
    for head in range(h):
        assert torch.equal(heads[..., head, :, :], x[..., head * k : (head + 1) * k])
    assert torch.equal(merge_heads(heads), x)
    assert torch.equal(merge_heads(heads.contiguous()), x)


@settings(max_examples=50, deadline=None)
@given(st.lists(sizes, max_size=3), sizes, sizes, sizes)
def test_splitting_undoes_merging(batch, t, h, k):
    heads = draw(*batch, h, t, k)
    assert torch.equal(split_heads(merge_heads(heads), h), heads)


def test_splitting_copies_nothing():
    x = draw(2, 5, 12)
    assert split_heads(x, 3).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("view", [draw(2, 6, 5).mT, draw(2, 5, 9)[..., 1:7], draw(4, 5, 6)[::2]])
def test_views_are_split_by_their_features_whatever_lies_in_memory(view):
    assert torch.equal(split_heads(view, 3), split_heads(view.contiguous(), 3))
    assert torch.equal(merge_heads(split_heads(view, 3)), view)


@pytest.mark.parametrize("width, n_heads", [(10, 4), (3, 5), (7, 2)])
def test_a_width_that_cannot_be_cut_is_refused_by_name(width, n_heads):
    with pytest.raises(ValueError, match=rf"width {width} .*n_heads={n_heads}"):
        split_heads(draw(2, 3, width), n_heads)
    with pytest.raises(ValueError, match=rf"d_model={width} .*n_heads={n_heads}"):
        MultiHeadAttention(width, n_heads)


def test_a_reshape_alone_gives_the_same_shape_and_other_heads():
    x = draw(2, 6, 12)
    wrong = x.reshape(2, 3, 6, 4)
    assert wrong.shape == split_heads(x, 3).shape and not torch.equal(wrong, split_heads(x, 3))
    assert torch.equal(wrong[:, 0].flatten(1), x[:, :2].flatten(1)), "two whole tokens"


# ------------------------------------------------------------------------- the layer

MASKS = {
    "none": None,
    "causal": causal_mask(5, 7),
    "padding": padding_mask(torch.tensor([4, 7]), 7).unsqueeze(1),
    "both": causal_mask(5, 7) & padding_mask(torch.tensor([3, 6]), 7).unsqueeze(1),
    "of each head": torch.rand(3, 5, 7, generator=generator(7)) < 0.8,
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_the_layer_is_torchs_in_outputs_weights_and_gradients(mask, bias):
    ours, theirs = pair(bias=bias)
    inputs = [draw(2, 5, 12, seed=1), draw(2, 7, 12, seed=2)]
    found = [x.clone().requires_grad_() for x in inputs]
    expected = [x.clone().requires_grad_() for x in inputs]
    output, weights = ours(*found, mask)
    torchs_mask = None if mask is None else forbidden(mask)
    torchs_output, torchs_weights = theirs(
        expected[0], expected[1], expected[1], attn_mask=torchs_mask, average_attn_weights=False
    )
    torch.testing.assert_close(output, torchs_output)
    torch.testing.assert_close(weights, torchs_weights)
    for one, two in ((output, weights), (torchs_output, torchs_weights)):
        (one.square().sum() + two.square().sum()).backward()
    for f, e in zip(found, expected):
        torch.testing.assert_close(f.grad, e.grad)
    maps = (ours.query, ours.key, ours.value)
    torch.testing.assert_close(torch.cat([m.weight.grad for m in maps]), theirs.in_proj_weight.grad)
    torch.testing.assert_close(ours.output.weight.grad, theirs.out_proj.weight.grad)
    if bias:
        torch.testing.assert_close(torch.cat([m.bias.grad for m in maps]), theirs.in_proj_bias.grad)
        torch.testing.assert_close(ours.output.bias.grad, theirs.out_proj.bias.grad)


def test_self_attention_is_torchs():
    ours, theirs = pair()
    x = draw(2, 5, 12)
    torch.testing.assert_close(ours(x)[0], theirs(x, x, x)[0])
    torch.testing.assert_close(ours(x)[1].mean(-3), theirs(x, x, x)[1])


@pytest.mark.parametrize("n_heads", [1, 2, 6, 12])
def test_the_layer_is_torchs_fused_attention_between_four_maps(n_heads):
    layer, x = MultiHeadAttention(12, n_heads, dtype=torch.float64), draw(2, 5, 12)
    q, k, v = (split_heads(m(x), n_heads) for m in (layer.query, layer.key, layer.value))
    mask = causal_mask(5)
    expected = layer.output(merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)))
    torch.testing.assert_close(layer(x, mask=mask)[0], expected)


def test_with_one_head_it_is_the_layer_of_chapter_04_and_a_map():
    layer = MultiHeadAttention(6, 1, bias=False, dtype=torch.float64)
    single = SelfAttention(6, 6, dtype=torch.float64)
    single.load_state_dict({k: v for k, v in layer.state_dict().items() if "output" not in k})
    x = draw(2, 5, 6)
    torch.testing.assert_close(layer(x)[0], layer.output(single(x)))


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_leading_axes_are_taken_along(leading):
    layer = MultiHeadAttention(8, 2, dtype=torch.float64)
    x, source = draw(*leading, 4, 8, seed=1), draw(*leading, 6, 8, seed=2)
    output, weights = layer(x, source)
    assert output.shape == (*leading, 4, 8) and weights.shape == (*leading, 2, 4, 6)
    one, _ = layer(x.reshape(-1, 4, 8)[-1], source.reshape(-1, 6, 8)[-1])
    torch.testing.assert_close(output.reshape(-1, 4, 8)[-1], one)


def test_heads_have_no_order():
    layer, x = MultiHeadAttention(12, 3, dtype=torch.float64), draw(2, 5, 12)
    before, before_weights = layer(x)
    order = torch.tensor([2, 0, 1])
    rows = torch.arange(12).view(3, 4)[order].flatten()
    with torch.no_grad():
        for m in (layer.query, layer.key, layer.value):
            m.weight.copy_(m.weight[rows])
            m.bias.copy_(m.bias[rows])
        layer.output.weight.copy_(layer.output.weight[:, rows])
    after, weights = layer(x)
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(weights, before_weights[:, order])


def test_the_number_of_heads_changes_no_parameter():
    shapes = [
        {name: p.shape for name, p in MultiHeadAttention(24, h, device="meta").named_parameters()}
        for h in (1, 4, 24)
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    assert sum(s.numel() for s in shapes[0].values()) == 4 * 24 * 24 + 4 * 24


def test_later_tokens_do_not_change_earlier_outputs_under_a_causal_mask():
    layer, x = MultiHeadAttention(12, 4, dtype=torch.float64), draw(2, 6, 12)
    before, _ = layer(x, mask=causal_mask(6))
    x[:, 4:] += 1
    after, _ = layer(x, mask=causal_mask(6))
    assert torch.equal(before[:, :4], after[:, :4]) and not torch.equal(before[:, 4:], after[:, 4:])


def test_a_token_with_nothing_to_see_gets_the_bias_and_no_nan():
    layer, x = MultiHeadAttention(12, 3, dtype=torch.float64), draw(2, 5, 12).requires_grad_()
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[2] = False
    with torch.autograd.set_detect_anomaly(True):
        output, weights = layer(x, mask=mask)
        (output.square().sum() + weights.square().sum()).backward()
    torch.testing.assert_close(output[:, 2], layer.output.bias.expand(2, 12))
    assert (weights[:, :, 2] == 0).all()


def test_wrong_widths_are_refused_by_name():
    layer = MultiHeadAttention(12, 3)
    with pytest.raises(ValueError, match="x has width 17, expected d_model=12"):
        layer(torch.zeros(2, 5, 17))
    with pytest.raises(ValueError, match="source has width 9, expected d_model=12"):
        layer(torch.zeros(2, 5, 12), torch.zeros(2, 5, 9))


def test_parameters_are_made_where_and_as_asked():
    layer = MultiHeadAttention(8, 2, device="meta", dtype=torch.float16)
    assert all(p.device.type == "meta" and p.dtype == torch.float16 for p in layer.parameters())
    assert (layer.n_heads, layer.d_head) == (2, 4)


# ----------------------------------------------------------------------- contributions


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
@pytest.mark.parametrize("width", [12, 7])
def test_contributions_sum_to_the_output_without_its_bias(leading, width):
    heads, weight = draw(*leading, 3, 5, 4, seed=1), draw(width, 12, seed=2)
    found = head_contributions(heads, weight)
    assert found.shape == (*leading, 3, 5, width)
    torch.testing.assert_close(found.sum(-3), F.linear(merge_heads(heads), weight))


def test_a_contribution_is_what_the_layer_gives_with_the_other_heads_silenced():
    layer, x = MultiHeadAttention(12, 3, bias=False, dtype=torch.float64), draw(2, 5, 12)
    q, k, v = (split_heads(m(x), 3) for m in (layer.query, layer.key, layer.value))
    found = head_contributions(masked_attention(q, k, v)[0], layer.output.weight)
    for h in range(3):
        silenced = MultiHeadAttention(12, 3, bias=False, dtype=torch.float64)
        silenced.load_state_dict(layer.state_dict())
        with torch.no_grad():
            others = torch.arange(12) // 4 != h
            silenced.value.weight[others] = 0
        torch.testing.assert_close(found[:, h], silenced(x)[0])
