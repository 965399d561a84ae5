"""Checks of chapter 12: the loss, the batches, the optimizer, the loop."""

import copy
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from autograder.checking import Chapter, Trial
from solutions import training as reference

chapter = Chapter("12_training", "Training")
check = chapter.check

# -------------------------------------------------------------------------- cross_entropy

cross_entropy = chapter.exercise(
    reference.cross_entropy,
    difficulty=3,
    minutes=12,
    forbidden=[
        "F.cross_entropy",
        "F.nll_loss",
        "torch.log_softmax",
        "torch.logsumexp",
        "nn.CrossEntropyLoss",
        "nn.NLLLoss",
        "nn.LogSoftmax",
    ],
)


def targets_of(t: Trial, *shape: int, vocab: int, ignored: int | None = None) -> Tensor:
    """Ids; with `ignored`, about a third of them are that, and never all, in unequal numbers."""
    targets = t.randint(0, vocab, shape)
    if ignored is not None:
        flat = targets.view(-1)
        places = t.randperm(flat.numel())[: flat.numel() // 3 + 1]
        flat[places] = ignored
    return targets


@cross_entropy.group(
    "one row and several",
    points=2,
    hint="For each row: the log of the softmax at the target, with a minus; then the mean.",
)
def _(t: Trial):
    t.same(torch.tensor([[2.0, 1.0, -1.0]]), torch.tensor([1]))
    t.same(t.randn(5, 7), targets_of(t, 5, vocab=7))
    t.same(2 * t.randn(4, 3, dtype=torch.float64), targets_of(t, 4, vocab=3), dtype=True)


@cross_entropy.group(
    "any number of leading axes",
    points=1,
    hint="The tokens are on the last axis of the logits. All other axes count alike.",
)
def _(t: Trial):
    t.same(t.randn(2, 5, 7), targets_of(t, 2, 5, vocab=7))
    t.same(t.randn(2, 3, 4, 6), targets_of(t, 2, 3, 4, vocab=6))
    t.same(t.randn(6), t.randint(0, 6, ()))


@cross_entropy.group(
    "logits of any size",
    points=2,
    hint="exp(1000) is inf, and exp(-1000) is 0, whose log is -inf. Subtract the largest logit of "
    "each row, and take the log of the sum only: never of a probability.",
)
def _(t: Trial):
    t.same(1000 * t.randn(5, 4), targets_of(t, 5, vocab=4))
    t.same(t.randn(3, 4) + torch.tensor([[0.0], [5000.0], [-5000.0]]), targets_of(t, 3, vocab=4))
    t.same(100 * t.randn(2, 3, 4).half(), targets_of(t, 2, 3, vocab=4), dtype=True)


@cross_entropy.group(
    "targets that are ignored",
    points=2,
    hint="Take them out first, with a boolean index or a zero in their place; and divide by the "
    "number of those that are left.",
)
def _(t: Trial):
    t.same(t.randn(7, 5), targets_of(t, 7, vocab=5, ignored=-100))
    t.same(t.randn(2, 4, 5), torch.tensor([[1, -100, -100, -100], [3, 0, -100, 2]]))
    t.same(t.randn(8, 5), targets_of(t, 8, vocab=5, ignored=0), ignore_index=0)
    t.same(t.randn(2, 4, 6), targets_of(t, 2, 4, vocab=6, ignored=5), 5)


@cross_entropy.group(
    "gradients, and inputs left alone",
    points=1,
    hint="The gradient is (softmax - 1 at the target) / number of targets. Nothing may cut the "
    "graph (`.item()`, `.detach()`, `torch.tensor(...)`).",
)
def _(t: Trial):
    t.same_gradients(t.randn(5, 4, dtype=torch.float64), targets_of(t, 5, vocab=4))
    ignored = targets_of(t, 2, 3, vocab=4, ignored=-100)
    t.same_gradients(3 * t.randn(2, 3, 4, dtype=torch.float64), ignored)
    t.unchanged(t.randn(6, 4), targets_of(t, 6, vocab=4, ignored=-100))


def _log_p(logits, targets, ignore_index=-100):
    """Log-probability of each target that counts."""
    counted = targets != ignore_index
    return torch.log_softmax(logits, -1)[counted].gather(-1, targets[counted][:, None])


@cross_entropy.mistake("You forgot the minus: the log of a probability is negative, a loss is not.")
def without_minus(logits, targets, ignore_index=-100):
    return _log_p(logits, targets, ignore_index).mean()


@cross_entropy.mistake("You return the sum. The mean does not depend on the size of the batch.")
def summed(logits, targets, ignore_index=-100):
    return -_log_p(logits, targets, ignore_index).sum()


@cross_entropy.mistake("You took the logarithm to base 2: that is in bits. Nats need `log`.")
def in_bits(logits, targets, ignore_index=-100):
    return -_log_p(logits, targets, ignore_index).mean() / math.log(2)


@cross_entropy.mistake("You return the perplexity: leave out the last `exp`.")
def exponentiated(logits, targets, ignore_index=-100):
    return (-_log_p(logits, targets, ignore_index).mean()).exp()


@cross_entropy.mistake("You averaged the probabilities of the targets. It is their logs that add.")
def log_of_the_mean(logits, targets, ignore_index=-100):
    return -_log_p(logits, targets, ignore_index).exp().mean().log()


@cross_entropy.mistake(
    "You took the targets' logits as they are: a softmax has to make probabilities of them first."
)
def no_softmax(logits, targets, ignore_index=-100):
    counted = targets != ignore_index
    return -logits[counted].gather(-1, targets[counted][:, None]).mean()


@cross_entropy.mistake(
    "You exponentiate the logits as they are: exp(1000) is inf, and inf / inf is NaN. Subtract the "
    "largest logit of each row first."
)
def overflows(logits, targets, ignore_index=-100):
    counted = targets != ignore_index
    logits, targets = logits[counted], targets[counted]
    e = logits.exp()
    p = e / e.sum(-1, keepdim=True)
    return -p.gather(-1, targets[:, None]).log().mean()


@cross_entropy.mistake(
    "You take the log of the softmax: a probability that rounds to 0 makes an infinite loss. Take "
    "the log of the sum only, and leave the target's logit outside."
)
def log_of_softmax(logits, targets, ignore_index=-100):
    counted = targets != ignore_index
    p = torch.softmax(logits[counted], -1)
    return -p.gather(-1, targets[counted][:, None]).log().mean()


@cross_entropy.mistake(
    "You added a small number inside the logarithm. It hides that the probability has rounded to "
    "0: no loss can be above -log of that number, and the gradient there is 0."
)
def small_number_inside(logits, targets, ignore_index=-100):
    counted = targets != ignore_index
    p = torch.softmax(logits[counted], -1)
    return -(p.gather(-1, targets[counted][:, None]) + 1e-9).log().mean()


@cross_entropy.mistake(
    "You subtract the largest of all logits. A row that lies far below it then underflows: each "
    "row needs its own largest."
)
def one_shift_for_all(logits, targets, ignore_index=-100):
    counted = targets != ignore_index
    logits, targets = logits[counted], targets[counted]
    shifted = logits - logits.max()
    log_p = shifted - shifted.exp().sum(-1, keepdim=True).log()
    return -log_p.gather(-1, targets[:, None]).mean()


@cross_entropy.mistake(
    "You look for the tokens on axis 1, as `F.cross_entropy` does. Here they are on the last axis."
)
def tokens_on_axis_1(logits, targets, ignore_index=-100):
    return F.cross_entropy(logits, targets, ignore_index=ignore_index)


@cross_entropy.mistake(
    "You divide by the number of all targets. Those that are ignored do not count there either."
)
def divided_by_all(logits, targets, ignore_index=-100):
    return -_log_p(logits, targets, ignore_index).sum() / max(1, targets.numel())


@cross_entropy.mistake(
    "You averaged within each sequence first, and then over sequences. All targets count alike, "
    "also those of a sequence of which much is ignored."
)
def mean_of_means(logits, targets, ignore_index=-100):
    vocab = logits.shape[-1]
    logits, targets = logits.reshape(-1, *logits.shape[-2:]), targets.reshape(len(logits), -1)
    if logits.shape[0] != targets.shape[0]:
        logits = logits.reshape(len(targets), -1, vocab)
    losses = F.cross_entropy(logits.mT, targets, ignore_index=ignore_index, reduction="none")
    counts = (targets != ignore_index).sum(1)
    return (losses.sum(1) / counts)[counts > 0].mean()


@cross_entropy.mistake(
    "You look up ignored targets like any other: -100 is no token. Take them out before you "
    "`gather`."
)
def looks_up_the_ignored(logits, targets, ignore_index=-100):
    log_p = torch.log_softmax(logits, -1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return -log_p[targets != ignore_index].mean()


@cross_entropy.mistake("You ignore -100, whatever `ignore_index` says.")
def always_minus_100(logits, targets, ignore_index=-100):
    return -_log_p(logits, targets).mean()


@cross_entropy.mistake(
    "Your result is cut off from the graph (`.item()`, `.detach()` or `torch.tensor`): no gradient "
    "reaches the logits."
)
def without_graph(logits, targets, ignore_index=-100):
    return -_log_p(logits, targets, ignore_index).mean().detach()


@cross_entropy.mistake("You change `logits` in place: their owner still needs them.")
def shifts_in_place(logits, targets, ignore_index=-100):
    logits.data -= logits.data.amax(-1, keepdim=True)
    return -_log_p(logits, targets, ignore_index).mean()


@cross_entropy.alternative
def with_loops(logits, targets, ignore_index=-100):
    rows = logits.reshape(-1, logits.shape[-1])
    losses = []
    for row, target in zip(rows, targets.reshape(-1).tolist()):
        if target != ignore_index:
            top = row.max()
            losses.append((row - top).exp().sum().log() + top - row[target])
    return torch.stack(losses).mean()


@cross_entropy.alternative
def with_one_hot(logits, targets, ignore_index=-100):
    counted = targets != ignore_index
    right = F.one_hot(torch.where(counted, targets, 0), logits.shape[-1]).to(logits.dtype)
    top = logits.max(-1).values.detach()
    log_sum = top + (logits - top.unsqueeze(-1)).exp().sum(-1).log()
    losses = log_sum - (logits * right).sum(-1)
    return (losses * counted).sum() / counted.sum()


@cross_entropy.alternative
def in_double(logits, targets, ignore_index=-100):
    real = (targets != ignore_index).reshape(-1)
    wide = logits.reshape(-1, logits.shape[-1])[real].double()
    ids = targets.reshape(-1)[real]
    total = torch.logsumexp(wide, dim=-1) - wide[torch.arange(len(ids)), ids]
    return total.mean().to(logits.dtype)


@cross_entropy.alternative
def with_where(logits, targets, ignore_index=-100):
    counted = targets.ne(ignore_index)
    safe = targets.clamp(0, logits.shape[-1] - 1)
    log_p = torch.log_softmax(logits, dim=-1).take_along_dim(safe.unsqueeze(-1), -1)[..., 0]
    return -torch.where(counted, log_p, torch.zeros_like(log_p)).sum() / counted.sum()


# ----------------------------------------------------------------------------- perplexity

perplexity = chapter.exercise(reference.perplexity, difficulty=2, minutes=6)


@perplexity.group("one batch", points=1, hint="exp of the loss.")
def _(t: Trial):
    t.same(torch.tensor([math.log(10)]), torch.tensor([64]))
    t.same(4 * t.rand(1, dtype=torch.float64), t.randint(3, 9, (1,)), dtype=True)


@perplexity.group(
    "batches of different sizes",
    points=2,
    hint="First the mean loss over all tokens: losses times counts, summed, by the sum of counts. "
    "Then one exp.",
)
def _(t: Trial):
    t.same(torch.tensor([1.0, 3.0, 2.0]), torch.tensor([30, 10, 5]))
    t.same(5 * t.rand(6), t.randint(1, 40, (6,)))
    t.same(torch.tensor([200.0, 1.0]), torch.tensor([1, 400]))


@perplexity.group(
    "a batch with nothing to grade",
    points=1,
    hint="Its mean is 0 / 0 = NaN, and 0 times NaN is NaN: leave it out.",
)
def _(t: Trial):
    t.same(torch.tensor([1.0, math.nan, 2.0]), torch.tensor([30, 0, 10]))
    t.same(torch.cat([4 * t.rand(3), torch.tensor([math.nan])]), torch.tensor([3, 9, 4, 0]))


@perplexity.mistake("You average the losses as if every batch had as many tokens.")
def unweighted(losses, counts):
    return losses[counts > 0].mean().exp()


@perplexity.mistake(
    "You average perplexities. One bad batch then counts for everything: average the losses, and "
    "exponentiate once, at the end."
)
def mean_of_perplexities(losses, counts):
    kept = counts > 0
    return (losses[kept].exp() * counts[kept]).sum() / counts.sum()


@perplexity.mistake("You average perplexities, and all batches alike. Average losses, by tokens.")
def plain_mean_of_perplexities(losses, counts):
    return losses[counts > 0].exp().mean()


@perplexity.mistake("You took 2 to that power. The losses are in nats: take `exp`.")
def two_to_the_power(losses, counts):
    kept = counts > 0
    return 2 ** ((losses[kept] * counts[kept]).sum() / counts.sum())


@perplexity.mistake("You return the mean loss. Its `exp` is the perplexity.")
def mean_loss(losses, counts):
    kept = counts > 0
    return (losses[kept] * counts[kept]).sum() / counts.sum()


@perplexity.mistake("You did not divide by the number of tokens.")
def total_loss(losses, counts):
    kept = counts > 0
    return (losses[kept] * counts[kept]).sum().exp()


@perplexity.mistake("You divide by the number of batches. It is the tokens that are averaged over.")
def by_batches(losses, counts):
    kept = counts > 0
    return ((losses[kept] * counts[kept]).sum() / len(losses)).exp()


@perplexity.mistake(
    "A batch with nothing to grade has NaN for a mean, and 0 times NaN is NaN: leave it out."
)
def nan_let_in(losses, counts):
    return ((losses * counts).sum() / counts.sum()).exp()


@perplexity.alternative
def perplexity_with_a_loop(losses, counts):
    total, n = 0.0, 0
    for loss, count in zip(losses.tolist(), counts.tolist()):
        if count:
            total, n = total + loss * count, n + count
    return torch.tensor(math.exp(total / n), dtype=losses.dtype)


@perplexity.alternative
def perplexity_with_nan_to_num(losses, counts):
    weights = counts / counts.sum()
    return torch.exp(torch.sum(torch.nan_to_num(losses) * weights.to(losses.dtype)))


@perplexity.alternative
def perplexity_with_repeats(losses, counts):
    return losses.repeat_interleave(counts).mean().exp()


# ------------------------------------------------------------------------------ get_batch

get_batch = chapter.exercise(reference.get_batch, difficulty=3, minutes=10)


def draw(t: Trial, n: int, batch: int, length: int, seeds, starts=None):
    """Batches from a text in which every token is another: where each row starts, or nothing.

    Everything about their form is required on the way.
    """
    tokens = t.randperm(n) + 100  # the token tells where it stands
    place = torch.empty(n + 100, dtype=torch.long)
    place[tokens] = torch.arange(n)
    found, _ = t.drive("batches", tokens, batch, length, list(seeds), starts)
    form = torch.zeros(batch, length, dtype=torch.long)
    rows = []
    for drawn in found["batches"]:
        pair = isinstance(drawn, (tuple, list)) and len(drawn) == 2
        t.require(pair, "A batch is two tensors: inputs and targets", found=drawn)
        if not pair:
            return None, found
        for name, part in zip(("inputs", "targets"), drawn):
            fits = isinstance(part, Tensor) and part.shape == form.shape
            t.require(
                fits and not part.is_floating_point(),
                f"The {name} should be token ids of shape (B={batch}, T={length})",
                found=tuple(part.shape) if isinstance(part, Tensor) else part,
            )
            if not fits or part.is_floating_point():
                return None, found
        inputs, targets = (part.long() for part in drawn)
        known = bool(((inputs >= 100) & (inputs < n + 100)).all())
        t.require(known, "The inputs hold tokens that are not in the text")
        if not known:
            return None, found
        first = place[inputs[:, 0]]
        steps = torch.arange(length)
        fits = bool((first + length < n).all())
        t.require(fits, "A window runs over the end of the text, or has no target for its last")
        if not fits:
            return None, found
        rows_in, rows_out = tokens[first[:, None] + steps], tokens[first[:, None] + steps + 1]
        t.equal(inputs, rows_in, "The inputs are not a piece of the text")
        t.equal(targets, rows_out, "The targets are not the tokens that follow the inputs")
        rows.append(first)
    return rows, found


@get_batch.group(
    "windows, and what follows each token",
    points=2,
    hint="Cut T + 1 tokens; the first T are the inputs, the last T the targets.",
)
def _(t: Trial):
    draw(t, 50, 3, 7, [t.integer(0, 1000)])
    draw(t, 30, 5, 1, [t.integer(0, 1000)])
    draw(t, 9, 1, 8, [t.integer(0, 1000)])  # there is one window only


@get_batch.group(
    "every place may come, and all alike",
    points=2,
    hint="Of n tokens, n - T windows of T + 1 tokens can be cut: they start at 0 to n - T - 1. "
    "Draw each row's place by itself.",
)
def _(t: Trial):
    rows, _ = draw(t, 8, 400, 5, [t.integer(0, 1000)])  # three windows
    if rows is None:
        return
    for first in rows:
        counts = torch.bincount(first, minlength=3).tolist()
        t.require(
            all(80 < c < 190 for c in counts),
            "Of 400 windows from a text with room for three, each of the three should be about a "
            "third",
            counts=counts,
        )
        pairs = torch.bincount(3 * first[:-1] + first[1:], minlength=9).tolist()
        t.require(
            all(c > 15 for c in pairs),
            "The places in a batch depend on each other: some never follow one another",
        )


@get_batch.group(
    "random, by the generator alone",
    points=2,
    hint="`torch.randint(..., generator=generator)`: the same state of the generator gives the "
    "same batch, and each draw moves it on.",
)
def _(t: Trial):
    seed = t.integer(0, 1000)
    rows, found = draw(t, 500, 6, 4, [seed, seed + 1, seed])
    if rows is None:
        return
    one, other, again, after = rows
    t.require(torch.equal(one, again), "The same seed gave two different batches")
    t.require(not torch.equal(one, other), "Another seed gave the same batch")
    t.require(not torch.equal(again, after), "A generator gave the same batch twice in a row")
    t.require(
        found["unmoved"],
        "Something else was changed: torch's own random numbers, or the text",
    )


@get_batch.group(
    "places that are given",
    points=2,
    hint="Keep those of `starts` that are below n - T, and draw among them.",
)
def _(t: Trial):
    starts = torch.tensor([3, 11, 17, 20, 24, 25, 28, 29])  # of 30 tokens, windows of 6
    rows, _ = draw(t, 30, 200, 5, [t.integer(0, 1000)], starts)
    if rows is None:
        return
    for first in rows:
        t.require(
            set(first.tolist()) == {3, 11, 17, 20, 24},
            "Of the places given, those with room for T + 1 tokens should come, and no others",
            expected=[3, 11, 17, 20, 24],
            found=sorted(set(first.tolist())),
        )
    if t.graded:
        draw(t, 20, 4, 3, [t.integer(0, 1000)], torch.tensor([7]))


def _cut(tokens, chosen, length):
    windows = tokens[chosen[:, None] + torch.arange(length + 1)]
    return windows[:, :-1], windows[:, 1:]


def _starts(tokens, length, starts):
    room = len(tokens) - length
    return torch.arange(room) if starts is None else starts[starts < room]


@get_batch.mistake("Your targets are the inputs: they should be one token further on.")
def targets_not_shifted(tokens, batch, length, generator, starts=None):
    starts = _starts(tokens, length, starts)
    chosen = starts[torch.randint(len(starts), (batch,), generator=generator)]
    inputs, _ = _cut(tokens, chosen, length)
    return inputs, inputs.clone()


@get_batch.mistake("You return targets first. The inputs come first.")
def targets_first(tokens, batch, length, generator, starts=None):
    starts = _starts(tokens, length, starts)
    chosen = starts[torch.randint(len(starts), (batch,), generator=generator)]
    return _cut(tokens, chosen, length)[::-1]


@get_batch.mistake(
    "You draw inputs and targets at different places: draw once, and cut both from that window."
)
def drawn_twice(tokens, batch, length, generator, starts=None):
    starts = _starts(tokens, length, starts)
    one, other = (starts[torch.randint(len(starts), (batch,), generator=generator)] for _ in "io")
    return _cut(tokens, one, length)[0], _cut(tokens, other, length)[1]


@get_batch.mistake(
    "Your last window never comes: `torch.randint(high)` draws below `high`, so `high` is the "
    "number of windows, n - T."
)
def never_the_last(tokens, batch, length, generator, starts=None):
    starts = _starts(tokens, length, starts)
    chosen = starts[torch.randint(max(1, len(starts) - 1), (batch,), generator=generator)]
    return _cut(tokens, chosen, length)


@get_batch.mistake(
    "You draw from all indices, so that windows run over the end. Only n - T of them leave room."
)
def over_the_end(tokens, batch, length, generator, starts=None):
    starts = torch.arange(len(tokens)) if starts is None else starts
    chosen = starts[torch.randint(len(starts), (batch,), generator=generator)]
    return _cut(tokens, chosen, length)


@get_batch.mistake(
    "You cut one token too few: windows of T tokens give T - 1 inputs. Cut T + 1 tokens."
)
def windows_too_short(tokens, batch, length, generator, starts=None):
    starts = _starts(tokens, length, starts)
    chosen = starts[torch.randint(len(starts), (batch,), generator=generator)]
    return _cut(tokens, chosen, length - 1)


@get_batch.mistake(
    "You do not use the generator: the batches cannot be repeated, and torch's own random numbers "
    "are used up. `torch.randint` takes `generator=`."
)
def without_the_generator(tokens, batch, length, generator, starts=None):
    starts = _starts(tokens, length, starts)
    chosen = starts[torch.randint(len(starts), (batch,))]
    return _cut(tokens, chosen, length)


@get_batch.mistake("You seed the generator inside: every batch is the same.")
def seeded_inside(tokens, batch, length, generator, starts=None):
    generator.manual_seed(0)
    starts = _starts(tokens, length, starts)
    chosen = starts[torch.randint(len(starts), (batch,), generator=generator)]
    return _cut(tokens, chosen, length)


@get_batch.mistake("You draw one place for the whole batch: all rows are the same window.")
def one_place_for_all(tokens, batch, length, generator, starts=None):
    starts = _starts(tokens, length, starts)
    chosen = starts[torch.randint(len(starts), (1,), generator=generator)].repeat(batch)
    return _cut(tokens, chosen, length)


@get_batch.mistake(
    "You draw one place, and take the rows from there on in order. Each row's place is its own."
)
def rows_in_order(tokens, batch, length, generator, starts=None):
    starts = _starts(tokens, length, starts)
    first = torch.randint(len(starts), (1,), generator=generator)
    return _cut(tokens, starts[(first + torch.arange(batch)) % len(starts)], length)


@get_batch.mistake("You take the first windows. They should be drawn at random.")
def not_random(tokens, batch, length, generator, starts=None):
    starts = _starts(tokens, length, starts)
    return _cut(tokens, starts[torch.arange(batch) % len(starts)], length)


@get_batch.mistake("You do not use `starts`: where it is given, windows start there only.")
def without_starts(tokens, batch, length, generator, starts=None):
    chosen = torch.randint(len(tokens) - length, (batch,), generator=generator)
    return _cut(tokens, chosen, length)


@get_batch.mistake(
    "You draw from all `starts`, also those too close to the end, where no T + 1 tokens are left."
)
def starts_near_the_end(tokens, batch, length, generator, starts=None):
    starts = torch.arange(len(tokens) - length) if starts is None else starts
    chosen = starts[torch.randint(len(starts), (batch,), generator=generator)]
    return _cut(tokens, chosen, length)


@get_batch.alternative
def row_by_row(tokens, batch, length, generator, starts=None):
    places = range(len(tokens) - length) if starts is None else starts.tolist()
    places = [p for p in places if p + length < len(tokens)]
    inputs, targets = [], []
    for _ in range(batch):
        p = places[torch.randint(0, len(places), (1,), generator=generator).item()]
        inputs.append(tokens[p : p + length])
        targets.append(tokens[p + 1 : p + length + 1])
    return torch.stack(inputs), torch.stack(targets)


@get_batch.alternative
def with_unfold(tokens, batch, length, generator, starts=None):
    windows = tokens.unfold(0, length + 1, 1)
    if starts is not None:
        windows = windows[starts[starts < len(windows)]]
    drawn = (torch.rand(batch, generator=generator) * len(windows)).long()
    return [windows[drawn][:, :length], windows[drawn][:, -length:]]


@get_batch.alternative
def with_multinomial(tokens, batch, length, generator, starts=None):
    weights = torch.zeros(len(tokens) - length)
    allowed = torch.arange(len(weights)) if starts is None else starts
    weights[allowed[allowed < len(weights)]] = 1.0
    chosen = torch.multinomial(weights, batch, replacement=True, generator=generator)
    rows = torch.stack([tokens.roll(-int(c))[: length + 1] for c in chosen])
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


# ----------------------------------------------------------------------------- first_step


def first_step(gradients: list[float], lr: float) -> list[float]:
    """Predict by how much the first step of Adam moves each parameter.

    Look at the four lines in the docstring of the next exercise, with weight_decay 0, eps so small
    that it can be left out, and t = 1. No tensors are needed.

    Args:
        gradients: one number for each parameter. Where it is 0, the parameter stays.
        lr: learning rate.

    Returns:
        For each parameter, its new value minus its old one.
    """
    return [-lr * ((g > 0) - (g < 0)) for g in gradients]


first_step_exercise = chapter.exercise(first_step, difficulty=2, minutes=5)


@first_step_exercise.group(
    "large and small gradients",
    points=2,
    hint="At t = 1, m / (1 - beta1) is g itself, and v / (1 - beta2) is its square. Divide the one "
    "by the root of the other.",
)
def _(t: Trial):
    t.same([1000.0, 2.0, 0.001], 0.1)
    t.same([float(g) for g in 0.5 + 9 * t.rand(4)], 0.02)


@first_step_exercise.group(
    "both directions, and none", points=1, hint="Downhill is against the gradient."
)
def _(t: Trial):
    t.same([-3.0, 0.25, 0.0, -0.002], 0.5)
    t.same([float(g) for g in t.randn(5)], 0.25)


@first_step_exercise.mistake(
    "You took a step of plain gradient descent. Adam divides by the gradient's own size."
)
def plain_descent(gradients, lr):
    return [-lr * g for g in gradients]


@first_step_exercise.mistake("You go uphill: the step is against the gradient.")
def uphill(gradients, lr):
    return [lr * ((g > 0) - (g < 0)) for g in gradients]


@first_step_exercise.mistake(
    "You left out the corrections by 1 - beta**t: without them the first step is about three times "
    "too long, 0.1 / sqrt(0.001) times lr."
)
def uncorrected(gradients, lr):
    return [-lr * 0.1 / math.sqrt(0.001) * ((g > 0) - (g < 0)) for g in gradients]


@first_step_exercise.mistake(
    "You give each parameter's change without its direction. It is against the gradient."
)
def without_direction(gradients, lr):
    return [lr * (g != 0) for g in gradients]


@first_step_exercise.mistake(
    "You left out the root: divided by its square, a large gradient makes a small step."
)
def without_root(gradients, lr):
    return [-lr / g if g else 0.0 for g in gradients]


@first_step_exercise.mistake(
    "You divide by the length of the whole gradient. Adam measures each parameter by itself."
)
def one_length_for_all(gradients, lr):
    length = math.sqrt(sum(g * g for g in gradients))
    return [-lr * g / length for g in gradients]


@first_step_exercise.alternative
def with_copysign(gradients, lr):
    return [0.0 if g == 0 else -math.copysign(lr, g) for g in gradients]


@first_step_exercise.alternative
def with_torch(gradients, lr):
    p = torch.zeros(len(gradients), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([p], lr=lr, eps=1e-30)
    p.grad = torch.tensor(gradients, dtype=torch.float64)
    optimizer.step()
    return p.tolist()


# ---------------------------------------------------------------------------------- AdamW

AdamW = chapter.exercise(
    reference.AdamW,
    difficulty=4,
    minutes=18,
    given=["__init__"],
    forbidden=["torch.optim.AdamW", "torch.optim.Adam", "torch.optim._functional"],
)

SAID = "After step {}, the parameters are not where AdamW's would be"


def optimize(t: Trial, parameters, gradients, options, **more) -> dict | None:
    """Run the optimizer, and require the reference's parameters after each step."""
    found, expected = t.drive("optimizer_run", parameters, gradients, options, **more)
    for i, (have, want) in enumerate(zip(found["parameters"], expected["parameters"])):
        t.equal(have, want, SAID.format(i + 1))
    return found


def wide(t: Trial, *shapes: tuple[int, ...], scale: float = 1.0) -> list[Tensor]:
    return [scale * t.randn(*shape, dtype=torch.float64) for shape in shapes]


SHAPES = [(2, 3), (4,), ()]


@AdamW.group(
    "the first step",
    points=2,
    hint="After one step m is (1 - beta1) g and v is (1 - beta2) g squared; the corrections by "
    "1 - beta**1 undo just that.",
)
def _(t: Trial):
    p = wide(t, *SHAPES)
    optimize(t, p, [wide(t, *SHAPES, scale=5.0)], {"weight_decay": 0.0})
    optimize(
        t, p, [wide(t, *SHAPES, scale=0.01)], {"lr": 0.1, "betas": (0.8, 0.95), "weight_decay": 0.0}
    )


@AdamW.group(
    "several steps",
    points=2,
    hint="m and v of each parameter go on from step to step, and t counts from 1.",
)
def _(t: Trial):
    steps = [wide(t, *SHAPES, scale=s) for s in (1.0, 3.0, 0.2, 1.0)]
    optimize(t, wide(t, *SHAPES), steps, {"lr": 0.1, "weight_decay": 0.0})


@AdamW.group(
    "weight decay",
    points=1,
    hint="It takes lr * weight_decay of the parameter itself, before the rest of the step, and "
    "never enters m and v.",
)
def _(t: Trial):
    steps = [wide(t, *SHAPES) for _ in range(2)]
    optimize(t, wide(t, *SHAPES, scale=4.0), steps, {"lr": 0.1, "weight_decay": 0.5})
    for step in steps:
        step[2] = torch.zeros((), dtype=torch.float64)
    groups = [{"weight_decay": 0.0}, {"weight_decay": 0.8}, {}]
    optimize(t, wide(t, *SHAPES), steps, {"lr": 0.1}, groups=groups)


@AdamW.group(
    "groups with options of their own, and rates that change",
    points=2,
    hint="Read lr, betas and eps out of each group at each step: a schedule writes there.",
)
def _(t: Trial):
    steps = [wide(t, *SHAPES) for _ in range(3)]
    options = {"lr": 0.1, "weight_decay": 0.0}
    rates = [0.3, 0.02, 0.0]
    optimize(t, wide(t, *SHAPES), steps, options, rates=rates)
    groups = [{"lr": 0.5}, {"betas": (0.3, 0.6)}, {"eps": 0.3}]
    optimize(t, wide(t, *SHAPES), steps, options, groups=groups)


@AdamW.group(
    "the small number below the line",
    points=1,
    hint="eps is added to the root, after the correction: sqrt(v / (1 - beta2**t)) + eps.",
)
def _(t: Trial):
    steps = [wide(t, *SHAPES, scale=0.1) for _ in range(2)]
    optimize(t, wide(t, *SHAPES), steps, {"lr": 0.1, "eps": 0.05, "weight_decay": 0.0})
    optimize(t, wide(t, (3,)), [wide(t, (3,), scale=1e-7)], {"lr": 0.1, "weight_decay": 0.0})


@AdamW.group(
    "parameters without a gradient",
    points=1,
    hint="Where `p.grad` is None, `continue`: no decay, and its t does not count.",
)
def _(t: Trial):
    steps = [wide(t, *SHAPES) for _ in range(4)]
    for i, gradients in enumerate(steps):
        gradients[1] = None if i != 2 else gradients[1]
        gradients[2] = None if i < 1 else gradients[2]
    optimize(t, wide(t, *SHAPES), steps, {"lr": 0.1, "weight_decay": 0.0})
    frozen = [[None, *wide(t, (2,))] for _ in range(2)]
    found, _ = t.drive("optimizer_run", wide(t, (3,), (2,)), frozen, {"weight_decay": 0.5})
    first, second = (step[0] for step in found["parameters"])
    t.equal(second, first, "A parameter without a gradient was changed")


@AdamW.group(
    "it can be saved, and leaves gradients alone",
    points=1,
    hint="Keep m, v and t in the dict `self.state[p]`. Methods with a trailing underscore change "
    "what they are called on: never `p.grad`.",
)
def _(t: Trial):
    steps = [wide(t, *SHAPES) for _ in range(3)]
    options = {"lr": 0.1, "weight_decay": 0.0}
    found, expected = t.drive("optimizer_run", wide(t, *SHAPES), steps, options, resume=1)
    said = "After its state was saved and loaded, it does not go on as before"
    t.equal(found["parameters"][1:], expected["parameters"][1:], said)
    t.equal(found["gradients"], expected["gradients"], "You changed the gradients")
    t.require(found["leaves"], "The parameters are no leaves any more: step under `no_grad`")


class _Written(reference.AdamW):
    """AdamW with its parts in methods of their own, so that each can be got wrong."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        super().__init__(params, lr, betas, eps, weight_decay)

    def decay(self, p, g, group):
        p.mul_(1 - group["lr"] * group["weight_decay"])
        return g

    def late(self, p, group):
        pass

    def means(self, state, g, beta1, beta2):
        state["m"] = beta1 * state["m"] + (1 - beta1) * g
        state["v"] = beta2 * state["v"] + (1 - beta2) * g * g

    def direction(self, state, beta1, beta2, eps):
        m = state["m"] / (1 - beta1 ** state["t"])
        v = state["v"] / (1 - beta2 ** state["t"])
        return m / (v.sqrt() + eps)

    def options(self, group):
        return group

    def count(self, state):
        state["t"] = state.get("t", 0) + 1

    def remembered(self, p):
        return self.state[p]

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group = self.options(group)
            for p in group["params"]:
                g = self.gradient(p)
                if g is None:
                    continue
                state = self.remembered(p)
                if "m" not in state:
                    state["m"], state["v"] = torch.zeros_like(p), torch.zeros_like(p)
                self.count(state)
                g = self.decay(p, g, group)
                self.means(state, g, *group["betas"])
                self.move(p, group, self.direction(state, *group["betas"], group["eps"]))
                self.late(p, group)

    def gradient(self, p):
        return p.grad

    def move(self, p, group, direction):
        p.sub_(group["lr"] * direction)


@AdamW.mistake(
    "You added the decay to the gradient: it goes through m and v, where large gradients cancel "
    "it. That is Adam with an L2 penalty. AdamW takes it off the parameter itself."
)
class DecayInTheGradient(_Written):
    def decay(self, p, g, group):
        return g + group["weight_decay"] * p


@AdamW.mistake(
    "Your decay is not multiplied by lr: it stays as strong when the learning rate has fallen."
)
class DecayWithoutRate(_Written):
    def decay(self, p, g, group):
        p.mul_(1 - group["weight_decay"])
        return g


@AdamW.mistake("You decay after the step: the formula takes the decay off first.")
class DecayLast(_Written):
    def decay(self, p, g, group):
        return g

    def late(self, p, group):
        p.mul_(1 - group["lr"] * group["weight_decay"])


@AdamW.mistake("You left out the weight decay.")
class NoDecay(_Written):
    def decay(self, p, g, group):
        return g


@AdamW.mistake("Your decay makes the parameters grow: it should shrink them.")
class DecayUpwards(_Written):
    def decay(self, p, g, group):
        p.mul_(1 + group["lr"] * group["weight_decay"])
        return g


@AdamW.mistake(
    "You left out the corrections by 1 - beta**t: m and v start at 0, and v takes longer to get "
    "away from it, so the first steps are too long."
)
class Uncorrected(_Written):
    def direction(self, state, beta1, beta2, eps):
        return state["m"] / (state["v"].sqrt() + eps)


@AdamW.mistake("You corrected m and not v.")
class HalfCorrected(_Written):
    def direction(self, state, beta1, beta2, eps):
        return state["m"] / (1 - beta1 ** state["t"]) / (state["v"].sqrt() + eps)


@AdamW.mistake("Your t starts at 0: then 1 - beta**t is 0 at the first step. Count first, to 1.")
class CountedTooLate(_Written):
    def direction(self, state, beta1, beta2, eps):
        t = state["t"] - 1
        m, v = (
            state["m"] / (1 - torch.tensor(beta1) ** t),
            state["v"] / (1 - torch.tensor(beta2) ** t),
        )
        return m / (v.sqrt() + eps)


@AdamW.mistake("Your eps is under the root. It belongs beside it: sqrt(...) + eps.")
class EpsUnderTheRoot(_Written):
    def direction(self, state, beta1, beta2, eps):
        m = state["m"] / (1 - beta1 ** state["t"])
        return m / (state["v"] / (1 - beta2 ** state["t"]) + eps).sqrt()


@AdamW.mistake("You added eps before correcting v: the correction then scales eps as well.")
class EpsBeforeTheCorrection(_Written):
    def direction(self, state, beta1, beta2, eps):
        m = state["m"] / (1 - beta1 ** state["t"])
        return m / ((state["v"].sqrt() + eps) / (1 - beta2 ** state["t"]) ** 0.5)


@AdamW.mistake("You forgot the root of v.")
class NoRoot(_Written):
    def direction(self, state, beta1, beta2, eps):
        m = state["m"] / (1 - beta1 ** state["t"])
        return m / (state["v"] / (1 - beta2 ** state["t"]) + eps)


@AdamW.mistake("You swapped the betas: beta1 belongs to m, beta2 to v.")
class BetasSwapped(_Written):
    def means(self, state, g, beta1, beta2):
        super().means(state, g, beta2, beta1)

    def direction(self, state, beta1, beta2, eps):
        return super().direction(state, beta2, beta1, eps)


@AdamW.mistake("Your m adds up gradients: the new one is to be multiplied by 1 - beta1.")
class MomentumLikeSgd(_Written):
    def means(self, state, g, beta1, beta2):
        super().means(state, g, beta1, beta2)
        state["sum"] = beta1 * state.get("sum", 0) + g
        state["m"] = state["sum"]


@AdamW.mistake("Your v is made of m squared. It is a running mean of the gradient squared.")
class SquareOfTheMean(_Written):
    def means(self, state, g, beta1, beta2):
        super().means(state, g, beta1, beta2)
        state["w"] = beta2 * state.get("w", 0) + (1 - beta2) * state["m"].square()
        state["v"] = state["w"]


@AdamW.mistake("You use the gradient where m belongs: there is no momentum in your step.")
class NoMomentum(_Written):
    def means(self, state, g, beta1, beta2):
        super().means(state, g, beta1, beta2)
        state["m"] = g * (1 - beta1 ** state["t"])


@AdamW.mistake("You go uphill: subtract the step.")
class Uphill(_Written):
    def move(self, p, group, direction):
        p.add_(group["lr"] * direction)


@AdamW.mistake(
    "You bind the name `p` to a new tensor: the parameter itself stays where it was. Change it in "
    "place."
)
class NewTensor(_Written):
    def decay(self, p, g, group):
        return g

    def move(self, p, group, direction):
        p = p - group["lr"] * direction


@AdamW.mistake(
    "You read the options that the optimizer was made with. Groups may have their own, and a "
    "schedule writes into them."
)
class OptionsOfTheStart(_Written):
    def options(self, group):
        return {**self.defaults, "params": group["params"]}


@AdamW.mistake(
    "You count steps for all parameters together. One that had no gradient before is at its first "
    "step, whatever the others are at."
)
class OneCounter(_Written):
    steps = 0

    def count(self, state):
        state["t"] = self.steps

    def step(self):
        self.steps += 1
        super().step()

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.steps = max((s["t"] for s in self.state.values()), default=0)


@AdamW.mistake("You do not pass over a parameter whose `grad` is None.")
class NeedsAllGradients(_Written):
    def gradient(self, p):
        return p.grad * 1


@AdamW.mistake(
    "You take a missing gradient for 0: the parameter still moves by its old momentum, decays, and "
    "counts a step."
)
class MissingIsZero(_Written):
    def gradient(self, p):
        return torch.zeros_like(p) if p.grad is None else p.grad


@AdamW.mistake(
    "You keep m and v outside `self.state`, so `state_dict` does not know of them, and a saved "
    "training goes on with empty ones."
)
class OutsideTheState(_Written):
    def remembered(self, p):
        kept = self.__dict__.setdefault("kept", {})
        return kept.setdefault(id(p), {"of": id(self)})


@AdamW.mistake("You change the gradients in place: others may still need them.")
class ChangesGradients(_Written):
    def decay(self, p, g, group):
        super().decay(p, g, group)
        return g

    def late(self, p, group):
        p.grad.mul_(0.5)


@AdamW.alternative
class LikeTorch(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            (b1, b2), lr = group["betas"], group["lr"]
            for p in group["params"]:
                if p.grad is not None:
                    s = self.state[p]
                    if len(s) == 0:
                        s["step"] = torch.tensor(0.0)
                        s["exp_avg"] = torch.zeros_like(p)
                        s["exp_avg_sq"] = torch.zeros_like(p)
                    s["step"] += 1
                    t = s["step"].item()
                    p.data.mul_(1 - lr * group["weight_decay"])
                    s["exp_avg"].lerp_(p.grad, 1 - b1)
                    s["exp_avg_sq"].mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                    bias = math.sqrt(1 - b2**t)
                    below = (s["exp_avg_sq"].sqrt() / bias).add_(group["eps"])
                    p.data.addcdiv_(s["exp_avg"], below, value=-lr / (1 - b1**t))


@AdamW.alternative
class WithProducts(torch.optim.Optimizer):
    """Keeps the powers of the betas instead of counting, and assigns to p.data."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    def step(self):
        for group in self.param_groups:
            for p in filter(lambda p: p.grad is not None, group["params"]):
                one, two = group["betas"]
                s = self.state[p]
                g = p.grad.detach()
                s["m"] = one * s.get("m", torch.zeros_like(g)) + (1 - one) * g
                s["v"] = two * s.get("v", torch.zeros_like(g)) + (1 - two) * g**2
                s["one"], s["two"] = s.get("one", 1.0) * one, s.get("two", 1.0) * two
                change = (s["m"] / (1 - s["one"])) / (
                    (s["v"] / (1 - s["two"])) ** 0.5 + group["eps"]
                )
                decayed = p.data - group["lr"] * group["weight_decay"] * p.data
                p.data = decayed - group["lr"] * change


@AdamW.alternative
class ByTorch(torch.optim.AdamW):
    pass


# ------------------------------------------------------------------------ cosine_schedule

cosine_schedule = chapter.exercise(reference.cosine_schedule, difficulty=2, minutes=8)


@cosine_schedule.group(
    "the rise",
    points=2,
    hint="With a warm-up of 4 and a peak of 10 the steps 0 to 4 have the rates 2, 4, 6, 8, 10.",
)
def _(t: Trial):
    for step in range(5):
        t.same(step, peak=10.0, warmup=4, total=20)
    warmup = t.integer(7, 12)
    for step in (0, 3, warmup - 1):
        t.same(step, peak=0.3, warmup=warmup, total=50, minimum=0.1)


@cosine_schedule.group(
    "the fall",
    points=2,
    hint="What share of the way from `warmup` to `total` is done? The cosine of pi times it goes "
    "from 1 to -1: add 1 and halve.",
)
def _(t: Trial):
    for step in (4, 8, 12, 16):
        t.same(step, peak=10.0, warmup=4, total=20)
    for step in (5, 9, 17, 29):
        t.same(step, peak=0.3, warmup=5, total=30, minimum=0.1)
    t.same(t.integer(20, 90), peak=0.02, warmup=10, total=100, minimum=0.002)


@cosine_schedule.group(
    "the ends: no warm-up, the last step and after it",
    points=2,
    hint="With warmup=0 step 0 has the peak. From step `total` on the rate is the minimum.",
)
def _(t: Trial):
    for step in (0, 1, 6, 12):
        t.same(step, peak=2.0, warmup=0, total=12, minimum=0.5)
    for step in (12, 13, 20, 1000):
        t.same(step, peak=2.0, warmup=3, total=12, minimum=0.5)
    t.same(12, peak=2.0, warmup=3, total=12)


def _schedule(step, peak, warmup, total, minimum, rise=None, fall=None):
    if step < warmup:
        return rise(step) if rise else peak * (step + 1) / (warmup + 1)
    share = min(1.0, (step - warmup) / (total - warmup))
    return fall(share) if fall else minimum + (peak - minimum) * (1 + math.cos(math.pi * share)) / 2


@cosine_schedule.mistake(
    "Your first step has the rate 0 (step / warmup): it is wasted. Use (step + 1) / (warmup + 1)."
)
def starts_at_zero(step, *, peak, warmup, total, minimum=0.0):
    return _schedule(step, peak, warmup, total, minimum, lambda s: peak * s / warmup)


@cosine_schedule.mistake(
    "You reach the peak a step early: (step + 1) / warmup. At step `warmup` it would come again; "
    "divide by warmup + 1."
)
def peak_twice(step, *, peak, warmup, total, minimum=0.0):
    return _schedule(step, peak, warmup, total, minimum, lambda s: peak * (s + 1) / warmup)


@cosine_schedule.mistake("You rise from the minimum. The rise is from peak / (warmup + 1).")
def rises_from_the_minimum(step, *, peak, warmup, total, minimum=0.0):
    def rise(s):
        return minimum + (peak - minimum) * (s + 1) / (warmup + 1)

    return _schedule(step, peak, warmup, total, minimum, rise)


@cosine_schedule.mistake("You left out the warm-up: the rate starts at its peak.")
def no_warmup(step, *, peak, warmup, total, minimum=0.0):
    return _schedule(step, peak, warmup, total, minimum, lambda s: peak)


@cosine_schedule.mistake(
    "You count the fall from step 0: at the end of the warm-up the rate drops. Count from `warmup`."
)
def falls_from_the_start(step, *, peak, warmup, total, minimum=0.0):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    share = min(1.0, step / total)
    return minimum + (peak - minimum) * (1 + math.cos(math.pi * share)) / 2


@cosine_schedule.mistake(
    "Your fall lasts `total` steps from the end of the warm-up. It is over at step `total`."
)
def falls_too_long(step, *, peak, warmup, total, minimum=0.0):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    share = min(1.0, (step - warmup) / total)
    return minimum + (peak - minimum) * (1 + math.cos(math.pi * share)) / 2


@cosine_schedule.mistake("You fall to 0 whatever the minimum: scale the wave to peak - minimum.")
def falls_to_zero(step, *, peak, warmup, total, minimum=0.0):
    return _schedule(step, peak, warmup, total, 0.0)


@cosine_schedule.mistake(
    "You cut the wave off at the minimum (`max`). It should come down to it smoothly: scale it to "
    "peak - minimum, and add the minimum."
)
def cut_off(step, *, peak, warmup, total, minimum=0.0):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return max(minimum, _schedule(step, peak, warmup, total, 0.0))


@cosine_schedule.mistake("You add the minimum to a wave of the full height: peak + minimum.")
def too_high(step, *, peak, warmup, total, minimum=0.0):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return minimum + _schedule(step, peak, warmup, total, 0.0)


@cosine_schedule.mistake("You fall in a straight line. It should be half a cosine.")
def straight(step, *, peak, warmup, total, minimum=0.0):
    return _schedule(step, peak, warmup, total, minimum, fall=lambda x: peak + (minimum - peak) * x)


@cosine_schedule.mistake("You took a quarter of the wave (pi / 2): it ends steeply. Take half.")
def quarter_wave(step, *, peak, warmup, total, minimum=0.0):
    def fall(x):
        return minimum + (peak - minimum) * math.cos(math.pi * x / 2)

    return _schedule(step, peak, warmup, total, minimum, fall=fall)


@cosine_schedule.mistake("You took a whole wave (2 pi): the rate comes up again at the end.")
def whole_wave(step, *, peak, warmup, total, minimum=0.0):
    def fall(x):
        return minimum + (peak - minimum) * (1 + math.cos(2 * math.pi * x)) / 2

    return _schedule(step, peak, warmup, total, minimum, fall=fall)


@cosine_schedule.mistake(
    "After the last step your wave goes up again: from step `total` on the rate stays the minimum."
)
def rises_again(step, *, peak, warmup, total, minimum=0.0):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    share = (step - warmup) / (total - warmup)
    return minimum + (peak - minimum) * (1 + math.cos(math.pi * share)) / 2


@cosine_schedule.mistake("You return a factor between 0 and 1. Multiply it by the peak.")
def a_factor(step, *, peak, warmup, total, minimum=0.0):
    return _schedule(step, 1.0, warmup, total, minimum / peak)


@cosine_schedule.alternative
def with_squares(step, *, peak, warmup, total, minimum=0.0):
    if step >= total:
        return minimum
    if step <= warmup:
        return peak / (warmup + 1) * (step + 1)
    half = (step - warmup) / (total - warmup) * math.pi / 2
    return minimum * math.sin(half) ** 2 + peak * math.cos(half) ** 2


@cosine_schedule.alternative
def with_tensors(step, *, peak, warmup, total, minimum=0.0):
    share = torch.tensor((step - warmup) / (total - warmup)).clamp(0, 1).double()
    low = minimum + 0.5 * (peak - minimum) * (1 + torch.cos(share * torch.pi))
    return low.item() * min(1.0, (step + 1) / (warmup + 1))


@cosine_schedule.alternative
def with_a_mean(step, *, peak, warmup, total, minimum=0.0):
    ramp = (step + 1) / (warmup + 1)
    if ramp < 1:
        return ramp * peak
    place = min(step, total) - warmup
    return (peak + minimum) / 2 + (peak - minimum) / 2 * math.cos(
        place * math.pi / (total - warmup)
    )


# ------------------------------------------------------------------------- clip_grad_norm

clip_grad_norm = chapter.exercise(
    reference.clip_grad_norm,
    difficulty=2,
    minutes=8,
    forbidden=[
        "torch.nn.utils.clip_grad_norm_",
        "torch.nn.utils.get_total_norm",
        "torch.nn.utils.clip_grads_with_norm_",
    ],
)


def clip(t: Trial, gradients, max_norm, *, norm=True, after=True, once=False) -> dict:
    """Have gradients clipped, and require the norm, the gradients afterwards, or both."""
    found, expected = t.drive("clipped", gradients, max_norm, once)
    if norm:
        t.equal(found["norm"], expected["norm"], "The length that you return is wrong", tol=0.1)
    if after:
        said = "The gradients are not what they should be afterwards"
        t.equal(found["gradients"], expected["gradients"], said, tol=0.3)
    return found


@clip_grad_norm.group(
    "the length of all gradients together",
    points=2,
    hint="The root of the sum of all squares, of all gradients; it is the length before clipping.",
)
def _(t: Trial):
    clip(t, [torch.tensor([3.0]), torch.tensor([[4.0]])], 100.0, after=False)
    clip(t, [t.randn(2, 3), t.randn(4), t.randn()], 100.0, after=False)
    clip(t, [2 * t.randn(5), -3 * t.randn(2, 2)], 0.5, after=False)


@clip_grad_norm.group(
    "one that is too long",
    points=2,
    hint="Multiply every gradient by the same number, so that the length of all becomes max_norm.",
)
def _(t: Trial):
    clip(t, [torch.tensor([30.0]), torch.tensor([[40.0, 0.0]])], 1.0, norm=False)
    clip(t, [5 * t.randn(2, 3), t.randn(4), 3 * t.randn(3)], 2.0, norm=False)
    clip(t, [0.05 * t.randn(6), 0.1 * t.randn(2, 2)], 0.01, norm=False)


@clip_grad_norm.group(
    "one that is short enough", points=1, hint="Nothing happens to it: it is not made longer."
)
def _(t: Trial):
    gradients = [0.1 * t.randn(2, 3), 0.1 * t.randn(4)]
    found = clip(t, gradients, 50.0, norm=False, after=False)
    same = all(
        isinstance(g, Tensor) and torch.equal(g, h) for g, h in zip(found["gradients"], gradients)
    )
    t.require(same, "Gradients that are short enough should stay exactly as they are")
    clip(t, [torch.zeros(3), torch.zeros(2)], 1.0, norm=False)


@clip_grad_norm.group(
    "missing gradients, and parameters that come once",
    points=2,
    hint="`model.parameters()` can be walked through only once: collect the gradients that are not "
    "None in a list first. With none at all the length is 0.",
)
def _(t: Trial):
    clip(t, [3 * t.randn(4), t.randn(2, 2)], 0.7, once=True)
    clip(t, [None, 3 * t.randn(4), None, t.randn(2, 2)], 0.7, once=True)
    found, expected = t.drive("clipped", [None, None], 1.0, True)
    t.equal(found["norm"], expected["norm"], "Without any gradient the length is 0, a tensor")


@clip_grad_norm.group(
    "in place", points=1, hint="Change what `p.grad` holds (`mul_`); the parameters stay."
)
def _(t: Trial):
    found, expected = t.drive("clipped", [4 * t.randn(3), 4 * t.randn(2, 2)], 1.0, False)
    t.equal(found["values"], expected["values"], "The parameters themselves were changed")
    t.require(found["kept"], "`p.grad` is another tensor than before: change it in place")
    said = "The gradients are not what they should be afterwards"
    t.equal(found["gradients"], expected["gradients"], said, tol=0.3)


def _gradients(parameters):
    return [p.grad for p in parameters if p.grad is not None]


def _length(gradients):
    return torch.stack([g.norm() for g in gradients]).norm() if gradients else torch.zeros(())


@clip_grad_norm.mistake(
    "You clip each gradient by itself. That turns the whole: all belong to one vector, and are "
    "multiplied by the same number."
)
def each_by_itself(parameters, max_norm):
    gradients = _gradients(parameters)
    norm = _length(gradients)
    for g in gradients:
        if g.norm() > max_norm:
            g.mul_(max_norm / g.norm())
    return norm


@clip_grad_norm.mistake(
    "You cut off each number at max_norm. That turns the gradient: make it shorter as a whole."
)
def by_value(parameters, max_norm):
    gradients = _gradients(parameters)
    norm = _length(gradients)
    for g in gradients:
        g.clamp_(-max_norm, max_norm)
    return norm


@clip_grad_norm.mistake("You always scale to max_norm: a short gradient is made longer.")
def always_scaled(parameters, max_norm):
    gradients = _gradients(parameters)
    norm = _length(gradients)
    for g in gradients:
        g.mul_(max_norm / norm)
    return norm


@clip_grad_norm.mistake("You never clip: you only measure.")
def only_measured(parameters, max_norm):
    return _length(_gradients(parameters))


@clip_grad_norm.mistake("You return the length after clipping. It is the one before that tells.")
def length_afterwards(parameters, max_norm):
    gradients = _gradients(parameters)
    norm = _length(gradients)
    if norm > max_norm:
        for g in gradients:
            g.mul_(max_norm / norm)
    return norm.clamp(max=max_norm)


@clip_grad_norm.mistake("You add up the lengths. Squares add up: take the root of their sum.")
def sum_of_lengths(parameters, max_norm):
    gradients = _gradients(parameters)
    norm = sum((g.norm() for g in gradients), torch.zeros(()))
    if norm > max_norm:
        for g in gradients:
            g.mul_(max_norm / norm)
    return norm


@clip_grad_norm.mistake("You forgot the root: you compare the squared length with max_norm.")
def squared(parameters, max_norm):
    gradients = _gradients(parameters)
    norm = _length(gradients) ** 2
    if norm > max_norm:
        for g in gradients:
            g.mul_(max_norm / norm)
    return norm


@clip_grad_norm.mistake(
    "You walk through the parameters twice. `model.parameters()` is empty the second time, and "
    "nothing is clipped: make a list of the gradients first."
)
def walked_twice(parameters, max_norm):
    norm = _length(_gradients(parameters))
    if norm > max_norm:
        for p in parameters:
            p.grad.mul_(max_norm / norm)
    return norm


@clip_grad_norm.mistake("You do not pass over parameters whose `grad` is None.")
def all_have_gradients(parameters, max_norm):
    gradients = [p.grad for p in parameters]
    norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    if norm > max_norm:
        for g in gradients:
            g.mul_(max_norm / norm)
    return norm


@clip_grad_norm.mistake("You put a new tensor in place of each `p.grad`. Change it in place.")
def new_gradients(parameters, max_norm):
    parameters = [p for p in parameters if p.grad is not None]
    norm = _length(_gradients(parameters))
    for p in parameters:
        p.grad = p.grad * min(1.0, max_norm / max(norm.item(), 1e-30))
    return norm


@clip_grad_norm.mistake("You measure and scale the parameters. It is their gradients that count.")
def of_the_parameters(parameters, max_norm):
    parameters = list(parameters)
    norm = _length([p.detach() for p in parameters])
    if norm > max_norm:
        for p in parameters:
            p.data.mul_(max_norm / norm)
    return norm


@clip_grad_norm.mistake("You return the mean square. The length is the root of the sum.")
def mean_instead_of_sum(parameters, max_norm):
    gradients = _gradients(parameters)
    if not gradients:
        return torch.zeros(())
    norm = torch.cat([g.flatten() for g in gradients]).square().mean().sqrt()
    if norm > max_norm:
        for g in gradients:
            g.mul_(max_norm / norm)
    return norm


@clip_grad_norm.alternative
def as_one_vector(parameters, max_norm):
    gradients = [p.grad for p in parameters if p.grad is not None]
    whole = torch.cat([torch.zeros(1)] + [g.flatten() for g in gradients])
    norm = whole.norm()
    for g in gradients:
        g *= min(1.0, max_norm / (norm.item() + 1e-6))
    return norm


@clip_grad_norm.alternative
def clip_by_torch(parameters, max_norm):
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm)


@clip_grad_norm.alternative
def with_a_list(parameters, max_norm):
    parameters = list(parameters)
    total = sum(p.grad.pow(2).sum().item() for p in parameters if p.grad is not None) ** 0.5
    if total > max_norm:
        for p in parameters:
            if p.grad is not None:
                p.grad.data.div_(total / max_norm)
    return torch.tensor(total)


# ---------------------------------------------------------------------------------- train

train = chapter.exercise(reference.train, difficulty=3, minutes=12)


def run(t: Trial, steps=range(4), **more) -> tuple[dict, dict]:
    """A short training; the form of what it returns is required on the way."""
    vocab, n = 5, len(steps)
    data = []
    for _ in range(n + 1):
        tokens = t.randint(0, vocab, (3, 5))
        data.append((tokens[:, :-1], tokens[:, 1:].clone()))
    data[1][1][0, 2:] = -100
    rates = [0.1 + 0.5 * float(r) for r in t.rand(max(steps) + 2)]
    found, expected = t.drive(
        "training_run", 2 * t.randn(vocab, vocab), data, rates, list(steps), **more
    )
    return found, expected


def curve(t: Trial, found, expected, key: str, said: str) -> None:
    """Require one list of the history."""
    history = found["history"] if isinstance(found["history"], dict) else {}
    t.require(key in history, f"The history has no list {key!r}", found=found["history"])
    if key in history:
        t.equal(history[key], expected["history"][key], said, tol=3)
        t.require(
            not any(isinstance(value, Tensor) for value in history[key]),
            f"The list {key!r} holds tensors. Numbers (`.item()`) let go of the graph behind them",
        )


@train.group(
    "the losses, and what is learned",
    points=2,
    hint="For each step: rate, batch, logits, loss, gradient, clipping, step. Is the gradient made "
    "of this batch alone?",
)
def _(t: Trial):
    found, expected = run(t)
    curve(t, found, expected, "loss", "The losses are not those of the steps, before each step")
    said = "The model does not end where it should"
    t.equal([found["table"], found["scale"]], [expected["table"], expected["scale"]], said, tol=3)


@train.group(
    "a rate for each step, in every group",
    points=2,
    hint="Before each step, write schedule(step) into the 'lr' of all of `optimizer.param_groups`; "
    "`step` is what `steps` gives, not a count from 0.",
)
def _(t: Trial):
    for steps in (range(3), range(7, 10)):
        found, expected = run(t, steps)
        said = "The rates that the optimizer had at its steps are not those of the schedule"
        t.equal(found["rates"], expected["rates"], said)
        curve(t, found, expected, "rate", "The rates in the history are wrong")


@train.group(
    "gradients left over from before",
    points=1,
    hint="`zero_grad` before `backward`: gradients add up, also with those that were there.",
)
def _(t: Trial):
    found, expected = run(t, range(1), leftover=True)
    said = "Something that had a gradient before the first step was added to it"
    t.equal(found["norms"], expected["norms"], said, tol=3)


@train.group(
    "clipping",
    points=2,
    hint="Between backward and step. The history holds the length before clipping.",
)
def _(t: Trial):
    found, expected = run(t, range(3), max_norm=0.05)
    t.equal(found["norms"], expected["norms"], "The gradient is not clipped when it is used", tol=3)
    curve(t, found, expected, "norm", "The lengths in the history are not those before clipping")
    found, expected = run(t, range(2))
    said = "Without max_norm nothing is clipped"
    t.equal(found["norms"], expected["norms"], said, tol=3)


@train.group(
    "one batch a step, in training mode",
    points=1,
    hint="Call batch() once in each step, and model.train() before the first.",
)
def _(t: Trial):
    found, expected = run(t, range(3), evaluation=True)
    t.equal(found["batches"], expected["batches"], "Each step draws one batch")
    said = "The order of forward passes and steps, or the model's mode, is not right"
    t.equal(found["order"], expected["order"], said)


def _training(
    model, batch, optimizer, schedule, steps, max_norm=math.inf, *, zero="before",
    groups=slice(None), number=lambda i, step: step, clip=True, first=None, late=False,
    loss_of=None, mode=True, swap=False, clipped=False,
):  # fmt: skip
    """The loop, with the places at which it goes wrong."""
    history = {"loss": [], "norm": [], "rate": []}
    if mode is not None:
        model.train(mode)
    for i, step in enumerate(steps):
        rate = schedule(number(i, step))
        if not late:
            for group in optimizer.param_groups[groups]:
                group["lr"] = rate
        inputs, targets = first if first is not None else batch()
        if swap:
            inputs, targets = targets.clamp(min=0), inputs
        if zero == "before":
            optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs).mT, targets)
        loss.backward()
        if zero == "between":
            optimizer.zero_grad(set_to_none=False)
        norm = reference.clip_grad_norm(model.parameters(), max_norm if clip else math.inf)
        optimizer.step()
        if zero == "after":
            optimizer.zero_grad()
        if late:
            for group in optimizer.param_groups[groups]:
                group["lr"] = rate
        if loss_of is not None:
            with torch.no_grad():
                loss = loss_of(model, inputs, targets)
        history["loss"].append(loss.item())
        history["norm"].append(min(norm.item(), max_norm) if clipped else norm.item())
        history["rate"].append(rate)
    return history


@train.mistake(
    "You never clear the gradients: each step uses the sum of all batches so far. `zero_grad` "
    "before `backward`."
)
def adds_up(model, batch, optimizer, schedule, steps, max_norm=math.inf):
    return _training(model, batch, optimizer, schedule, steps, max_norm, zero="never")


@train.mistake(
    "You clear the gradients between `backward` and `step`: the optimizer gets zeros, and nothing "
    "is learned."
)
def clears_too_late(model, batch, optimizer, schedule, steps, max_norm=math.inf):
    return _training(model, batch, optimizer, schedule, steps, max_norm, zero="between")


@train.mistake(
    "You clear the gradients after each step only: what was left over from before your loop is "
    "added to the first."
)
def clears_afterwards(model, batch, optimizer, schedule, steps, max_norm=math.inf):
    return _training(model, batch, optimizer, schedule, steps, max_norm, zero="after")


@train.mistake(
    "You never set the learning rate: the optimizer keeps the one that it was made with."
)
def no_rate(model, batch, optimizer, schedule, steps, max_norm=math.inf):
    return _training(model, batch, optimizer, schedule, steps, max_norm, groups=slice(0))


@train.mistake("You set the rate of the first group alone. There may be several.")
def first_group(model, batch, optimizer, schedule, steps, max_norm=math.inf):
    return _training(model, batch, optimizer, schedule, steps, max_norm, groups=slice(1))


@train.mistake("You set the rate after the step: every step has the rate of the one before.")
def rate_too_late(model, batch, optimizer, schedule, steps, max_norm=math.inf):
    return _training(model, batch, optimizer, schedule, steps, max_norm, late=True)


@train.mistake(
    "You ask the schedule for a count from 0. A training that goes on asks for the numbers in "
    "`steps`."
)
def counts_from_zero(model, batch, optimizer, schedule, steps, max_norm=math.inf):
    return _training(model, batch, optimizer, schedule, steps, max_norm, number=lambda i, step: i)


@train.mistake("You ask the schedule for the next step's rate.")
def one_step_ahead(model, batch, optimizer, schedule, steps, max_norm=math.inf):
    return _training(
        model, batch, optimizer, schedule, steps, max_norm, number=lambda i, step: step + 1
    )


@train.mistake("You do not clip the gradient, or not before the optimizer uses it.")
def never_clips(model, batch, optimizer, schedule, steps, max_norm=math.inf):
    return _training(model, batch, optimizer, schedule, steps, max_norm, clip=False)


@train.mistake(
    "You keep the length after clipping, which never exceeds max_norm. The one before tells more."
)
def keeps_the_clipped_length(model, batch, optimizer, schedule, steps, max_norm=math.inf):
    return _training(model, batch, optimizer, schedule, steps, max_norm, clipped=True)


@train.mistake("You draw one batch, and use it for all steps. Draw one in each step.")
def one_batch(model, batch, optimizer, schedule, steps, max_norm=math.inf):
    return _training(model, batch, optimizer, schedule, steps, max_norm, first=batch())


@train.mistake("You leave the model in the mode in which you found it: call `model.train()`.")
def keeps_the_mode(model, batch, optimizer, schedule, steps, max_norm=math.inf):
    return _training(model, batch, optimizer, schedule, steps, max_norm, mode=None)


@train.mistake("You train in evaluation mode: dropout would be off. Call `model.train()`.")
def in_evaluation(model, batch, optimizer, schedule, steps, max_norm=math.inf):
    return _training(model, batch, optimizer, schedule, steps, max_norm, mode=False)


@train.mistake(
    "You compute the loss once more after the step. The history holds the one before it, which the "
    "gradient is of."
)
def loss_afterwards(model, batch, optimizer, schedule, steps, max_norm=math.inf):
    return _training(
        model, batch, optimizer, schedule, steps, max_norm,
        loss_of=lambda m, x, y: F.cross_entropy(m(x).mT, y),
    )  # fmt: skip


@train.mistake(
    "You keep tensors. Each loss then keeps its whole graph in memory: `.item()` makes a number."
)
def keeps_tensors(model, batch, optimizer, schedule, steps, max_norm=math.inf):
    history = _training(model, batch, optimizer, schedule, steps, max_norm)
    return {key: [torch.tensor(x) for x in values] for key, values in history.items()}


@train.mistake("You swapped inputs and targets: your model learns to say the token before.")
def backwards_in_time(model, batch, optimizer, schedule, steps, max_norm=math.inf):
    return _training(model, batch, optimizer, schedule, steps, max_norm, swap=True)


@train.alternative
def with_library_calls(model, batch, optimizer, schedule, steps, max_norm=math.inf):
    losses, norms, rates = [], [], []
    model.train()
    for step in steps:
        optimizer.zero_grad(set_to_none=False)
        inputs, targets = batch()
        logits = model(inputs)
        loss = F.cross_entropy(logits.flatten(0, -2), targets.flatten())
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm).item())
        rates.append(schedule(step))
        for group in optimizer.param_groups:
            group["lr"] = rates[-1]
        optimizer.step()
        losses.append(loss.detach().item())
    return {"rate": rates, "norm": norms, "loss": losses}


@train.alternative
def without_zero_grad(model, batch, optimizer, schedule, steps, max_norm=math.inf):
    history = {name: [] for name in ("loss", "norm", "rate")}
    for step in steps:
        model.train()
        x, y = batch()
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        loss = reference.cross_entropy(model(x), y)
        for p in model.parameters():
            p.grad = None
        loss.backward()
        history["norm"] += [reference.clip_grad_norm(list(model.parameters()), max_norm).item()]
        optimizer.step()
        history["loss"] += [float(loss.detach())]
        history["rate"] += [schedule(step)]
    return history


# ------------------------------------------------------------------------------- snapshot

snapshot = chapter.exercise(
    reference.snapshot, difficulty=3, minutes=9, mend="three_things_are_wrong"
)

AGAIN = "Gone back to the snapshot, the training does not go on as it did before"


def interrupted(t: Trial, **more) -> dict:
    """Train on from a snapshot twice; the two must be the same, bit for bit."""
    before = t.integer(2, 6)
    found, _ = t.drive("interrupted_run", t.randn(4, 4), before, 3, t.integer(1, 1000), **more)
    t.require(
        found["first"] == found["second"], AGAIN, **{k: found[k] for k in ("first", "second")}
    )
    same = torch.equal(*found["ends"])
    t.require(same, "The two trainings end with different parameters")
    t.equal(found["step"], before, "The number of steps done is wrong")
    return found


@snapshot.group(
    "the model, as it was",
    points=2,
    hint="A state dict holds the very tensors that the next step changes. What keeps them?",
)
def _(t: Trial):
    interrupted(t, adam=False, dropout=0.0)


@snapshot.group(
    "what the optimizer remembers",
    points=2,
    hint="AdamW's m, v and t are in its state dict, which holds live tensors as well.",
)
def _(t: Trial):
    interrupted(t, dropout=0.0)


@snapshot.group(
    "all the random numbers",
    points=2,
    hint="The batches come from the generator, dropout from torch's own random numbers. Which "
    "state goes where?",
)
def _(t: Trial):
    found = interrupted(t, file=True)
    t.require(found["undisturbed"], "Taking the snapshot changed something")
    t.require(found["plain"], "The snapshot cannot be saved and loaded: keep states, not objects")


def _snapshot(model, optimizer, generator, step, /, **other):
    return {
        "model": copy.deepcopy(model.state_dict()),
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "generator": generator.get_state(),
        "random": torch.get_rng_state(),
        "step": step,
    } | other


@snapshot.mistake(
    "Your snapshot has the bugs that were handed out: look for tensors that change afterwards, and "
    "for a state in the wrong place."
)
def three_things_are_wrong(model, optimizer, generator, step):
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generator": generator.get_state(),
        "random": generator.get_state(),
        "step": step,
    }


@snapshot.mistake(
    "Your snapshot holds the model's own tensors, and the next step changes them. Copy them, for "
    "example with `copy.deepcopy`."
)
def live_model(model, optimizer, generator, step):
    return _snapshot(model, optimizer, generator, step, model=model.state_dict())


@snapshot.mistake(
    "Your snapshot holds the optimizer's own tensors, and the next step changes them. Copy them, "
    "for example with `copy.deepcopy`."
)
def live_optimizer(model, optimizer, generator, step):
    return _snapshot(model, optimizer, generator, step, optimizer=optimizer.state_dict())


@snapshot.mistake(
    "Both state dicts are live: they hold the tensors that the next step changes. `copy.deepcopy` "
    "copies them; `dict(...)` and `.copy()` would copy the names only."
)
def both_live(model, optimizer, generator, step):
    return _snapshot(
        model, optimizer, generator, step,
        model=model.state_dict(), optimizer=optimizer.state_dict(),
    )  # fmt: skip


@snapshot.mistake(
    "You keep the batches' generator twice. Dropout draws from torch's own random numbers: "
    "`torch.get_rng_state()`."
)
def generator_twice(model, optimizer, generator, step):
    return _snapshot(model, optimizer, generator, step, random=generator.get_state())


@snapshot.mistake(
    "You swapped the two states: the generator's belongs to the batches, torch's own to dropout."
)
def states_swapped(model, optimizer, generator, step):
    return _snapshot(
        model, optimizer, generator, step,
        generator=torch.get_rng_state(), random=generator.get_state(),
    )  # fmt: skip


@snapshot.mistake(
    "You keep the state of a generator as it is after seeding: the batches start from the first."
)
def seed_instead_of_state(model, optimizer, generator, step):
    fresh = torch.Generator().manual_seed(generator.initial_seed())
    return _snapshot(model, optimizer, generator, step, generator=fresh.get_state())


@snapshot.mistake("You count one step too many: `step` is the number of steps done.")
def one_step_too_many(model, optimizer, generator, step):
    return _snapshot(model, optimizer, generator, step + 1)


@snapshot.mistake("You seed torch's random numbers: taking a snapshot should change nothing.")
def seeds_torch(model, optimizer, generator, step):
    torch.manual_seed(step)
    return _snapshot(model, optimizer, generator, step)


@snapshot.mistake(
    "You leave out the random numbers of torch, from which dropout draws: the key 'random'."
)
def without_random(model, optimizer, generator, step):
    saved = _snapshot(model, optimizer, generator, step)
    del saved["random"]
    return saved


@snapshot.alternative
def with_clones(model, optimizer, generator, step):
    def copied(value):
        if isinstance(value, Tensor):
            return value.detach().clone()
        if isinstance(value, dict):
            return {k: copied(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [copied(v) for v in value]
        return value

    return {
        "step": step,
        "random": torch.random.get_rng_state(),
        "generator": generator.get_state(),
        "optimizer": copied(optimizer.state_dict()),
        "model": {k: v.clone() for k, v in model.state_dict().items()},
    }


@snapshot.alternative
def through_bytes(model, optimizer, generator, step):
    import io

    buffer = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], buffer)
    buffer.seek(0)
    one, other = torch.load(buffer)
    return dict(
        model=one, optimizer=other, generator=generator.get_state(),
        random=torch.get_rng_state(), step=step,
    )  # fmt: skip
