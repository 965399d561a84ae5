"""Checks of chapter 01: recurrence, and what came in its place."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from autograder.checking import Chapter, Trial
from solutions import why_transformers as reference
from solutions.why_transformers import rnn, rnn_cell

chapter = Chapter("01_why_transformers", "Why transformers")
check = chapter.check

float64 = torch.float64


def weights(t: Trial, d: int, n: int, dtype=torch.float32, scale: float = 1.0):
    """w_x, w_h and b of an rnn from tokens of width d to states of width n."""
    w_x = t.randn(d, n, dtype=dtype) / d**0.5
    return w_x, scale * t.randn(n, n, dtype=dtype) / n**0.5, t.randn(n, dtype=dtype) / 2


# ------------------------------------------------------------------------------- rnn_cell

rnn_cell_exercise = chapter.exercise(
    reference.rnn_cell, difficulty=1, minutes=6, forbidden=["torch.nn.RNNCell", "rnn_tanh_cell"]
)


@rnn_cell_exercise.group(
    "one step",
    points=2,
    hint="Three terms inside one tanh: the token times w_x, the state times w_h, and the bias.",
)
def _(t: Trial):
    t.same(t.randn(2, 3), t.randn(2, 5), *weights(t, 3, 5))
    t.same(t.randn(4, 6), t.randn(4, 3), *weights(t, 6, 3))
    if t.graded:
        d, n = t.integer(7, 10), t.integer(10, 13)
        t.same(t.randn(3, d), t.randn(3, n), *weights(t, d, n))


@rnn_cell_exercise.group(
    "any number of leading axes, and any float dtype",
    points=1,
    hint="`x @ w_x` works on the last axis, whatever stands before it; `.T` and `torch.mm` do not.",
)
def _(t: Trial):
    t.same(t.randn(3), t.randn(5), *weights(t, 3, 5))
    t.same(t.randn(1, 3), t.randn(1, 4), *weights(t, 3, 4))
    t.same(t.randn(2, 4, 3), t.randn(2, 4, 5), *weights(t, 3, 5))
    t.same(
        t.randn(2, 3, dtype=float64), t.randn(2, 5, dtype=float64), *weights(t, 3, 5, float64),
        dtype=True,
    )  # fmt: skip


@rnn_cell_exercise.group(
    "gradients to all inputs, none of them changed",
    points=1,
    hint="Do not detach anything, and do not write into `h`: the caller still needs it.",
)
def _(t: Trial):
    inputs = t.randn(2, 3, dtype=float64), t.randn(2, 5, dtype=float64)
    w = weights(t, 3, 5, float64)
    t.same_gradients(*inputs, *w)
    t.unchanged(*inputs, *w)


@rnn_cell_exercise.mistake(
    "You left out the tanh: without it the step is linear, and the state may grow without bounds."
)
def without_tanh(x, h, w_x, w_h, b):
    return x @ w_x + h @ w_h + b


@rnn_cell_exercise.mistake("You squash with a sigmoid. This cell has a tanh: from -1 to 1.")
def with_a_sigmoid(x, h, w_x, w_h, b):
    return torch.sigmoid(x @ w_x + h @ w_h + b)


@rnn_cell_exercise.mistake("You use relu in place of tanh: states below zero are lost.")
def with_relu(x, h, w_x, w_h, b):
    return torch.relu(x @ w_x + h @ w_h + b)


@rnn_cell_exercise.mistake("You left out the bias `b`.")
def without_the_bias(x, h, w_x, w_h, b):
    return torch.tanh(x @ w_x + h @ w_h)


@rnn_cell_exercise.mistake("You add the bias outside of the tanh. All three terms belong inside.")
def bias_outside(x, h, w_x, w_h, b):
    return torch.tanh(x @ w_x + h @ w_h) + b


@rnn_cell_exercise.mistake("You squash each term by itself. Add them first: one tanh for the sum.")
def a_tanh_each(x, h, w_x, w_h, b):
    return torch.tanh(x @ w_x) + torch.tanh(h @ w_h) + torch.tanh(b)


@rnn_cell_exercise.mistake(
    "You multiply the state by the transpose of `w_h`. Here a matrix acts from the right, as it is."
)
def transposed(x, h, w_x, w_h, b):
    return torch.tanh(x @ w_x + h @ w_h.T + b)


@rnn_cell_exercise.mistake("You ignore the state: your cell remembers nothing.")
def forgets(x, h, w_x, w_h, b):
    return torch.tanh(x @ w_x + b)


@rnn_cell_exercise.mistake("You ignore the token: your cell reads nothing.")
def reads_nothing(x, h, w_x, w_h, b):
    return torch.tanh(h @ w_h + b)


@rnn_cell_exercise.mistake(
    "You add the old state itself to the new one. It enters through `w_h` alone."
)
def residual(x, h, w_x, w_h, b):
    return h + torch.tanh(x @ w_x + h @ w_h + b)


@rnn_cell_exercise.mistake(
    "You detach the state, so no gradient flows back through time: the past cannot be learned from."
)
def detached_state(x, h, w_x, w_h, b):
    return torch.tanh(x @ w_x + h.detach() @ w_h + b)


@rnn_cell_exercise.mistake("You write the new state into `h`. The caller still needs the old one.")
def writes_into_h(x, h, w_x, w_h, b):
    new = torch.tanh(x @ w_x + h @ w_h + b)
    h.data.copy_(new)
    return new


@rnn_cell_exercise.alternative
def with_einsum(x, h, w_x, w_h, b):
    s = torch.einsum("...d,dn->...n", x, w_x) + torch.einsum("...m,mn->...n", h, w_h)
    return (s + b).tanh()


@rnn_cell_exercise.alternative
def with_one_matrix(x, h, w_x, w_h, b):
    return torch.tanh(torch.cat([x, h], dim=-1) @ torch.cat([w_x, w_h], dim=0) + b)


@rnn_cell_exercise.alternative
def with_linear(x, h, w_x, w_h, b):
    return F.linear(x, w_x.T, b).add(F.linear(h, w_h.T)).tanh()


@rnn_cell_exercise.alternative
def with_exponentials(x, h, w_x, w_h, b):
    return 2 * torch.sigmoid(2 * (b + torch.matmul(h, w_h) + torch.matmul(x, w_x))) - 1


# ------------------------------------------------------------------------------------ rnn

rnn_exercise = chapter.exercise(
    reference.rnn,
    difficulty=2,
    minutes=12,
    forbidden=["torch.nn.RNN", "rnn_tanh", "torch.nn.RNNCell", "rnn_tanh_cell"],
)


@rnn_exercise.group(
    "all states, from a state of zeros",
    points=3,
    hint="Print the shape of what you collect: one state of shape (B, N) for each of T tokens.",
)
def _(t: Trial):
    t.same(t.randn(2, 5, 3), *weights(t, 3, 4))
    t.same(t.randn(3, 19, 2), *weights(t, 2, 5))
    t.same(t.randn(7, 2, 3).transpose(0, 1), *weights(t, 3, 4))
    t.same(t.randn(2, 5, 3, dtype=float64), *weights(t, 3, 4, float64), dtype=True)
    if t.graded:
        t.same(t.randn(3, t.integer(20, 30), 4), *weights(t, 4, 6))


@rnn_exercise.group(
    "a single token, a single sequence",
    points=1,
    hint="With one token the states have shape (B, 1, N), and the last state is still (B, N).",
)
def _(t: Trial):
    t.same(t.randn(2, 1, 3), *weights(t, 3, 4))
    t.same(t.randn(1, 5, 3), *weights(t, 3, 4))
    t.same(t.randn(1, 1, 3), *weights(t, 3, 2), t.randn(1, 2))


@rnn_exercise.group(
    "goes on from a given state, and leaves it as it was",
    points=2,
    hint="`h` is the state before the first token. Only where it is None do you start from zeros.",
)
def _(t: Trial):
    w, h = weights(t, 3, 4), t.randn(2, 4)
    t.same(t.randn(2, 5, 3), *w, h)
    t.same(t.randn(2, 6, 3), *w, h=h)
    t.unchanged(t.randn(2, 5, 3), *w, h)


@rnn_exercise.group(
    "gradients to all inputs, through all steps",
    points=1,
    hint="Every state has to be computed from the one before it, with nothing detached between.",
)
def _(t: Trial):
    w = weights(t, 3, 4, float64)
    t.same_gradients(t.randn(2, 5, 3, dtype=float64), *w, t.randn(2, 4, dtype=float64))
    t.same_gradients(t.randn(2, 4, 3, dtype=float64), *w)


def _zeros(x, w_h):
    return x.new_zeros(x.shape[0], w_h.shape[0])


def _states(x, w_x, w_h, b, h):
    h = _zeros(x, w_h) if h is None else h
    states = []
    for t in range(x.shape[1]):
        h = torch.tanh(x[:, t] @ w_x + h @ w_h + b)
        states.append(h)
    return states


@rnn_exercise.mistake(
    "Each of your steps starts from the first state again. The state after one token is the state "
    "before the next."
)
def always_the_first_state(x, w_x, w_h, b, h=None):
    h = _zeros(x, w_h) if h is None else h
    states = [torch.tanh(x_t @ w_x + h @ w_h + b) for x_t in x.unbind(1)]
    return torch.stack(states, 1), states[-1]


@rnn_exercise.mistake("You ignore the `h` that is given, and always start from zeros.")
def ignores_h(x, w_x, w_h, b, h=None):
    states = _states(x, w_x, w_h, b, None)
    return torch.stack(states, 1), states[-1]


@rnn_exercise.mistake("You read from right to left. The first token comes first.")
def right_to_left(x, w_x, w_h, b, h=None):
    states = _states(x.flip(1), w_x, w_h, b, h)
    return torch.stack(states, 1), states[-1]


@rnn_exercise.mistake(
    "You read from right to left, and put the states back in order. State t must depend on the "
    "tokens up to t, not on those after it."
)
def right_to_left_in_order(x, w_x, w_h, b, h=None):
    states = _states(x.flip(1), w_x, w_h, b, h)
    return torch.stack(states[::-1], 1), states[-1]


@rnn_exercise.mistake(
    "Your states are stacked along a new first axis, (T, B, N). The batch comes first: (B, T, N)."
)
def time_first(x, w_x, w_h, b, h=None):
    states = _states(x, w_x, w_h, b, h)
    return torch.stack(states), states[-1]


@rnn_exercise.mistake(
    "Your states are stacked along a new last axis, (B, N, T). Time is axis 1: (B, T, N)."
)
def time_last(x, w_x, w_h, b, h=None):
    states = _states(x, w_x, w_h, b, h)
    return torch.stack(states, -1), states[-1]


@rnn_exercise.mistake(
    "You reshaped (T, B, N) to (B, T, N) where the axes should change places: states of different "
    "sequences are mixed up."
)
def viewed(x, w_x, w_h, b, h=None):
    states = _states(x, w_x, w_h, b, h)
    stacked = torch.stack(states)
    return stacked.reshape(x.shape[0], x.shape[1], -1), states[-1]


@rnn_exercise.mistake(
    "You return the state before the first token among the states. There are T of them, one after "
    "each token."
)
def with_the_start(x, w_x, w_h, b, h=None):
    states = _states(x, w_x, w_h, b, h)
    start = _zeros(x, w_h) if h is None else h
    return torch.stack([start, *states], 1), states[-1]


@rnn_exercise.mistake(
    "Your states are those *before* each token: the first one is the start, and the last is "
    "missing."
)
def states_before(x, w_x, w_h, b, h=None):
    states = _states(x, w_x, w_h, b, h)
    start = _zeros(x, w_h) if h is None else h
    return torch.stack([start, *states[:-1]], 1), states[-1]


@rnn_exercise.mistake(
    "Your `last` is the state after the first token. It is the one after the last."
)
def first_for_last(x, w_x, w_h, b, h=None):
    states = _states(x, w_x, w_h, b, h)
    return torch.stack(states, 1), states[0]


@rnn_exercise.mistake("Your `last` has an axis too many: (B, N) is asked for, not (B, 1, N).")
def last_with_an_axis(x, w_x, w_h, b, h=None):
    states = torch.stack(_states(x, w_x, w_h, b, h), 1)
    return states, states[:, -1:]


@rnn_exercise.mistake("Return two things: all the states, and the last one.")
def states_alone(x, w_x, w_h, b, h=None):
    return torch.stack(_states(x, w_x, w_h, b, h), 1)


@rnn_exercise.mistake(
    "You start from ones (or noise) where no state is given. Start from zeros: nothing read yet."
)
def starts_from_ones(x, w_x, w_h, b, h=None):
    states = _states(x, w_x, w_h, b, torch.ones_like(_zeros(x, w_h)) if h is None else h)
    return torch.stack(states, 1), states[-1]


@rnn_exercise.mistake(
    "You detach the state between steps: the values are right, and no gradient reaches the past."
)
def detached_between(x, w_x, w_h, b, h=None):
    h = _zeros(x, w_h) if h is None else h
    states = []
    for x_t in x.unbind(1):
        h = torch.tanh(x_t @ w_x + h.detach() @ w_h + b)
        states.append(h)
    return torch.stack(states, 1), h


@rnn_exercise.mistake("You write into the `h` that was given. The caller still needs it.")
def writes_into_the_start(x, w_x, w_h, b, h=None):
    states = _states(x, w_x, w_h, b, None if h is None else h.clone())
    if h is not None:
        h.data.copy_(states[-1])
    return torch.stack(states, 1), states[-1]


@rnn_exercise.mistake(
    "You loop over the batch: `for x_t in x` goes through axis 0, the sequences. Time is axis 1."
)
def over_the_sequences(x, w_x, w_h, b, h=None):
    h = _zeros(x, w_h) if h is None else h
    states = []
    for x_t in x:
        h = rnn_cell(x_t, h, w_x, w_h, b)
        states.append(h)
    return torch.stack(states, dim=1), h


@rnn_exercise.alternative
def by_index(x, w_x, w_h, b, h=None):
    if h is None:
        h = torch.zeros(len(x), len(b), dtype=x.dtype)
    out = []
    for t in range(x.size(1)):
        h = torch.tanh(torch.mm(x[:, t, :], w_x) + torch.mm(h, w_h) + b)
        out += [h.unsqueeze(1)]
    return torch.cat(out, dim=1), out[-1].squeeze(1)


@rnn_exercise.alternative
def tokens_first(x, w_x, w_h, b, h=None):
    read = x @ w_x + b  # what does not wait, at once
    h = torch.zeros_like(read[:, 0]) if h is None else h
    states = []
    for r in read.transpose(0, 1):
        h = (r + h @ w_h).tanh()
        states.append(h)
    return torch.stack(states).permute(1, 0, 2), states[-1]


@rnn_exercise.alternative
def into_a_table(x, w_x, w_h, b, h=None):
    states = torch.empty(*x.shape[:2], w_h.shape[1], dtype=x.dtype)
    h = 0 * x[:, 0] @ w_x if h is None else h
    for t in range(x.shape[1]):
        states[:, t] = h = rnn_cell(x[:, t], h, w_x, w_h, b)
    return states, h


@rnn_exercise.alternative
def by_recursion(x, w_x, w_h, b, h=None):
    if x.shape[1] == 1:
        h = x.new_zeros(len(x), len(w_h)) if h is None else h
        last = rnn_cell(x[:, 0], h, w_x, w_h, b)
        return last[:, None], last
    before, h = by_recursion(x[:, :-1], w_x, w_h, b, h)
    last = rnn_cell(x[:, -1], h, w_x, w_h, b)
    return torch.cat([before, last[:, None]], 1), last


# ----------------------------------------------------------------------------- can_resume

_generator = torch.Generator().manual_seed(101)
_W_X, _W_H, _B = (
    torch.randn(*shape, generator=_generator, dtype=float64) for shape in [(3, 4), (4, 4), (4,)]
)


def plain_rnn(x, h=None):
    return rnn(x, _W_X, _W_H, _B, h)


def running_mean(x, h=None):
    """Its state holds the sum, and how many tokens there were."""
    h = x.new_zeros(len(x), 4) if h is None else h
    counted = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
    states = h[:, None] + counted.cumsum(1)
    return states, states[:, -1]


def remembers_two(x, h=None):
    """Its state is the last two tokens."""
    h = x.new_zeros(len(x), 6) if h is None else h
    padded = torch.cat([h.view(-1, 2, 3), x], dim=1)
    states = torch.cat([padded[:, 1:-1], padded[:, 2:]], dim=-1)
    return states, states[:, -1]


def forgets_the_state(x, h=None):
    return plain_rnn(x)


def hands_over_the_first(x, h=None):
    states, _ = plain_rnn(x, h)
    return states, states[:, 0]


def looks_back_by_itself(x, h=None):
    """It uses the token before, which its state does not hold."""
    before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
    return plain_rnn(x + before, h)


def looks_ahead(x, h=None):
    return plain_rnn(x - x.mean(1, keepdim=True), h)


def counts_from_zero(x, h=None):
    """It adds the position, counted anew in each part."""
    places = torch.arange(x.shape[1], dtype=x.dtype)
    return plain_rnn(x + 0.1 * places[:, None], h)


def wrong_for_one_token(x, h=None):
    return plain_rnn(x, None if x.shape[1] == 1 else h)


def wrong_for_several_tokens(x, h=None):
    return plain_rnn(x, h if x.shape[1] == 1 else None)


def wrong_after_one(x, h=None):
    states, last = plain_rnn(x, h)
    return states, last + 1 if h is None and x.shape[1] == 1 else last


def wrong_after_two(x, h=None):
    states, last = plain_rnn(x, h)
    return states, last + 1 if h is None and x.shape[1] == 2 else last


def wrong_on_the_way(x, h=None):
    """Where it goes on, its last state is right, and the first one is not."""
    states, last = plain_rnn(x, h)
    if h is not None and x.shape[1] > 1:
        states = torch.cat([states[:, :1] + 1, states[:, 1:]], dim=1)
    return states, last


def too_low(x, h=None):
    """Where it goes on, everything is a little smaller."""
    states, last = plain_rnn(x, h)
    return (states, last) if h is None else (states - 0.1, last - 0.1)


def peeks_at_the_next(x, h=None):
    """Its states know the token after them, if that is there; the last one is right."""
    states, last = plain_rnn(x, h)
    ahead = torch.cat([0.1 * x[:, 1:, :1], torch.zeros_like(x[:, :1, :1])], dim=1)
    return states + ahead, last


def wrong_in_one_sequence(x, h=None):
    states, last = plain_rnn(x, h)
    last = last.clone()
    last[1] = 0
    return states, last


def a_little_off(x, h=None):
    states, last = plain_rnn(x, h)
    return states, 0.999 * last


def wrong_last_alone(x, h=None):
    """Where it goes on, its states are right, and the last one is handed over wrongly."""
    states, last = plain_rnn(x, h)
    return states, last if h is None else last.roll(1, dims=-1)


def can_resume(read: Callable, x: Float[Tensor, "B T D"]) -> bool:
    """Test a property: a reading may stop anywhere and go on from its last state.

    Stop after any number of tokens from 1 to T - 1; read on from the state handed over. The two
    parts together must give the states, and the last state, of a reading without a stop. Then
    that state is all that the future needs to know about the past.

    Args:
        read: takes tokens (B, T, D), and a state or nothing, `read(x)` or `read(x, h)`; returns
            the states (B, T, N) and the last state (B, N), as `rnn` does.
        x: sequences on which to try it, T at least 2. Left unchanged.

    Returns:
        True if that holds, up to rounding (1e-6), for every place at which x can be cut in two;
        False otherwise.
    """
    whole, last = read(x)
    for t in range(1, x.shape[1]):
        first, h = read(x[:, :t])
        second, end = read(x[:, t:], h)
        parts = torch.cat([first, second], dim=1)
        same = torch.allclose(parts, whole, atol=1e-6)
        if not (same and torch.allclose(end, last, atol=1e-6)):
            return False
    return True


can_resume_exercise = chapter.exercise(can_resume, difficulty=3, minutes=12)


def _try(t: Trial, *readers, size=(2, 6, 3)):
    for read in readers:
        t.same(read, t.randn(*size, dtype=float64))


@can_resume_exercise.group(
    "recognises what can stop and go on",
    points=1,
    hint="Compare the states of both parts, one after the other, with those of the whole.",
)
def _(t: Trial):
    _try(t, plain_rnn, running_mean, remembers_two)
    _try(t, plain_rnn, size=(3, 2, 3))
    _try(t, forgets_the_state)


@can_resume_exercise.group(
    "catches states that are lost or wrong",
    points=2,
    hint="The second part must start from the state that the first one handed over.",
)
def _(t: Trial):
    _try(t, forgets_the_state, hands_over_the_first, counts_from_zero)
    _try(t, looks_back_by_itself, looks_ahead)
    _try(t, plain_rnn)


@can_resume_exercise.group(
    "catches what shows at one place, in one sequence, by a little, or in the last state",
    points=2,
    hint="Try every place from 1 to T - 1; compare all sequences, within 1e-6, and `last` as well.",
)
def _(t: Trial):
    _try(t, wrong_for_one_token, wrong_for_several_tokens, wrong_after_one, wrong_after_two)
    _try(t, wrong_in_one_sequence, a_little_off, too_low)
    _try(t, wrong_last_alone, wrong_on_the_way, peeks_at_the_next)
    _try(t, running_mean)


@can_resume_exercise.group(
    "leaves x alone", points=1, hint="Slices such as `x[:, :t]` are views: do not write into them."
)
def _(t: Trial):
    x = t.randn(2, 5, 3, dtype=float64)
    t.unchanged(plain_rnn, x)
    t.same(forgets_the_state, x)


def _resumes(read, x, places, look=lambda y: y, atol=1e-6, states=True, end=True, first=True):
    whole, last = read(x)
    for t in places:
        before, h = read(x[:, :t])
        before = before if first else whole[:, :t]
        second, stop = read(x[:, t:], h)
        if states and not torch.allclose(
            look(torch.cat([before, second], 1)), look(whole), atol=atol, rtol=0
        ):
            return False
        if end and not torch.allclose(look(stop), look(last), atol=atol, rtol=0):
            return False
    return True


@can_resume_exercise.mistake("You answer the wrong way round: True means that it can go on.")
def resumes_the_wrong_way_round(read, x):
    return not _resumes(read, x, range(1, x.shape[1]))


@can_resume_exercise.mistake(
    "You do not hand the state over: your second part starts from nothing, as if the first had not "
    "been read."
)
def not_handed_over(read, x):
    return _resumes(lambda y, h=None: read(y), x, range(1, x.shape[1]))


@can_resume_exercise.mistake(
    "You stop in the middle only. A fault that shows at another place goes unseen: try every one."
)
def middle_only(read, x):
    return _resumes(read, x, [x.shape[1] // 2])


@can_resume_exercise.mistake("You stop after the first token only. Try every place.")
def first_place_only(read, x):
    return _resumes(read, x, [1])


@can_resume_exercise.mistake("You stop before the last token only. Try every place.")
def last_place_only(read, x):
    return _resumes(read, x, [x.shape[1] - 1])


@can_resume_exercise.mistake(
    "You left out the stop before the last token: a second part of one token goes untested."
)
def not_the_last_place(read, x):
    return _resumes(read, x, range(1, x.shape[1] - 1))


@can_resume_exercise.mistake(
    "You compared the last states alone. The states on the way have to agree as well."
)
def last_states_only(read, x):
    return _resumes(read, x, range(1, x.shape[1]), states=False)


@can_resume_exercise.mistake(
    "You compared the states and not `last`, the state that is handed over at the end."
)
def states_only(read, x):
    return _resumes(read, x, range(1, x.shape[1]), end=False)


@can_resume_exercise.mistake(
    "You compared the second part alone. The states of the first part must be those of the whole, "
    "too: a reader that peeks ahead shows there."
)
def second_part_only(read, x):
    return _resumes(read, x, range(1, x.shape[1]), first=False)


@can_resume_exercise.mistake(
    "You compare without `abs`: a state that is too low has a negative difference, and passes."
)
def one_sided(read, x):
    whole, last = read(x)
    for t in range(1, x.shape[1]):
        first, h = read(x[:, :t])
        second, end = read(x[:, t:], h)
        gap = torch.cat([first, second], 1) - whole
        if gap.max() > 1e-6 or (end - last).max() > 1e-6:
            return False
    return True


@can_resume_exercise.mistake("You compared the first sequence of the batch alone.")
def first_sequence_alone(read, x):
    return _resumes(read, x, range(1, x.shape[1]), look=lambda y: y[:1])


@can_resume_exercise.mistake(
    "Your tolerance is so wide that a wrong state passes for rounding. Rounding stays below 1e-6."
)
def resumes_by_and_large(read, x):
    return _resumes(read, x, range(1, x.shape[1]), atol=0.01)


@can_resume_exercise.mistake(
    "You require equal bits. Sums in another order round differently: allow 1e-6."
)
def exactly(read, x):
    return _resumes(read, x, range(1, x.shape[1]), atol=0.0)


@can_resume_exercise.mistake(
    "You go token by token, and never resume with several tokens at once. Cut x in two, at every "
    "place."
)
def token_by_token(read, x):
    whole, last = read(x)
    states, h = read(x[:, :1])
    states = [states]
    for t in range(1, x.shape[1]):
        state, h = read(x[:, t : t + 1], h)
        states.append(state)
    return torch.allclose(torch.cat(states, 1), whole, atol=1e-6) and torch.allclose(
        h, last, atol=1e-6
    )


@can_resume_exercise.mistake(
    "You gave your second part the whole of x, from its first token on. It begins where the first "
    "part stopped: `x[:, t:]`."
)
def reads_all_again(read, x):
    whole, last = read(x)
    for t in range(1, x.shape[1]):
        _, h = read(x[:, :t])
        states, end = read(x, h)
        if not torch.allclose(states, whole, atol=1e-6) or not torch.allclose(end, last, atol=1e-6):
            return False
    return True


@can_resume_exercise.mistake("You change x itself. The caller still needs it.")
def spoils_x(read, x):
    answer = _resumes(read, x, range(1, x.shape[1]))
    x[:, 1:] = 0
    return answer


@can_resume_exercise.alternative
def with_all(read, x):
    whole, last = read(x)

    def agrees(t):
        first, h = read(x[:, :t], None)
        second, end = read(x[:, t:], h)
        gap = (torch.cat([first, second], 1) - whole).abs().max() + (end - last).abs().max()
        return bool(gap < 1e-6)

    return all(agrees(t) for t in range(1, x.size(1)))


@can_resume_exercise.alternative
def part_by_part(read, x):
    whole, last = read(x)
    results = []
    for t in reversed(range(1, x.shape[1])):
        first, h = read(x[:, :t].clone())
        second, end = read(x[:, t:].clone(), h.clone())
        results.append(
            (first - whole[:, :t]).abs().lt(1e-6).all()
            & (second - whole[:, t:]).abs().lt(1e-6).all()
            & (end - last).abs().lt(1e-6).all()
        )
    return torch.stack(results).all()


# ------------------------------------------------------------------ backward_through_time

backward_exercise = chapter.exercise(
    reference.backward_through_time,
    difficulty=4,
    minutes=16,
    forbidden=["torch.autograd", "backward", "requires_grad_"],
)


def reading(t: Trial, b: int, steps: int, n: int, dtype=float64, scale=1.0):
    """A gradient of the last state, states of an rnn, and its w_h."""
    w_x, w_h, bias = weights(t, 3, n, dtype, scale)
    states, _ = rnn(t.randn(b, steps, 3, dtype=dtype), w_x, w_h, bias)
    return t.randn(b, n, dtype=dtype), states, w_h


@backward_exercise.group(
    "one step back",
    points=2,
    hint="The way forward was: times w_h, then tanh. Go back in the opposite order: times the "
    "derivative of the tanh, 1 - h**2 at the state you come from, then through w_h.",
)
def _(t: Trial):
    t.same(*reading(t, 2, 2, 4))
    t.same(*reading(t, 3, 2, 5))


@backward_exercise.group(
    "all the way back",
    points=2,
    hint="Each step starts from the gradient that the step before arrived at, one state earlier.",
)
def _(t: Trial):
    t.same(*reading(t, 2, 6, 4))
    t.same(*reading(t, 3, 17, 5, scale=1.5))
    if t.graded:
        t.same(*reading(t, 4, t.integer(25, 30), 6, scale=2.0))


@backward_exercise.group(
    "one token, one sequence, other dtypes; inputs unchanged",
    points=1,
    hint="With one token there is no step back: the result is grad_last, of shape (B, 1, N).",
)
def _(t: Trial):
    t.same(*reading(t, 2, 1, 3))
    t.same(*reading(t, 1, 5, 3))
    t.same(*reading(t, 2, 5, 4, torch.float32), dtype=True)
    t.same(*reading(t, 2, 4, 3), dtype=True)
    t.unchanged(*reading(t, 2, 5, 4))


def _back(grad, states, step):
    grads = [grad]
    for t in range(states.shape[1] - 1, 0, -1):
        grads.append(step(grads[-1], t))
    return grads


@backward_exercise.mistake(
    "You left out the derivative of the tanh, 1 - h**2: each step back shrinks the gradient by it."
)
def no_tanh(grad_last, states, w_h):
    return torch.stack(_back(grad_last, states, lambda g, t: g @ w_h.T)[::-1], 1)


@backward_exercise.mistake(
    "You go back through `w_h` as it is. The way back takes its transpose: forward it was h @ w_h."
)
def not_transposed(grad_last, states, w_h):
    return torch.stack(
        _back(grad_last, states, lambda g, t: g * (1 - states[:, t] ** 2) @ w_h)[::-1], 1
    )


@backward_exercise.mistake(
    "You take the derivative of the tanh at the state where the step arrives. It belongs to the "
    "state that the step comes from."
)
def at_the_state_before(grad_last, states, w_h):
    def step(g, t):
        return g * (1 - states[:, t - 1] ** 2) @ w_h.T

    return torch.stack(_back(grad_last, states, step)[::-1], 1)


@backward_exercise.mistake(
    "You go through `w_h` first and then through the tanh. On the way back the last thing comes "
    "first: tanh, then `w_h`."
)
def wrong_order(grad_last, states, w_h):
    return torch.stack(
        _back(grad_last, states, lambda g, t: g @ w_h.T * (1 - states[:, t] ** 2))[::-1], 1
    )


@backward_exercise.mistake(
    "You apply tanh to the states once more. They have been through it already: the derivative is "
    "1 - h**2."
)
def tanh_twice(grad_last, states, w_h):
    return torch.stack(
        _back(grad_last, states, lambda g, t: g * (1 - states[:, t].tanh() ** 2) @ w_h.T)[::-1], 1
    )


@backward_exercise.mistake("The derivative of the tanh is 1 - h**2. You took 1 - h.")
def not_squared(grad_last, states, w_h):
    return torch.stack(
        _back(grad_last, states, lambda g, t: g * (1 - states[:, t]) @ w_h.T)[::-1], 1
    )


@backward_exercise.mistake(
    "You took the derivative of the sigmoid, h (1 - h). That of the tanh is 1 - h**2."
)
def of_the_sigmoid(grad_last, states, w_h):
    def step(g, t):
        return g * states[:, t] * (1 - states[:, t]) @ w_h.T

    return torch.stack(_back(grad_last, states, step)[::-1], 1)


@backward_exercise.mistake(
    "Your gradients are in the order in which you found them, last state first. Turn them round: "
    "state t belongs at [:, t]."
)
def not_turned_round(grad_last, states, w_h):
    return torch.stack(
        _back(grad_last, states, lambda g, t: g * (1 - states[:, t] ** 2) @ w_h.T), 1
    )


@backward_exercise.mistake(
    "You add grad_last at every state. The loss looks at the last state alone; the others get only "
    "what comes back through time."
)
def a_loss_everywhere(grad_last, states, w_h):
    return torch.stack(
        _back(grad_last, states, lambda g, t: grad_last + g * (1 - states[:, t] ** 2) @ w_h.T)[
            ::-1
        ],
        1,
    )


@backward_exercise.mistake(
    "You took one step too many: your gradients are those before the tanh of each state, or of the "
    "state before it. The last of them must be grad_last itself."
)
def one_step_too_many(grad_last, states, w_h):
    grads = _back(grad_last, states, lambda g, t: g * (1 - states[:, t] ** 2) @ w_h.T)[::-1]
    return torch.stack(grads, 1) * (1 - states**2)


@backward_exercise.mistake(
    "You start every step from grad_last. Start it from the gradient of the state after it."
)
def always_from_the_last(grad_last, states, w_h):
    return torch.stack(
        _back(grad_last, states, lambda g, t: grad_last * (1 - states[:, t] ** 2) @ w_h.T)[::-1], 1
    )


@backward_exercise.mistake("Your result is stacked along a new first axis, (T, B, N).")
def gradients_time_first(grad_last, states, w_h):
    return torch.stack(
        _back(grad_last, states, lambda g, t: g * (1 - states[:, t] ** 2) @ w_h.T)[::-1]
    )


@backward_exercise.mistake(
    "You go through `w_h` element by element, which is for a matrix that is diagonal. It mixes the "
    "numbers of the state: a matrix product."
)
def diagonal_only(grad_last, states, w_h):
    return torch.stack(
        _back(grad_last, states, lambda g, t: g * (1 - states[:, t] ** 2) * w_h.diagonal())[::-1],
        1,
    )


@backward_exercise.alternative
def into_zeros(grad_last, states, w_h):
    grads = torch.zeros_like(states)
    grads[:, -1] = grad_last
    for t in reversed(range(states.shape[1] - 1)):
        h = states[:, t + 1]
        grads[:, t] = (grads[:, t + 1] * (1 - h * h)) @ w_h.transpose(0, 1)
    return grads


@backward_exercise.alternative
def by_jacobians(grad_last, states, w_h):
    grads = [grad_last]
    for t in range(states.shape[1] - 1, 0, -1):
        jacobian = (1 - states[:, t] ** 2)[:, :, None] * w_h.T  # (B, N after, N before)
        grads.insert(0, (grads[0][:, None] @ jacobian).squeeze(1))
    return torch.stack(grads, dim=1)


@backward_exercise.alternative
def backwards_with_einsum(grad_last, states, w_h):
    if states.shape[1] == 1:
        return grad_last[:, None]
    g = torch.einsum("bn,bn,mn->bm", grad_last, 1 - states[:, -1].square(), w_h)
    return torch.cat([backwards_with_einsum(g, states[:, :-1], w_h), grad_last[:, None]], 1)


# ------------------------------------------------------------------------- attention_pool

attention_pool = chapter.exercise(
    reference.attention_pool,
    difficulty=2,
    minutes=10,
    forbidden=["scaled_dot_product_attention", "MultiheadAttention"],
)


@attention_pool.group(
    "a weighted mean",
    points=2,
    hint="One score a token: the dot product of its key with the query. Softmax over the tokens.",
)
def _(t: Trial):
    t.same(t.randn(2, 3), t.randn(2, 5, 3), t.randn(2, 5, 4))
    t.same(t.randn(3, 4), t.randn(3, 6, 4), t.randn(3, 6, 2))
    if t.graded:
        n = t.integer(8, 12)
        t.same(t.randn(4, 5), t.randn(4, n, 5), t.randn(4, n, 6))


@attention_pool.group(
    "any number of leading axes; one token; float64",
    points=1,
    hint="Count axes from the end: tokens are -2 in keys and values, and -1 in the weights.",
)
def _(t: Trial):
    t.same(t.randn(3), t.randn(5, 3), t.randn(5, 4))
    t.same(t.randn(1, 3), t.randn(1, 5, 3), t.randn(1, 5, 1))
    t.same(t.randn(2, 3, 4), t.randn(2, 3, 5, 4), t.randn(2, 3, 5, 6))
    t.same(t.randn(2, 3), t.randn(2, 1, 3), t.randn(2, 1, 4))
    t.same(
        t.randn(2, 3, dtype=float64), t.randn(2, 5, 3, dtype=float64),
        t.randn(2, 5, 4, dtype=float64), dtype=True,
    )  # fmt: skip


@attention_pool.group(
    "large dot products",
    points=1,
    hint="exp(89) is infinite in float32. `torch.softmax` subtracts the largest score first.",
)
def _(t: Trial):
    t.same(30 * t.randn(2, 3), 10 * t.randn(2, 5, 3), t.randn(2, 5, 4))
    t.same(torch.full((1, 3), 20.0), -20.0 - t.rand(1, 4, 3), t.randn(1, 4, 2))


@attention_pool.group(
    "gradients to all three, none of them changed",
    points=1,
    hint="The query and the keys act through the weights: nothing may cut these off.",
)
def _(t: Trial):
    q, k, v = (t.randn(*shape, dtype=float64) for shape in [(2, 3), (2, 5, 3), (2, 5, 4)])
    t.same_gradients(q, k, v)
    t.unchanged(q, k, v)


def _scores(query, keys):
    return (keys * query.unsqueeze(-2)).sum(-1)


def _mean(w, values):
    return (w.unsqueeze(-1) * values).sum(-2)


@attention_pool.mistake(
    "You divide the scores by the square root of the width. Chapter 04 will, for good reasons; "
    "here the scores are plain dot products."
)
def scaled(query, keys, values):
    w = torch.softmax(_scores(query, keys) / query.shape[-1] ** 0.5, -1)
    return _mean(w, values), w


@attention_pool.mistake(
    "You normalise over the batch (the first axis). The weights of the T tokens of one sequence "
    "sum to 1."
)
def over_the_batch(query, keys, values):
    w = torch.softmax(_scores(query, keys), 0)
    return _mean(w, values), w


@attention_pool.mistake(
    "You normalise over all sequences together. Each has weights of its own that sum to 1."
)
def over_everything(query, keys, values):
    s = _scores(query, keys)
    w = torch.softmax(s.flatten(), 0).view_as(s)
    return _mean(w, values), w


@attention_pool.mistake(
    "You left out the softmax: dot products may be negative, and do not sum to 1. This is no mean."
)
def without_softmax(query, keys, values):
    w = _scores(query, keys)
    return _mean(w, values), w


@attention_pool.mistake(
    "You divide the dot products by their sum, without exponentials. They may be negative, and "
    "their sum near 0."
)
def without_exponentials(query, keys, values):
    s = _scores(query, keys)
    w = s / s.sum(-1, keepdim=True)
    return _mean(w, values), w


@attention_pool.mistake("You use a sigmoid: each weight is below 1, and their sum is anything.")
def with_sigmoid(query, keys, values):
    w = torch.sigmoid(_scores(query, keys))
    return _mean(w, values), w


@attention_pool.mistake(
    "You take exponentials of the scores as they are: from 89 on they are infinite in float32. "
    "Subtract the largest score first, or use `torch.softmax`."
)
def overflows(query, keys, values):
    e = _scores(query, keys).exp()
    w = e / e.sum(-1, keepdim=True)
    return _mean(w, values), w


@attention_pool.mistake(
    "You divide by the number of tokens as well. Weights that sum to 1 make a mean already."
)
def mean_of_the_mean(query, keys, values):
    w = torch.softmax(_scores(query, keys), -1)
    return (w.unsqueeze(-1) * values).mean(-2), w


@attention_pool.mistake(
    "You take the one token that matches best. All tokens count, each with its weight."
)
def the_best_alone(query, keys, values):
    s = _scores(query, keys)
    w = F.one_hot(s.argmax(-1), s.shape[-1]).to(s.dtype)
    return _mean(w, values), w


@attention_pool.mistake("You weigh all tokens alike: the query does not matter.")
def all_alike(query, keys, values):
    w = torch.softmax(0 * _scores(query, keys), -1)
    return _mean(w, values), w


@attention_pool.mistake(
    "You compare directions (cosines), not dot products: how long a key is, counts as well."
)
def cosines(query, keys, values):
    w = torch.softmax(F.cosine_similarity(query.unsqueeze(-2), keys, dim=-1), -1)
    return _mean(w, values), w


@attention_pool.mistake(
    "You average the keys. The weights come from the keys; averaged are values."
)
def averages_the_keys(query, keys, values):
    w = torch.softmax(_scores(query, keys), -1)
    return _mean(w, keys), w


@attention_pool.mistake("You ask with the first sequence's query in every sequence.")
def one_query_for_all(query, keys, values):
    q = query.flatten(0, -2)[0] if query.ndim > 1 else query
    w = torch.softmax(keys @ q, -1)
    return _mean(w, values), w


@attention_pool.mistake(
    "Your weights keep an axis of size 1 at their end. Their shape is (*batch, T): `.squeeze(-1)`."
)
def weights_with_an_axis(query, keys, values):
    w = torch.softmax(_scores(query, keys), -1)
    return _mean(w, values), w.unsqueeze(-1)


@attention_pool.mistake("Return two things: the pooled vector, and the weights.")
def without_the_weights(query, keys, values):
    return _mean(torch.softmax(_scores(query, keys), -1), values)


@attention_pool.mistake("You return the weights first. First comes the pooled vector.")
def weights_first(query, keys, values):
    w = torch.softmax(_scores(query, keys), -1)
    return w, _mean(w, values)


@attention_pool.mistake(
    "You detach the weights: the values learn, and nothing can be learned about where to look."
)
def detached_weights(query, keys, values):
    w = torch.softmax(_scores(query, keys), -1).detach()
    return _mean(w, values), w


@attention_pool.mistake(
    "You multiply all queries with the keys of each sequence, as if the queries were one matrix. "
    "Each sequence has one query: give it an axis, `query.unsqueeze(-2)`, before the product."
)
def every_query_everywhere(query, keys, values):
    w = torch.softmax(query @ keys.mT, -1)
    return w @ values, w


@attention_pool.alternative
def pool_with_einsum(query, keys, values):
    s = torch.einsum("...d,...td->...t", query, keys)
    w = F.softmax(s, dim=-1)
    return torch.einsum("...t,...tn->...n", w, values), w


@attention_pool.alternative
def pool_by_hand(query, keys, values):
    s = (keys @ query[..., None])[..., 0]
    e = torch.exp(s - s.amax(-1, keepdim=True))
    w = e / e.sum(-1, keepdim=True)
    return (values * w[..., None]).sum(-2), w


@attention_pool.alternative
def pool_by_logs(query, keys, values):
    s = (query.unsqueeze(-2) @ keys.mT).squeeze(-2)
    w = (s - s.logsumexp(-1, keepdim=True)).exp()
    return (values.mT @ w.unsqueeze(-1)).squeeze(-1), w


@attention_pool.alternative
def pool_token_by_token(query, keys, values):
    s = torch.stack([(query * k).sum(-1) for k in keys.unbind(-2)], dim=-1)
    w = s.softmax(-1)
    return sum(w[..., t, None] * values[..., t, :] for t in range(w.shape[-1])), w


# ----------------------------------------------------------------------- sequential_steps

sequential_steps = chapter.exercise(reference.sequential_steps, difficulty=2, minutes=6)


@sequential_steps.group(
    "one layer", points=1, hint="Which layers have to wait for the token before?"
)
def _(t: Trial):
    n = t.integer(40, 90)
    t.same("rnn", n)
    t.same("cnn", n)
    t.same("attention", n)
    t.same("rnn", 1)


@sequential_steps.group(
    "several layers",
    points=2,
    hint="Draw two recurrent layers of four tokens as a grid. A cell needs its left neighbour and "
    "the cell below. In which round can each be computed, at the earliest?",
)
def _(t: Trial):
    n, layers = t.integer(40, 90), t.integer(4, 9)
    t.same("rnn", n, layers)
    t.same("rnn", 3, n_layers=layers + 4)
    t.same("rnn", n + 1, 2)
    t.same("rnn", n + 2, 3)
    t.same("cnn", n, layers)
    t.same("attention", n, n_layers=layers)
    t.same("rnn", 1, layers)


@sequential_steps.group(
    "other layers are refused", points=1, hint="`raise ValueError(...)`, with the name in it."
)
def _(t: Trial):
    t.raises(ValueError, "transformer", 8, naming="transformer")
    t.raises(ValueError, "gru", 5, 2, naming="gru")


def _no_such(layer):
    return ValueError(f"unknown layer {layer!r}")


def _steps(layer, n, n_layers, of_rnn, other=lambda n, layers: layers):
    if layer == "rnn":
        return of_rnn
    if layer in ("cnn", "attention"):
        return other(n, n_layers)
    raise _no_such(layer)


@sequential_steps.mistake(
    "You let each recurrent layer wait for the whole layer below, n times n_layers. It needs only "
    "the token at its own position: both layers move along together."
)
def layer_after_layer(layer, n, n_layers=1):
    return _steps(layer, n, n_layers, n * n_layers)


@sequential_steps.mistake(
    "You forgot that the upper recurrent layers start later: each one step after the layer below."
)
def layers_for_free(layer, n, n_layers=1):
    return _steps(layer, n, n_layers, n)


@sequential_steps.mistake(
    "You counted one step too many for the recurrent layers: the first of them waits for nothing."
)
def one_too_many(layer, n, n_layers=1):
    return _steps(layer, n, n_layers, n + n_layers)


@sequential_steps.mistake(
    "You counted the waits between tokens, n - 1. The first token takes a step, too."
)
def one_too_few(layer, n, n_layers=1):
    return _steps(layer, n, n_layers, n + n_layers - 2)


@sequential_steps.mistake(
    "You took the larger of n and n_layers. The last cell waits for all cells on its left and all "
    "below it."
)
def the_larger(layer, n, n_layers=1):
    return _steps(layer, n, n_layers, max(n, n_layers))


@sequential_steps.mistake(
    "You let a convolution's window slide step by step. All its positions can be computed at once."
)
def slides(layer, n, n_layers=1):
    if layer == "cnn":
        return n + n_layers - 1
    return reference.sequential_steps(layer, n, n_layers)


@sequential_steps.mistake(
    "You let the tokens ask one after the other. In attention none waits for another's answer."
)
def asks_in_turn(layer, n, n_layers=1):
    if layer == "attention":
        return n + n_layers - 1
    return reference.sequential_steps(layer, n, n_layers)


@sequential_steps.mistake(
    "You counted the work of attention, n * n pairs. Many steps at the same time are one wait."
)
def counts_the_work(layer, n, n_layers=1):
    if layer == "attention":
        return n * n * n_layers
    return reference.sequential_steps(layer, n, n_layers)


@sequential_steps.mistake(
    "You do all layers of attention (or convolutions) at once. Each needs the layer below it."
)
def one_wait_for_all_layers(layer, n, n_layers=1):
    return _steps(layer, n, n_layers, n + n_layers - 1, other=lambda n, layers: 1)


@sequential_steps.mistake(
    "You do not refuse other layers. Raise a `ValueError` that names what was given."
)
def refuses_no_layer(layer, n, n_layers=1):
    return n + n_layers - 1 if layer == "rnn" else n_layers


@sequential_steps.alternative
def from_a_grid(layer, n, n_layers=1):
    if layer not in ("rnn", "cnn", "attention"):
        raise _no_such(layer)
    ready = [0] * n
    for _ in range(n_layers):
        before = 0
        above = []
        for t in range(n):
            needs = [ready[t], before] if layer == "rnn" else ready
            before = max(needs) + 1
            above.append(before)
        ready = above
    return ready[-1]


@sequential_steps.alternative
def from_a_dict(layer, n, n_layers=1):
    steps = {"rnn": n - 1 + n_layers, "cnn": n_layers, "attention": n_layers}
    if layer not in steps:
        raise ValueError(f"no layer is called {layer}")
    return steps[layer]


# ------------------------------------------------------------------------ max_path_length

max_path_length = chapter.exercise(reference.max_path_length, difficulty=3, minutes=12)


@max_path_length.group(
    "recurrence and attention",
    points=1,
    hint="How many cells does the first token pass through? And how far is it in attention?",
)
def _(t: Trial):
    n = t.integer(40, 90)
    t.same("rnn", n)
    t.same("attention", n)
    t.same("rnn", 1)
    t.same("attention", 1, width=5)
    t.same("rnn", n, 7)


@max_path_length.group(
    "convolutions",
    points=2,
    hint="One layer lets an output see `width` tokens, itself included. How many more with each "
    "further layer? Try n = 5, 6 and 7 with width 3.",
)
def _(t: Trial):
    for n in (2, 3, 4, 5, 6, 7, t.integer(40, 60)):
        t.same("cnn", n)
    t.same("cnn", 1)
    t.same("cnn", t.integer(40, 60), width=2)
    t.same("cnn", 4, 9)
    t.same("cnn", t.integer(200, 300), width=t.integer(5, 9))


@max_path_length.group(
    "dilated convolutions",
    points=2,
    hint="Two layers of width 3 see 9 tokens, three see 27. Which is the first count of layers to "
    "see n? Logarithms are rounded: better multiply whole numbers.",
)
def _(t: Trial):
    for n in (1, 2, 3, 4, 8, 9, 10, 27, 28):
        t.same("dilated cnn", n)
    for width, power in ((5, 3), (10, 6), (2, 10), (6, 3), (7, 2)):
        t.same("dilated cnn", width**power, width)
        t.same("dilated cnn", width**power + 1, width=width)
    t.same("dilated cnn", t.integer(100, 240), width=4)
    t.same("dilated cnn", 3, width=8)


@max_path_length.group(
    "other layers are refused", points=1, hint="`raise ValueError(...)`, with the name in it."
)
def _(t: Trial):
    t.raises(ValueError, "lstm", 8, naming="lstm")
    t.raises(ValueError, "dilated rnn", 8, 4, naming="dilated rnn")


def _paths(layer, n, width, **changed):
    for name, value in changed.items():
        if layer == name.replace("_", " "):
            return value()
    return reference.max_path_length(layer, n, width)


@max_path_length.mistake(
    "You rounded a logarithm of floating-point numbers: log(125, 5) comes out a little above 3. "
    "Multiply whole numbers until they reach n."
)
def by_logarithm(layer, n, width=3):
    return _paths(
        layer, n, width, dilated_cnn=lambda: max(1, math.ceil(math.log(n) / math.log(width)))
    )


@max_path_length.mistake(
    "You took a logarithm. For one token it is 0, and log(125, 5) comes out a little above 3. "
    "Start with one layer, and multiply whole numbers until they reach n."
)
def by_bare_logarithm(layer, n, width=3):
    return _paths(layer, n, width, dilated_cnn=lambda: math.ceil(math.log(n) / math.log(width)))


@max_path_length.mistake("You rounded the number of dilated layers down: they would not reach it.")
def logarithm_rounded_down(layer, n, width=3):
    def layers():
        count = 1
        while width ** (count + 1) <= n:
            count += 1
        return count

    return _paths(layer, n, width, dilated_cnn=layers)


@max_path_length.mistake(
    "You took dilations that double in each layer, whatever the width. Here layer l reads "
    "positions width**l apart."
)
def base_two(layer, n, width=3):
    return _paths(layer, n, width, dilated_cnn=lambda: max(1, (n - 1).bit_length()))


@max_path_length.mistake("You took dilated convolutions for plain ones: they reach further.")
def no_dilation(layer, n, width=3):
    return _paths(layer, n, width, dilated_cnn=lambda: reference.max_path_length("cnn", n, width))


@max_path_length.mistake(
    "You counted n / width layers. Windows overlap: each further layer adds width - 1 tokens, not "
    "width."
)
def windows_side_by_side(layer, n, width=3):
    return _paths(layer, n, width, cnn=lambda: -(-n // width))


@max_path_length.mistake("You rounded the number of convolutions down: they would not reach it.")
def rounded_down(layer, n, width=3):
    return _paths(layer, n, width, cnn=lambda: max(1, (n - 1) // (width - 1)))


@max_path_length.mistake(
    "You took windows that reach to both sides. Here output t reads t and what comes before it."
)
def to_both_sides(layer, n, width=3):
    return _paths(layer, n, width, cnn=lambda: max(1, -(-(n - 1) // max(1, (width - 1) // 2))))


@max_path_length.mistake(
    "Your convolutions take 0 steps for a single token. Even then one layer computes the output."
)
def nothing_for_one_token(layer, n, width=3):
    return _paths(layer, n, width, cnn=lambda: -(-(n - 1) // (width - 1)))


@max_path_length.mistake("You forgot the `width`: you count as if it were always 3.")
def always_three(layer, n, width=3):
    return reference.max_path_length(layer, n, 3)


@max_path_length.mistake(
    "You counted the waits between the tokens, n - 1. The first token passes through n cells, its "
    "own included."
)
def between_the_cells(layer, n, width=3):
    return _paths(layer, n, width, rnn=lambda: n - 1)


@max_path_length.mistake(
    "You gave attention the distance. It looks at every token directly: one step, however far."
)
def attention_walks(layer, n, width=3):
    return _paths(layer, n, width, attention=lambda: n)


@max_path_length.mistake("Your answer is a float. Layers come in whole numbers: use `//`.")
def a_float(layer, n, width=3):
    return _paths(layer, n, width, cnn=lambda: max(1.0, (n - 1) / (width - 1)))


@max_path_length.mistake(
    "You do not refuse other layers. Raise a `ValueError` that names what was given."
)
def takes_any_layer(layer, n, width=3):
    known = ("rnn", "cnn", "attention", "dilated cnn")
    return reference.max_path_length(layer, n, width) if layer in known else n


@max_path_length.alternative
def layer_by_layer(layer, n, width=3):
    if layer in ("rnn", "attention"):
        return n if layer == "rnn" else 1
    if layer not in ("cnn", "dilated cnn"):
        raise _no_such(layer)
    layers, seen, apart = 0, 1, 1
    while seen < n or layers == 0:
        seen += (width - 1) * apart
        apart *= width if layer == "dilated cnn" else 1
        layers += 1
    return layers


@max_path_length.alternative
def with_match(layer, n, width=3):
    def dilated(n):
        return 1 if n <= width else 1 + dilated(-(-n // width))

    match layer:
        case "rnn":
            return n
        case "attention":
            return 1
        case "cnn":
            return max(math.ceil((n - 1) / (width - 1)), 1)
        case "dilated cnn":
            return dilated(n)
    raise ValueError(f"{layer} is none of rnn, cnn, dilated cnn, attention")


# -------------------------------------------------------------------------- parallel_scan

parallel_scan = chapter.exercise(
    reference.parallel_scan, difficulty=3, minutes=12, mend="scan_handed_out"
)


@parallel_scan.group(
    "two and three tokens",
    points=1,
    hint="Write h[2] out in full: a[2] * (a[1] * x[0] + x[1]) + x[2]. By what is x[0] multiplied?",
)
def _(t: Trial):
    t.same(t.rand(2, 2, 3, dtype=float64) + 0.2, t.randn(2, 2, 3, dtype=float64))
    t.same(t.rand(4, 3, 2, dtype=float64) + 0.2, t.randn(4, 3, 2, dtype=float64))


@parallel_scan.group(
    "any number of tokens",
    points=2,
    hint="After the first round each place knows 2 tokens, after the second 4. How far back must "
    "the third round reach?",
)
def _(t: Trial):
    for n in (4, 5, 8, 13, 33):
        t.same(t.rand(2, n, 3, dtype=float64) + 0.2, t.randn(2, n, 3, dtype=float64))
    t.same(t.randn(3, 1, 2, dtype=float64), t.randn(3, 1, 2, dtype=float64))
    if t.graded:
        n = t.integer(65, 90)
        t.same(t.rand(1, n, 4, dtype=float64), t.randn(1, n, 4, dtype=float64))


@parallel_scan.group(
    "factors of any size, zero and negative ones too",
    points=1,
    hint="A factor of 0 forgets everything before. Nothing may be divided by it.",
)
def _(t: Trial):
    a = t.randn(2, 9, 3, dtype=float64) * (t.rand(2, 9, 3) < 0.7)
    t.same(a, t.randn(2, 9, 3, dtype=float64))
    t.same(torch.zeros(2, 6, 3), t.randn(2, 6, 3), dtype=True)
    t.same(torch.full((1, 40, 2), 1e-12), t.randn(1, 40, 2), dtype=True)


@parallel_scan.group(
    "gradients to both, neither of them changed",
    points=1,
    hint="Make new tensors with `torch.cat`; do not write into `x` and `a`.",
)
def _(t: Trial):
    a, x = t.rand(2, 6, 3, dtype=float64), t.randn(2, 6, 3, dtype=float64)
    t.same_gradients(a, x)
    t.unchanged(a, x)


def _scan(a, x, join=lambda new, old: new * old, reach=lambda i: 2**i, rounds=None):
    for i in range((x.shape[1] - 1).bit_length() if rounds is None else rounds(x.shape[1])):
        step = reach(i)
        x, a = (
            torch.cat([x[:, :step], x[:, step:] + a[:, step:] * x[:, :-step]], 1),
            torch.cat([a[:, :step], join(a[:, step:], a[:, :-step])], 1),
        )
    return x


@parallel_scan.mistake("This is the code that you were given; it still has both its bugs.")
def scan_handed_out(a, x):
    for i in range((x.shape[1] - 1).bit_length()):  # log2(T) rounds, rounded up
        step = i + 1
        later_x = x[:, step:] + a[:, step:] * x[:, :-step]  # (B, T - step, N)
        later_a = a[:, step:] + a[:, :-step]
        x = torch.cat([x[:, :step], later_x], dim=1)  # (B, T, N)
        a = torch.cat([a[:, :step], later_a], dim=1)
    return x


@parallel_scan.mistake(
    "Your factors of two stretches are still added. What passes both is multiplied by both: "
    "multiply them."
)
def factors_added(a, x):
    return _scan(a, x, join=lambda new, old: new + old)


@parallel_scan.mistake(
    "Your rounds still reach back 1, 2, 3, ... The stretches double: 1, 2, 4, 8."
)
def one_step_further(a, x):
    return _scan(a, x, reach=lambda i: i + 1)


@parallel_scan.mistake(
    "You keep the factors of the first round. A longer stretch has the product of its factors."
)
def old_factors(a, x):
    return _scan(a, x, join=lambda new, old: new)


@parallel_scan.mistake(
    "You keep the factors of the earlier stretch alone. Those of both are multiplied."
)
def earlier_factors(a, x):
    return _scan(a, x, join=lambda new, old: old)


@parallel_scan.mistake("You stop a round early: the last tokens do not yet know the first ones.")
def a_round_early(a, x):
    return _scan(a, x, rounds=lambda n: n.bit_length() - 1)


@parallel_scan.mistake("You sum without the factors: nothing is ever forgotten.")
def plain_sum(a, x):
    return x.cumsum(1)


@parallel_scan.mistake(
    "You divide by the product of the factors. With a factor of 0, or many small ones, that is "
    "0 / 0."
)
def divided_by_products(a, x):
    products = a.cumprod(1)
    return products * (x / products).cumsum(1)


@parallel_scan.mistake(
    "You multiply by the factor of the token before. h[t] has a[t] in it, the factor of its own "
    "token."
)
def factors_shifted(a, x):
    return _scan(torch.cat([torch.ones_like(a[:, :1]), a[:, :-1]], 1), x)


@parallel_scan.mistake(
    "You apply the factor to the new token as well. It is added in full: a[t] * h[t - 1] + x[t]."
)
def factors_on_x(a, x):
    return _scan(a, a * x)


@parallel_scan.mistake("You did one round alone: each place knows the token before it, not more.")
def one_round(a, x):
    return torch.cat([x[:, :1], x[:, 1:] + a[:, 1:] * x[:, :-1]], 1)


@parallel_scan.mistake("You write into `x`. The caller still needs it: make a new tensor.")
def writes_into_x(a, x):
    result = _scan(a, x)
    x.data.copy_(result)
    return result


@parallel_scan.alternative
def one_after_the_other(a, x):
    h = torch.zeros_like(x[:, 0])
    states = []
    for t in range(x.shape[1]):
        h = a[:, t] * h + x[:, t]
        states.append(h)
    return torch.stack(states, 1)


@parallel_scan.alternative
def with_padding(a, x):
    step = 1
    while step < x.shape[1]:
        x = x + a * F.pad(x, (0, 0, step, 0))[:, : x.shape[1]]
        a = a * F.pad(a, (0, 0, step, 0), value=1.0)[:, : x.shape[1]]
        step <<= 1
    return x


@parallel_scan.alternative
def by_halves(a, x):
    if x.shape[1] == 1:
        return x
    half = x.shape[1] // 2
    first = by_halves(a[:, :half], x[:, :half])
    second = by_halves(a[:, half:], x[:, half:])
    return torch.cat([first, second + a[:, half:].cumprod(1) * first[:, -1:]], 1)
