"""Checks of chapter 06: split, attend in every head, merge."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from autograder.checking import Chapter, Trial
from solutions import multi_head_attention as reference
from solutions.masking import causal_mask, masked_attention, masked_softmax, padding_mask
from solutions.multi_head_attention import merge_heads, split_heads

chapter = Chapter("06_multi_head_attention", "Multi-head attention")
check = chapter.check


def mask_of(t: Trial, *shape: int) -> Tensor:
    """A random mask that leaves each row something to see, and hides something from it."""
    mask = t.rand(*shape) < 0.5
    choice = t.rand(*shape).argsort(-1)
    return (mask | (choice == 0)) & (choice != 1)


# ---------------------------------------------------------------------------- split_heads

splitting = chapter.exercise(reference.split_heads, difficulty=2, minutes=8)


@splitting.group(
    "each head gets its slice of every token",
    points=2,
    hint="Cut the last axis in two, (..., T, H, K). Then let the tokens and the heads change "
    "places.",
)
def _(t: Trial):
    t.same(t.randn(2, 5, 12), 3)
    t.same(t.randn(3, 4, 10), 5)
    if t.graded:
        t.same(t.randn(2, 9, 24), t.choice([3, 4, 6, 8]))


@splitting.group(
    "any leading axes",
    points=1,
    hint="There may be no batch, or several leading axes. Count axes from the end.",
)
def _(t: Trial):
    t.same(t.randn(5, 6), 2)
    t.same(t.randn(2, 3, 7, 8), 4)
    t.same(t.randn(4, 1, 2, 5, 6), n_heads=3)


@splitting.group(
    "edges: one head, heads of width 1, one token, a transposed view",
    points=1,
    hint="With one head the slice is the whole token; with D heads it is a single number.",
)
def _(t: Trial):
    t.same(t.randn(2, 5, 6), 1)
    t.same(t.randn(2, 3, 4), 4)
    t.same(t.randn(3, 1, 8), 2)
    t.same(t.randn(2, 6, 5).mT, 3)
    t.same(t.randn(2, 5, 9)[..., 1:7], 2)
    t.same(t.randn(3, 5, 6, dtype=torch.float64), 3, dtype=True)
    t.unchanged(t.randn(2, 5, 6), 3)


@splitting.group("gradients flow back", points=1, hint="Move the numbers, do not copy them out.")
def _(t: Trial):
    t.same_gradients(t.randn(2, 5, 6), 3)


@splitting.group(
    "a width that cannot be cut is refused",
    points=1,
    hint="Look at the remainder, `%`, and raise a ValueError that names both numbers.",
)
def _(t: Trial):
    t.raises(ValueError, t.randn(2, 3, 10), 4, naming="10")
    t.raises(ValueError, t.randn(2, 3, 15), 7, naming="7")
    t.raises(ValueError, t.randn(2, 3, 4), 8, naming="8")


def _divides(x, n_heads):
    if x.shape[-1] % n_heads != 0:
        raise ValueError(f"{n_heads} heads do not divide the width {x.shape[-1]}")
    return x.shape[-1] // n_heads


@splitting.mistake(
    "You reshaped to (..., H, T, K) in one go. That keeps the numbers in their order in memory, "
    "so a head gets a stretch of the sequence, a few tokens whole, instead of its slice of every "
    "token. Cut to (..., T, H, K) first, then swap the two axes."
)
def wrong_reshape(x, n_heads):
    width = _divides(x, n_heads)
    return x.reshape(*x.shape[:-2], n_heads, x.shape[-2], width)


@splitting.mistake(
    "You cut the tokens into slices, (..., T, H, K), and left it at that. The heads' axis comes "
    "before the tokens', so that each head has its own (T, K)."
)
def not_swapped(x, n_heads):
    return x.unflatten(-1, (n_heads, _divides(x, n_heads)))


@splitting.mistake(
    "Your heads get every H-th feature of a token. Head h gets K features in a row, from h * K on."
)
def every_hth_feature(x, n_heads):
    width = _divides(x, n_heads)
    return x.unflatten(-1, (width, n_heads)).movedim(-1, -3)


@splitting.mistake(
    "You took `n_heads` for the width of a head. There are n_heads slices, each D / n_heads wide."
)
def heads_as_width(x, n_heads):
    width = _divides(x, n_heads)
    return x.unflatten(-1, (width, n_heads)).transpose(-3, -2)


@splitting.mistake(
    "You expect exactly one leading axis. There may be none, or several: `x.shape[:-2]`."
)
def one_leading_axis(x, n_heads):
    width = _divides(x, n_heads)
    batch, tokens, _ = x.shape
    return x.reshape(batch, tokens, n_heads, width).transpose(1, 2)


@splitting.mistake(
    "You count the axes to be swapped from the front, which is right for one leading axis only. "
    "From the end they are -3 and -2."
)
def counted_from_the_front(x, n_heads):
    return x.unflatten(-1, (n_heads, _divides(x, n_heads))).transpose(1, 2)


@splitting.mistake(
    "You moved the heads in front of the batch. The leading axes stay where they are, and the "
    "heads come right before the tokens."
)
def heads_first(x, n_heads):
    return x.unflatten(-1, (n_heads, _divides(x, n_heads))).movedim(-2, 0)


@splitting.mistake(
    "You swapped the heads with their width: (..., T, K, H) where (..., H, T, K) is meant."
)
def swapped_the_last_two(x, n_heads):
    return x.unflatten(-1, (n_heads, _divides(x, n_heads))).transpose(-2, -1)


@splitting.mistake(
    "You do not look whether n_heads divides the width, and leave it to torch to complain. Raise "
    "a ValueError that names both numbers."
)
def refuses_nothing(x, n_heads):
    return x.unflatten(-1, (n_heads, -1)).transpose(-3, -2)


@splitting.mistake(
    "Where n_heads does not divide the width, you leave features out without a word. Raise a "
    "ValueError that names both numbers."
)
def drops_the_rest(x, n_heads):
    width = x.shape[-1] // n_heads
    return x[..., : width * n_heads].unflatten(-1, (n_heads, width)).transpose(-3, -2)


@splitting.mistake(
    "You use `assert`: that raises AssertionError, and nothing at all under `python -O`. Raise a "
    "ValueError."
)
def asserts(x, n_heads):
    assert x.shape[-1] % n_heads == 0, f"{x.shape[-1]} is not a multiple of {n_heads}"
    return x.unflatten(-1, (n_heads, -1)).transpose(-3, -2)


@splitting.mistake("Your message leaves out one of the two numbers. Give the width D and n_heads.")
def names_the_width_alone(x, n_heads):
    if x.shape[-1] % n_heads:
        raise ValueError(f"the width {x.shape[-1]} cannot be cut into equal slices")
    return x.unflatten(-1, (n_heads, -1)).transpose(-3, -2)


@splitting.mistake(
    "You cut the result off from its gradients (`detach`, `.data`, a new tensor made of its "
    "numbers): the maps before it would learn nothing."
)
def split_without_gradients(x, n_heads):
    _divides(x, n_heads)
    return x.detach().unflatten(-1, (n_heads, -1)).transpose(-3, -2)


@splitting.alternative
def with_reshape(x, n_heads):
    *leading, n_tokens, d_model = x.shape
    if d_model % n_heads:
        raise ValueError(f"d_model={d_model}, n_heads={n_heads}")
    return x.reshape(*leading, n_tokens, n_heads, d_model // n_heads).transpose(-2, -3).contiguous()


@splitting.alternative
def with_chunks(x, n_heads):
    width, rest = divmod(x.size(-1), n_heads)
    if rest:
        raise ValueError(f"{x.size(-1)} / {n_heads} leaves {rest}")
    return torch.stack(x.split(width, dim=-1), dim=-3)


@splitting.alternative
def with_a_loop(x, n_heads):
    width = _divides(x, n_heads)
    heads = x.new_zeros(*x.shape[:-2], n_heads, x.shape[-2], width)
    for h in range(n_heads):
        heads[..., h, :, :] = x[..., h * width : (h + 1) * width]
    return heads


@splitting.alternative
def with_an_index(x, n_heads):
    width = _divides(x, n_heads)
    places = torch.arange(n_heads)[:, None] * width + torch.arange(width)  # (H, K)
    return x[..., places].movedim(-2, -3)


@splitting.alternative
def the_right_order_for_memory(x, n_heads):
    width = _divides(x, n_heads)
    turned = x.mT  # (..., D, T): now a head is a stretch of memory
    return turned.reshape(*x.shape[:-2], n_heads, width, x.shape[-2]).mT


# ---------------------------------------------------------------------------- merge_heads

merging = chapter.exercise(reference.merge_heads, difficulty=2, minutes=6)


@merging.group(
    "the slices of a token, side by side",
    points=2,
    hint="Bring each token's heads together first, (..., T, H, K); then make one axis of the last "
    "two.",
)
def _(t: Trial):
    t.same(t.randn(2, 3, 5, 4))
    t.same(t.randn(3, 5, 2, 4))
    if t.graded:
        t.same(t.randn(2, t.integer(4, 7), 7, 3))


@merging.group(
    "it undoes split_heads",
    points=1,
    hint="What `split_heads` gives is a transposed view: its numbers do not lie in order in "
    "memory. `reshape` and `flatten` can deal with that, `view` cannot.",
)
def _(t: Trial):
    for shape, n_heads in [((2, 5, 12), 3), ((3, 4, 10), 5), ((2, 7, 6), 1)]:
        x = t.randn(*shape)
        found = t.call(split_heads(x, n_heads))
        t.equal(found, x, "Split and then merged, the tokens are not what they were")
    t.unchanged(split_heads(t.randn(2, 5, 6), 3))


@merging.group(
    "any leading axes, and edges",
    points=1,
    hint="There may be no batch, or several leading axes. Count axes from the end.",
)
def _(t: Trial):
    t.same(t.randn(3, 5, 2))
    t.same(t.randn(2, 3, 4, 7, 2))
    t.same(t.randn(2, 1, 5, 4))
    t.same(t.randn(2, 6, 3, 1))
    t.same(t.randn(2, 3, 1, 4, dtype=torch.float64), dtype=True)


@merging.group("gradients flow back", points=1, hint="Move the numbers, do not copy them out.")
def _(t: Trial):
    t.same_gradients(t.randn(2, 3, 5, 4))


@merging.mistake(
    "You reshaped to (..., T, D) without swapping the axes back. The numbers stay in their order "
    "in memory, so the first token is filled with head 0 of several tokens. Swap heads and "
    "tokens, then reshape."
)
def merged_by_reshape(x):
    return x.reshape(*x.shape[:-3], x.shape[-2], x.shape[-3] * x.shape[-1])


@merging.mistake(
    "You use `view` on a transposed tensor. Its numbers do not lie in order in memory, and `view`"
    " never copies: use `reshape`, `flatten`, or `.contiguous()` first."
)
def view_of_a_transpose(x):
    x = x.transpose(-3, -2)
    return x.view(*x.shape[:-2], x.shape[-2] * x.shape[-1])


@merging.mistake(
    "You swapped heads and tokens, and did not join the heads: one axis of width D = H * K is to "
    "be left of the last two."
)
def not_joined(x):
    return x.transpose(-3, -2)


@merging.mistake(
    "You joined the heads' axis with the tokens'. A token stays a token: it gets wider, H * K, "
    "and there are still T of them."
)
def more_tokens(x):
    return x.flatten(-3, -2)


@merging.mistake(
    "You interleave the heads: number i of head h belongs at h * K + i, all of head 0 first."
)
def interleaved(x):
    return x.movedim(-3, -1).flatten(-2)


@merging.mistake(
    "You added the heads up. They are put side by side: what each found is kept apart."
)
def added_up(x):
    return x.sum(-3)


@merging.mistake("You averaged the heads. They are put side by side, and T stays T, D is H * K.")
def averaged(x):
    return x.mean(-3)


@merging.mistake(
    "You expect exactly one leading axis. There may be none, or several: `x.shape[:-3]`."
)
def merge_of_one_leading_axis(x):
    batch, heads, tokens, width = x.shape
    return x.transpose(1, 2).reshape(batch, tokens, heads * width)


@merging.mistake(
    "You count the axes from the front, which is right for one leading axis only. From the end "
    "they are -3 and -2."
)
def merge_counted_from_the_front(x):
    return x.transpose(1, 2).flatten(-2)


@merging.mistake(
    "You flatten everything behind the second axis, which is right for one leading axis only. "
    "Join the last two axes."
)
def flattened_from_the_front(x):
    return x.transpose(-3, -2).flatten(2)


@merging.mistake(
    "You turned each head, (T, K) into (K, T), before you joined. It is heads and tokens that "
    "change places."
)
def turned_each_head(x):
    return x.mT.reshape(*x.shape[:-3], x.shape[-2], x.shape[-3] * x.shape[-1])


@merging.mistake(
    "You cut the result off from its gradients (`detach`, `.data`, a new tensor made of its "
    "numbers): the heads would learn nothing."
)
def merged_without_gradients(x):
    return x.detach().transpose(-3, -2).flatten(-2)


@merging.alternative
def merged_by_cat(x):
    return torch.cat(x.unbind(-3), dim=-1)


@merging.alternative
def merged_by_permute(x):
    n = x.ndim
    order = [*range(n - 3), n - 2, n - 3, n - 1]
    return x.permute(order).contiguous().view(*x.shape[:-3], x.shape[-2], -1)


@merging.alternative
def merged_by_a_loop(x):
    *leading, heads, tokens, width = x.shape
    out = torch.empty(*leading, tokens, heads * width, dtype=x.dtype)
    for h in range(heads):
        out[..., h * width : (h + 1) * width] = x[..., h, :, :]
    return out


@merging.alternative
def merged_by_einsum(x):
    heads, width = x.shape[-3], x.shape[-1]
    place = torch.eye(heads * width, dtype=x.dtype).view(heads, width, heads * width)
    return torch.einsum("...htk,hkd->...td", x, place)


# ---------------------------------------------------------------------- keeps_heads_apart


def keeps_heads_apart(
    attend: Callable[[Tensor], Tensor], x: Float[Tensor, "B T D"], n_heads: int
) -> bool:
    """Find out whether each head's slice of the output depends on that slice of the input alone.

    Between split and merge, heads know nothing of each other: features h * K to (h + 1) * K - 1 of
    all outputs come from these features of the inputs, for every head h. (Tokens may look at each
    other as they like.) Put it to the test for every head: change the features that are not its
    own to clearly different finite numbers, or only its own, and compare what should not move.
    Differences up to 1e-6 are rounding; an influence may be as small as a hundredth of the change
    that you make.

    Args:
        attend: takes a batch of sequences, (B, T, D), and gives an output of the same shape. It
            may treat each sequence, each token and each feature in its own way.
        x: sequences to try it on. Left unchanged.
        n_heads: number of heads, H; it divides D, and K = D / H.

    Returns:
        True if no slice of the output, in any token of any sequence, depends on another slice.
    """
    d_head = x.shape[-1] // n_heads
    before = attend(x)
    for h in range(n_heads):
        own = slice(h * d_head, (h + 1) * d_head)
        changed = x + 1.0
        changed[..., own] = x[..., own]
        if not torch.allclose(attend(changed)[..., own], before[..., own], atol=1e-6):
            return False
    return True


# What it is tried on: functions of tokens (B, T, D), made for three heads. The names say what they
# do.


def _in_heads(x: Tensor, way: Callable[[Tensor], Tensor]) -> Tensor:
    return merge_heads(way(split_heads(x, 3)))


def _attend(heads: Tensor) -> Tensor:
    return masked_attention(heads, heads, heads)[0]


def each_number_alone(x):
    return x.tanh()


def three_heads(x):
    return _in_heads(x, _attend)


def three_causal_heads(x):
    mask = causal_mask(x.shape[1])
    return _in_heads(x, lambda heads: masked_attention(heads, heads, heads, mask)[0])


def mean_over_the_tokens(x):
    return x - x.mean(1, keepdim=True)


def three_heads_of_different_sharpness(x):
    scale = torch.tensor([1.0, 2.0, 3.0], dtype=x.dtype).view(3, 1, 1)
    return _in_heads(x, lambda heads: masked_attention(scale * heads, heads, heads)[0])


def split_and_merged_by_reshape(x):
    batch, tokens, width = x.shape
    return _attend(x.reshape(batch, 3, tokens, width // 3)).reshape(x.shape)


def merged_by_reshape_alone(x):
    return _attend(split_heads(x, 3)).reshape(x.shape)


def one_head_for_all_features(x):
    return _attend(x)


def every_third_feature(x):
    heads = x.unflatten(-1, (x.shape[-1] // 3, 3)).movedim(-1, -3)
    return _attend(heads).movedim(-3, -1).flatten(-2)


def weights_shared_by_the_heads(x):
    return torch.softmax(x @ x.mT, -1) @ x


def mixed_by_a_map(x):
    width = x.shape[-1]
    mix = torch.sin(torch.arange(width * width, dtype=x.dtype)).view(width, width)
    return three_heads(x) @ mix


def heads_passed_round(x):
    return _in_heads(x, lambda heads: _attend(heads).roll(1, dims=-3))


def _plus(x: Tensor, head: int, other: int, share: float = 1.0) -> Tensor:
    """Heads that are kept apart, except that one of them has seen another."""
    width = x.shape[-1] // 3
    output = three_heads(x).clone()
    seen = share * x[..., other * width : (other + 1) * width]
    output[..., head * width : (head + 1) * width] += seen
    return output


def first_head_sees_second(x):
    return _plus(x, 0, 1)


def second_head_sees_third(x):
    return _plus(x, 1, 2)


def second_head_sees_first(x):
    return _plus(x, 1, 0)


def first_head_sees_last(x):
    return _plus(x, 0, 2)


def last_head_sees_first(x):
    return _plus(x, 2, 0)


def a_whisper_between_heads(x):
    return _plus(x, 1, 0, 0.01)


def heads_meet_in_the_second_sequence(x):
    second = (torch.arange(len(x)) == 1).view(-1, 1, 1)
    return torch.where(second, _plus(x, 2, 1), three_heads(x))


def heads_meet_in_the_last_token(x):
    last = (torch.arange(x.shape[1]) == x.shape[1] - 1).view(-1, 1)
    return torch.where(last, _plus(x, 0, 1), three_heads(x))


def heads_meet_in_the_first_token(x):
    first = (torch.arange(x.shape[1]) == 0).view(-1, 1)
    return torch.where(first, _plus(x, 1, 2), three_heads(x))


def influences_that_cancel(x):
    sign = 1 - 2 * (torch.arange(x.shape[1]) % 2).view(-1, 1)  # +, -, +, - along the tokens
    return three_heads(x) + sign * (_plus(x, 2, 0) - three_heads(x))


def last_feature_of_a_head_leaks(x):
    output = three_heads(x).clone()
    output[..., x.shape[-1] // 3 - 1] += x[..., -1]  # the last of head 0, the last of head 2
    return output


def a_neighbouring_feature_leaks(x):
    output = three_heads(x).clone()
    width = x.shape[-1] // 3
    output[..., width] += x[..., width - 1]  # the first of head 1, the last of head 0
    return output


keeps_heads_apart_exercise = chapter.exercise(keeps_heads_apart, difficulty=3, minutes=12)


def _try(t: Trial, *functions: Callable) -> None:
    for function in functions:
        t.same(function, t.randn(2, 4, 6, dtype=torch.float64), 3)


@keeps_heads_apart_exercise.group(
    "heads kept apart, and the wrong reshape",
    points=2,
    hint="Change the features outside of one head's slice, in all tokens, and compare that slice "
    "of the output.",
)
def _(t: Trial):
    _try(t, three_heads, three_causal_heads, mean_over_the_tokens, each_number_alone)
    _try(t, split_and_merged_by_reshape, merged_by_reshape_alone, one_head_for_all_features)
    _try(t, mixed_by_a_map, weights_shared_by_the_heads)
    if t.graded:
        _try(t, three_heads_of_different_sharpness, every_third_feature, heads_passed_round)


@keeps_heads_apart_exercise.group(
    "an influence between a single pair of heads, and a faint one",
    points=2,
    hint="Try every head: an influence of head 2 on head 0 shows only where 2 is changed and 0 is "
    "compared. The rounding is up to 1e-6, no more.",
)
def _(t: Trial):
    _try(t, first_head_sees_second, second_head_sees_third, second_head_sees_first)
    _try(t, first_head_sees_last, last_head_sees_first)
    _try(t, a_whisper_between_heads, a_neighbouring_feature_leaks, last_feature_of_a_head_leaks)


@keeps_heads_apart_exercise.group(
    "an influence in one sequence or one token, other widths",
    points=1,
    hint="Compare all sequences and all tokens. A head is D / n_heads wide.",
)
def _(t: Trial):
    _try(t, heads_meet_in_the_second_sequence, heads_meet_in_the_last_token)
    _try(t, heads_meet_in_the_first_token, influences_that_cancel)
    t.same(three_heads, t.randn(2, 4, 12, dtype=torch.float64), 3)
    t.same(three_heads, t.randn(2, 4, 12, dtype=torch.float64), 6)
    t.same(one_head_for_all_features, t.randn(2, 5, 4, dtype=torch.float64), 1)


@keeps_heads_apart_exercise.group(
    "leaves x alone",
    points=1,
    hint="Change a copy: `x.clone()`. `changed = x` is a second name for the same tensor.",
)
def _(t: Trial):
    x = t.randn(2, 4, 6, dtype=torch.float64)
    t.unchanged(three_heads, x, 3)
    t.same(one_head_for_all_features, x, 3)


def _apart(attend, x, n_heads, heads=None, width=None, atol=1e-6):
    width = width or x.shape[-1] // n_heads
    before = attend(x)
    for h in heads or range(n_heads):
        changed = x + 1.0
        changed[..., h * width : (h + 1) * width] = x[..., h * width : (h + 1) * width]
        moved = (attend(changed) - before)[..., h * width : (h + 1) * width].abs()
        if moved.numel() and moved.max() > atol:
            return False
    return True


@keeps_heads_apart_exercise.mistake(
    "You answer the wrong way round: True means that the heads are kept apart."
)
def apart_the_wrong_way_round(attend, x, n_heads):
    return not _apart(attend, x, n_heads)


@keeps_heads_apart_exercise.mistake(
    "Your test cannot fail: it says True whatever `attend` does. That merging undoes splitting "
    "says nothing about what happens in between. Call `attend`, and look at what it does."
)
def there_and_back(attend, x, n_heads):
    return torch.equal(merge_heads(split_heads(x, n_heads)), x)


@keeps_heads_apart_exercise.mistake(
    "You compare the whole output, the changed slices too. Those may change: compare only what "
    "should not move."
)
def compares_everything(attend, x, n_heads):
    width = x.shape[-1] // n_heads
    changed = x.clone()
    changed[..., :width] += 1.0
    return torch.allclose(attend(changed), attend(x), atol=1e-6)


@keeps_heads_apart_exercise.mistake(
    "You tested head 0 alone. The others may be mixed up all the same: try every head."
)
def first_head_only(attend, x, n_heads):
    return _apart(attend, x, n_heads, heads=[0])


@keeps_heads_apart_exercise.mistake(
    "You changed the slice of head 0 alone. What another head does to its neighbours goes unseen: "
    "change each in turn."
)
def changes_the_first_head_alone(attend, x, n_heads):
    width = x.shape[-1] // n_heads
    changed = x.clone()
    changed[..., :width] += 1.0
    others = (attend(changed) - attend(x))[..., width:]
    return bool((others.abs() <= 1e-6).all())


@keeps_heads_apart_exercise.mistake("You left out the last head: what it sees goes unseen.")
def not_the_last_head(attend, x, n_heads):
    return _apart(attend, x, n_heads, heads=range(max(1, n_heads - 1)))


@keeps_heads_apart_exercise.mistake("You left out head 0: what it sees goes unseen.")
def not_the_first_head(attend, x, n_heads):
    return _apart(attend, x, n_heads, heads=range(1, n_heads) if n_heads > 1 else None)


@keeps_heads_apart_exercise.mistake(
    "You looked at neighbouring heads alone. Two heads further apart may meet as well."
)
def neighbours_only(attend, x, n_heads):
    width, before = x.shape[-1] // n_heads, attend(x)
    for h in range(n_heads):
        for other in (h - 1, h + 1):
            if not 0 <= other < n_heads:
                continue
            changed = x.clone()
            changed[..., other * width : (other + 1) * width] += 1.0
            own = slice(h * width, (h + 1) * width)
            if not torch.allclose(attend(changed)[..., own], before[..., own], atol=1e-6):
                return False
    return True


@keeps_heads_apart_exercise.mistake(
    "You took `n_heads` for the width of a head. A head is D / n_heads features wide."
)
def heads_as_wide_as_many(attend, x, n_heads):
    return _apart(attend, x, x.shape[-1] // n_heads, width=n_heads)


@keeps_heads_apart_exercise.mistake(
    "You cut along the tokens. Heads are slices of the features, the last axis; tokens may look "
    "at each other as they like."
)
def slices_of_tokens(attend, x, n_heads):
    before = attend(x)
    for t in range(x.shape[1]):
        changed = x + 1.0
        changed[:, t] = x[:, t]
        if not torch.allclose(attend(changed)[:, t], before[:, t], atol=1e-6):
            return False
    return True


@keeps_heads_apart_exercise.mistake(
    "You changed the first token alone. An influence within another token goes unseen: change all."
)
def first_token_only(attend, x, n_heads):
    width, before = x.shape[-1] // n_heads, attend(x)
    for h in range(n_heads):
        own = slice(h * width, (h + 1) * width)
        changed = x.clone()
        changed[:, 0] += 1.0
        changed[..., own] = x[..., own]
        if not torch.allclose(attend(changed)[..., own], before[..., own], atol=1e-6):
            return False
    return True


@keeps_heads_apart_exercise.mistake("You compared the first sequence alone. Another may differ.")
def first_of_the_batch(attend, x, n_heads):
    return _apart(lambda y: attend(y)[:1], x, n_heads)


@keeps_heads_apart_exercise.mistake(
    "Your tolerance is so wide that a faint influence passes for rounding. Rounding stays below "
    "1e-6."
)
def apart_with_a_wide_tolerance(attend, x, n_heads):
    return _apart(attend, x, n_heads, atol=0.1)


@keeps_heads_apart_exercise.mistake(
    "You compare two runs on the same tensor: `changed = x` copies nothing, so x has changed with"
    " it, and nothing can show. Use `x.clone()`."
)
def the_same_tensor(attend, x, n_heads):
    width = x.shape[-1] // n_heads
    for h in range(n_heads):
        changed = x
        changed[..., h * width : (h + 1) * width] += 1.0
        if not torch.allclose(attend(changed), attend(x)):
            return False
    return True


@keeps_heads_apart_exercise.mistake(
    "You change x itself. The caller still needs it: change `x.clone()`."
)
def spoils_x(attend, x, n_heads):
    apart = _apart(attend, x, n_heads)
    x += 1.0
    return apart


@keeps_heads_apart_exercise.alternative
def one_head_at_a_time(attend, x, n_heads):
    width, before = x.shape[-1] // n_heads, attend(x)
    for h in range(n_heads):
        changed = x.clone()
        changed[..., h * width : (h + 1) * width] = torch.randn(*x.shape[:-1], width).to(x)
        moved = (attend(changed) - before).abs().unflatten(-1, (n_heads, width)).amax((0, 1, 3))
        moved[h] = 0
        if moved.max() > 1e-6:
            return False
    return True


@keeps_heads_apart_exercise.alternative
def every_pair_of_heads(attend, x, n_heads):
    heads = split_heads(x, n_heads)
    before = split_heads(attend(x), n_heads)
    for h in range(n_heads):
        changed = heads.clone()
        changed[:, h] = -3 * changed[:, h] + 2
        after = split_heads(attend(merge_heads(changed)), n_heads)
        for other in range(n_heads):
            if other != h and (after[:, other] - before[:, other]).abs().max() > 1e-6:
                return False
    return True


@keeps_heads_apart_exercise.alternative
def feature_by_feature(attend, x, n_heads):
    width, before = x.shape[-1] // n_heads, attend(x)
    apart = True
    for d in range(x.shape[-1]):
        bump = torch.zeros_like(x)
        bump[..., d] = 1
        still = [e for e in range(x.shape[-1]) if e // width != d // width]
        difference = (attend(x + bump) - before)[..., still]
        apart = apart and bool((difference.abs() <= 1e-6).all())
    return apart


@keeps_heads_apart_exercise.alternative
def with_the_derivative(attend, x, n_heads):
    width = x.shape[-1] // n_heads
    jacobian = torch.autograd.functional.jacobian(attend, x)  # (B, T, D, B, T, D)
    influence = jacobian.abs().amax((0, 1, 3, 4))  # (D, D)
    head = torch.arange(x.shape[-1]) // width
    return bool((influence[head[:, None] != head] < 1e-6).all())


# -------------------------------------------------------------------------- predict_costs


def predict_costs(t: int, s: int, d_model: int, n_heads: int) -> dict[str, int]:
    """Predict what multi-head attention costs, for one sequence and without biases.

    Four maps from d_model to d_model: for the queries of t tokens, for the keys and for the values
    of s tokens, and for the output of t tokens. Between them, every head attends. A product of a
    (n, m) matrix and a (m, p) matrix takes n * m * p multiplications; the softmax and the division
    take none that count here.

    Args:
        t: tokens that ask.
        s: tokens that are asked.
        d_model: width of the tokens.
        n_heads: number of heads; it divides d_model.

    Returns:
        A whole number for each of
            "d_head": the width of a head;
            "parameters": the numbers in the four matrices;
            "maps": multiplications in the four maps;
            "attention": multiplications in the scores and in the weighted averages, all heads;
            "weights": how many attention weights there are, all heads.
    """
    return {
        "d_head": d_model // n_heads,
        "parameters": 4 * d_model * d_model,
        "maps": 2 * (t + s) * d_model * d_model,
        "attention": 2 * t * s * d_model,
        "weights": n_heads * t * s,
    }


costs = chapter.exercise(predict_costs, difficulty=2, minutes=10)


def _costs(t: Trial, *keys: str) -> None:
    cases = [(5, 7, 12, 3), (7, 7, 12, 1), (1, 9, 20, 4), (11, 3, 10, 10)]
    if t.graded:
        cases.append((t.integer(20, 40), t.integer(50, 90), 48, t.choice([2, 6, 8, 16])))
    for case in cases:
        found = t.call(*case)
        expected = predict_costs(*case)
        arguments = ", ".join(map(str, case))
        for key in keys:
            t.equal(found[key], expected[key], f"`{key}` is wrong for predict_costs({arguments})")


@costs.group("width and parameters", points=1, hint="Four matrices, each of D rows and D columns.")
def _(t: Trial):
    _costs(t, "d_head", "parameters")


@costs.group(
    "multiplications in the maps",
    points=1,
    hint="Two of the four maps work on t tokens, two on s. A token costs D * D each time.",
)
def _(t: Trial):
    _costs(t, "maps")


@costs.group(
    "multiplications in the heads",
    points=1,
    hint="One head: a (T, K) by (K, S) product for the scores, and (T, S) by (S, K) for the "
    "averages. Then H of them, and H * K = D.",
)
def _(t: Trial):
    _costs(t, "attention")


@costs.group("attention weights", points=1, hint="How large is one head's table? How many heads?")
def _(t: Trial):
    _costs(t, "weights")


def _predicted(t, s, d_model, n_heads, **changes):
    return predict_costs(t, s, d_model, n_heads) | changes


@costs.mistake("You took n_heads for the width of a head. The width is D / H.")
def width_is_heads(t, s, d_model, n_heads):
    return _predicted(t, s, d_model, n_heads, d_head=n_heads)


@costs.mistake(
    "Your heads are as wide as the model. They share its width: each gets D / H features."
)
def full_width(t, s, d_model, n_heads):
    return _predicted(
        t, s, d_model, n_heads, d_head=d_model, attention=2 * t * s * d_model * n_heads
    )


@costs.mistake(
    "You count the four matrices once for every head. The heads share them: each uses its own D /"
    " H of the D columns."
)
def matrices_for_each_head(t, s, d_model, n_heads):
    return _predicted(t, s, d_model, n_heads, parameters=4 * d_model**2 * n_heads)


@costs.mistake("You forgot the fourth map, which mixes what the heads have found.")
def three_maps(t, s, d_model, n_heads):
    return _predicted(
        t, s, d_model, n_heads,
        parameters=3 * d_model**2,
        maps=(t + 2 * s) * d_model**2,
    )  # fmt: skip


@costs.mistake(
    "You count the parameters of a single head. All heads together make four full matrices."
)
def parameters_of_one_head(t, s, d_model, n_heads):
    return _predicted(t, s, d_model, n_heads, parameters=4 * d_model * (d_model // n_heads))


@costs.mistake("You counted biases. This layer has none.")
def with_biases(t, s, d_model, n_heads):
    return _predicted(t, s, d_model, n_heads, parameters=4 * d_model**2 + 4 * d_model)


@costs.mistake(
    "Your maps work on t tokens, all four. Keys and values are made of the s tokens that are asked."
)
def maps_of_t(t, s, d_model, n_heads):
    return _predicted(t, s, d_model, n_heads, maps=4 * t * d_model**2)


@costs.mistake("Your output map works on s tokens. It maps what the t tokens that ask have found.")
def three_maps_of_s(t, s, d_model, n_heads):
    return _predicted(t, s, d_model, n_heads, maps=(t + 3 * s) * d_model**2)


@costs.mistake(
    "You count the maps once for every head. All heads' slices come out of the same product."
)
def maps_for_each_head(t, s, d_model, n_heads):
    return _predicted(t, s, d_model, n_heads, maps=2 * (t + s) * d_model**2 * n_heads)


@costs.mistake(
    "You multiplied the heads' products by H once too often: a head's are K wide, not D, and H * "
    "K = D."
)
def attention_for_each_head(t, s, d_model, n_heads):
    return _predicted(t, s, d_model, n_heads, attention=2 * t * s * d_model * n_heads)


@costs.mistake("You counted the heads' scores and forgot their weighted averages: two products.")
def scores_alone(t, s, d_model, n_heads):
    return _predicted(t, s, d_model, n_heads, attention=t * s * d_model)


@costs.mistake("You counted the products of one head. There are H of them.")
def attention_of_one_head(t, s, d_model, n_heads):
    return _predicted(t, s, d_model, n_heads, attention=2 * t * s * (d_model // n_heads))


@costs.mistake("You counted one table of weights. Every head has its own.")
def one_table(t, s, d_model, n_heads):
    return _predicted(t, s, d_model, n_heads, weights=t * s)


@costs.mistake("Your tables of weights are square. A row has a weight for each of s keys.")
def square_tables(t, s, d_model, n_heads):
    return _predicted(t, s, d_model, n_heads, weights=n_heads * t * t)


@costs.alternative
def counted_head_by_head(t, s, d_model, n_heads):
    k = d_model // n_heads
    return {
        "weights": sum(t * s for _ in range(n_heads)),
        "attention": n_heads * (t * k * s + t * s * k),
        "maps": n_heads * (t * d_model * k + 2 * s * d_model * k) + t * d_model * d_model,
        "parameters": n_heads * 3 * d_model * k + d_model**2,
        "d_head": k,
    }


@costs.alternative
def counted_on_a_layer(t, s, d_model, n_heads):
    layer = reference.MultiHeadAttention(d_model, n_heads, bias=False, device="meta")
    sizes = {name: p.numel() for name, p in layer.named_parameters()}
    tokens = {"query": t, "key": s, "value": s, "output": t}
    return {
        "d_head": layer.d_head,
        "parameters": sum(sizes.values()),
        "maps": sum(tokens[name.split(".")[0]] * size for name, size in sizes.items()),
        "attention": 2 * torch.empty(n_heads, t, s, layer.d_head, device="meta").numel(),
        "weights": torch.empty(n_heads, t, s, device="meta").numel(),
    }


# --------------------------------------------------------------------- MultiHeadAttention

MultiHeadAttention = chapter.exercise(
    reference.MultiHeadAttention,
    difficulty=4,
    minutes=20,
    forbidden=[
        "torch.nn.functional.scaled_dot_product_attention",
        "torch.nn.MultiheadAttention",
        "torch.nn.functional.multi_head_attention_forward",
    ],
)


@MultiHeadAttention.group(
    "its parameters and attributes",
    points=2,
    hint="Four `nn.Linear(d_model, d_model)`, called `query`, `key`, `value` and `output`; and "
    "`n_heads` and `d_head`. Hand bias, device and dtype on.",
)
def _(t: Trial):
    m = t.model(12, 3)
    m.same_attribute("n_heads")
    m.same_attribute("d_head")
    m = t.model(10, 2, False)
    m.call(t.randn(2, 5, 10))
    m = t.model(6, 2, bias=True, device="cpu", dtype=torch.float64)
    found, _ = m.call(t.randn(2, 3, 6, dtype=torch.float64))
    t.require(
        found.dtype == torch.float64,
        "With dtype=torch.float64, parameters and output should be float64",
        found=str(found.dtype),
    )


@MultiHeadAttention.group(
    "self-attention",
    points=2,
    hint="Map, split, attend, merge, map. The weights are those of every head, (..., H, T, S).",
)
def _(t: Trial):
    t.model(12, 3).same(3 * t.randn(2, 5, 12))
    t.model(10, 5, bias=False).same(4 * t.randn(3, 4, 10))
    if t.graded:
        t.model(24, t.choice([2, 4, 6])).same(3 * t.randn(2, 7, 24))


@MultiHeadAttention.group(
    "cross-attention",
    points=1,
    hint="Queries come from x; keys and values, both, from the source.",
)
def _(t: Trial):
    m = t.model(12, 3)
    m.same(3 * t.randn(2, 5, 12), 3 * t.randn(2, 7, 12))
    m.same(3 * t.randn(2, 1, 12), source=3 * t.randn(2, 4, 12))
    m.same(3 * t.randn(2, 5, 12), source=3 * t.randn(2, 5, 12))


@MultiHeadAttention.group(
    "masks",
    points=1,
    hint="Hand the mask on as it is: it broadcasts to (*batch, H, T, S).",
)
def _(t: Trial):
    m = t.model(12, 3)
    x, source = 3 * t.randn(2, 5, 12), 3 * t.randn(2, 7, 12)
    m.same(x, mask=causal_mask(5))
    m.same(x, source, mask_of(t, 2, 1, 5, 7))
    m.same(x, source=source, mask=mask_of(t, 3, 5, 7))  # a mask for each head
    m.same(x, source, mask_of(t, 2, 3, 5, 7))
    padding = padding_mask(torch.tensor([4, 2, 6]), 7)[:, None]  # as many sequences as heads
    m.same(3 * t.randn(3, 5, 12), 3 * t.randn(3, 7, 12), padding)
    nothing = mask_of(t, 2, 1, 5, 7)
    nothing[0, 0, 1] = nothing[1, 0, 4] = False
    m.same(x, source, nothing)


@MultiHeadAttention.group(
    "any leading axes, one head, heads of width 1",
    points=1,
    hint="If `split_heads`, `masked_attention`, `merge_heads` and `nn.Linear` get by with any "
    "leading axes, so does the layer.",
)
def _(t: Trial):
    m = t.model(8, 2)
    m.same(3 * t.randn(5, 8))
    m.same(3 * t.randn(2, 3, 4, 8), 3 * t.randn(2, 3, 7, 8), mask_of(t, 4, 7))
    m.same(t.randn(1, 1, 8))
    t.model(6, 1).same(3 * t.randn(2, 5, 6))
    t.model(4, 4).same(3 * t.randn(2, 5, 4))


@MultiHeadAttention.group(
    "gradients reach every parameter",
    points=1,
    hint="Nothing between the parameters and the two results may be cut off, or turn into NaN.",
)
def _(t: Trial):
    m = t.model(6, 3, dtype=torch.float64)
    m.same_gradients(t.randn(2, 5, 6, dtype=torch.float64))
    x, source = (t.randn(2, n, 6, dtype=torch.float64) for n in (4, 5))
    mask = mask_of(t, 2, 1, 4, 5)
    mask[1, 0, 2] = False
    m.same_gradients(x, source, mask)


@MultiHeadAttention.group(
    "sizes that do not fit are refused by name",
    points=1,
    hint="Two checks: in `__init__` that n_heads divides d_model, in `forward` the widths of x and "
    "of the source. Each message gives the name and both numbers.",
)
def _(t: Trial):
    t.raises(ValueError, 10, 4, naming="10")
    t.raises(ValueError, 15, n_heads=7, naming="7")
    m = t.model(12, 3)
    m.raises(ValueError, t.randn(2, 5, 17), naming="17")
    m.raises(ValueError, t.randn(2, 5, 17), naming="12")
    m.raises(ValueError, t.randn(2, 5, 12), t.randn(2, 7, 9), naming="source")
    m.raises(ValueError, t.randn(2, 5, 12), t.randn(2, 7, 9), naming="9")


class _Layer(reference.MultiHeadAttention):
    """The reference's parameters and its checks, ahead of another computation."""

    def forward(self, x, source=None, mask=None):
        source = x if source is None else source
        self.checked(x, source)
        heads, weights = self.heads(*self.mapped(x, source), mask)
        return self.output(self.merged(heads)), weights

    def checked(self, x, source):
        for name, tokens in (("x", x), ("source", source)):
            if tokens.shape[-1] != self.d_head * self.n_heads:
                raise ValueError(
                    f"{name} is {tokens.shape[-1]} wide, not {self.d_head * self.n_heads}"
                )

    def mapped(self, x, source):
        return [self.split(y) for y in (self.query(x), self.key(source), self.value(source))]

    def split(self, x):
        return split_heads(x, self.n_heads)

    def heads(self, q, k, v, mask):
        return masked_attention(q, k, v, mask)

    def merged(self, heads):
        return merge_heads(heads)


@MultiHeadAttention.mistake(
    "You split and merge by reshape alone. A head gets a stretch of the sequence instead of a "
    "slice of every token, so a token sees a few neighbours and nobody else. Use `split_heads` "
    "and `merge_heads`."
)
class SplitByReshape(_Layer):
    def split(self, x):
        return x.reshape(*x.shape[:-2], self.n_heads, x.shape[-2], self.d_head)

    def merged(self, heads):
        return heads.reshape(*heads.shape[:-3], heads.shape[-2], self.n_heads * self.d_head)


@MultiHeadAttention.mistake(
    "You merge by reshape alone: what the heads found lands at other tokens. Heads and tokens "
    "have to change places first, as in `merge_heads`."
)
class MergedByReshape(_Layer):
    def merged(self, heads):
        return heads.reshape(*heads.shape[:-3], heads.shape[-2], self.n_heads * self.d_head)


@MultiHeadAttention.mistake(
    "You do not split: one head attends with the whole width. Its table of weights is one, not H."
)
class NotSplit(_Layer):
    def split(self, x):
        return x

    def merged(self, heads):
        return heads


@MultiHeadAttention.mistake(
    "You divide the scores by √d_model. A head's dot products have d_head terms: the division "
    "belongs to the head, after the split."
)
class ScaledByModelWidth(_Layer):
    def heads(self, q, k, v, mask):
        return masked_attention(q / math.sqrt(self.n_heads), k, v, mask)


@MultiHeadAttention.mistake(
    "Your scores are not divided by √d_head. `masked_attention` does it, once it has been split."
)
class NotScaled(_Layer):
    def heads(self, q, k, v, mask):
        return masked_attention(q * math.sqrt(self.d_head), k, v, mask)


@MultiHeadAttention.mistake(
    "You return the merged heads without the map `output`, which mixes them."
)
class WithoutOutputMap(_Layer):
    def forward(self, x, source=None, mask=None):
        source = x if source is None else source
        self.checked(x, source)
        heads, weights = self.heads(*self.mapped(x, source), mask)
        return self.merged(heads), weights


@MultiHeadAttention.mistake("You ignore the source: keys and values are to come from it.")
class SourceIgnored(_Layer):
    def mapped(self, x, source):
        return super().mapped(x, x)


@MultiHeadAttention.mistake(
    "You made the queries of the source and the keys of x. It is x that asks, and the source that"
    " is asked."
)
class TheSourceAsks(_Layer):
    def mapped(self, x, source):
        return super().mapped(source, x)


@MultiHeadAttention.mistake(
    "Your keys come from the source, and your values from x. What is found there is taken there: "
    "both come from the source."
)
class ValuesOfX(_Layer):
    def mapped(self, x, source):
        return [self.split(y) for y in (self.query(x), self.key(source), self.value(x))]


@MultiHeadAttention.mistake("You swapped queries and keys: it is the query of a token that asks.")
class QueriesAsKeys(_Layer):
    def mapped(self, x, source):
        return [self.split(y) for y in (self.key(x), self.query(source), self.value(source))]


@MultiHeadAttention.mistake("You do not use the mask.")
class MaskIgnored(_Layer):
    def heads(self, q, k, v, mask):
        return masked_attention(q, k, v)


@MultiHeadAttention.mistake(
    "You read the mask the wrong way round. In this course True means allowed; "
    "`torch.nn.MultiheadAttention` means the opposite."
)
class MaskInverted(_Layer):
    def heads(self, q, k, v, mask):
        return masked_attention(q, k, v, None if mask is None else ~mask)


@MultiHeadAttention.mistake(
    "You give the mask one more axis for the heads. It is said to broadcast to (*batch, H, T, S) "
    "as it is, so the caller has put that axis there."
)
class MaskWithOneMoreAxis(_Layer):
    def heads(self, q, k, v, mask):
        return masked_attention(q, k, v, None if mask is None else mask.unsqueeze(-3))


@MultiHeadAttention.mistake(
    "A token that may see nothing gets NaN. `masked_attention` makes zeros of it."
)
class NanForNothing(_Layer):
    def heads(self, q, k, v, mask):
        scores = q @ k.mT / math.sqrt(self.d_head)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = scores.softmax(-1)
        return weights @ v, weights


@MultiHeadAttention.mistake(
    "You returned the weights averaged over the heads, as `torch.nn.MultiheadAttention` does "
    "unless told otherwise. Return those of every head."
)
class AveragedWeights(_Layer):
    def forward(self, x, source=None, mask=None):
        output, weights = super().forward(x, source, mask)
        return output, weights.mean(-3)


@MultiHeadAttention.mistake("You return the output alone. Return the output and the weights.")
class OutputAlone(_Layer):
    def forward(self, x, source=None, mask=None):
        return super().forward(x, source, mask)[0]


@MultiHeadAttention.mistake(
    "You return the weights first. The output comes first, then the weights."
)
class WeightsFirst(_Layer):
    def forward(self, x, source=None, mask=None):
        return super().forward(x, source, mask)[::-1]


@MultiHeadAttention.mistake(
    "You ignore `bias`: your maps always have one. Hand it on to each `nn.Linear`."
)
class AlwaysBiased(_Layer):
    def __init__(self, d_model, n_heads, bias=True, device=None, dtype=None):
        super().__init__(d_model, n_heads, True, device, dtype)


@MultiHeadAttention.mistake("You ignore `dtype`. Hand it (and `device`) on to each `nn.Linear`.")
class IgnoresDtype(_Layer):
    def __init__(self, d_model, n_heads, bias=True, device=None, dtype=None):
        super().__init__(d_model, n_heads, bias)


@MultiHeadAttention.mistake(
    "Your maps are d_head wide: one head's worth. Each makes the slices of all heads, d_model "
    "numbers."
)
class OneHeadWide(_Layer):
    def __init__(self, d_model, n_heads, bias=True, device=None, dtype=None):
        super().__init__(d_model, n_heads, bias, device, dtype)
        options = {"bias": bias, "device": device, "dtype": dtype}
        for name in ("query", "key", "value"):
            setattr(self, name, nn.Linear(d_model, self.d_head, **options))


@MultiHeadAttention.mistake(
    "Each of your heads is d_model wide. The heads share the width: the maps go from d_model to "
    "d_model, whatever the number of heads."
)
class HeadsOfFullWidth(_Layer):
    def __init__(self, d_model, n_heads, bias=True, device=None, dtype=None):
        super().__init__(d_model, n_heads, bias, device, dtype)
        options = {"bias": bias, "device": device, "dtype": dtype}
        for name in ("query", "key", "value"):
            setattr(self, name, nn.Linear(d_model, n_heads * d_model, **options))
        self.output = nn.Linear(n_heads * d_model, d_model, **options)


@MultiHeadAttention.mistake(
    "You take any n_heads when the layer is made. Refuse at once, in `__init__`, with a "
    "ValueError that names d_model and n_heads, if the one is not a multiple of the other."
)
class AnyNumberOfHeads(_Layer):
    def __init__(self, d_model, n_heads, bias=True, device=None, dtype=None):
        super().__init__(d_model, 1, bias, device, dtype)
        self.n_heads, self.d_head = n_heads, d_model // n_heads


@MultiHeadAttention.mistake(
    "You leave it to torch to complain of a wrong width, with a message about `mat1` and `mat2`. "
    "Raise a ValueError that says whose width it is, x or source, and gives both numbers."
)
class NoCheckOfTheWidths(_Layer):
    def checked(self, x, source):
        pass


@MultiHeadAttention.mistake("You look at the width of x alone. The source has one, too.")
class ChecksXAlone(_Layer):
    def checked(self, x, source):
        super().checked(x, x)


@MultiHeadAttention.mistake(
    "You cut the result off from its gradients (`detach`, `.data`, `no_grad`): nothing is learned."
)
class WithoutGradients(_Layer):
    def heads(self, q, k, v, mask):
        heads, weights = super().heads(q, k, v, mask)
        return heads.detach(), weights.detach()


@MultiHeadAttention.mistake(
    "You cut the weights off from their gradients (`detach`): nothing could be learned from where"
    " a head looks."
)
class DetachedWeights(_Layer):
    def forward(self, x, source=None, mask=None):
        output, weights = super().forward(x, source, mask)
        return output, weights.detach()


@MultiHeadAttention.mistake("You expect exactly one leading axis. There may be none, or several.")
class OneLeadingAxis(_Layer):
    def split(self, x):
        batch, tokens, _ = x.shape
        return x.view(batch, tokens, self.n_heads, self.d_head).transpose(1, 2)


@MultiHeadAttention.alternative
class WithEinsum(nn.Module):
    def __init__(self, d_model, n_heads, bias=True, device=None, dtype=None):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"n_heads={n_heads} must divide d_model={d_model}")
        self.d_model, self.n_heads, self.d_head = d_model, n_heads, d_model // n_heads
        for name in ("output", "value", "key", "query"):
            setattr(self, name, nn.Linear(d_model, d_model, bias, device, dtype))

    def forward(self, x, source=None, mask=None):
        if source is None:
            source = x
        if x.shape[-1] != self.d_model:
            raise ValueError(f"x: {x.shape[-1]} != {self.d_model}")
        if source.shape[-1] != self.d_model:
            raise ValueError(f"source: {source.shape[-1]} != {self.d_model}")
        size = (self.n_heads, self.d_head)
        q, k, v = (m(y).unflatten(-1, size) for m, y in
                   ((self.query, x), (self.key, source), (self.value, source)))  # fmt: skip
        scores = torch.einsum("...thk,...shk->...hts", q, k) / self.d_head**0.5
        if mask is None:
            mask = torch.ones((), dtype=torch.bool)
        weights = scores.masked_fill(~mask, float("-inf")).softmax(-1).masked_fill(~mask, 0.0)
        found = torch.einsum("...hts,...shk->...thk", weights, v).flatten(-2)
        return self.output(found), weights


@MultiHeadAttention.alternative
class HeadByHead(nn.Module):
    def __init__(self, d_model, n_heads, bias=True, device=None, dtype=None):
        super().__init__()
        self.d_head, rest = divmod(d_model, n_heads)
        if rest:
            raise ValueError(f"{d_model} / {n_heads}")
        self.n_heads = n_heads
        options = dict(bias=bias, device=device, dtype=dtype)
        self.query, self.key, self.value, self.output = (
            nn.Linear(d_model, d_model, **options) for _ in range(4)
        )

    def forward(self, x, source=None, mask=None):
        source = x if source is None else source
        for name, y in {"x": x, "source": source}.items():
            if y.size(-1) != self.query.in_features:
                raise ValueError(f"{name}: {y.size(-1)}, not {self.query.in_features}")
        q, k, v = self.query(x), self.key(source), self.value(source)
        shape = *x.shape[:-2], self.n_heads, x.shape[-2], source.shape[-2]
        everyone = None if mask is None else mask.expand(shape)
        outputs, weights = [], []
        for h in range(self.n_heads):
            own = slice(h * self.d_head, (h + 1) * self.d_head)
            allowed = None if mask is None else everyone[..., h, :, :]
            o, w = masked_attention(q[..., own], k[..., own], v[..., own], allowed)
            outputs.append(o)
            weights.append(w)
        return self.output(torch.cat(outputs, -1)), torch.stack(weights, -3)


class _Map(nn.Module):
    """A linear map with parameters named like those of nn.Linear."""

    def __init__(self, width, bias, device, dtype):
        super().__init__()
        options = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.randn(width, width, **options))
        self.bias = nn.Parameter(torch.zeros(width, **options)) if bias else None


@MultiHeadAttention.alternative
class WithMapsOfItsOwn(nn.Module):
    def __init__(self, d_model, n_heads, bias=True, *, device=None, dtype=None):
        super().__init__()
        if d_model // n_heads * n_heads != d_model:
            raise ValueError(f"{n_heads} heads for a width of {d_model}")
        self.n_heads = n_heads
        for name in ("query", "key", "value", "output"):
            self.add_module(name, _Map(d_model, bias, device, dtype))

    @property
    def d_head(self):
        return self.query.weight.shape[0] // self.n_heads

    def forward(self, x, source=None, mask=None):
        wide = self.query.weight.shape[1]
        if source is None:
            source = x
        if x.shape[-1] != wide or source.shape[-1] != wide:
            who = "x" if x.shape[-1] != wide else "source"
            have = x.shape[-1] if who == "x" else source.shape[-1]
            raise ValueError(f"the width of {who} is {have} instead of {wide}")
        q = split_heads(F.linear(x, self.query.weight, self.query.bias), self.n_heads)
        both = [F.linear(source, m.weight, m.bias) for m in (self.key, self.value)]
        k, v = split_heads(torch.stack(both), self.n_heads)
        scores = q @ k.transpose(-1, -2) * self.d_head**-0.5
        weights = scores.softmax(-1) if mask is None else masked_softmax(scores, mask)
        slices = self.output.weight.unflatten(1, (self.n_heads, -1))
        output = torch.einsum("...hts,...hsk,dhk->...td", weights, v, slices)
        return output + (0 if self.output.bias is None else self.output.bias), weights


# ----------------------------------------------------------------------- state_from_torch

state_from_torch = chapter.exercise(reference.state_from_torch, difficulty=2, minutes=8)


def _state(t: Trial, width: int, bias: bool = True, dtype=torch.float32) -> dict[str, Tensor]:
    state = {"in_proj_weight": t.randn(3 * width, width, dtype=dtype)}
    if bias:
        state["in_proj_bias"] = t.randn(3 * width, dtype=dtype)
    state["out_proj.weight"] = t.randn(width, width, dtype=dtype)
    if bias:
        state["out_proj.bias"] = t.randn(width, dtype=dtype)
    return state


@state_from_torch.group(
    "the weights of a layer without bias",
    points=2,
    hint="`in_proj_weight` has 3D rows: the first D are the queries' map, the next D the keys', "
    "the last D the values'.",
)
def _(t: Trial):
    t.same(_state(t, 4, bias=False))
    t.same(_state(t, 6, bias=False, dtype=torch.float64), dtype=True)
    if t.graded:
        t.same(_state(t, 3 * t.integer(3, 6), bias=False))


@state_from_torch.group(
    "the weights and the biases of a layer with both",
    points=2,
    hint="`in_proj_bias` has 3D numbers, in the same order as the rows of `in_proj_weight`.",
)
def _(t: Trial):
    t.same(_state(t, 4))
    t.same(_state(t, 9, dtype=torch.float64), dtype=True)
    t.unchanged(_state(t, 3))


def _renamed(state, cut=lambda x: x.chunk(3), out=lambda x: x, order=("query", "key", "value")):
    renamed = {}
    for kind in ("weight", "bias"):
        if f"in_proj_{kind}" in state:
            parts = cut(state[f"in_proj_{kind}"])
            renamed |= {f"{name}.{kind}": part for name, part in zip(order, parts)}
            renamed[f"output.{kind}"] = out(state[f"out_proj.{kind}"])
    return renamed


@state_from_torch.mistake(
    "You took the rows for keys, queries and values. The order is queries, keys, values."
)
def keys_first(state):
    return _renamed(state, order=("key", "query", "value"))


@state_from_torch.mistake(
    "You took the rows for queries, values and keys. The order is queries, keys, values."
)
def values_second(state):
    return _renamed(state, order=("query", "value", "key"))


@state_from_torch.mistake(
    "You took the rows for values, keys and queries. The order is queries, keys, values."
)
def backwards(state):
    return _renamed(state, order=("value", "key", "query"))


@state_from_torch.mistake(
    "You took every third row. The three matrices lie on top of each other: D rows for the "
    "queries, then D for the keys, then D for the values."
)
def every_third_row(state):
    return _renamed(state, cut=lambda x: (x[0::3], x[1::3], x[2::3]))


@state_from_torch.mistake(
    "You transposed the matrices. `nn.Linear` and `nn.MultiheadAttention` keep them the same way,"
    " (out, in)."
)
def transposed(state):
    return _renamed(state, cut=lambda x: [part.t() for part in x.chunk(3)], out=lambda x: x.t())


@state_from_torch.mistake(
    "You transposed the output's matrix. `nn.Linear` and `nn.MultiheadAttention` keep it the same"
    " way, (out, in)."
)
def output_transposed(state):
    return _renamed(state, out=lambda x: x.t())


@state_from_torch.mistake("You cut the columns into three. It is the rows that are three times D.")
def cut_columns(state):
    return _renamed(state, cut=lambda x: x.chunk(3, dim=-1))


@state_from_torch.mistake("You left out the biases. A layer may have them.")
def without_biases(state):
    return {k: v for k, v in _renamed(state).items() if k.endswith("weight")}


@state_from_torch.mistake(
    "You expect biases in any case. A layer made with bias=False has none, and the result has "
    "none either."
)
def expects_biases(state):
    state["in_proj_bias"], state["out_proj.bias"]
    return _renamed(state)


@state_from_torch.mistake(
    "You made biases of zeros where the layer has none. Then `load_state_dict` finds names that "
    "it does not expect."
)
def zeros_for_biases(state):
    width = state["out_proj.weight"].shape[0]
    zeros = {f"{n}.bias": torch.zeros(width) for n in ("query", "key", "value", "output")}
    return zeros | _renamed(state)


@state_from_torch.mistake(
    "You kept the name `out_proj`. In this course's layer that map is called `output`."
)
def keeps_the_name(state):
    return {k.replace("output", "out_proj"): v for k, v in _renamed(state).items()}


@state_from_torch.mistake(
    "You forgot the output's bias: it stands in `out_proj.bias`."
)  # fmt: skip
def forgets_the_output_bias(state):
    return {k: v for k, v in _renamed(state).items() if k != "output.bias"}


@state_from_torch.alternative
def name_by_name(state):
    d = state["out_proj.weight"].shape[0]
    ours = {
        "query.weight": state["in_proj_weight"][:d],
        "key.weight": state["in_proj_weight"][d : 2 * d],
        "value.weight": state["in_proj_weight"][2 * d :],
        "output.weight": state["out_proj.weight"],
    }
    if "in_proj_bias" in state:
        ours["query.bias"] = state["in_proj_bias"][:d]
        ours["key.bias"] = state["in_proj_bias"][d : 2 * d]
        ours["value.bias"] = state["in_proj_bias"][2 * d :]
        ours["output.bias"] = state["out_proj.bias"]
    return ours


@state_from_torch.alternative
def key_by_key(state):
    ours = {}
    for name, tensor in state.items():
        place, kind = name.replace("in_proj_", "in_proj.").split(".")
        if place == "out_proj":
            ours[f"output.{kind}"] = tensor.clone()
        else:
            for part, piece in zip(("query", "key", "value"), tensor.unflatten(0, (3, -1))):
                ours[f"{part}.{kind}"] = piece.clone()
    return ours


@state_from_torch.alternative
def through_modules(state):
    bias, d = state.get("in_proj_bias"), state["in_proj_weight"].shape[1]
    pieces = state["in_proj_weight"].split(d)
    ours = dict(zip(["query.weight", "key.weight", "value.weight"], pieces))
    ours["output.weight"] = state["out_proj.weight"]
    if bias is not None:
        ours.update(zip(["query.bias", "key.bias", "value.bias"], bias.split(d)))
        ours["output.bias"] = state["out_proj.bias"]
    return ours


# ------------------------------------------------------------------------ fused_attention


def fused_attention(
    q: Float[Tensor, "B T D"],
    k: Float[Tensor, "B S D"],
    v: Float[Tensor, "B S D"],
    n_heads: int,
    mask: Bool[Tensor, "B T S"] | None = None,
) -> Float[Tensor, "B T D"]:
    """Multi-head attention between its maps, by PyTorch's fused kernel: no weights are kept.

    Args:
        q: queries of T tokens, all heads side by side.
        k: keys of S tokens.
        v: values of S tokens.
        n_heads: number of heads, H; it divides D. Head h works on features h * K to
            (h + 1) * K - 1, where K = D / H.
        mask: True where attention is allowed, one table for each sequence, obeyed by all its
            heads; every query may see some key. None allows everything.

    Returns:
        What the heads have found, side by side again: `merge_heads` of what masked_attention
        gives for the split q, k and v.
    """
    q, k, v = (split_heads(x, n_heads) for x in (q, k, v))  # (B, H, T or S, K)
    if mask is not None:
        mask = mask.unsqueeze(1)  # (B, 1, T, S)
    heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return merge_heads(heads)  # (B, T, D)


fused = chapter.exercise(fused_attention, difficulty=3, minutes=12, mend="as_handed_out")


def _qkv(t: Trial, batch: int, queries: int, keys: int, width: int) -> tuple[Tensor, ...]:
    return tuple(2 * t.randn(batch, n, width) for n in (queries, keys, keys))


@fused.group(
    "without a mask",
    points=2,
    hint="Let value s be a vector of zeros with a 1 in place s. Which tokens does an output hold?",
)
def _(t: Trial):
    t.same(*_qkv(t, 2, 5, 5, 12), 3)
    t.same(*_qkv(t, 3, 4, 7, 8), 2)
    t.same(*_qkv(t, 2, 1, 6, 10), n_heads=5)
    if t.graded:
        t.same(*_qkv(t, 2, 8, 9, 24), t.choice([3, 4, 6]))


@fused.group(
    "a mask for each sequence",
    points=2,
    hint="Scores are (B, H, T, S), the mask is (B, T, S). Shapes are aligned at the right: which "
    "axis of the scores does the mask's B meet?",
)
def _(t: Trial):
    t.same(*_qkv(t, 2, 5, 7, 12), 3, mask_of(t, 2, 5, 7))
    t.same(*_qkv(t, 4, 3, 6, 10), 2, mask=mask_of(t, 4, 3, 6))
    t.same(*_qkv(t, 3, 5, 7, 12), 3, mask_of(t, 3, 5, 7))  # as many sequences as heads


@fused.group(
    "edges: one sequence, one head, heads of width 1",
    points=1,
    hint="With one head nothing is split; the mask is still one for each sequence.",
)
def _(t: Trial):
    t.same(*_qkv(t, 1, 5, 7, 12), 3, mask_of(t, 1, 5, 7))
    t.same(*_qkv(t, 2, 5, 7, 6), 1, mask_of(t, 2, 5, 7))
    t.same(*_qkv(t, 2, 5, 7, 4), 4)


@fused.group("gradients", points=1, hint="Nothing on the way may be cut off.")
def _(t: Trial):
    t.same_gradients(*(x.double() for x in _qkv(t, 2, 3, 4, 6)), 3, mask_of(t, 2, 3, 4))


def _fused(
    q, k, v, n_heads, mask, cut=split_heads, join=merge_heads, place=lambda mask: mask.unsqueeze(1)
):
    q, k, v = (cut(x, n_heads) for x in (q, k, v))
    mask = None if mask is None else place(mask)
    return join(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def _cut_by_reshape(x, n_heads):
    return x.reshape(x.shape[0], n_heads, x.shape[1], x.shape[2] // n_heads)


def _join_by_reshape(heads):
    return heads.reshape(heads.shape[0], heads.shape[2], heads.shape[1] * heads.shape[3])


@fused.mistake("You have not changed anything yet.")
def as_handed_out(q, k, v, n_heads, mask=None):
    B, T, D = q.shape
    S, K = k.shape[1], D // n_heads
    q = q.reshape(B, n_heads, T, K)
    k = k.reshape(B, n_heads, S, K)
    v = v.reshape(B, n_heads, S, K)
    heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, H, T, K)
    return heads.reshape(B, T, D)


@fused.mistake(
    "You mended the mask. The heads are still cut by reshape alone: each gets a stretch of the "
    "sequence instead of a slice of every token."
)
def mask_mended_alone(q, k, v, n_heads, mask=None):
    return _fused(q, k, v, n_heads, mask, cut=_cut_by_reshape, join=_join_by_reshape)


@fused.mistake(
    "You mended how the heads are cut. They still have to be joined: tokens and heads change "
    "places back before the reshape."
)
def split_mended_alone(q, k, v, n_heads, mask=None):
    return _fused(q, k, v, n_heads, mask, join=_join_by_reshape)


@fused.mistake(
    "You mended how the heads are joined. They still have to be cut the right way: (B, T, H, K) "
    "first, then tokens and heads change places."
)
def merge_mended_alone(q, k, v, n_heads, mask=None):
    return _fused(q, k, v, n_heads, mask, cut=_cut_by_reshape)


@fused.mistake(
    "You mended the reshapes. The mask's B still meets the heads: shapes are aligned at the "
    "right, and (B, T, S) is read as (1, B, T, S). It needs an axis for the heads, behind the "
    "batch."
)
def reshapes_mended_alone(q, k, v, n_heads, mask=None):
    return _fused(q, k, v, n_heads, mask, place=lambda mask: mask)


@fused.mistake(
    "You put the mask's new axis behind the queries: (B, T, 1, S). The heads' axis comes before "
    "them, at place 1."
)
def axis_behind_the_queries(q, k, v, n_heads, mask=None):
    return _fused(q, k, v, n_heads, mask, place=lambda mask: mask.unsqueeze(2))


@fused.mistake(
    "You turned the mask round. `scaled_dot_product_attention` reads it as this course does: True"
    " means allowed."
)
def mask_turned_round(q, k, v, n_heads, mask=None):
    return _fused(q, k, v, n_heads, mask, place=lambda mask: ~mask.unsqueeze(1))


@fused.mistake("You leave the mask out.")
def mask_left_out(q, k, v, n_heads, mask=None):
    return _fused(q, k, v, n_heads, None)


@fused.mistake(
    "You use the first sequence's mask for all. Each sequence has its own."
)  # fmt: skip
def first_mask_for_all(q, k, v, n_heads, mask=None):
    return _fused(q, k, v, n_heads, mask, place=lambda mask: mask[0])


@fused.mistake(
    "Your heads get every H-th feature. Head h works on K features in a row, from h * K on."
)
def heads_of_every_hth_feature(q, k, v, n_heads, mask=None):
    return _fused(
        q, k, v, n_heads, mask,
        cut=lambda x, n: x.unflatten(-1, (x.shape[-1] // n, n)).movedim(-1, -3),
        join=lambda heads: heads.movedim(-3, -1).flatten(-2),
    )  # fmt: skip


@fused.mistake("You need a mask. Without one everything is allowed: ask whether it is None.")
def needs_a_mask(q, k, v, n_heads, mask=None):
    return _fused(q, k, v, n_heads, mask.unsqueeze(1))


@fused.alternative
def mended_line_by_line(q, k, v, n_heads, mask=None):
    B, T, D = q.shape
    S, K = k.shape[1], D // n_heads
    q = q.reshape(B, T, n_heads, K).transpose(1, 2)
    k = k.reshape(B, S, n_heads, K).transpose(1, 2)
    v = v.reshape(B, S, n_heads, K).transpose(1, 2)
    if mask is not None:
        mask = mask[:, None]
    heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return heads.transpose(1, 2).reshape(B, T, D)


@fused.alternative
def mended_without_the_kernel(q, k, v, n_heads, mask=None):
    q, k, v = split_heads(q, n_heads), split_heads(k, n_heads), split_heads(v, n_heads)
    return merge_heads(masked_attention(q, k, v, mask if mask is None else mask[:, None])[0])


@fused.alternative
def mended_with_a_repeated_mask(q, k, v, n_heads, mask=None):
    if mask is not None:
        mask = mask[:, None].repeat(1, n_heads, 1, 1)
    parts = [torch.stack(x.chunk(n_heads, -1), 1) for x in (q, k, v)]
    return torch.cat(F.scaled_dot_product_attention(*parts, mask).unbind(1), -1)


# --------------------------------------------------------------------- head_contributions

head_contributions = chapter.exercise(reference.head_contributions, difficulty=3, minutes=12)


@head_contributions.group(
    "what each head adds",
    points=2,
    hint="Cut the columns of the matrix into H blocks of K. Each head meets its own block.",
)
def _(t: Trial):
    t.same(t.randn(2, 3, 5, 4), t.randn(12, 12))
    t.same(t.randn(3, 2, 4, 5), t.randn(10, 10))
    if t.graded:
        t.same(t.randn(2, 6, 7, 4), t.randn(24, 24))


@head_contributions.group(
    "their sum is the layer's output",
    points=1,
    hint="`merge_heads(heads) @ weight.T` is the output without its bias.",
)
def _(t: Trial):
    for width in (12, 7):
        heads = t.randn(2, 3, 5, 4, dtype=torch.float64)
        weight = t.randn(width, 12, dtype=torch.float64)
        found = t.call(heads, weight)
        t.equal(
            found.sum(-3),
            merge_heads(heads) @ weight.T,
            "The contributions of all heads do not add up to the output",
        )


@head_contributions.group(
    "any leading axes, one head, heads of width 1, other widths of the output",
    points=1,
    hint="Count the heads' axes from the end. `weight` is (D, H * K), and D may be any width.",
)
def _(t: Trial):
    t.same(t.randn(3, 5, 4), t.randn(12, 12))
    t.same(t.randn(2, 4, 3, 5, 2), t.randn(6, 6))
    t.same(t.randn(2, 1, 5, 6), t.randn(6, 6))
    t.same(t.randn(2, 6, 5, 1), t.randn(6, 6))
    t.same(t.randn(2, 3, 5, 4), t.randn(7, 12))
    wide = t.randn(2, 3, 5, 4, dtype=torch.float64)
    t.same(wide, t.randn(20, 12, dtype=torch.float64), dtype=True)


@head_contributions.group("gradients", points=1, hint="Nothing on the way may be cut off.")
def _(t: Trial):
    t.same_gradients(t.randn(2, 3, 5, 2), t.randn(7, 6))


@head_contributions.mistake(
    "You gave each head its rows of the matrix. A row makes one feature of the output, from all "
    "heads; a head's share are its K columns."
)
def rows_of_the_matrix(heads, weight):
    h, k = heads.shape[-3], heads.shape[-1]
    return torch.einsum("...htk,hkd->...htd", heads, weight.unflatten(0, (h, k)))


@head_contributions.mistake(
    "You gave each head every H-th column. Head h has K columns in a row, from h * K on."
)
def every_hth_column(heads, weight):
    h, k = heads.shape[-3], heads.shape[-1]
    return torch.einsum("...htk,dkh->...htd", heads, weight.unflatten(-1, (k, h)))


@head_contributions.mistake(
    "You return the sum over the heads, the layer's output. Keep what each head adds apart."
)
def summed(heads, weight):
    return merge_heads(heads) @ weight.T


@head_contributions.mistake(
    "You return (..., T, H, D). The heads' axis comes before the tokens', (..., H, T, D)."
)
def tokens_first(heads, weight):
    return reference.head_contributions(heads, weight).transpose(-3, -2)


@head_contributions.mistake(
    "You gave every head the columns of head 0. Each has a block of its own."
)
def the_first_block_for_all(heads, weight):
    return heads @ weight[:, : heads.shape[-1]].T


@head_contributions.mistake(
    "You gave the blocks of columns to the heads in the opposite order. Head 0 has the first."
)
def blocks_backwards(heads, weight):
    return reference.head_contributions(heads.flip(-3), weight).flip(-3)


@head_contributions.mistake(
    "You reshaped the matrix to (H, K, D) at once, which keeps the numbers in their order in "
    "memory: columns of different features get mixed up. Cut the last axis, then move the axes."
)
def matrix_by_reshape(heads, weight):
    h, k = heads.shape[-3], heads.shape[-1]
    return heads @ weight.reshape(h, k, weight.shape[0])


@head_contributions.mistake(
    "You reshaped the matrix to (H, D, K) at once, which keeps the numbers in their order in "
    "memory: a block then holds whole rows. Cut the last axis, then move the axes."
)
def matrix_by_reshape_of_rows(heads, weight):
    h, k = heads.shape[-3], heads.shape[-1]
    return heads @ weight.reshape(h, weight.shape[0], k).mT


@head_contributions.mistake(
    "You divided by the number of heads. The output is the sum of what the heads add, not a mean."
)
def a_share_of_the_mean(heads, weight):
    return reference.head_contributions(heads, weight) / heads.shape[-3]


@head_contributions.mistake(
    "You return the output without each head. Asked is what the head itself adds."
)
def output_without_each(heads, weight):
    parts = reference.head_contributions(heads, weight)
    return parts.sum(-3, keepdim=True) - parts


@head_contributions.mistake(
    "You expect exactly one leading axis. There may be none, or several: in an einsum, `...`."
)
def contributions_of_one_axis(heads, weight):
    h, k = heads.shape[1], heads.shape[3]
    return torch.einsum("bhtk,dhk->bhtd", heads, weight.unflatten(-1, (h, k)))


@head_contributions.mistake(
    "You expect the matrix to be square, D = H * K. The width of the output may be another."
)
def square_matrix(heads, weight):
    h, k = heads.shape[-3], heads.shape[-1]
    return heads @ weight.T.reshape(h, k, h * k)


@head_contributions.mistake(
    "You cut the result off from its gradients (`detach`, `.data`, `no_grad`)."
)
def contributions_without_gradients(heads, weight):
    return reference.head_contributions(heads.detach(), weight)


@head_contributions.alternative
def block_by_block(heads, weight):
    k = heads.shape[-1]
    parts = [heads[..., h, :, :] @ weight[:, h * k : (h + 1) * k].T for h in range(heads.shape[-3])]
    return torch.stack(parts, dim=-3)


@head_contributions.alternative
def one_product(heads, weight):
    return heads @ weight.T.unflatten(0, (heads.shape[-3], -1))


@head_contributions.alternative
def by_leaving_the_others_out(heads, weight):
    parts = []
    for h in range(heads.shape[-3]):
        alone = torch.zeros_like(heads)
        alone[..., h, :, :] = heads[..., h, :, :]
        parts.append(F.linear(merge_heads(alone), weight))
    return torch.stack(parts, -3)


@head_contributions.alternative
def by_padding(heads, weight):
    h = heads.shape[-3]
    eye = torch.eye(h, dtype=heads.dtype)
    wide = torch.einsum("...htk,hg->...htgk", heads, eye).flatten(-2)  # (*batch, H, T, HK)
    return wide @ weight.mT
