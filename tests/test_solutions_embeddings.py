"""The library of chapter 03 against torch's own, and what its docstrings promise."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from solutions.embeddings import (
    Embedding,
    TiedHead,
    cooccurrence,
    cosine_similarity,
    count_parameters,
    gpt2_parameters,
    lookup_gradient,
    nearest,
    ppmi,
)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ------------------------------------------------------------------------------ Embedding


@pytest.mark.parametrize("shape", [(), (4,), (2, 5), (2, 3, 4), (2, 0)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_a_lookup_is_that_of_torch(shape, dtype):
    table = Embedding(7, 3, dtype=torch.float64)
    ids = torch.randint(0, 7, shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = table(ids)
    assert found.shape == (*shape, 3) and found.dtype == torch.float64
    assert torch.equal(found, F.embedding(ids, table.weight))


def test_a_lookup_is_the_product_with_one_hot_rows_in_value_and_gradient():
    ids = torch.tensor([[3, 0, 3], [6, 3, 1]])
    weight, grad = draw(7, 4).requires_grad_(), draw(2, 3, 4, seed=1)
    product = F.one_hot(ids, 7).double() @ weight
    (expected,) = torch.autograd.grad(product, weight, grad)
    table = Embedding(7, 4, dtype=torch.float64)
    table.load_state_dict({"weight": weight.detach()})
    found = table(ids)
    assert torch.equal(found, product)
    found.backward(grad)
    torch.testing.assert_close(table.weight.grad, expected)


@pytest.mark.parametrize("padding_idx", [0, 2, 6])
def test_padding_is_that_of_torch_as_long_as_its_row_is_zero(padding_idx):
    ours, theirs = Embedding(7, 3, padding_idx), nn.Embedding(7, 3, padding_idx=padding_idx)
    theirs.load_state_dict(ours.state_dict())
    ids, grad = torch.arange(7).repeat(2), draw(14, 3, dtype=torch.float32)
    for module in (ours, theirs):
        module(ids).backward(grad)
    assert torch.equal(ours(ids), theirs(ids))
    assert torch.equal(ours.weight.grad, theirs.weight.grad)
    assert (ours.weight.grad[padding_idx] == 0).all()


def test_padding_is_zero_whatever_the_head_has_made_of_its_row():
    table = Embedding(5, 3, padding_idx=1)
    F.cross_entropy(
        TiedHead(table)(draw(2, 3, dtype=torch.float32)), torch.tensor([0, 4])
    ).backward()
    assert (table.weight.grad[1] != 0).any(), "the head teaches the row of padding as well"
    table.weight.data -= table.weight.grad
    assert (table(torch.tensor([1, 2, 1]))[[0, 2]] == 0).all()


@pytest.mark.parametrize("std", [None, 0.3])
def test_the_table_starts_with_the_standard_deviation_asked_for(std):
    torch.manual_seed(0)
    weight = (Embedding(1000, 64) if std is None else Embedding(1000, 64, std=std)).weight
    assert weight.std().item() == pytest.approx(std or 0.02, rel=0.02)
    assert abs(weight.mean().item()) < 0.02 * (std or 0.02)
    assert weight.requires_grad


@pytest.mark.parametrize("wrong", [7, 23, -1, -7, -100])
def test_an_id_outside_the_table_is_refused_by_name(wrong):
    with pytest.raises(IndexError, match=rf"id {wrong}, expected 0 to 6"):
        Embedding(7, 3)(torch.tensor([[0, 6], [wrong, 2]]))


def test_a_table_is_made_on_the_device_and_of_the_dtype_asked_for():
    table = Embedding(4, 3, 1, device="meta", dtype=torch.float16)
    assert table.weight.device.type == "meta" and table.weight.dtype == torch.float16


# ------------------------------------------------------------------------ lookup_gradient


@settings(max_examples=40, deadline=None)
@given(ids=st.lists(st.integers(0, 5), max_size=12), width=st.integers(1, 4))
def test_the_way_back_is_autograds(ids, width):
    ids = torch.tensor(ids, dtype=torch.int64)
    weight, grad = draw(6, width).requires_grad_(), draw(len(ids), width, seed=1)
    (expected,) = torch.autograd.grad(F.embedding(ids, weight), weight, grad)
    torch.testing.assert_close(lookup_gradient(grad, ids, 6), expected)


@pytest.mark.parametrize("shape", [(), (3, 4), (2, 3, 2)])
def test_the_way_back_takes_ids_of_any_shape(shape):
    ids = torch.randint(0, 5, shape, generator=torch.Generator().manual_seed(1))
    weight, grad = draw(5, 3).requires_grad_(), draw(*shape, 3, seed=1)
    (expected,) = torch.autograd.grad(F.embedding(ids, weight), weight, grad)
    torch.testing.assert_close(lookup_gradient(grad, ids, 5), expected)


# -------------------------------------------------------------- similarity and neighbours


@pytest.mark.parametrize("leading", [(), (2,), (3, 2)])
def test_cosine_similarity_is_torchs_for_each_pair(leading):
    a, b = draw(*leading, 4, 3), draw(*leading, 5, 3, seed=1)
    expected = F.cosine_similarity(a.unsqueeze(-2), b.unsqueeze(-3), dim=-1)
    torch.testing.assert_close(cosine_similarity(a, b), expected)


@settings(max_examples=30, deadline=None)
@given(power=st.integers(-6, 6), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_lengths_make_no_difference_to_the_cosine(power, dtype):
    a, b = draw(4, 3, dtype=dtype), draw(5, 3, seed=1, dtype=dtype)
    found = cosine_similarity(a * 10.0**power, b)
    torch.testing.assert_close(found, cosine_similarity(a, b))


def test_a_rotation_of_the_table_leaves_every_similarity_as_it_is():
    table = draw(6, 4)
    rotation, _ = torch.linalg.qr(draw(4, 4, seed=1))
    torch.testing.assert_close(
        cosine_similarity(table @ rotation, table @ rotation), cosine_similarity(table, table)
    )


def test_zeros_are_similar_to_nothing_and_send_back_a_finite_gradient():
    a, b = draw(3, 4), draw(2, 4, seed=1)
    a[1] = 0
    a.requires_grad_()
    found = cosine_similarity(a, b)
    assert (found[1] == 0).all()
    found.sum().backward()
    assert a.grad.isfinite().all()


def test_the_gradient_of_the_cosine_agrees_with_central_differences():
    a, b = draw(3, 4).requires_grad_(), draw(2, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(cosine_similarity, (a, b))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), k=st.integers(1, 6))
def test_the_nearest_are_those_that_sorting_by_hand_gives(seed, k):
    query, table = draw(2, 3, seed=seed), draw(8, 3, seed=seed + 1)
    exclude = torch.randperm(8, generator=torch.Generator().manual_seed(seed))[:4].reshape(2, 2)
    ids, similarity = nearest(query, table, k, exclude)
    for q in range(2):
        row = F.cosine_similarity(query[q], table, dim=-1)
        order = [i for i in row.argsort(descending=True).tolist() if i not in exclude[q].tolist()]
        assert ids[q].tolist() == order[:k]
        torch.testing.assert_close(similarity[q], row[order[:k]])


def test_more_neighbours_than_are_left_are_refused_by_name():
    with pytest.raises(ValueError, match="k=6 is more than the 5 rows"):
        nearest(draw(1, 3), draw(7, 3), 6, exclude=torch.tensor([[0, 4]]))


# --------------------------------------------------------------------------- cooccurrence


def test_cooccurrence_counts_what_loops_count():
    ids = torch.tensor([0, 2, -1, 1, 0, 0, 2, -1, -1, 1, 2])
    expected = torch.zeros(3, 3)
    for i, one in enumerate(ids.tolist()):
        for j, other in enumerate(ids.tolist()):
            if 0 < abs(i - j) <= 2 and one >= 0 and other >= 0:
                expected[one, other] += 1
    assert torch.equal(cooccurrence(ids, 3, 2), expected)


def test_words_that_meet_as_often_as_chance_has_it_share_no_information():
    share = torch.tensor([0.5, 0.3, 0.2])
    torch.testing.assert_close(
        ppmi(1000 * share[:, None] * share), torch.zeros(3, 3), atol=1e-6, rtol=0
    )


def test_ppmi_is_the_positive_part_of_the_logarithm_of_the_ratio():
    counts = torch.tensor([[0.0, 6.0, 1.0], [6.0, 2.0, 0.0], [1.0, 0.0, 4.0]])
    p = counts / counts.sum()
    ratio = (p / (p.sum(1, keepdim=True) * p.sum(0, keepdim=True))).log()
    torch.testing.assert_close(ppmi(counts), ratio.clamp(min=0))


# ---------------------------------------------------------------- tied heads and counting


@pytest.mark.parametrize("module", [Embedding(7, 4), nn.Embedding(7, 4), nn.Linear(4, 7)])
def test_a_tied_head_is_a_linear_map_with_the_weight_of_the_module(module):
    x = draw(2, 3, 4, dtype=torch.float32)
    torch.testing.assert_close(TiedHead(module)(x), F.linear(x, module.weight))


def tied():
    embedding = Embedding(7, 4)
    return nn.Sequential(embedding, nn.Linear(4, 4), TiedHead(embedding))


def step(model):
    loss = F.cross_entropy(model(torch.tensor([1, 5])), torch.tensor([2, 2]))
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model,
        copy.deepcopy,
        lambda model: model.double(),
        lambda model: (model.load_state_dict(tied().state_dict(), assign=True), model)[1],
    ],
    ids=["as it is", "copied", "in another dtype", "with weights assigned"],
)
def test_the_tie_holds(change):
    model = change(tied())
    step(model)
    assert model[0].weight is model[2].embedding.weight
    assert count_parameters(model) == 7 * 4 + 4 * 4 + 4


def test_the_gradient_of_a_tied_table_is_the_sum_of_both_ends():
    weight, ids, grad = draw(6, 3), torch.tensor([1, 4, 1]), draw(3, 6, seed=1)
    embedding = Embedding(6, 3, dtype=torch.float64)
    embedding.weight.data = weight.clone()
    TiedHead(embedding)(embedding(ids)).backward(grad)
    way_in = lookup_gradient(grad @ weight, ids, 6)
    way_out = grad.T @ weight[ids]
    torch.testing.assert_close(embedding.weight.grad, way_in + way_out)


def test_shared_and_frozen_parameters_count_once_and_buffers_never():
    layer = nn.Linear(3, 5)
    assert count_parameters(nn.Sequential(layer, nn.ReLU(), layer)) == 20
    assert count_parameters(layer.requires_grad_(False)) == 20
    assert count_parameters(nn.BatchNorm1d(4)) == 8
    assert count_parameters(nn.Identity()) == 0


@pytest.mark.parametrize(
    "n_layers, d_model, expected",
    [
        (12, 768, 124_439_808),
        (24, 1024, 354_823_168),
        (36, 1280, 774_030_080),
        (48, 1600, 1_557_611_200),
    ],
)
def test_gpt2_has_as_many_parameters_as_its_parts(n_layers, d_model, expected):
    with torch.device("meta"):
        tokens, positions = nn.Embedding(50_257, d_model), nn.Embedding(1024, d_model)
        layers = [nn.TransformerEncoderLayer(d_model, 4, 4 * d_model) for _ in range(n_layers)]
        head = nn.Linear(d_model, 50_257, bias=False)
        model = nn.ModuleList([tokens, positions, *layers, nn.LayerNorm(d_model), head])
    assert gpt2_parameters(n_layers, d_model, tied=False) == count_parameters(model)
    head.weight = tokens.weight
    assert gpt2_parameters(n_layers, d_model) == count_parameters(model) == expected
