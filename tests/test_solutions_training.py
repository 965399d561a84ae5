"""The reference of chapter 12 against PyTorch's own, and what its docstrings promise."""

import copy
import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from solutions.training import (
    AdamW,
    clip_grad_norm,
    cosine_schedule,
    cross_entropy,
    get_batch,
    perplexity,
    restore,
    snapshot,
    train,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


# -------------------------------------------------------------------------- cross-entropy


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("ignore_index", [-100, 0, 3])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_cross_entropy_and_its_gradient_are_torchs(shape, ignore_index, scale):
    targets = torch.randint(0, 5, shape[:-1], generator=generator(1))
    targets.view(-1)[::3] = ignore_index
    ours, theirs = (scale * draw(*shape) for _ in "ab")
    for logits in (ours, theirs):
        logits.requires_grad_()
    found = cross_entropy(ours, targets, ignore_index)
    expected = F.cross_entropy(theirs.flatten(0, -2), targets.flatten(), ignore_index=ignore_index)
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert (ours.grad[targets == ignore_index] == 0).all()


@settings(max_examples=60, deadline=None)
@given(shift=st.floats(-1e6, 1e6), seed=st.integers(0, 1000))
def test_adding_a_number_to_all_logits_of_a_row_changes_nothing(shift, seed):
    logits, targets = draw(4, 6, seed=seed), torch.tensor([0, 3, 5, 2])
    torch.testing.assert_close(
        cross_entropy(logits + shift, targets), cross_entropy(logits, targets), atol=1e-8, rtol=1e-7
    )


def test_equal_logits_cost_the_log_of_the_vocabulary():
    found = cross_entropy(torch.full((3, 50), 7.0), torch.tensor([0, 9, 49]))
    assert found.item() == pytest.approx(math.log(50))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_loss_keeps_the_dtype_and_stays_finite(dtype):
    logits = (1000 * draw(8, 5)).to(dtype)
    found = cross_entropy(logits, torch.arange(8) % 5)
    expected = F.cross_entropy(logits.double(), torch.arange(8) % 5)
    assert found.dtype == dtype and found.isfinite()
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.01)


def test_the_loss_is_the_entropy_if_the_model_is_the_language():
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    targets = torch.arange(3).repeat_interleave(torch.tensor([6, 3, 1]))
    found = cross_entropy(p.log().expand(10, 3), targets)
    torch.testing.assert_close(found, -(p * p.log()).sum())


# ----------------------------------------------------------------------------- perplexity


def test_perplexity_of_parts_is_that_of_the_whole():
    logits, targets = draw(20, 7), torch.randint(0, 7, (20,), generator=generator())
    sizes = torch.tensor([3, 0, 12, 5])
    losses = [cross_entropy(x, y) for x, y in zip(logits.split(sizes.tolist()), targets.split(sizes.tolist())) if len(y)]  # fmt: skip  # noqa: E501
    losses.insert(1, torch.tensor(math.nan, dtype=torch.float64))
    found = perplexity(torch.stack(losses), sizes)
    torch.testing.assert_close(found, cross_entropy(logits, targets).exp())


def test_a_model_that_cannot_choose_has_the_vocabulary_for_its_perplexity():
    loss = cross_entropy(torch.zeros(4, 9), torch.arange(4))
    assert perplexity(loss[None], torch.tensor([4])).item() == pytest.approx(9, rel=1e-5)


# ------------------------------------------------------------------------------ get_batch


@settings(max_examples=50, deadline=None)
@given(
    n=st.integers(3, 60),
    length=st.integers(1, 20),
    batch=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_rows_are_windows_and_targets_the_tokens_after_them(n, length, batch, seed):
    n = max(n, length + 1)
    tokens = torch.arange(n) + 10
    inputs, targets = get_batch(tokens, batch, length, generator(seed))
    assert inputs.shape == targets.shape == (batch, length)
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(length))
    assert inputs.min() >= 10 and targets.max() <= n + 9


def test_every_window_comes_equally_often():
    inputs, _ = get_batch(torch.arange(14), 8000, 4, generator())
    counts = torch.bincount(inputs[:, 0], minlength=10)
    assert len(counts) == 10 and ((counts - 800).abs() < 5 * 800**0.5).all()


def test_windows_start_where_they_may_and_have_room_for():
    starts = torch.tensor([2, 5, 8, 11, 19])
    inputs, _ = get_batch(torch.arange(16), 500, 6, generator(), starts)
    assert set(inputs[:, 0].tolist()) == {2, 5, 8}


def test_a_batch_depends_on_the_state_of_the_generator_alone():
    tokens, one, other = torch.arange(100), generator(3), generator(3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for _ in range(3):
        first, second = get_batch(tokens, 4, 5, one), get_batch(tokens, 4, 5, other)
        assert torch.equal(first[0], second[0])
    assert torch.equal(before, torch.get_rng_state())


# ---------------------------------------------------------------------------------- AdamW


def models(seed=0):
    """The same small model twice, with a parameter that never gets a gradient."""
    torch.manual_seed(seed)
    one = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    one.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    return one, copy.deepcopy(one)


def gradients(model, step):
    model.zero_grad()
    model(draw(5, 4, seed=step)).square().sum().mul(1 + step % 3).backward()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": 0.1, "weight_decay": 0.5},
        {"lr": 0.05, "betas": (0.5, 0.7), "eps": 0.1},
        {"lr": 0.02, "weight_decay": 0.0, "betas": (0.0, 0.99)},
    ],
)
def test_adamw_is_torchs_step_by_step(options):
    ours, theirs = models()
    found = AdamW(ours.parameters(), **options)
    expected = torch.optim.AdamW(theirs.parameters(), **({"weight_decay": 0.01} | options))
    for step in range(12):
        for model, optimizer in ((ours, found), (theirs, expected)):
            gradients(model, step)
            optimizer.param_groups[0]["lr"] *= 0.9
            optimizer.step()
        for p, q in zip(ours.parameters(), theirs.parameters()):
            torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-13)


def test_groups_have_options_of_their_own_as_in_torch():
    ours, theirs = models()

    def groups(model):
        return [
            {"params": model[0].parameters(), "lr": 0.2, "weight_decay": 0.3},
            {"params": model[2].parameters(), "betas": (0.1, 0.2)},
        ]

    found, expected = AdamW(groups(ours)), torch.optim.AdamW(groups(theirs))
    for step in range(4):
        for model, optimizer in ((ours, found), (theirs, expected)):
            gradients(model, step)
            optimizer.step()
    for p, q in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-13)


def test_a_state_that_torchs_adamw_saved_can_be_gone_on_with():
    ours, theirs = models()
    expected = torch.optim.AdamW(theirs.parameters(), lr=0.1)
    for step in range(3):
        gradients(theirs, step)
        expected.step()
    ours.load_state_dict(theirs.state_dict())
    found = AdamW(ours.parameters())
    found.load_state_dict(copy.deepcopy(expected.state_dict()))
    for step in range(3, 6):
        for model, optimizer in ((ours, found), (theirs, expected)):
            gradients(model, step)
            optimizer.step()
    for p, q in zip(ours.parameters(), theirs.parameters()):
        # torch counts its steps in float32, and so are the powers of the betas made from it
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_without_decay_it_is_adam():
    ours, theirs = models()
    found = AdamW(ours.parameters(), lr=0.1, weight_decay=0.0)
    expected = torch.optim.Adam(theirs.parameters(), lr=0.1)
    for step in range(5):
        for model, optimizer in ((ours, found), (theirs, expected)):
            gradients(model, step)
            optimizer.step()
    for p, q in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-13)


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-4, 1e6), st.floats(1e-4, 1.0))
def test_the_first_step_is_the_learning_rate_whatever_the_gradient(size, lr):
    p = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    p.grad = torch.tensor([size, -size], dtype=torch.float64)
    AdamW([p], lr=lr, weight_decay=0.0).step()
    torch.testing.assert_close(p.detach(), torch.tensor([-lr, lr]).double(), rtol=1e-3, atol=0)


def test_scaling_all_gradients_changes_nothing_but_eps():
    ends = []
    for scale in (1.0, 1000.0):
        p = torch.ones(3, dtype=torch.float64, requires_grad=True)
        optimizer = AdamW([p], lr=0.1, eps=0.0)
        for step in range(5):
            p.grad = scale * draw(3, seed=step)
            optimizer.step()
        ends.append(p.detach().clone())
    torch.testing.assert_close(*ends)


# --------------------------------------------------------------------- schedule, clipping


def test_the_schedule_rises_to_the_peak_and_falls_to_the_minimum():
    options = {"peak": 0.5, "warmup": 10, "total": 60, "minimum": 0.05}
    rates = [cosine_schedule(s, **options) for s in range(80)]
    assert rates[0] == pytest.approx(0.5 / 11) and rates[10] == 0.5 == max(rates)
    steps = [b - a for a, b in zip(rates[:10], rates[1:11])]
    assert steps == pytest.approx([0.5 / 11] * 10)
    assert all(a > b for a, b in zip(rates[10:60], rates[11:61]))
    assert rates[60:] == pytest.approx([0.05] * 20)
    assert rates[35] == pytest.approx((0.5 + 0.05) / 2)  # half-way in time is half-way down


def test_the_fall_is_that_of_torchs_cosine_annealing():
    p = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([p], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.03)
    for step in range(20):
        found = cosine_schedule(step, peak=0.3, warmup=0, total=20, minimum=0.03)
        assert found == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("max_norm", [0.01, 1.0, 1e6])
def test_clipping_is_torchs(max_norm):
    ours, theirs = models()
    gradients(ours, 1)
    gradients(theirs, 1)
    found = clip_grad_norm(ours.parameters(), max_norm)
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
    torch.testing.assert_close(found, expected)
    for p, q in zip(ours.parameters(), theirs.parameters()):
        if q.grad is None:
            assert p.grad is None
        else:  # torch adds 1e-6 to the length
            torch.testing.assert_close(p.grad, q.grad, rtol=2e-6, atol=1e-9)


def test_a_clipped_gradient_points_where_it_did():
    p = torch.zeros(6, requires_grad=True)
    p.grad = draw(6, dtype=torch.float32)
    before = p.grad.clone()
    clip_grad_norm([p], 0.5)
    assert F.cosine_similarity(p.grad, before, dim=0).item() == pytest.approx(1, abs=1e-6)
    assert p.grad.norm().item() == pytest.approx(0.5, rel=1e-5)


def test_without_gradients_the_length_is_zero():
    assert clip_grad_norm([torch.ones(2, requires_grad=True)], 1.0) == 0


# ------------------------------------------------------------------------ train, snapshots


class Table(nn.Module):
    """Logits of the next token by the token before, with dropout."""

    def __init__(self, vocab=6, dropout=0.0):
        super().__init__()
        self.logits = nn.Embedding(vocab, vocab)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens):
        return self.drop(self.logits(tokens))


def batches(draw):
    tokens = torch.randint(6, (500,), generator=generator(7))
    return lambda: get_batch(tokens, 4, 8, draw)


def test_training_is_the_loop_written_with_torchs_own_parts():
    torch.manual_seed(0)
    ours = Table()
    theirs = copy.deepcopy(ours)
    schedule = lambda s: cosine_schedule(s, peak=0.1, warmup=3, total=20)  # noqa: E731
    history = train(
        ours, batches(generator(1)), AdamW(ours.parameters()), schedule, range(20), max_norm=0.1
    )
    optimizer = torch.optim.AdamW(theirs.parameters())
    batch, losses, norms = batches(generator(1)), [], []
    for step in range(20):
        optimizer.param_groups[0]["lr"] = schedule(step)
        inputs, targets = batch()
        loss = F.cross_entropy(theirs(inputs).mT, targets)
        optimizer.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(theirs.parameters(), 0.1).item())
        optimizer.step()
        losses.append(loss.item())
    assert history["loss"] == pytest.approx(losses, rel=1e-5)
    assert history["norm"] == pytest.approx(norms, rel=1e-4)
    assert history["rate"] == [schedule(s) for s in range(20)]
    torch.testing.assert_close(ours.logits.weight, theirs.logits.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [AdamW, torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("at", [0, 7])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(make, at):
    schedule = lambda s: cosine_schedule(s, peak=0.3, warmup=5, total=20)  # noqa: E731

    def parts(seed):
        torch.manual_seed(seed)
        model = Table(dropout=0.4)
        return model, make(model.parameters(), lr=0.1), generator(seed)

    model, optimizer, draw = parts(1)
    whole = train(model, batches(draw), optimizer, schedule, range(20))
    end = model.logits.weight.detach().clone()

    model, optimizer, draw = parts(1)
    begun = train(model, batches(draw), optimizer, schedule, range(at))
    saved = io.BytesIO()
    torch.save(snapshot(model, optimizer, draw, at), saved)
    train(model, batches(draw), optimizer, schedule, range(at, 20))  # the time that is lost
    saved.seek(0)

    model, optimizer, draw = parts(2)
    done = restore(torch.load(saved, weights_only=True), model, optimizer, draw)
    resumed = train(model, batches(draw), optimizer, schedule, range(done, 20))
    for key in whole:
        assert begun[key] + resumed[key] == whole[key]
    assert torch.equal(model.logits.weight, end)


def test_a_snapshot_can_be_gone_back_to_twice():
    torch.manual_seed(0)
    model, draw = Table(dropout=0.4), generator()
    optimizer = AdamW(model.parameters(), lr=0.1)
    train(model, batches(draw), optimizer, lambda s: 0.1, range(3))
    saved = snapshot(model, optimizer, draw, 3)
    runs = []
    for _ in range(3):
        done = restore(saved, model, optimizer, draw)
        runs.append(train(model, batches(draw), optimizer, lambda s: 0.1, range(done, 6))["loss"])
    assert runs[0] == runs[1] == runs[2]
