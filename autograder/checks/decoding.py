"""Checks of chapter 15: from logits to text."""

import codecs
import itertools
import math

import torch
from torch import Tensor

from autograder.checking import Chapter, Trial
from solutions import decoding as reference
from solutions.json_grammar import schema_rules

chapter = Chapter("15_decoding", "Decoding")
check = chapter.check

OUT = -math.inf

# ---------------------------------------------------------------------------- temperature

temperature = chapter.exercise(reference.temperature, difficulty=1, minutes=3)


@temperature.group(
    "sharper and flatter", points=1, hint="The probabilities get the exponent 1/t. And the logits?"
)
def _(t: Trial):
    t.same(torch.tensor([2.0, 1.0, -1.0]), 0.5)
    t.same(3 * t.randn(2, 7), 1.7, dtype=True)
    t.same(t.randn(2, 3, 5, dtype=torch.float64), 0.3, dtype=True)
    t.same(torch.tensor([[1.0, OUT, -2.0]]), 0.8)
    t.unchanged(t.randn(3, 5), 0.6)


@temperature.group(
    "a temperature that makes no sense", points=1, hint="Not 0 either: nothing can be divided by 0."
)
def _(t: Trial):
    t.raises(ValueError, t.randn(2, 4), 0.0, naming="0")
    t.raises(ValueError, t.randn(2, 4), -1.5, naming="-1.5")
    t.same(t.randn(2, 4), 1e-3)


@temperature.mistake("You multiply by the temperature: a high one should flatten, yours sharpens.")
def multiplied(logits, t):
    if t <= 0:
        raise ValueError(f"t={t}")
    return logits * t


@temperature.mistake(
    "You return probabilities. What comes next wants logits: leave out the softmax."
)
def tempered_probabilities(logits, t):
    if t <= 0:
        raise ValueError(f"t={t}")
    return (logits / t).softmax(-1)


@temperature.mistake(
    "You divide the probabilities by the temperature: normalised again they are what they were."
)
def divides_probabilities(logits, t):
    if t <= 0:
        raise ValueError(f"t={t}")
    return logits.softmax(-1) / t


@temperature.mistake("Your function takes any temperature, 0 and negative ones too.")
def takes_any(logits, t):
    return logits / t


@temperature.mistake("You refuse negative temperatures only: 0 must not pass either.")
def lets_zero_pass(logits, t):
    if t < 0:
        raise ValueError(f"t={t}")
    return logits / t


@temperature.mistake("You change the logits in place: their owner still needs them.")
def tempers_in_place(logits, t):
    if t <= 0:
        raise ValueError(f"t={t}")
    return logits.div_(t)


@temperature.alternative
def times_the_inverse(logits, t):
    if not t > 0:
        raise ValueError(f"a temperature of {t}, expected above 0")
    return logits * (1 / t)


@temperature.alternative
def with_torch_div(logits, t):
    if t > 0:
        return torch.div(logits, t)
    raise ValueError(f"temperature {t} is not positive")


# ---------------------------------------------------------------------------------- top_k

top_k = chapter.exercise(reference.top_k, difficulty=2, minutes=6)


def spread(t: Trial, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits no two of which, in a row, are close."""
    places = t.rand(*shape, dtype=dtype).argsort(-1).argsort(-1).to(dtype)
    rows = 2 * t.randn(*shape[:-1], 1, dtype=dtype)  # each on a level of its own
    return 0.7 * places - 0.3 * shape[-1] + 0.1 * t.rand(*shape, dtype=dtype) + rows


@top_k.group(
    "the k largest of each row",
    points=2,
    hint="Find the k-th largest logit of each row; what is smaller is ruled out.",
)
def _(t: Trial):
    t.same(torch.tensor([1.0, 4.0, -2.0, 3.0]), 2)
    t.same(spread(t, 3, 7), 3, dtype=True)
    t.same(spread(t, 2, 3, 8, dtype=torch.float64), 5, dtype=True)
    t.same(spread(t, 4, 5), 1)
    t.unchanged(spread(t, 2, 6), 2)


@top_k.group(
    "more than there are, and ties",
    points=1,
    hint="`topk` raises if asked for more than there is. Those that equal the k-th are kept.",
)
def _(t: Trial):
    t.same(spread(t, 2, 5), 5)
    t.same(spread(t, 2, 5), 9)
    t.same(torch.tensor([[1.0, 3.0, 1.0, 2.0, 1.0, 0.0]]), 3)
    t.same(top_k_done(spread(t, 2, 7), 2), 4)


def top_k_done(logits: Tensor, k: int) -> Tensor:
    """Logits of which some have been ruled out before."""
    return reference.top_k(logits, k)


@top_k.group("a k that makes no sense", points=1, hint="k = 0 would leave nothing to draw.")
def _(t: Trial):
    t.raises(ValueError, spread(t, 2, 4), 0, naming="0")
    t.raises(ValueError, spread(t, 2, 4), -3, naming="-3")


def _k(logits, k):
    if k < 1:
        raise ValueError(f"k={k}")
    return min(k, logits.shape[-1])


@top_k.mistake("You keep one too few: the k-th largest itself is to stay.")
def without_the_kth(logits, k):
    least = logits.topk(_k(logits, k), -1).values[..., -1:]
    return logits.masked_fill(logits <= least, OUT)


@top_k.mistake("You keep one too many.")
def one_more(logits, k):
    k = min(_k(logits, k) + 1, logits.shape[-1])
    return logits.masked_fill(logits < logits.topk(k, -1).values[..., -1:], OUT)


@top_k.mistake("You keep the k smallest.")
def smallest(logits, k):
    largest = logits.topk(_k(logits, k), -1, largest=False).values[..., -1:]
    return logits.masked_fill(logits > largest, OUT)


@top_k.mistake(
    "You set the logits of the others to 0. That is no probability of 0: exp(0) is 1, more than "
    "many a token that was kept has. Rule out with -inf."
)
def zeros_for_the_others(logits, k):
    return logits.masked_fill(logits < logits.topk(_k(logits, k), -1).values[..., -1:], 0.0)


@top_k.mistake(
    "You rule out with a large negative number. That is very unlikely, not impossible, and what "
    "comes next cannot see that it is out: use -inf."
)
def not_quite_out(logits, k):
    return logits.masked_fill(logits < logits.topk(_k(logits, k), -1).values[..., -1:], -1e9)


@top_k.mistake(
    "You take one threshold for all rows. Each row has a k-th largest of its own: mind the "
    "dimension."
)
def one_threshold(logits, k):
    least = logits.topk(_k(logits, k), -1).values.min()
    return logits.masked_fill(logits < least, OUT)


@top_k.mistake("You return the k largest alone. The result has the shape of the logits.")
def only_the_largest(logits, k):
    return logits.topk(_k(logits, k), -1).values


@top_k.mistake("You keep exactly k, whichever. Those that are as likely as the k-th stay as well.")
def cuts_ties(logits, k):
    k = _k(logits, k)
    order = logits.sort(-1, descending=True, stable=True).indices[..., :k]
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, True)
    return logits.masked_fill(~kept, OUT)


@top_k.mistake("You ask `topk` for more than there are. With k above V, all are kept.")
def asks_for_too_many(logits, k):
    if k < 1:
        raise ValueError(f"k={k}")
    return logits.masked_fill(logits < logits.topk(k, -1).values[..., -1:], OUT)


@top_k.mistake("You let a k below 1 pass.")
def any_k(logits, k):
    k = max(1, min(k, logits.shape[-1]))
    return logits.masked_fill(logits < logits.topk(k, -1).values[..., -1:], OUT)


@top_k.mistake("You change the logits in place: their owner still needs them.")
def cuts_in_place(logits, k):
    return logits.masked_fill_(logits < logits.topk(_k(logits, k), -1).values[..., -1:], OUT)


@top_k.mistake("You return probabilities. What comes next wants logits: leave out the softmax.")
def top_k_probabilities(logits, k):
    least = logits.topk(_k(logits, k), -1).values[..., -1:]
    return logits.masked_fill(logits < least, OUT).softmax(-1)


@top_k.alternative
def with_sort(logits, k):
    if k < 1:
        raise ValueError(f"k={k}, expected 1 or more")
    ordered = logits.sort(dim=-1, descending=True).values
    least = ordered[..., min(k, logits.size(-1)) - 1].unsqueeze(-1)
    return torch.where(logits >= least, logits, torch.full_like(logits, OUT))


@top_k.alternative
def with_a_loop(logits, k):
    if k <= 0:
        raise ValueError(f"k is {k}")
    flat = logits.reshape(-1, logits.shape[-1]).clone()
    for row in flat:
        values = sorted(row.tolist(), reverse=True)
        row[row < values[min(k, len(values)) - 1]] = OUT
    return flat.reshape(logits.shape)


@top_k.alternative
def with_kthvalue(logits, k):
    if k < 1:
        raise ValueError(f"k={k}")
    n = logits.shape[-1]
    least = logits.kthvalue(n - min(k, n) + 1, dim=-1, keepdim=True).values
    return logits.masked_fill(logits < least, float("-inf"))


# ---------------------------------------------------------------------------------- top_p

top_p = chapter.exercise(reference.top_p, difficulty=4, minutes=10)


def of_probabilities(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


@top_p.group(
    "one row", points=1, hint="0.5 + 0.3 is 0.8. For p = 0.7 two tokens are needed, for 0.82 three."
)
def _(t: Trial):
    for p in (0.3, 0.7, 0.82, 0.97):
        t.same(of_probabilities([0.5, 0.3, 0.15, 0.05])[0], p)
    t.same(of_probabilities([0.15, 0.05, 0.5, 0.3])[0], 0.7)
    kept = t.call(torch.zeros(4), 0.5).isfinite().sum()
    t.equal(int(kept), 2, "Of four equally likely tokens, two have exactly 0.5 together")


def separated(t: Trial, *shape: int, p: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """Logits of which no sum of probabilities comes close to p, nor to 1 - p."""
    while True:
        logits = 2 * t.randn(*shape, dtype=torch.float64)
        sums = logits.softmax(-1).sort(-1, descending=True).values.cumsum(-1)
        if ((sums - p).abs() > 1e-3).all():
            return logits.to(dtype)


@top_p.group(
    "several rows",
    points=2,
    hint="After sorting you know which places are dropped. `order` says which token stands at "
    "which place: `scatter` brings the marks back.",
)
def _(t: Trial):
    t.same(separated(t, 3, 7, p=0.6), 0.6, dtype=True)
    t.same(separated(t, 2, 3, 9, p=0.9), 0.9)
    t.same(separated(t, 4, 8, p=0.75, dtype=torch.float32), 0.75, dtype=True)
    t.same(separated(t, 2, 11, p=0.35), 0.35)
    t.unchanged(separated(t, 2, 6, p=0.5), 0.5)


@top_p.group(
    "one that is nearly certain, and p = 1",
    points=1,
    hint="The most likely token is never dropped; with p = 1 none is.",
)
def _(t: Trial):
    t.same(of_probabilities([0.01, 0.98, 0.007, 0.003]), 0.5)
    t.same(torch.tensor([[0.0, 30.0, 1.0]]), 1e-9)
    t.same(torch.tensor([[0.0, 30.0, 1.0, -30.0]]), 1.0)
    t.same(t.randn(2, 7), 1)
    t.same(torch.tensor([[1.0, OUT, 0.9, OUT, -0.5]]), 0.5)


@top_p.group("a p that makes no sense", points=1, hint="p is above 0 and at most 1.")
def _(t: Trial):
    t.raises(ValueError, t.randn(2, 4), 0.0, naming="0")
    t.raises(ValueError, t.randn(2, 4), 1.2, naming="1.2")
    t.raises(ValueError, t.randn(2, 4), -0.5, naming="-0.5")


def _sums(logits, p):
    if not 0 < p <= 1:
        raise ValueError(f"p={p}")
    falling, order = logits.sort(-1, descending=True)
    q = falling.softmax(-1)
    return q, q.cumsum(-1), order


def _back(logits, dropped, order):
    return logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), OUT)


@top_p.mistake(
    "You drop the token with which the sum crosses p. Without it the set has less than p; and "
    "where one token alone has more than p, nothing is left to draw."
)
def drops_the_crossing(logits, p):
    _, sums, order = _sums(logits, p)
    return _back(logits, (sums > p) & (p < 1), order)


@top_p.mistake(
    "You drop the token with which the sum crosses p, except where it is the first: the rest then "
    "has less than p."
)
def drops_the_crossing_but_the_first(logits, p):
    _, sums, order = _sums(logits, p)
    dropped = (sums > p) & (p < 1)
    dropped[..., 0] = False
    return _back(logits, dropped, order)


@top_p.mistake("You keep one token more than needed to reach p.")
def one_token_more(logits, p):
    q, sums, order = _sums(logits, p)
    dropped = sums - q >= p
    dropped[..., 1:] = dropped[..., :-1].clone()
    dropped[..., 0] = False
    return _back(logits, dropped & (p < 1), order)


@top_p.mistake(
    "You mark what to drop in the sorted order, and apply the marks to the unsorted logits. Bring "
    "them back with `scatter` and the order."
)
def not_brought_back(logits, p):
    q, sums, _ = _sums(logits, p)
    return logits.masked_fill((sums - q >= p) & (p < 1), OUT)


@top_p.mistake(
    "You bring the marks back with `gather` (or by indexing with the order). That permutes the "
    "wrong way round: place i of the sorted row is token order[i], so it takes `scatter`."
)
def gathered_back(logits, p):
    q, sums, order = _sums(logits, p)
    return logits.masked_fill(((sums - q >= p) & (p < 1)).gather(-1, order), OUT)


@top_p.mistake("You return the sorted logits: the tokens have changed places.")
def sorted_logits(logits, p):
    q, sums, _ = _sums(logits, p)
    return logits.sort(-1, descending=True).values.masked_fill((sums - q >= p) & (p < 1), OUT)


@top_p.mistake("You keep the least likely tokens: start to sum from the most likely one.")
def from_the_bottom(logits, p):
    _sums(logits, p)
    rising, order = logits.sort(-1)
    q = rising.softmax(-1)
    return _back(logits, (q.cumsum(-1) - q >= p) & (p < 1), order)


@top_p.mistake("You keep the tokens of which each by itself has the probability p.")
def each_by_itself(logits, p):
    _sums(logits, p)
    q = logits.softmax(-1)
    return logits.masked_fill((q < p) & (q < q.amax(-1, keepdim=True)) & (p < 1), OUT)


@top_p.mistake("You compare with p times the largest probability: that is min-p, not top-p.")
def that_is_min_p(logits, p):
    _sums(logits, p)
    q = logits.softmax(-1)
    return logits.masked_fill((q < p * q.amax(-1, keepdim=True)) & (p < 1), OUT)


@top_p.mistake("You sum up logits. It is probabilities that sum to 1: a softmax first.")
def sums_of_logits(logits, p):
    _sums(logits, p)
    falling, order = logits.sort(-1, descending=True)
    dropped = (falling.cumsum(-1) - falling >= p) & (p < 1)
    return _back(logits, dropped, order)


@top_p.mistake(
    "You set the logits of the others to 0: exp(0) is 1, which is no probability of 0. Rule out "
    "with -inf."
)
def zeros_outside(logits, p):
    q, sums, order = _sums(logits, p)
    dropped = torch.zeros_like(sums > p).scatter(-1, order, (sums - q >= p) & (p < 1))
    return logits.masked_fill(dropped, 0.0)


@top_p.mistake(
    "You rule out with a large negative number. That is very unlikely, not impossible, and what "
    "comes next cannot see that it is out: use -inf."
)
def far_below(logits, p):
    q, sums, order = _sums(logits, p)
    dropped = torch.zeros_like(sums > p).scatter(-1, order, (sums - q >= p) & (p < 1))
    return logits.masked_fill(dropped, -1e9)


@top_p.mistake("You return probabilities. What comes next wants logits.")
def top_p_probabilities(logits, p):
    q, sums, order = _sums(logits, p)
    return _back(logits, (sums - q >= p) & (p < 1), order).softmax(-1)


@top_p.mistake(
    "Your function takes any p. Above 1 makes no sense, nor does 0: raise a `ValueError` that "
    "gives it."
)
def any_p(logits, p):
    q, sums, order = _sums(logits, min(max(p, 1e-12), 1))
    return _back(logits, (sums - q >= p) & (p < 1) & (sums > q), order)


@top_p.mistake("You change the logits in place: their owner still needs them.")
def top_p_in_place(logits, p):
    q, sums, order = _sums(logits, p)
    dropped = torch.zeros_like(sums > p).scatter(-1, order, (sums - q >= p) & (p < 1))
    return logits.masked_fill_(dropped, OUT)


@top_p.mistake(
    "You never drop from the bottom more than one token less than you could: what is dropped may "
    "have 1 - p together, the last one included."
)
def drops_too_few(logits, p):
    _sums(logits, p)
    rising, order = logits.sort(-1)
    dropped = rising.softmax(-1).cumsum(-1) <= 1 - p
    dropped = torch.cat([dropped[..., 1:], torch.zeros_like(dropped[..., :1])], -1)
    return _back(logits, dropped, order)


@top_p.mistake(
    "With a small p you rule out every token: the most likely one must stay, whatever 1 - p rounds "
    "to."
)
def nothing_left(logits, p):
    _sums(logits, p)
    rising, order = logits.sort(-1)
    return _back(logits, rising.softmax(-1).cumsum(-1) <= 1 - p, order)


@top_p.alternative
def from_the_top(logits, p):
    if p <= 0 or p > 1:
        raise ValueError(f"p={p}, expected 0 < p <= 1")
    if p == 1:
        return logits.clone()
    falling, order = logits.sort(dim=-1, descending=True)
    probabilities = torch.softmax(falling, dim=-1)
    before = probabilities.cumsum(-1) - probabilities
    dropped = torch.empty_like(before, dtype=torch.bool).scatter_(-1, order, before >= p)
    dropped.scatter_(-1, order[..., :1], False)
    return logits.masked_fill(dropped, OUT)


@top_p.alternative
def row_by_row(logits, p):
    if not (p > 0 and p <= 1):
        raise ValueError(f"p is {p}")
    rows = []
    for row in logits.reshape(-1, logits.shape[-1]):
        total, new = 0.0, torch.full_like(row, OUT)
        probabilities = row.double().softmax(0).tolist()
        for token in row.argsort(descending=True).tolist():
            new[token] = row[token]
            total += probabilities[token]
            if total >= p and p < 1:
                break
        rows.append(new)
    return torch.stack(rows).reshape(logits.shape)


@top_p.alternative
def with_the_inverse_order(logits, p):
    if not 0 < p <= 1:
        raise ValueError(f"p={p}")
    falling, order = torch.sort(logits, dim=-1, descending=True)
    sums = falling.softmax(-1).cumsum(-1)
    kept = torch.cat([torch.ones_like(sums[..., :1], dtype=torch.bool), sums[..., :-1] < p], -1)
    kept = kept | (p == 1)
    return torch.where(kept.gather(-1, order.argsort(-1)), logits, OUT)


# --------------------------------------------------------------------------------- sample

sample = chapter.exercise(
    reference.sample,
    difficulty=3,
    minutes=9,
    forbidden=["torch.multinomial", "torch.distributions", "Categorical"],
)

ROWS = 6000


def drawn(t: Trial, logits: Tensor, seeds: list[int], shape: tuple[int, ...]) -> list | None:
    """What was drawn, if it has the form that it should have."""
    found, _ = t.drive("draws", logits, seeds)
    for ids in found["drawn"]:
        fits = isinstance(ids, Tensor) and ids.shape == shape and ids.dtype == torch.int64
        t.require(
            fits,
            f"There is one id (int64) for each row of logits: a tensor of shape {shape}",
            found=ids,
        )
        if not fits:
            return None
        inside = bool(((ids >= 0) & (ids < logits.shape[-1])).all())
        t.require(inside, "An id that you drew is no token: ids are 0 to V - 1", found=ids)
        if not inside:
            return None
    t.require(
        found["unmoved"],
        "All randomness comes from the generator, and the logits are left alone; torch's own "
        "random numbers, or the logits, have changed",
    )
    return found["drawn"]


def as_often(t: Trial, ids: Tensor, logits: Tensor) -> None:
    """Require that each token was drawn about as often as its probability says."""
    t.require(
        ids.unique().numel() > 1,
        f"All {len(ids)} rows of one call got the same token, as if one dart were thrown for all",
    )
    expected = len(ids) * logits.double().softmax(-1)
    counts = torch.bincount(ids, minlength=len(logits)).double()
    off = (counts - expected).abs() / (expected * (1 - expected / len(ids))).sqrt().clamp_min(0.5)
    worst = int(off.argmax())
    t.require(
        off[worst] < 6,
        f"Of {len(ids)} draws, token {worst} should be about {expected[worst]:.0f}, and is "
        f"{counts[worst]:.0f}",
    )


@sample.group(
    "each token as often as it should be",
    points=2,
    hint="Token j owns a stretch of the line from 0 to 1, as long as its probability. Which "
    "stretch does the dart hit?",
)
def _(t: Trial):
    logits = 1.5 * t.randn(7)
    for ids in drawn(t, logits.expand(ROWS, 7).clone(), [t.integer(0, 10**6)], (ROWS,)) or ():
        as_often(t, ids, logits)
    sure = torch.tensor([[0.0, 60.0, 0.0], [60.0, 0.0, 0.0], [0.0, 0.0, 60.0]])
    for ids in drawn(t, sure, [5], (3,)) or ():
        t.equal(ids, torch.tensor([1, 0, 2]), "A token that is nearly certain should be drawn")


@sample.group(
    "what is ruled out is never drawn",
    points=1,
    hint="Take the softmax of the logits: exp(-inf) is 0, and a stretch of length 0 is not hit.",
)
def _(t: Trial):
    logits = t.randn(9)
    logits[t.randperm(9)[:4]] = OUT
    for ids in drawn(t, logits.expand(ROWS, 9).clone(), [t.integer(0, 10**6)], (ROWS,)) or ():
        as_often(t, ids, logits)
    wide = torch.full((300,), OUT)
    wide[100:103] = t.randn(3) + 1000
    for ids in drawn(t, wide.expand(ROWS, 300).clone(), [t.integer(0, 10**6)], (ROWS,)) or ():
        as_often(t, ids, wide)


@sample.group(
    "rows of their own, any number of axes",
    points=1,
    hint="One dart for each row: draw as many random numbers as there are rows.",
)
def _(t: Trial):
    ids = drawn(t, torch.zeros(ROWS, 2, 3), [t.integer(0, 10**6)], (ROWS, 2))
    for pair in ids or ():
        as_often(t, 3 * pair[:, 0] + pair[:, 1], torch.zeros(9))
    drawn(t, t.randn(4), [1], ())
    drawn(t, t.randn(2, 3, 5, dtype=torch.float64), [1], (2, 3))


@sample.group(
    "the generator decides",
    points=1,
    hint="Pass `generator=generator` to `torch.rand`, and let it go on: two calls draw different "
    "tokens.",
)
def _(t: Trial):
    logits = torch.zeros(40, 50)
    ids = drawn(t, logits, [3, 3, 4], (40,))
    if ids:
        t.equal(ids[0], ids[1], "Two generators of the same seed should draw the same tokens")
        t.require(
            not torch.equal(ids[1], ids[2]) and not torch.equal(ids[2], ids[3]),
            "Generators of different seeds, and two calls with one generator, should differ",
        )


def _inverse(weights, generator, u=None):
    ends = weights.double().cumsum(-1)
    if u is None:
        u = torch.rand(ends[..., :1].shape, generator=generator, dtype=torch.float64)
    return (ends < (1 - u) * ends[..., -1:]).sum(-1)


@sample.mistake("You take the most likely token: that is `greedy`.")
def that_is_greedy(logits, generator):
    return logits.argmax(-1)


@sample.mistake("You take no softmax: logits are no probabilities.")
def logits_as_weights(logits, generator):
    return _inverse(logits.clamp_min(0) + 1e-9, generator)


@sample.mistake("You draw every token that is not ruled out with the same probability.")
def all_alike(logits, generator):
    return _inverse(logits.isfinite().float(), generator)


@sample.mistake("You throw one dart for all rows. Each row needs one of its own.")
def one_dart_for_all(logits, generator):
    u = torch.rand((), generator=generator, dtype=torch.float64)
    return _inverse(logits.softmax(-1), generator, u.expand(logits.shape[:-1])[..., None])


@sample.mistake("You do not use the generator: torch's own random numbers are drawn instead.")
def without_generator(logits, generator):
    return _inverse(logits.softmax(-1), None)


@sample.mistake("You seed the generator: each call then draws the same.")
def seeds_again(logits, generator):
    return _inverse(logits.softmax(-1), generator.manual_seed(0))


@sample.mistake(
    "Your ids are one too large: count the stretches that end *before* the dart, or take the index "
    "of the first that ends behind it."
)
def one_too_large(logits, generator):
    return _inverse(logits.softmax(-1), generator) + 1


@sample.mistake("You keep an axis of length 1 at the end: there is one id for each row.")
def keeps_the_axis(logits, generator):
    return _inverse(logits.softmax(-1), generator).unsqueeze(-1)


@sample.mistake("You return the probability of what you drew. The id is asked for.")
def returns_probability(logits, generator):
    p = logits.softmax(-1)
    return p.gather(-1, _inverse(p, generator).unsqueeze(-1)).squeeze(-1)


@sample.mistake(
    "You add normal noise to the logits and take the largest. The noise that makes this right has "
    "a Gumbel distribution: -log(-log(u))."
)
def normal_noise(logits, generator):
    return (logits + torch.randn(logits.shape, generator=generator)).argmax(-1)


@sample.mistake(
    "You compare the dart with each probability, not with their running sum: the `cumsum` is "
    "missing."
)
def no_running_sum(logits, generator):
    p = logits.double().softmax(-1)
    u = torch.rand(p[..., :1].shape, generator=generator, dtype=torch.float64)
    return (p < u).sum(-1).clamp_max(logits.shape[-1] - 1)


@sample.mistake("You exponentiate the logits as they are: exp(1000) is inf. Use the softmax.")
def overflowing(logits, generator):
    return _inverse(logits.float().exp(), generator).clamp_max(logits.shape[-1] - 1)


@sample.alternative
def with_gumbel_noise(logits, generator):
    u = torch.rand(logits.shape, generator=generator, dtype=torch.float64)
    return (logits - (-u.clamp_min(1e-300).log()).log()).argmax(dim=-1)


@sample.alternative
def with_searchsorted(logits, generator):
    flat = logits.reshape(-1, logits.shape[-1])
    ends = flat.double().softmax(-1).cumsum(-1)
    darts = torch.rand(len(flat), 1, generator=generator, dtype=torch.float64) * ends[:, -1:]
    ids = torch.searchsorted(ends, darts, right=True).clamp_max(flat.shape[-1] - 1)
    return ids.reshape(logits.shape[:-1])


@sample.alternative
def with_exponential_races(logits, generator):
    p = logits.double().softmax(-1)
    times = torch.empty_like(p).exponential_(generator=generator)
    return (p / times).argmax(-1)


@sample.alternative
def with_a_loop_over_rows(logits, generator):
    flat = logits.reshape(-1, logits.shape[-1]).double().softmax(-1)
    darts = torch.rand(len(flat), generator=generator, dtype=torch.float64).tolist()
    ids = []
    for row, dart in zip(flat.tolist(), darts):
        chosen = None
        for token, p in enumerate(row):
            if p > 0:
                chosen = token
                dart -= p
                if dart < 0:
                    break
        ids.append(chosen)
    return torch.tensor(ids).reshape(logits.shape[:-1])


# --------------------------------------------------------------------- repetition_penalty

repetition_penalty = chapter.exercise(
    reference.repetition_penalty, difficulty=2, minutes=8, mend="three_bugs"
)


def repeated(t: Trial, batch: int, length: int, vocab: int) -> Tensor:
    """Ids in which some tokens come several times, and not all tokens of the vocabulary come."""
    ids = t.randint(0, vocab - 2, (batch, length))
    ids[:, -1] = ids[:, 0]
    return ids


@repetition_penalty.group(
    "logits above 0 and below",
    points=2,
    hint="Halving -4 gives -2: is that token less likely now, or more?",
)
def _(t: Trial):
    t.same(torch.tensor([[2.0, -2.0, 0.0, 1.0]]), torch.tensor([[0, 1]]), 2.0)
    ids = torch.stack([t.randperm(9)[:4] for _ in range(3)])
    t.same(3 * t.randn(3, 9), ids, 1.3, dtype=True)
    t.same(t.randn(2, 7, dtype=torch.float64) - 3, torch.tensor([[1, 5], [6, 0]]), 1.1, dtype=True)


@repetition_penalty.group(
    "each token once, however often it was written",
    points=1,
    hint="A loop over the ids meets some of them twice. Which tokens are there at all?",
)
def _(t: Trial):
    t.same(2 * t.randn(2, 6), repeated(t, 2, 5, 6), 1.5)
    t.same(torch.tensor([[4.0, -4.0, 1.0]]), torch.tensor([[0, 0, 1, 1, 1]]), 2.0)
    t.same(t.randn(2, 5), torch.zeros(2, 0, dtype=torch.long), 1.5)


@repetition_penalty.group(
    "the caller's logits are left alone", points=1, hint="Make a new tensor; do not write into it."
)
def _(t: Trial):
    t.unchanged(t.randn(3, 7), repeated(t, 3, 4, 7), 1.4)
    t.same(3 * t.randn(4, 8), torch.stack([t.randperm(8)[:3] for _ in range(4)]), 0.7)


@repetition_penalty.mistake("This is the code that was handed out: three things are wrong with it.")
def three_bugs(logits, ids, penalty):
    for row, written in zip(logits, ids.tolist()):
        for token in written:
            row[token] = row[token] / penalty
    return logits


@repetition_penalty.mistake(
    "You divide negative logits too: that makes them larger, and the token more likely."
)
def divides_all(logits, ids, penalty):
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, True)
    return torch.where(seen, logits / penalty, logits)


@repetition_penalty.mistake("You multiply where you should divide, and the other way round.")
def the_wrong_way_round(logits, ids, penalty):
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, True)
    return torch.where(seen, torch.where(logits < 0, logits / penalty, logits * penalty), logits)


@repetition_penalty.mistake("A token that was written twice, you penalise twice. Once is enough.")
def once_for_each_time(logits, ids, penalty):
    logits = logits.clone()
    for row, written in zip(logits, ids.tolist()):
        for token in written:
            row[token] = row[token] / penalty if row[token] > 0 else row[token] * penalty
    return logits


@repetition_penalty.mistake("You change the logits in place: their owner still needs them.")
def penalises_in_place(logits, ids, penalty):
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, True)
    logits.copy_(
        torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    )
    return logits


@repetition_penalty.mistake(
    "You penalise in every row what was written in any. Each row has a text of its own."
)
def rows_mixed(logits, ids, penalty):
    seen = torch.zeros(logits.shape[-1], dtype=torch.bool)
    seen[ids.flatten()] = True
    lowered = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, lowered, logits)


@repetition_penalty.mistake("You subtract the penalty: that is another kind of penalty.")
def subtracts(logits, ids, penalty):
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, True)
    return torch.where(seen, logits - penalty, logits)


@repetition_penalty.mistake("You penalise the tokens that were *not* written.")
def the_others(logits, ids, penalty):
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, True)
    return torch.where(seen, logits, torch.where(logits > 0, logits / penalty, logits * penalty))


@repetition_penalty.mistake("You look at the last token only.")
def only_the_last(logits, ids, penalty):
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids[:, -1:], True)
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


@repetition_penalty.alternative
def with_gather_and_scatter(logits, ids, penalty):
    chosen = logits.gather(-1, ids)
    chosen = torch.where(chosen < 0, chosen * penalty, chosen / penalty)
    return logits.scatter(-1, ids, chosen)


@repetition_penalty.alternative
def with_sets(logits, ids, penalty):
    new = logits.clone()
    for b, written in enumerate(ids.tolist()):
        for token in set(written):
            new[b, token] = new[b, token] * (1 / penalty if new[b, token] > 0 else penalty)
    return new


@repetition_penalty.alternative
def with_one_hot(logits, ids, penalty):
    seen = (torch.arange(logits.shape[-1]) == ids[..., None]).any(1)
    up, down = (torch.full_like(logits, x) for x in (penalty, 1 / penalty))
    factor = torch.where(logits > 0, down, up)
    return logits * torch.where(seen, factor, torch.ones_like(factor))


# ----------------------------------------------------------------------------- logit_bias

logit_bias = chapter.exercise(reference.logit_bias, difficulty=1, minutes=4)


@logit_bias.group(
    "some tokens, in every row",
    points=2,
    hint="The dict's keys are ids: places on the last axis.",
)
def _(t: Trial):
    t.same(t.randn(5), {3: 1.5})
    t.same(t.randn(2, 7), {0: 2.0, 6: -1.25}, dtype=True)
    t.same(t.randn(2, 3, 4, dtype=torch.float64), {2: 0.5}, dtype=True)
    t.same(torch.tensor([[1.0, 0.0, -2.0]]), {1: 3.0, 0: -1.0})


@logit_bias.group(
    "ruled out, nothing to do, left alone",
    points=1,
    hint="-inf may be added like any other number. An empty dict changes nothing.",
)
def _(t: Trial):
    t.same(t.randn(2, 6), {1: OUT, 4: 2.0})
    t.same(t.randn(2, 6), {})
    t.same(torch.tensor([[1.0, OUT, 0.5]]), {1: 5.0, 2: OUT})
    t.unchanged(t.randn(2, 5), {3: 1.0})


@logit_bias.mistake("You replace the logit. The bias is added to it.")
def replaces(logits, bias):
    new = logits.clone()
    for token, amount in bias.items():
        new[..., token] = amount
    return new


@logit_bias.mistake("You multiply. The bias is added.")
def multiplies(logits, bias):
    new = logits.clone()
    for token, amount in bias.items():
        new[..., token] *= amount
    return new


@logit_bias.mistake("You change the logits in place: their owner still needs them.")
def biases_in_place(logits, bias):
    for token, amount in bias.items():
        logits[..., token] += amount
    return logits


@logit_bias.mistake("You index the first axis. Tokens are on the last one.")
def the_first_axis(logits, bias):
    new = logits.clone()
    for token, amount in bias.items():
        new[token] += amount
    return new


@logit_bias.mistake("You add the bias to the first row only. It holds for all.")
def the_first_row(logits, bias):
    new = logits.clone()
    rows = new.view(-1, new.shape[-1])
    for token, amount in bias.items():
        rows[0, token] += amount
    return new


@logit_bias.mistake("You take the bias from the logit. It is added.")
def takes_off(logits, bias):
    new = logits.clone()
    for token, amount in bias.items():
        new[..., token] -= amount
    return new


@logit_bias.mistake(
    "You add the bias to the probabilities. Added to a logit, it multiplies the odds instead."
)
def on_probabilities(logits, bias):
    new = logits.softmax(-1)
    for token, amount in bias.items():
        new[..., token] += amount
    return new


@logit_bias.alternative
def clone_and_add(logits, bias):
    new = logits.clone()
    for token, amount in bias.items():
        new[..., token] += amount
    return new


@logit_bias.alternative
def with_index_add(logits, bias):
    ids = torch.tensor(list(bias), dtype=torch.long)
    amounts = torch.tensor(list(bias.values()), dtype=logits.dtype)
    return logits + torch.zeros(logits.shape[-1], dtype=logits.dtype).index_add(0, ids, amounts)


@logit_bias.alternative
def with_a_list(logits, bias):
    return logits + torch.tensor([bias.get(i, 0.0) for i in range(logits.shape[-1])]).to(logits)


# ---------------------------------------------------------------------------- beam_search

beam_search = chapter.exercise(reference.beam_search, difficulty=4, minutes=16)


def searched(t: Trial, shape: tuple[int, int], start: list[int], hurry=0.0, **options) -> None:
    """Require the continuations, their order and their scores; `hurry` makes the end likely."""
    depth, vocab = shape
    table = 1.2 * t.randn(depth, vocab, vocab, dtype=torch.float64)
    if hurry:
        table[..., options["end"]] += hurry
    found, expected = t.drive("beams", table, torch.tensor(start), **options)
    width, n, alpha = options["width"], options["n"], options.get("alpha", 0)
    what = f"width {width}, {n} tokens, alpha {alpha}"
    try:
        texts = [list(ids) for _, ids in found]
        scores = [float(score) for score, _ in found]
    except (TypeError, ValueError):
        t.require(False, "The result is a list of pairs: a score, and a list of ids", found=found)
        return
    t.equal(
        texts, [ids for _, ids in expected], f"The continuations, best first, are others ({what})"
    )
    t.equal(scores, [score for score, _ in expected], f"Their scores are others ({what})")


@beam_search.group(
    "one, and a few",
    points=2,
    hint="All extensions of all that are kept compete in one list, by the *sum* of their "
    "log-probabilities.",
)
def _(t: Trial):
    searched(t, (8, 5), [1], width=1, n=4, end=99)
    searched(t, (8, 5), [0, 3], width=2, n=4, end=99)
    searched(t, (8, 6), [2], width=4, n=5, end=99)


@beam_search.group(
    "as wide as the tree: brute force",
    points=1,
    hint="With room for all, all are kept: V to the power of n. Of one continuation no more than V "
    "extensions can be taken.",
)
def _(t: Trial):
    searched(t, (6, 3), [1, 0], width=100, n=3, end=99)


@beam_search.group(
    "some are finished",
    points=2,
    hint="What ends with the end token is not extended any more, and competes on as it is.",
)
def _(t: Trial):
    searched(t, (9, 4), [0], width=3, n=6, end=2)
    searched(t, (9, 4), [3, 1], width=40, n=3, end=0)
    searched(t, (9, 3), [1], width=5, n=6, end=1)
    searched(t, (9, 3), [0], hurry=4.0, width=2, n=7, end=1)
    searched(t, (9, 5), [1], width=6, n=4, end=3, never=2)
    searched(t, (9, 5), [1], width=40, n=2, end=3, never=2)


@beam_search.group(
    "long ones, by their mean",
    points=1,
    hint="Rank by the score, at each step; keep the plain sum for adding to it.",
)
def _(t: Trial):
    searched(t, (9, 4), [0, 1, 2], width=3, n=5, end=2, alpha=1.0)
    searched(t, (9, 4), [3], width=5, n=5, end=1, alpha=0.6)
    searched(t, (9, 3), [2], width=30, n=4, end=0, alpha=2.0)


def _searching(
    extend_finished=False,
    keep_finished=True,
    per_beam=False,
    only_last=False,
    probabilities=False,
    rank=None,
    with_start=False,
    worst_first=False,
    impossible=False,
    score_at_end=True,
    keep_all=False,
    drop_end=False,
    stop_at_first=False,
    cap=True,
):
    """A beam search with something wrong about it."""

    def search(next_log_probs, start, width, n, end, alpha=0.0):
        def score(beam):
            total, ids = beam
            return total / len(ids) ** alpha

        key = (lambda b: rank(b, alpha, len(start))) if rank else score
        beams, done = [(0.0, [])], []
        for _ in range(n):
            finished = [] if extend_finished else [b for b in beams if b[1] and b[1][-1] == end]
            live = [b for b in beams if b not in finished]
            if not live or (stop_at_first and finished):
                break
            candidates = list(finished) if keep_finished else []
            done += finished
            log_p = next_log_probs(torch.stack([torch.tensor([*start, *ids]) for _, ids in live]))
            kept = []
            for (total, ids), row in zip(live, log_p.tolist()):
                more = []
                for token, value in enumerate(row):
                    if value == OUT and not impossible:
                        continue
                    if probabilities:
                        more.append((total + math.exp(value), [*ids, token]))
                    else:
                        more.append(((0 if only_last else total) + value, [*ids, token]))
                kept.append(max(more) if per_beam and len(live) >= width else None)
                candidates += more
            beams = sorted(candidates, key=key, reverse=True)
            if per_beam and kept[0] is not None:
                beams = sorted([*finished, *kept], key=key, reverse=True)
            if not keep_all:
                beams = beams[:width]
        found = [((score if score_at_end else key)(b), b[1]) for b in beams]
        found.sort(key=lambda b: b[0], reverse=not worst_first)
        if drop_end:
            found = [(s, ids[:-1] if ids[-1] == end else ids) for s, ids in found]
        return [(s, [*start.tolist(), *ids] if with_start else ids) for s, ids in found]

    return search


def _named(name: str, search):
    search.__name__ = name
    return search


beam_search.mistake("You extend what is finished: behind an end token nothing more may come.")(
    _named("extends_the_finished", _searching(extend_finished=True))
)
beam_search.mistake(
    "You drop what is finished at the next step. It stays, and competes with the others as it is."
)(_named("drops_the_finished", _searching(keep_finished=False)))
beam_search.mistake(
    "You keep the best extension of each continuation. All extensions of all of them compete: two "
    "of the best may come from the same."
)(_named("best_of_each", _searching(per_beam=True)))
beam_search.mistake(
    "You compare the last token alone. A continuation is as likely as all of its tokens together: "
    "carry the sum along."
)(_named("forgets_the_past", _searching(only_last=True)))
beam_search.mistake("You add up probabilities. They multiply; it is their logarithms that add up.")(
    _named("adds_probabilities", _searching(probabilities=True))
)
beam_search.mistake("Your continuations begin with `start`. Return what comes after it.")(
    _named("with_the_start", _searching(with_start=True))
)
beam_search.mistake("Your result has the worst continuation first.")(
    _named("the_worst_first", _searching(worst_first=True))
)
beam_search.mistake(
    "You keep continuations of probability 0 when there is room for them. Leave out what has a "
    "log-probability of -inf."
)(_named("keeps_the_impossible", _searching(impossible=True)))
beam_search.mistake("You ignore alpha.")(
    _named("ignores_alpha", _searching(rank=lambda b, alpha, start: b[0], score_at_end=False))
)
beam_search.mistake(
    "You rank by the sum while you search, and divide by the length only at the end. The score "
    "decides at every step what is kept."
)(_named("alpha_at_the_end", _searching(rank=lambda b, alpha, start: b[0])))
beam_search.mistake("You count the tokens of `start` in the length. Only what was written counts.")(
    _named(
        "length_with_start",
        _searching(
            rank=lambda b, alpha, start: b[0] / (len(b[1]) + start) ** alpha, score_at_end=False
        ),
    )
)
beam_search.mistake("You multiply by the power of the length: that makes long ones worse off.")(
    _named(
        "times_the_length",
        _searching(rank=lambda b, alpha, start: b[0] * len(b[1]) ** alpha, score_at_end=False),
    )
)
beam_search.mistake("You keep everything: the beam has no more than `width` continuations.")(
    _named("keeps_everything", _searching(keep_all=True))
)
beam_search.mistake("You leave out the end token of what is finished. It belongs to the text.")(
    _named("without_the_end", _searching(drop_end=True))
)
beam_search.mistake(
    "You stop as soon as one continuation is finished. The others go on, and may end up better."
)(_named("stops_at_the_first", _searching(stop_at_first=True)))


@beam_search.mistake(
    "You carry the score along, and divide it again at the next step. Carry the plain sum, and "
    "divide only to compare."
)
def divides_again(next_log_probs, start, width, n, end, alpha=0.0):
    beams = [(0.0, [])]
    for _ in range(n):
        more = [beam for beam in beams if beam[1] and beam[1][-1] == end]
        live = [beam for beam in beams if beam not in more]
        if not live:
            break
        log_p = next_log_probs(torch.stack([torch.tensor([*start, *ids]) for _, ids in live]))
        for (score, ids), row in zip(live, log_p.tolist()):
            for token, value in enumerate(row):
                if value > OUT:
                    more.append(((score + value) / (len(ids) + 1) ** alpha, [*ids, token]))
        beams = sorted(more, key=lambda beam: beam[0], reverse=True)[:width]
    return beams


@beam_search.alternative
def all_in_one_list(next_log_probs, start, width, n, end, alpha=0.0):
    beams = [((), 0.0)]
    for _ in range(n):
        extended = []
        for ids, total in beams:
            if ids and ids[-1] == end:
                extended.append((ids, total))
                continue
            row = next_log_probs(torch.cat([start, torch.tensor(ids, dtype=torch.long)])[None])[0]
            for token, log_p in enumerate(row.tolist()):
                if math.isfinite(log_p):
                    extended.append(((*ids, token), total + log_p))
        extended.sort(key=lambda beam: beam[1] / len(beam[0]) ** alpha, reverse=True)
        beams = extended[:width]
    return [(total / len(ids) ** alpha, list(ids)) for ids, total in beams]


@beam_search.alternative
def with_tensors(next_log_probs, start, width, n, end, alpha=0.0):
    ids, totals = start[None], torch.zeros(1, dtype=torch.float64)
    lengths, finished = torch.zeros(1), torch.zeros(1, dtype=torch.bool)
    for _ in range(n):
        log_p = next_log_probs(ids).double()
        vocab = log_p.shape[1]
        # A finished one has a single extension, by a filler that costs nothing.
        log_p = torch.where(finished[:, None], OUT, log_p)
        log_p = torch.cat([log_p, torch.where(finished, 0.0, OUT)[:, None].double()], 1)
        sums = totals[:, None] + log_p
        grown = (lengths + ~finished)[:, None].expand_as(sums)
        scores = sums / grown.double() ** alpha
        best = scores.flatten().topk(min(width, int(scores.isfinite().sum()))).indices
        rows, tokens = best // (vocab + 1), best % (vocab + 1)
        over = finished[rows] | (tokens == end)
        filler = torch.where(tokens == vocab, 0, tokens)
        ids = torch.cat([ids[rows], filler[:, None]], 1)
        totals, lengths, finished = sums.flatten()[best], grown.flatten()[best], over
    texts = [row[len(start) :][: int(k)].tolist() for row, k in zip(ids, lengths)]
    return [
        (total.item() / int(k) ** alpha, text) for total, k, text in zip(totals, lengths, texts)
    ]


# ---------------------------------------------------------------------------- stream_text

stream_text = chapter.exercise(reference.stream_text, difficulty=4, minutes=15)


def streams(t: Trial, tokens: list[bytes], stops: list[str], what: str) -> None:
    """Require the pieces, each after the token with which it can go."""
    found, expected = t.drive("streamed", tokens, stops)
    pieces = found["pieces"]
    shown = f"tokens {tokens}, stops {stops}"
    if not all(isinstance(piece, str) for piece, _ in pieces):
        t.require(False, "Each piece is text, of the type str", found=pieces)
        return
    joined, right = "".join(p for p, _ in pieces), "".join(p for p, _ in expected["pieces"])
    t.require(
        joined == right, f"{what}: the text is another ({shown})", expected=right, found=joined
    )
    t.require(
        pieces == expected["pieces"],
        f"{what}: the pieces, or the tokens after which they come, are others ({shown})",
        expected=expected["pieces"],
        found=pieces,
    )
    t.require(
        found["taken"] == expected["taken"],
        f"{what}: {expected['taken']} tokens are to be taken ({shown})",
        found=found["taken"],
    )


def some_cut(t: Trial, text: str) -> list[bytes]:
    """A text's bytes in tokens of one to four."""
    data, tokens = text.encode(), []
    while data:
        n = t.integer(1, 5)
        tokens.append(data[:n])
        data = data[n:]
    return tokens


@stream_text.group(
    "text as it comes",
    points=1,
    hint="`yield` after each token. The number behind a piece says after how many tokens it came.",
)
def _(t: Trial):
    streams(t, [b"He", b"llo", b",", b" wor", b"ld"], [], "Without stop sequences")
    streams(t, [b"a", b"", b"b"], [], "A token without text")
    streams(t, [], ["x"], "No tokens at all")


@stream_text.group(
    "characters that two tokens share",
    points=2,
    hint="An incremental decoder keeps the bytes of an unfinished character until the rest comes.",
)
def _(t: Trial):
    streams(t, ["é".encode()[:1], "é".encode()[1:] + b"!"], [], "A character in two parts")
    streams(t, some_cut(t, "naïve €5 🙂 ok 日本"), [], "Characters of several bytes")
    streams(t, [b"a\xff", b"b\xe2\x82"], [], "Bytes that are no text")


@stream_text.group(
    "stop sequences, in one token or in several",
    points=2,
    hint="Hold back the longest end of the text that is the beginning of a stop sequence. If the "
    "next token shows that it is none, it goes.",
)
def _(t: Trial):
    streams(t, [b"yes", b".", b"\n", b"\n", b"no"], ["\n\n"], "A stop in two tokens")
    streams(
        t, [b"one", b" ST", b"AR", b" ST", b"OP two", b"!"], ["STOP"], "A beginning that is none"
    )
    streams(t, [b"a b<e", b"nd>c"], ["<end>"], "A stop inside of tokens")
    streams(t, [b"ab", b"ab", b"ac", b"x"], ["abac"], "A beginning within a beginning")
    streams(t, [b"done", b"#"], ["##"], "Tokens that end while text waits")
    streams(t, some_cut(t, "q: é? a: èé. q: ééx"), ["éé"], "A stop of several bytes")


@stream_text.group(
    "several stop sequences",
    points=1,
    hint="The one that is complete first counts, wherever it stands in the list; of two that end "
    "at one character, the longer.",
)
def _(t: Trial):
    streams(t, [b"xabcdy"], ["abcd", "bc"], "One inside another")
    streams(t, [b"1;2\n3"], ["\n", ";"], "The later one first in the list")
    streams(t, [b"a", b"b", b"c"], ["c", "bc"], "Two that end together")
    streams(t, [b"a", b"bc", b"ax"], ["abcd", "bca"], "Two beginnings at once")
    if t.graded:
        for _ in range(4):
            text = "".join(t.choice("abé") for _ in range(12))
            stops = ["".join(t.choice("abé") for _ in range(t.integer(2, 4))) for _ in range(2)]
            streams(t, some_cut(t, text), stops, "Some text")


def _streaming(
    alone=False,
    at_once=False,
    whole_token=False,
    with_stop=False,
    hold=True,
    hold_always=False,
    flush=True,
    further=False,
    empties=False,
    earliest=False,
    in_order=False,
    errors="replace",
    hold_one=False,
    rest_of_token=False,
    loses_held=False,
):
    """A stream with something wrong about it."""

    def stream(tokens, stops=()):
        decoder = codecs.getincrementaldecoder("utf-8")(errors=errors)
        waiting, all_text, tokens = "", "", iter(tokens)
        for token in tokens:
            text = token.decode(errors="replace") if alone else decoder.decode(token)
            if whole_token:
                if text in stops:
                    return
                if text:
                    yield text
                continue
            waiting += text
            found = [
                (at + len(stop), at, stop) for stop in stops if (at := waiting.find(stop)) >= 0
            ]
            if found:
                best = min(found)
                if earliest:
                    best = min(found, key=lambda f: f[1])
                if in_order:
                    best = found[0]
                text = all_text + waiting[: best[1] + (len(best[2]) if with_stop else 0)]
                if text or empties:
                    yield text
                if further:
                    for _ in tokens:
                        pass
                return
            begun = [k for s in stops for k in range(1, len(s)) if waiting.endswith(s[:k])]
            keep = max(begun, default=0) if hold else 0
            if hold_one and keep:
                keep = min(begun)
            if hold_always:
                keep = min(len(waiting), max((len(s) - 1 for s in stops), default=0))
            ready, waiting = waiting[: len(waiting) - keep], waiting[len(waiting) - keep :]
            if at_once:
                all_text += ready
            elif ready or empties:
                yield ready
            if loses_held and keep:
                waiting = waiting[:0] if not ready else waiting
        rest = all_text + waiting + ("" if alone else decoder.decode(b"", final=flush))
        if (rest and flush) or empties:
            yield rest

    return stream


stream_text.mistake(
    "You decode each token by itself. A character whose bytes two tokens share comes out as "
    "rubbish: the decoder has to remember the first part."
)(_named("each_token_alone", _streaming(alone=True)))
stream_text.mistake("You hand over all the text at the end. It should go as it comes.")(
    _named("all_at_once", _streaming(at_once=True))
)
stream_text.mistake(
    "You compare whole tokens with the stop sequences. A stop sequence may be part of a token, or "
    "several tokens."
)(_named("compares_tokens", _streaming(whole_token=True)))
stream_text.mistake("Your text holds the stop sequence. It should end before it.")(
    _named("includes_the_stop", _streaming(with_stop=True))
)
stream_text.mistake(
    "You hold nothing back: the beginning of a stop sequence is out before you know what it is."
)(_named("holds_nothing", _streaming(hold=False)))
stream_text.mistake(
    "You always hold back as much as a stop sequence is long, less one. Hold back only what is the "
    "beginning of one: all else can go."
)(_named("always_holds", _streaming(hold_always=True)))
stream_text.mistake(
    "When the tokens end, what you held back is lost. There comes no stop sequence any more: hand "
    "it over."
)(_named("loses_the_end", _streaming(flush=False)))
stream_text.mistake(
    "You go on taking tokens after the stop sequence. Each of them costs a run of the model."
)(_named("takes_further", _streaming(further=True)))
stream_text.mistake("You hand over empty pieces.")(
    _named("hands_empties", _streaming(empties=True))
)
stream_text.mistake(
    "Of several stop sequences you take the one that begins first. The one that is complete first "
    "counts: the other is not known to be one yet when the text comes character by character."
)(_named("begins_first", _streaming(earliest=True)))
stream_text.mistake(
    "Of several stop sequences you take the one that comes first in the list. The one that is "
    "complete first in the text counts."
)(_named("first_in_list", _streaming(in_order=True)))
stream_text.mistake(
    "Bytes that are no UTF-8 raise an error, or vanish. A model may write any bytes: decode with "
    'errors="replace".'
)(_named("ignores_errors", _streaming(errors="ignore")))
stream_text.mistake(
    "You hold back the shortest beginning of a stop sequence. The longest is needed: of `abab` the "
    "last two *and* the last four letters may begin `ababc`."
)(_named("holds_the_shortest", _streaming(hold_one=True)))


@stream_text.alternative
def character_by_character(tokens, stops=()):
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    waiting = ""
    for token in itertools.chain(tokens, [None]):
        out = ""
        for character in decoder.decode(b"" if token is None else token, token is None):
            waiting += character
            ended = [stop for stop in stops if waiting.endswith(stop)]
            if ended:
                out += waiting[: len(waiting) - max(map(len, ended))]
                if out:
                    yield out
                return
            while waiting and not any(stop.startswith(waiting) for stop in stops):
                out, waiting = out + waiting[0], waiting[1:]
        if token is None:
            out += waiting
        if out:
            yield out


@stream_text.alternative
def with_bytes(tokens, stops=()):
    data, sent = b"", 0
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text = ""
    for token in tokens:
        data += token
        text += decoder.decode(token)
        cut, stopped = len(text), False
        ends = []
        for stop in stops:
            place = text.find(stop, sent)
            if place != -1:
                ends.append((place + len(stop), -len(stop)))
        if ends:
            end, minus = min(ends)
            cut, stopped = end + minus, True
        else:
            for stop in stops:
                for k in range(len(stop) - 1, 0, -1):
                    if text[sent:].endswith(stop[:k]):
                        cut = min(cut, len(text) - k)
                        break
        if cut > sent:
            yield text[sent:cut]
            sent = cut
        if stopped:
            return
    text += decoder.decode(b"", True)
    if text[sent:]:
        yield text[sent:]


# ------------------------------------------------------------------------- JsonConstraint

JsonConstraint = chapter.exercise(
    reference.JsonConstraint,
    difficulty=5,
    minutes=19,
    given=["__init__", "advance"],
)

BYTES = [bytes([b]) for b in range(256)]
WORDS = [
    b'{"', b'": ', b'": "', b'", "', b"[[", b"]]", b"]}", b"true", b"null", b"12", b"name", b"}]",
    b'"}', b"[]", b"{}", b'""', b", ", b"\xc3\xa9", b"1e", b"-1", b'a"', b"fal", b"se", b'\\"',
    b"]x", b'":1', b"[1", b"[1,",
]  # fmt: skip
#: A small language: an "a", then perhaps some "b"s, a "c" that may be left out, and a "d".
SMALL = {
    "value": {97: ("bs?", "c?", "d"), 98: ("word", "value")},
    "bs?": {98: ("bs?",)},
    "c?": {99: ()},
    "d": {100: ()},
    "word": {120: ("d", "d"), 121: ()},
}


def vocabulary(t: Trial) -> list:
    """256 bytes and longer tokens, the end token somewhere among the latter."""
    words = [WORDS[i] for i in t.randperm(len(WORDS)).tolist()]
    at = t.integer(1, len(words))
    return [*BYTES, *words[:at], None, *words[at:]]


def texts_of(items: list) -> list[tuple[bytes, bytes]]:
    return [(b"", text) for text in items]


def asked(t: Trial, *args, **kwargs) -> tuple:
    found, expected = t.drive("constraint_answers", *args, **kwargs)
    return found, expected


@JsonConstraint.group(
    "read: following a text",
    points=2,
    hint="The first symbol that has the byte gives way to what its rule says; the symbols behind "
    "it stay. Symbols before it must be such as may be left out.",
)
def _(t: Trial):
    small = [b"", b"a", b"ab", b"abb", b"ac", b"ad", b"abbcd", b"abd", b"x", b"aa", b"adx"]
    small += [b"bx", b"bxd", b"bxdda", b"by", b"bya", b"byby", b"acb", b"acc"]
    found, expected = asked(t, [*BYTES, None], SMALL, reads=texts_of(small))
    for text, one, other in zip(small, found["reads"], expected["reads"]):
        t.equal(one, other, f"After {text!r}, in the small grammar, something else is to come")
    texts = [b"[1", b"[1,", b'{"a":', b'{"a":[tru', b"12", b"12e", b"01", b"-", b'"\xc3', b'"\xc3a']
    found, expected = asked(t, [*BYTES, None], None, reads=texts_of(texts))
    for text, one, other in zip(texts, found["reads"], expected["reads"]):
        t.equal(one, other, f"After {text!r}, in JSON, something else is to come")
    pairs = [(b"[1", b",2"), (b"[1", b"]"), (b"[[", b"]]"), (b"12", b"}"), ((), b""), ((), b"a")]
    found, expected = asked(t, [*BYTES, None], None, reads=pairs)
    for (state, text), one, other in zip(pairs, found["reads"], expected["reads"]):
        t.equal(one, other, f"After {state!r} and then {text!r} something else is to come")


@JsonConstraint.group(
    "needs: how much is missing",
    points=1,
    hint="`self.least` says for each symbol how many bytes complete it, at least.",
)
def _(t: Trial):
    texts = [b"", b"[", b"[[[", b'{"a', b'{"a":', b"12", b"12.", b'"\\u00', b"t", b"{}", b'[{"']
    found, expected = asked(t, [*BYTES, None], None, reads=texts_of(texts))
    for text, one, other in zip(texts, found["needs"], expected["needs"]):
        t.equal(one, other, f"What completes {text!r} has another length")
    found, expected = asked(t, [*BYTES, None], SMALL, reads=texts_of([b"", b"a", b"b", b"bx"]))
    t.equal(found["needs"], expected["needs"], "In the small grammar, the lengths are others")


def masked(t: Trial, tokens: list, rules, queries: list[tuple[bytes, int]]) -> dict:
    """Require the masks; name a token for which one is wrong."""
    found, expected = asked(t, tokens, rules, masks=queries)
    for (text, budget), one, other in zip(queries, found["masks"], expected["masks"]):
        fits = isinstance(one, Tensor) and one.shape == other.shape and one.dtype == torch.bool
        t.require(fits, f"A mask is a boolean tensor of shape ({len(tokens)},)", found=one)
        if fits and not torch.equal(one, other):
            i = int((one != other).nonzero()[0])
            token = "the end token" if tokens[i] is None else repr(tokens[i])
            right = "may" if other[i] else "may not"
            t.require(False, f"After {text!r}, with a budget of {budget}, {token} {right} come")
    return found


@JsonConstraint.group(
    "mask: what the grammar allows",
    points=2,
    hint="Read *all* bytes of each token. The end token may come if nothing is missing.",
)
def _(t: Trial):
    texts = [b"", b"[", b'{"name', b'{"name": 1', b"12", b'["\xc3', b"[[1", b'{"a":{}}', b'"\\']
    masked(t, vocabulary(t), None, [(text, 60) for text in texts])
    masked(
        t, [*BYTES, None, b"ab", b"bd", b"cd", b"bxd"], SMALL, [(b"", 60), (b"a", 60), (b"bx", 60)]
    )


@JsonConstraint.group(
    "mask: room to finish",
    points=2,
    hint="After a token there are budget - 1 tokens left, and each may be a single byte.",
)
def _(t: Trial):
    queries = [(b"", 1), (b"", 2), (b"", 5), (b"[[", 2), (b"[[", 3), (b"[[", 4), (b'{"a', 4)]
    queries += [(b'{"a', 5), (b"12", 0), (b"12", 1), (b"12", 3), (b'{"a": "', 2), (b'["\xc3', 3)]
    masked(t, vocabulary(t), None, queries)
    masked(
        t, vocabulary(t), schema_rules({"enum": ["a", "abc", 7]}), [(b"", 2), (b"", 4), (b'"a', 1)]
    )


@JsonConstraint.group(
    "costs are kept by the state",
    points=1,
    hint="Compute the costs of a state once, whatever the budget, and keep them in `self.costs`.",
)
def _(t: Trial):
    tokens = vocabulary(t)
    queries = [(b"[1", 9), (b"[2", 1), (b"[1", 2), (b"[33", 4), (b"[1", 9), (b"[", 3), (b"[1", 1)]
    found = masked(t, tokens, None, queries)
    t.equal(found["kept"], 2, "Costs should be kept for two states here: `self.costs` has others")
    t.require(found["start"], "The start is not what it was")
    advances = [(b"[1", 93), (b"[1", tokens.index(b"]x")), (b"12", tokens.index(None))]
    found, expected = asked(t, tokens, None, advances=advances)
    t.equal(found["advances"], expected["advances"], "`advance`, which was given, has changed")
    t.require("255" in found["refused"], "`__init__`, which was given, has changed")


class _Wrong(reference.JsonConstraint):
    """A constraint whose mask is made by `cost`, to be wrong in one place."""

    def cost(self, state, text):
        after = self.read(state, text)
        return math.inf if after is None else 1 + self.needs(after)

    def may_end(self, state):
        return self.needs(state) == 0

    def mask(self, state, budget):
        if state not in self.costs:
            costs = [math.inf] * self.vocab_size
            for text, i in self.ranks.items():
                costs[i] = self.cost(state, text)
            costs[self.end] = 0 if self.may_end(state) else math.inf
            self.costs[state] = torch.tensor(costs)
        return self.costs[state] <= budget


@JsonConstraint.mistake(
    "You look at the first byte of each token only. A token may begin well and go wrong later."
)
class FirstByte(_Wrong):
    def cost(self, state, text):
        after = self.read(state, text[:1])
        return math.inf if after is None else 1 + self.needs(after)


@JsonConstraint.mistake(
    "You do not look at what is missing after the token, or not at the budget: the text may still "
    "be open when there is no token left."
)
class NoBudget(_Wrong):
    def cost(self, state, text):
        return math.inf if self.read(state, text) is None else 0


@JsonConstraint.mistake(
    "Your budget is off by one: the token itself is one of those that may be written."
)
class TokenForNothing(_Wrong):
    def cost(self, state, text):
        after = self.read(state, text)
        return math.inf if after is None else self.needs(after)


@JsonConstraint.mistake(
    "You leave one token of the budget unused: after a token there are budget - 1 left, and all of "
    "them may be needed."
)
class TooCareful(_Wrong):
    def cost(self, state, text):
        return super().cost(state, text) + 1


@JsonConstraint.mistake(
    "You count the bytes of a token against the budget. A token is one token, however long."
)
class CountsBytes(_Wrong):
    def cost(self, state, text):
        after = self.read(state, text)
        return math.inf if after is None else len(text) + self.needs(after)


@JsonConstraint.mistake("You allow the end token always: a text may then end half-way.")
class EndsAnywhere(_Wrong):
    def may_end(self, state):
        return True


@JsonConstraint.mistake(
    "You never allow the end token: the text could not end before the budget does."
)
class NeverEnds(_Wrong):
    def may_end(self, state):
        return False


@JsonConstraint.mistake(
    "You allow the end token only if nothing at all may come. A number such as 12 may go on, and "
    "may end as well: what is left may be left out."
)
class EndsWhenEmpty(_Wrong):
    def may_end(self, state):
        return state == ()


@JsonConstraint.mistake("You let the end token cost one token. It needs no room.")
class EndCosts(_Wrong):
    def mask(self, state, budget):
        found = super().mask(state, budget).clone()
        found[self.end] &= budget >= 1
        return found


@JsonConstraint.mistake(
    "You keep finished masks by the state. With another budget the mask is another: keep the costs."
)
class KeepsMasks(_Wrong):
    def mask(self, state, budget):
        if state not in self.costs:
            found = super().mask(state, budget)
            self.costs[state] = found
        return self.costs[state]


@JsonConstraint.mistake("You compute the costs anew at each step: nothing is kept in `self.costs`.")
class KeepsNothing(_Wrong):
    def mask(self, state, budget):
        found = super().mask(state, budget)
        self.costs.clear()
        return found


@JsonConstraint.mistake("You keep costs by state *and* budget: they do not depend on the budget.")
class KeepsByBudget(_Wrong):
    def mask(self, state, budget):
        found = super().mask(state, budget)
        self.costs[state, budget] = self.costs[state]
        return found


@JsonConstraint.mistake(
    "Your `read` gives up when the first symbol does not have the byte. If that symbol may be left "
    "out (its name ends in ?), try the next one."
)
class NeverSkips(_Wrong):
    def read(self, state, text):
        for byte in text:
            if not state or byte not in self.rules[state[0]]:
                return None
            state = self.rules[state[0]][byte] + state[1:]
        return state


@JsonConstraint.mistake(
    "Your `read` loses a byte whenever it passes over a symbol: the *same* byte has to be tried "
    "with the next one."
)
class LosesTheByte(_Wrong):
    def read(self, state, text):
        for byte in text:
            if not state:
                return None
            if byte in self.rules[state[0]]:
                state = self.rules[state[0]][byte] + state[1:]
            elif state[0].endswith("?"):
                state = state[1:]
            else:
                return None
        return state


@JsonConstraint.mistake(
    "Your `read` skips symbols that may not be left out. Only those whose name ends in ? may."
)
class SkipsAll(_Wrong):
    def read(self, state, text):
        for byte in text:
            at = next((i for i, s in enumerate(state) if byte in self.rules[s]), None)
            if at is None:
                return None
            state = self.rules[state[at]][byte] + state[at + 1 :]
        return state


@JsonConstraint.mistake(
    "Your `read` keeps the symbols that it has passed over. What was left out falls away."
)
class KeepsSkipped(_Wrong):
    def read(self, state, text):
        for byte in text:
            for i, symbol in enumerate(state):
                if byte in self.rules[symbol]:
                    state = self.rules[symbol][byte] + state[:i] + state[i + 1 :]
                    break
                if not symbol.endswith("?"):
                    return None
            else:
                return None
        return state


@JsonConstraint.mistake("Your `read` forgets the symbols behind the one that gave way.")
class ForgetsTheRest(_Wrong):
    def read(self, state, text):
        for byte in text:
            for symbol in state:
                if byte in self.rules[symbol]:
                    state = self.rules[symbol][byte]
                    break
                if not symbol.endswith("?"):
                    return None
            else:
                return None
        return state


@JsonConstraint.mistake(
    "Your `read` puts the new symbols behind the old ones. They come first: what was opened last "
    "is closed first."
)
class WrongOrder(_Wrong):
    def read(self, state, text):
        for byte in text:
            for i, symbol in enumerate(state):
                if byte in self.rules[symbol]:
                    state = state[i + 1 :] + self.rules[symbol][byte]
                    break
                if not symbol.endswith("?"):
                    return None
            else:
                return None
        return state


@JsonConstraint.mistake("Your `read` follows the first byte of the text only.")
class OnlyOneByte(_Wrong):
    def read(self, state, text):
        return super().read(state, text[:1])


@JsonConstraint.mistake(
    "You count symbols. Some need several bytes, and some none: use `self.least`."
)
class CountsSymbols(_Wrong):
    def needs(self, state):
        return len(state)


@JsonConstraint.mistake(
    "You count one byte for each symbol that may not be left out. Some need more."
)
class CountsNeeded(_Wrong):
    def needs(self, state):
        return sum(not symbol.endswith("?") for symbol in state)


@JsonConstraint.mistake("You take what the first symbol needs. All that is to come counts.")
class FirstNeeds(_Wrong):
    def needs(self, state):
        return self.least[state[0]] if state else 0


@JsonConstraint.alternative
class Recursive(reference.JsonConstraint):
    def read(self, state, text):
        if not text:
            return state
        if not state:
            return None
        first, *rest = state
        if text[0] in self.rules[first]:
            return self.read((*self.rules[first][text[0]], *rest), text[1:])
        return self.read(tuple(rest), text) if first[-1] == "?" else None

    def needs(self, state):
        return self.least[state[0]] + self.needs(state[1:]) if state else 0

    def mask(self, state, budget):
        if self.costs.get(state) is None:
            costs = torch.full((self.vocab_size,), 10**6)
            for i, text in self.texts.items():
                after = self.read(state, text)
                if after is not None:
                    costs[i] = self.needs(after) + 1
            if all(symbol.endswith("?") for symbol in state):
                costs[self.end] = 0
            self.costs[state] = costs
        return self.costs[state].le(budget)


@JsonConstraint.alternative
class WithATrie(reference.JsonConstraint):
    def read(self, state, text):
        stack = list(reversed(state))
        for byte in text:
            while stack:
                symbol = stack.pop()
                then = self.rules[symbol].get(byte)
                if then is not None:
                    stack += reversed(then)
                    break
                if not symbol.endswith("?"):
                    return None
            else:
                return None
        return tuple(reversed(stack))

    def mask(self, state, budget):
        if state not in self.costs:
            trie = {}
            for text, i in self.ranks.items():
                node = trie
                for byte in text:
                    node = node.setdefault(byte, {})
                node[None] = i
            costs = torch.full((self.vocab_size,), math.inf)
            todo = [(trie, state)]
            while todo:
                node, here = todo.pop()
                for byte, child in node.items():
                    if byte is None:
                        costs[child] = 1 + self.needs(here)
                    elif (after := self.read(here, bytes([byte]))) is not None:
                        todo.append((child, after))
            costs[self.end] = 0 if self.needs(state) == 0 else math.inf
            self.costs[state] = costs
        return self.costs[state] <= budget


@JsonConstraint.alternative
class ByLists(reference.JsonConstraint):
    def read(self, state, text):
        state = list(state)
        for byte in text:
            while state and byte not in self.rules[state[0]] and state[0].endswith("?"):
                state.pop(0)
            if not state or byte not in self.rules[state[0]]:
                return None
            state[:1] = self.rules[state[0]][byte]
        return tuple(state)

    def needs(self, state):
        total = 0
        for symbol in state:
            total += self.least[symbol]
        return total

    def mask(self, state, budget):
        if state not in self.costs:
            afters = {i: self.read(state, text) for i, text in self.texts.items()}
            afters = {i: after for i, after in afters.items() if after is not None}
            self.costs[state] = {i: 1 + self.needs(after) for i, after in afters.items()}
        allowed = torch.zeros(self.vocab_size, dtype=torch.bool)
        for i, cost in self.costs[state].items():
            allowed[i] = cost <= budget
        allowed[self.end] = self.needs(state) == 0
        return allowed
