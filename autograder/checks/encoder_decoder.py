"""Checks of chapter 11: the encoder-decoder of 2017, part by part."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn import functional as F

from autograder.checking import Chapter, Model, Trial
from solutions import encoder_decoder as reference
from solutions.feed_forward import FeedForward
from solutions.masking import causal_mask, masked_attention, padding_mask
from solutions.multi_head_attention import merge_heads, split_heads
from solutions.positional_encoding import sinusoidal_encoding
from solutions.residuals_and_norms import residual

chapter = Chapter("11_encoder_decoder", "Encoder and decoder")
check = chapter.check

WHOLE = [
    "torch.nn.Transformer",
    "torch.nn.TransformerEncoder",
    "torch.nn.TransformerDecoder",
    "torch.nn.TransformerEncoderLayer",
    "torch.nn.TransformerDecoderLayer",
]
ATTENTION = [
    "torch.nn.functional.scaled_dot_product_attention",
    "torch.nn.MultiheadAttention",
    "torch.nn.functional.multi_head_attention_forward",
]


def shaken(t: Trial, module: nn.Module) -> dict[str, Tensor]:
    """A state for the module that is not that of its start, so that no norm is like another."""
    weights = nn.utils.parameters_to_vector(module.parameters()).detach()  # all at once: quicker
    weights = weights + 0.3 * t.randn(len(weights)).to(weights.dtype)
    pieces = weights.split([p.numel() for p in module.parameters()])
    state = {n: w.view(p.shape) for (n, p), w in zip(module.named_parameters(), pieces)}
    if "embedding.weight" in state:  # of a whole model
        state["embedding.weight"][module.padding_idx] = 0
    return state


def with_weights(t: Trial, *args, **kwargs) -> Model:
    """A module with weights that are not those of its start."""
    m = t.model(*args, load=False, **kwargs)
    m.load(shaken(t, m.reference))
    return m


def only_its_feed_forward_bias(m: Model) -> Model:
    """A layer whose last sublayer says 1 everywhere, whatever it reads, and no other a thing."""
    state = {name: torch.zeros_like(value) for name, value in m.reference.state_dict().items()}
    m.load(state | {"feed_forward.w_out.bias": torch.ones_like(state["feed_forward.w_out.bias"])})
    return m


def _dropout_of_a_share(t: Trial, m: Model, share: float, *more: Tensor) -> None:
    """A number that is dropped leaves the stream as it was; one that is kept grows."""
    x = torch.zeros(3, 40, 6)
    found = only_its_feed_forward_bias(m).train().call(x, *more)
    found = found[0] if isinstance(found, (tuple, list)) else found
    kept = (found - 1 / (1 - share)).abs() < 1e-4
    dropped = found.abs() < 1e-6
    t.require(
        bool((kept | dropped).all()) and abs(dropped.float().mean().item() - share) < 0.1,
        f"With dropout {share:g}, what a sublayer says should be dropped in a share of {share:g} "
        "of the numbers, and grow by 1 / (1 - dropout) in the others, before it is added",
    )


# --------------------------------------------------------------------------- EncoderLayer

EncoderLayer = chapter.exercise(
    reference.EncoderLayer, difficulty=2, minutes=10, forbidden=[*WHOLE, *ATTENTION]
)


@EncoderLayer.group(
    "its parts",
    points=1,
    hint="`self_attention`, `feed_forward`, `norm1` and `norm2`, each with the device and the "
    "dtype that were asked for.",
)
def _(t: Trial):
    m = t.model(6, 2, 10, device="cpu", dtype=torch.float64).eval()
    found = m.call(t.randn(2, 3, 6, dtype=torch.float64))
    t.require(found.dtype == torch.float64, "With dtype=torch.float64 the output should be float64")


@EncoderLayer.group(
    "post-norm, as in 2017",
    points=2,
    hint="norm1 of (x + attention), then norm2 of (that + feed-forward). `residual` with "
    "`norm_first=False` does it.",
)
def _(t: Trial):
    m = with_weights(t, 12, 3, 20, 0.0)
    m.same(2 * t.randn(2, 5, 12))
    m.same(2 * t.randn(7, 12))
    m.same(2 * t.randn(2, 3, 4, 12))
    if t.graded:
        with_weights(t, 6, 2, 9, 0.0, False).same(2 * t.randn(3, 5, 6))


@EncoderLayer.group(
    "pre-norm",
    points=1,
    hint="x + attention(norm1(x)), then that + feed-forward(norm2(that)): the stream itself is "
    "never normalised.",
)
def _(t: Trial):
    m = with_weights(t, 12, 3, 20, 0.0, True)
    m.same(2 * t.randn(2, 5, 12))
    m.same(2 * t.randn(3, 4, 12))


@EncoderLayer.group("the mask", points=1, hint="Hand it on to the attention as it is: `mask=mask`.")
def _(t: Trial):
    m = with_weights(t, 12, 3, 20, 0.0)
    x = 2 * t.randn(2, 5, 12)
    m.same(x, causal_mask(5))
    m.same(x, mask=padding_mask(torch.tensor([3, 5]), 5)[:, None])


@EncoderLayer.group(
    "dropout, on what a sublayer says and in training alone",
    points=1,
    hint="`self.dropout(...)` around the output of each sublayer, inside of the sum. An "
    "`nn.Dropout` knows by itself whether the layer is being trained.",
)
def _(t: Trial):
    m = with_weights(t, 6, 2, 10, 1.0, True)
    x = 2 * t.randn(2, 5, 6)
    m.train().same(x)  # all that is said is dropped
    m.eval().same(x)
    if t.graded:
        _dropout_of_a_share(t, t.model(6, 2, 14, norm_first=True, load=False), 0.1)


@EncoderLayer.group(
    "gradients", points=1, hint="Nothing may be detached, and every part has to be used."
)
def _(t: Trial):
    m = with_weights(t, 6, 2, 10, 0.0, dtype=torch.float64)
    m.same_gradients(t.randn(2, 5, 6, dtype=torch.float64), causal_mask(5))


class _Joints:
    """What the layers with joints have in common."""

    def thought(self, y):
        return self.dropped(self.feed_forward(y))

    def dropped(self, y):
        return self.dropout(y)

    def block(self, x, sublayer, norm):
        return residual(x, sublayer, norm, self.norm_first)


class _Encoder(_Joints, reference.EncoderLayer):
    """The reference with joints, where the wrong layers bend."""

    def forward(self, x, mask=None):
        x = self.block(x, lambda y: self.attended(y, mask), self.norm1)
        return self.block(x, self.thought, self.norm2)

    def attended(self, y, mask):
        return self.dropped(self.self_attention(y, mask=mask)[0])


@EncoderLayer.mistake("You have the two orders the wrong way round: `norm_first=True` is pre-norm.")
class EncoderOrdersSwapped(_Encoder):
    def block(self, x, sublayer, norm):
        return residual(x, sublayer, norm, not self.norm_first)


@EncoderLayer.mistake("You ignore `norm_first`: your layer is always post-norm.")
class EncoderAlwaysPost(_Encoder):
    def block(self, x, sublayer, norm):
        return residual(x, sublayer, norm, False)


@EncoderLayer.mistake(
    "You left `norm_first` to the default of `residual`, which is pre-norm. Hand yours on."
)
class EncoderAlwaysPre(_Encoder):
    def block(self, x, sublayer, norm):
        return residual(x, sublayer, norm)


@EncoderLayer.mistake(
    "You have no residual connection: what a sublayer says replaces the stream. It is added to it."
)
class EncoderWithoutResiduals(_Encoder):
    def block(self, x, sublayer, norm):
        return sublayer(norm(x)) if self.norm_first else norm(sublayer(x))


@EncoderLayer.mistake(
    "You normalise the branch, x + norm(f(x)). Post-norm normalises the sum: norm(x + f(x))."
)
class EncoderNormOfTheBranch(_Encoder):
    def block(self, x, sublayer, norm):
        return super().block(x, sublayer, norm) if self.norm_first else x + norm(sublayer(x))


@EncoderLayer.mistake(
    "You write `x = norm(x)` in pre-norm, and so normalise the stream itself. Only the copy that "
    "the sublayer reads is normalised."
)
class EncoderNormOnTheStream(_Encoder):
    def block(self, x, sublayer, norm):
        if self.norm_first:
            x = norm(x)
            return x + sublayer(x)
        return super().block(x, sublayer, norm)


@EncoderLayer.mistake("You do not hand the mask on to the attention.")
class EncoderWithoutMask(_Encoder):
    def attended(self, y, mask):
        return super().attended(y, None)


@EncoderLayer.mistake(
    "You hand the mask on as the second argument of the attention, which is its source. Write "
    "`mask=mask`."
)
class EncoderMaskAsSource(_Encoder):
    def attended(self, y, mask):
        return self.dropped(self.self_attention(y, mask)[0])


@EncoderLayer.mistake("You use `norm1` for both blocks. Each has a norm of its own.")
class EncoderOneNorm(_Encoder):
    def block(self, x, sublayer, norm):
        return super().block(x, sublayer, self.norm1)


@EncoderLayer.mistake("You leave out the feed-forward block: tokens look around and do not think.")
class EncoderWithoutThought(_Encoder):
    def forward(self, x, mask=None):
        return self.block(x, lambda y: self.attended(y, mask), self.norm1)


@EncoderLayer.mistake("Your layer has no dropout. It falls on what each sublayer says.")
class EncoderWithoutDropout(_Encoder):
    def dropped(self, y):
        return y


@EncoderLayer.mistake(
    "Your dropout falls on the stream, behind the sum: it throws away what all layers below have "
    "said. It is to fall on what the sublayer says."
)
class EncoderDropsTheStream(_Encoder):
    def dropped(self, y):
        return y

    def block(self, x, sublayer, norm):
        return self.dropout(super().block(x, sublayer, norm))


@EncoderLayer.mistake("Your dropout falls on what a sublayer reads. It is to fall on what it says.")
class EncoderDropsTheInput(_Encoder):
    def dropped(self, y):
        return y

    def block(self, x, sublayer, norm):
        return super().block(x, lambda y: sublayer(self.dropout(y)), norm)


@EncoderLayer.mistake(
    "Your dropout never stops, not even in evaluation mode. `nn.Dropout` knows the mode; "
    "`F.dropout` has to be told, `training=self.training`."
)
class EncoderAlwaysDrops(_Encoder):
    def dropped(self, y):
        return F.dropout(y, self.dropout.p)


@EncoderLayer.mistake("Your feed-forward network has a GELU. In 2017 it was a ReLU, the default.")
class EncoderGelu(_Encoder):
    def __init__(self, d_model, n_heads, d_ff, *args, device=None, dtype=None, **kwargs):
        super().__init__(d_model, n_heads, d_ff, *args, device=device, dtype=dtype, **kwargs)
        self.feed_forward = FeedForward(d_model, d_ff, "gelu", device=device, dtype=dtype)


@EncoderLayer.mistake("You ignore `dtype`. Hand it (and `device`) on to all four parts.")
class EncoderIgnoresDtype(_Encoder):
    def __init__(self, *args, device=None, dtype=None, **kwargs):
        super().__init__(*args, **kwargs)


@EncoderLayer.alternative
class EncoderWrittenOut(reference.EncoderLayer):
    def forward(self, x, mask=None):
        if self.norm_first:
            y, _ = self.self_attention(self.norm1(x), mask=mask)
            x = x + self.dropout(y)
            return x + self.dropout(self.feed_forward(self.norm2(x)))
        y, _ = self.self_attention(x, None, mask)
        x = self.norm1(x + self.dropout(y))
        return self.norm2(x + self.dropout(self.feed_forward(x)))


@EncoderLayer.alternative
class EncoderWithTorchsNorms(nn.Module):
    def __init__(
        self, d_model, n_heads, d_ff, dropout=0.1, norm_first=False, device=None, dtype=None
    ):
        super().__init__()
        options = {"device": device, "dtype": dtype}
        self.norm1 = nn.LayerNorm(d_model, **options)
        self.norm2 = nn.LayerNorm(d_model, **options)
        self.drop_attention, self.drop_thought = nn.Dropout(dropout), nn.Dropout(dropout)
        self.self_attention = reference.MultiHeadAttention(d_model, n_heads, **options)
        self.feed_forward = FeedForward(d_model, d_ff, **options)
        self.pre = norm_first

    def forward(self, x, mask=None):
        y = self.norm1(x) if self.pre else x
        x = x + self.drop_attention(self.self_attention(y, y, mask)[0])
        x = x if self.pre else self.norm1(x)
        y = self.norm2(x) if self.pre else x
        x = x + self.drop_thought(self.feed_forward(y))
        return x if self.pre else self.norm2(x)


@EncoderLayer.alternative
class EncoderWithFunctionalDropout(reference.EncoderLayer):
    def forward(self, x, mask=None):
        for norm, sublayer in (
            (self.norm1, lambda y: self.self_attention(y, mask=mask)[0]),
            (self.norm2, self.feed_forward),
        ):
            said = sublayer(norm(x) if self.norm_first else x)
            total = F.dropout(said, self.dropout.p, self.training) + x
            x = total if self.norm_first else norm(total)
        return x


# ------------------------------------------------------------------------- CrossAttention

CrossAttention = chapter.exercise(
    reference.CrossAttention, difficulty=3, minutes=10, forbidden=[*WHOLE, *ATTENTION]
)


def mask_of(t: Trial, *shape: int) -> Tensor:
    """A random mask that leaves each row something to see, and hides something from it."""
    mask = t.rand(*shape) < 0.5
    choice = t.rand(*shape).argsort(-1)
    return (mask | (choice == 0)) & (choice != 1)


@CrossAttention.group(
    "its parameters",
    points=1,
    hint="`query` and `output` from d_model to d_model, `key` and `value` from d_memory to "
    "d_model, each an `nn.Linear` with the device and the dtype that were asked for.",
)
def _(t: Trial):
    t.model(12, 3, 10).call(t.randn(2, 5, 12), t.randn(2, 7, 10))
    m = t.model(6, 2, device="cpu", dtype=torch.float64)
    x, memory = (t.randn(2, n, 6, dtype=torch.float64) for n in (3, 4))
    found, _ = m.call(x, memory)
    t.require(found.dtype == torch.float64, "With dtype=torch.float64 the output should be float64")


@CrossAttention.group(
    "who asks, and who is asked",
    points=2,
    hint="The query is made of x; key and value are made of the memory. Then as in chapter 06: "
    "split, attend, merge, map.",
)
def _(t: Trial):
    t.model(12, 3, 10).same(3 * t.randn(2, 5, 12), 3 * t.randn(2, 7, 10))
    m = t.model(12, 3)
    m.same(3 * t.randn(2, 5, 12), 3 * t.randn(2, 7, 12))
    m.same(3 * t.randn(2, 5, 12), memory=3 * t.randn(2, 5, 12))  # as many as ask
    if t.graded:
        t.model(8, 2, 9).same(3 * t.randn(3, 6, 8), 3 * t.randn(3, 4, 9))


@CrossAttention.group(
    "the mask of the memory", points=1, hint="Hand it on as it is, and add no other."
)
def _(t: Trial):
    m = t.model(12, 3, 10)
    x, memory = 3 * t.randn(2, 5, 12), 3 * t.randn(2, 7, 10)
    m.same(x, memory, padding_mask(torch.tensor([4, 6]), 7)[:, None])
    m.same(x, memory, memory_mask=mask_of(t, 2, 1, 5, 7))
    m.same(x, memory, mask_of(t, 3, 5, 7))  # a mask for each head
    nothing = mask_of(t, 2, 1, 5, 7)
    nothing[0, 0, 1] = False
    m.same(x, memory, nothing)


@CrossAttention.group(
    "any leading axes, one token, one head",
    points=1,
    hint="If `split_heads`, `masked_attention`, `merge_heads` and `nn.Linear` get by with any "
    "leading axes, so does the layer.",
)
def _(t: Trial):
    m = t.model(8, 2, 6)
    m.same(3 * t.randn(5, 8), 3 * t.randn(7, 6))
    m.same(3 * t.randn(2, 3, 4, 8), 3 * t.randn(2, 3, 7, 6), mask_of(t, 4, 7))
    m.same(3 * t.randn(2, 1, 8), 3 * t.randn(2, 4, 6))
    t.model(6, 1, 4).same(3 * t.randn(2, 5, 6), 3 * t.randn(2, 3, 4))


@CrossAttention.group(
    "gradients reach both sides and every parameter",
    points=1,
    hint="The encoder learns through the memory: nothing may be detached.",
)
def _(t: Trial):
    m = t.model(6, 3, 8, dtype=torch.float64)
    x, memory = t.randn(2, 4, 6, dtype=torch.float64), t.randn(2, 5, 8, dtype=torch.float64)
    m.same_gradients(x, memory, mask_of(t, 2, 1, 4, 5))


@CrossAttention.group(
    "sizes that do not fit are refused by name",
    points=1,
    hint="In `__init__` that n_heads divides d_model; in `forward` the width of x and that of the "
    "memory. Each message gives the name and both numbers.",
)
def _(t: Trial):
    t.raises(ValueError, 10, 4, naming="10")
    t.raises(ValueError, 15, n_heads=7, naming="7")
    m = t.model(12, 3, 10)
    m.raises(ValueError, t.randn(2, 5, 17), t.randn(2, 7, 10), naming="17")
    m.raises(ValueError, t.randn(2, 5, 17), t.randn(2, 7, 10), naming="12")
    m.raises(ValueError, t.randn(2, 5, 12), t.randn(2, 7, 19), naming="memory")
    m.raises(ValueError, t.randn(2, 5, 12), t.randn(2, 7, 19), naming="19")
    m.raises(ValueError, t.randn(2, 5, 12), t.randn(2, 7, 19), naming="10")


class _Cross(reference.CrossAttention):
    """The reference with joints."""

    def forward(self, x, memory, memory_mask=None):
        self.checked(x, memory)
        heads, weights = self.heads(*self.mapped(x, memory), memory_mask)
        return self.output(self.merged(heads)), weights

    def checked(self, x, memory):
        for name, tokens, width in (
            ("x", x, self.query.in_features),
            ("memory", memory, self.key.in_features),
        ):
            if tokens.shape[-1] != width:
                raise ValueError(f"{name} is {tokens.shape[-1]} wide, not {width}")

    def mapped(self, x, memory):
        maps = ((self.query, x), (self.key, memory), (self.value, memory))
        return [self.split(linear(tokens)) for linear, tokens in maps]

    def split(self, x):
        return split_heads(x, self.n_heads)

    def heads(self, q, k, v, mask):
        return masked_attention(q, k, v, mask)

    def merged(self, heads):
        return merge_heads(heads)


@CrossAttention.mistake(
    "You have the sides the wrong way round: the memory asks, and x answers. The decoder's tokens "
    "ask, so the query is made of x."
)
class MemoryAsks(_Cross):
    def mapped(self, x, memory):
        maps = ((self.query, memory), (self.key, x), (self.value, x))
        return [self.split(linear(tokens)) for linear, tokens in maps]


@CrossAttention.mistake(
    "You take the values from x. Keys and values both come from the memory: what is found is "
    "something about the source."
)
class ValuesFromX(_Cross):
    def mapped(self, x, memory):
        maps = ((self.query, x), (self.key, memory), (self.value, x))
        return [self.split(linear(tokens)) for linear, tokens in maps]


@CrossAttention.mistake("You swapped `key` and `value`.")
class KeyAndValueSwapped(_Cross):
    def mapped(self, x, memory):
        q, k, v = super().mapped(x, memory)
        return q, v, k


@CrossAttention.mistake("You do not use the mask: padding of the source is asked as well.")
class CrossWithoutMask(_Cross):
    def heads(self, q, k, v, mask):
        return masked_attention(q, k, v)


@CrossAttention.mistake("You read the mask the wrong way round: True is allowed.")
class CrossMaskInverted(_Cross):
    def heads(self, q, k, v, mask):
        return masked_attention(q, k, v, None if mask is None else ~mask)


@CrossAttention.mistake(
    "You added a causal mask. The source is known from the first word to the last: every token "
    "of the target may ask all of it."
)
class CausalTowardsTheSource(_Cross):
    def heads(self, q, k, v, mask):
        t, s = q.shape[-2], k.shape[-2]
        causal = torch.ones(t, s, dtype=torch.bool).tril()
        return masked_attention(q, k, v, causal if mask is None else mask & causal)


@CrossAttention.mistake(
    "You split and merge by reshape alone, so that a head gets a stretch of the sequence instead "
    "of a slice of every token. Use `split_heads` and `merge_heads`."
)
class CrossSplitByReshape(_Cross):
    def split(self, x):
        *batch, t, d = x.shape
        return x.reshape(*batch, self.n_heads, t, d // self.n_heads)

    def merged(self, heads):
        return heads.reshape(*heads.shape[:-3], heads.shape[-2], -1)


@CrossAttention.mistake("You do not split: one head attends with the whole width.")
class CrossNotSplit(_Cross):
    def split(self, x):
        return x

    def merged(self, heads):
        return heads


@CrossAttention.mistake(
    "You divide the scores by a root once more. `masked_attention` does it already."
)
class CrossScaledTwice(_Cross):
    def heads(self, q, k, v, mask):
        return masked_attention(q / math.sqrt(q.shape[-1]), k, v, mask)


@CrossAttention.mistake("You leave out the last map, `output`.")
class CrossWithoutOutput(_Cross):
    def forward(self, x, memory, memory_mask=None):
        self.checked(x, memory)
        heads, weights = self.heads(*self.mapped(x, memory), memory_mask)
        return self.merged(heads) + 0 * self.output(self.merged(heads)), weights


@CrossAttention.mistake(
    "You average the weights over the heads. Return those of every head, (..., H, T, S)."
)
class CrossAveragesWeights(_Cross):
    def forward(self, x, memory, memory_mask=None):
        output, weights = super().forward(x, memory, memory_mask)
        return output, weights.mean(-3)


@CrossAttention.mistake("You return the output alone. Return the output and the weights.")
class CrossReturnsOutputAlone(_Cross):
    def forward(self, x, memory, memory_mask=None):
        return super().forward(x, memory, memory_mask)[0]


@CrossAttention.mistake(
    "You detach the memory. It is through it that the encoder learns what is needed of it."
)
class DetachesTheMemory(_Cross):
    def forward(self, x, memory, memory_mask=None):
        return super().forward(x, memory.detach(), memory_mask)


@CrossAttention.mistake(
    "You ignore `d_memory`. `key` and `value` read the memory, which may have another width."
)
class IgnoresWidthOfMemory(_Cross):
    def __init__(self, d_model, n_heads, d_memory=None, device=None, dtype=None):
        super().__init__(d_model, n_heads, None, device, dtype)


@CrossAttention.mistake("You ignore `dtype`. Hand it (and `device`) on to each `nn.Linear`.")
class CrossIgnoresDtype(_Cross):
    def __init__(self, d_model, n_heads, d_memory=None, device=None, dtype=None):
        super().__init__(d_model, n_heads, d_memory)


@CrossAttention.mistake("Your maps have no bias. They are to have one.")
class CrossWithoutBias(_Cross):
    def __init__(self, d_model, n_heads, d_memory=None, device=None, dtype=None):
        super().__init__(d_model, n_heads, d_memory, device, dtype)
        for linear in (self.query, self.key, self.value, self.output):
            linear.register_parameter("bias", None)


@CrossAttention.mistake(
    "You do not refuse heads that do not divide the width. Raise a ValueError with both numbers."
)
class CrossAnyHeads(_Cross):
    def __init__(self, d_model, n_heads, d_memory=None, device=None, dtype=None):
        super().__init__(d_model, 1, d_memory, device, dtype)
        self.n_heads = n_heads


@CrossAttention.mistake(
    "You look at the width of x alone. The memory's is to be refused by name as well."
)
class ChecksXAlone(_Cross):
    def checked(self, x, memory):
        super().checked(x, memory[..., :1].expand(*memory.shape[:-1], self.key.in_features))


@CrossAttention.mistake(
    "You compare the memory's width with d_model. It is d_memory that it should have."
)
class MemoryAsWideAsX(_Cross):
    def checked(self, x, memory):
        for name, tokens in (("x", x), ("memory", memory)):
            if tokens.shape[-1] != self.query.in_features:
                raise ValueError(f"{name} is {tokens.shape[-1]} wide, not {self.query.in_features}")


@CrossAttention.mistake("Your message leaves out the width that was expected.")
class CrossNamesOneWidth(_Cross):
    def checked(self, x, memory):
        for name, tokens, linear in (("x", x, self.query), ("memory", memory, self.key)):
            if tokens.shape[-1] != linear.in_features:
                raise ValueError(f"{name} has the wrong width {tokens.shape[-1]}")


@CrossAttention.mistake("You expect exactly one leading axis. There may be none, or several.")
class CrossOneBatchAxis(_Cross):
    def split(self, x):
        b, t, d = x.shape
        return x.view(b, t, self.n_heads, d // self.n_heads).transpose(1, 2)

    def merged(self, heads):
        b, h, t, k = heads.shape
        return heads.transpose(1, 2).reshape(b, t, h * k)


@CrossAttention.alternative
class CrossWithEinsum(_Cross):
    def forward(self, x, memory, memory_mask=None):
        self.checked(x, memory)
        h = self.n_heads
        q = self.query(x).unflatten(-1, (h, -1))
        k, v = (linear(memory).unflatten(-1, (h, -1)) for linear in (self.key, self.value))
        scores = torch.einsum("...thk,...shk->...hts", q, k) * q.shape[-1] ** -0.5
        if memory_mask is None:
            weights = scores.softmax(-1)
        else:
            weights = scores.masked_fill(~memory_mask, -1e30).softmax(-1) * memory_mask
        return self.output(torch.einsum("...hts,...shk->...thk", weights, v).flatten(-2)), weights


@CrossAttention.alternative
class CrossHeadByHead(_Cross):
    def heads(self, q, k, v, mask):
        found = []
        for i in range(self.n_heads):
            own = mask
            if mask is not None and mask.ndim >= 3:
                own = mask[..., min(i, mask.shape[-3] - 1), :, :]
            found.append(masked_attention(q[..., i, :, :], k[..., i, :, :], v[..., i, :, :], own))
        return torch.stack([f[0] for f in found], -3), torch.stack([f[1] for f in found], -3)


@CrossAttention.alternative
class CrossFromScratch(nn.Module):
    def __init__(self, d_model, n_heads, d_memory=None, device=None, dtype=None):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"{n_heads} heads do not divide a width of {d_model}")
        self.widths = {"x": d_model, "memory": d_model if d_memory is None else d_memory}
        self.h = n_heads
        for name in ("query", "key", "value", "output"):
            width = self.widths["memory" if name in ("key", "value") else "x"]
            setattr(self, name, nn.Linear(width, d_model, device=device, dtype=dtype))

    def forward(self, x, memory, memory_mask=None):
        for name, tokens in {"x": x, "memory": memory}.items():
            if tokens.size(-1) != self.widths[name]:
                raise ValueError(f"width of {name}: {tokens.size(-1)}, not {self.widths[name]}")
        q, k, v = (
            split_heads(p, self.h) for p in (self.query(x), self.key(memory), self.value(memory))
        )
        found, weights = masked_attention(q, k, v, mask=memory_mask)
        return self.output(merge_heads(found)), weights


# --------------------------------------------------------------------------- DecoderLayer

DecoderLayer = chapter.exercise(
    reference.DecoderLayer, difficulty=3, minutes=12, forbidden=[*WHOLE, *ATTENTION]
)


@DecoderLayer.group(
    "its parts",
    points=1,
    hint="`self_attention`, `cross_attention`, `feed_forward`, `norm1`, `norm2` and `norm3`, each "
    "with the device and the dtype that were asked for.",
)
def _(t: Trial):
    m = t.model(6, 2, 10, device="cpu", dtype=torch.float64).eval()
    x, memory = (t.randn(2, n, 6, dtype=torch.float64) for n in (3, 4))
    found, _ = m.call(x, memory)
    t.require(found.dtype == torch.float64, "With dtype=torch.float64 the output should be float64")


@DecoderLayer.group(
    "post-norm, as in 2017",
    points=2,
    hint="Three blocks: `self_attention` with `norm1`, `cross_attention` with `norm2`, "
    "`feed_forward` with `norm3`; each reads the stream as the one before has left it.",
)
def _(t: Trial):
    m = with_weights(t, 12, 3, 20, 0.0)
    m.same(2 * t.randn(2, 5, 12), 2 * t.randn(2, 7, 12))
    m.same(2 * t.randn(3, 4, 12), 2 * t.randn(3, 4, 12))  # as many tokens on either side
    m.same(2 * t.randn(4, 12), memory=2 * t.randn(5, 12))
    if t.graded:
        m = with_weights(t, 6, 2, 9, 0.0, False)
        m.same(2 * t.randn(2, 3, 5, 6), 2 * t.randn(2, 3, 7, 6))


@DecoderLayer.group(
    "pre-norm",
    points=1,
    hint="Each sublayer reads a normalised copy of the stream. The memory is not normalised again.",
)
def _(t: Trial):
    m = with_weights(t, 12, 3, 20, 0.0, norm_first=True)
    m.same(2 * t.randn(2, 5, 12), 2 * t.randn(2, 7, 12) + 1)
    m.same(2 * t.randn(3, 4, 12), 2 * t.randn(3, 4, 12))


@DecoderLayer.group(
    "each mask to its own attention",
    points=2,
    hint="`mask` goes to `self_attention` (give it by name), `memory_mask` to `cross_attention`.",
)
def _(t: Trial):
    m = with_weights(t, 12, 3, 20, 0.0)
    x, memory = 2 * t.randn(2, 5, 12), 2 * t.randn(2, 7, 12)
    m.same(x, memory, causal_mask(5))
    m.same(x, memory, memory_mask=padding_mask(torch.tensor([3, 6]), 7)[:, None])
    m.same(x, memory, causal_mask(5), mask_of(t, 2, 1, 5, 7))
    m.same(x, 2 * t.randn(2, 5, 12), causal_mask(5), mask_of(t, 2, 1, 5, 5))


@DecoderLayer.group(
    "dropout, on what a sublayer says and in training alone",
    points=1,
    hint="`self.dropout(...)` around the output of each of the three sublayers, inside of the sum.",
)
def _(t: Trial):
    x, memory = 2 * t.randn(2, 5, 6), 2 * t.randn(2, 7, 6)
    m = with_weights(t, 6, 2, 10, 1.0, True)
    m.train().same(x, memory)
    m.eval().same(x, memory)
    if t.graded:
        m = t.model(6, 2, 14, norm_first=True, load=False)
        _dropout_of_a_share(t, m, 0.1, torch.zeros(3, 2, 6))


@DecoderLayer.group(
    "gradients, also of the memory",
    points=1,
    hint="The encoder learns through the memory: nothing may be detached.",
)
def _(t: Trial):
    m = with_weights(t, 6, 2, 10, 0.0, dtype=torch.float64)
    x, memory = t.randn(2, 4, 6, dtype=torch.float64), t.randn(2, 5, 6, dtype=torch.float64)
    m.same_gradients(x, memory, causal_mask(4), mask_of(t, 2, 1, 4, 5))


class _Decoder(_Joints, reference.DecoderLayer):
    """The reference with joints."""

    def forward(self, x, memory, mask=None, memory_mask=None):
        self.weights = None
        x = self.block(x, lambda y: self.looked(y, memory, mask, memory_mask), self.norm1)
        x = self.block(x, lambda y: self.asked(y, memory, mask, memory_mask), self.norm2)
        return self.block(x, self.thought, self.norm3), self.weights

    def looked(self, y, memory, mask, memory_mask):
        return self.dropped(self.self_attention(y, mask=mask)[0])

    def asked(self, y, memory, mask, memory_mask):
        output, self.weights = self.cross_attention(y, memory, memory_mask)
        return self.dropped(output)


@DecoderLayer.mistake("You have the two orders the wrong way round: `norm_first=True` is pre-norm.")
class DecoderOrdersSwapped(_Decoder):
    def block(self, x, sublayer, norm):
        return residual(x, sublayer, norm, not self.norm_first)


@DecoderLayer.mistake(
    "You left `norm_first` to the default of `residual`, which is pre-norm. Hand yours on."
)
class DecoderAlwaysPre(_Decoder):
    def block(self, x, sublayer, norm):
        return residual(x, sublayer, norm)


@DecoderLayer.mistake("You ask the source first. First the target looks back at itself.")
class AsksFirst(_Decoder):
    def forward(self, x, memory, mask=None, memory_mask=None):
        x = self.block(x, lambda y: self.asked(y, memory, mask, memory_mask), self.norm2)
        x = self.block(x, lambda y: self.looked(y, memory, mask, memory_mask), self.norm1)
        return self.block(x, self.thought, self.norm3), self.weights


@DecoderLayer.mistake(
    "Your cross-attention reads what came into the layer. It is to read the stream behind the "
    "self-attention."
)
class AsksWithTheInput(_Decoder):
    def forward(self, x, memory, mask=None, memory_mask=None):
        first = self.norm2(x) if self.norm_first else x
        y = self.block(x, lambda z: self.looked(z, memory, mask, memory_mask), self.norm1)
        y = self.block(y, lambda _: self.asked(first, memory, mask, memory_mask), self.norm2)
        return self.block(y, self.thought, self.norm3), self.weights


@DecoderLayer.mistake(
    "You let the memory ask, and the target answer. `cross_attention(y, memory, ...)`: who asks "
    "stands first."
)
class DecoderMemoryAsks(_Decoder):
    def asked(self, y, memory, mask, memory_mask):
        output, self.weights = self.cross_attention(memory, y, memory_mask)
        return self.dropped(output)


@DecoderLayer.mistake("Your second attention asks the target itself. It is to ask the memory.")
class AsksItself(_Decoder):
    def asked(self, y, memory, mask, memory_mask):
        output, self.weights = self.cross_attention(y, y, memory_mask)
        return self.dropped(output)


@DecoderLayer.mistake(
    "You normalise the memory with `norm2`. In pre-norm only the stream's copy is normalised: the "
    "memory comes normalised from the encoder."
)
class NormalisesTheMemory(_Decoder):
    def asked(self, y, memory, mask, memory_mask):
        memory = self.norm2(memory) if self.norm_first else memory
        return super().asked(y, memory, mask, memory_mask)


@DecoderLayer.mistake(
    "You swapped the two masks: `mask` is for the self-attention, `memory_mask` for the memory."
)
class MasksSwapped(_Decoder):
    def looked(self, y, memory, mask, memory_mask):
        return super().looked(y, memory, memory_mask, mask)

    def asked(self, y, memory, mask, memory_mask):
        return super().asked(y, memory, memory_mask, mask)


@DecoderLayer.mistake("You do not hand on `mask`: the target sees its own future.")
class DecoderWithoutMask(_Decoder):
    def looked(self, y, memory, mask, memory_mask):
        return super().looked(y, memory, None, memory_mask)


@DecoderLayer.mistake("You do not hand on `memory_mask`: padding of the source is asked as well.")
class DecoderWithoutMemoryMask(_Decoder):
    def asked(self, y, memory, mask, memory_mask):
        return super().asked(y, memory, mask, None)


@DecoderLayer.mistake("You use `mask` for both attentions. The memory has a mask of its own.")
class OneMaskForBoth(_Decoder):
    def asked(self, y, memory, mask, memory_mask):
        return super().asked(y, memory, mask, mask)


@DecoderLayer.mistake(
    "You hand the mask on as the second argument of the self-attention, which is its source. Write "
    "`mask=mask`."
)
class DecoderMaskAsSource(_Decoder):
    def looked(self, y, memory, mask, memory_mask):
        return self.dropped(self.self_attention(y, mask)[0])


@DecoderLayer.mistake("Your layer has no dropout. It falls on what each sublayer says.")
class DecoderWithoutDropout(_Decoder):
    def dropped(self, y):
        return y


@DecoderLayer.mistake("You forgot the dropout of the cross-attention. All three sublayers have it.")
class NoDropoutWhenAsking(_Decoder):
    def asked(self, y, memory, mask, memory_mask):
        output, self.weights = self.cross_attention(y, memory, memory_mask)
        return output


@DecoderLayer.mistake(
    "You return the stream alone. The weights of the cross-attention are asked for."
)
class DecoderReturnsStreamAlone(_Decoder):
    def forward(self, x, memory, mask=None, memory_mask=None):
        return super().forward(x, memory, mask, memory_mask)[0]


@DecoderLayer.mistake(
    "You return the weights of the self-attention. Those of the cross-attention are asked for."
)
class DecoderReturnsOwnWeights(_Decoder):
    def looked(self, y, memory, mask, memory_mask):
        output, self.own = self.self_attention(y, mask=mask)
        return self.dropped(output)

    def forward(self, x, memory, mask=None, memory_mask=None):
        return super().forward(x, memory, mask, memory_mask)[0], self.own


@DecoderLayer.mistake("You detach the memory. It is through it that the encoder learns.")
class DecoderDetaches(_Decoder):
    def forward(self, x, memory, mask=None, memory_mask=None):
        return super().forward(x, memory.detach(), mask, memory_mask)


@DecoderLayer.mistake("You ignore `dtype`. Hand it (and `device`) on to all six parts.")
class DecoderIgnoresDtype(_Decoder):
    def __init__(self, *args, device=None, dtype=None, **kwargs):
        super().__init__(*args, **kwargs)


@DecoderLayer.alternative
class DecoderWrittenOut(reference.DecoderLayer):
    def forward(self, x, memory, mask=None, memory_mask=None):
        if self.norm_first:
            x = x + self.dropout(self.self_attention(self.norm1(x), mask=mask)[0])
            found, weights = self.cross_attention(self.norm2(x), memory, memory_mask)
            x = x + self.dropout(found)
            return x + self.dropout(self.feed_forward(self.norm3(x))), weights
        x = self.norm1(x + self.dropout(self.self_attention(x, mask=mask)[0]))
        found, weights = self.cross_attention(x, memory, memory_mask)
        x = self.norm2(x + self.dropout(found))
        return self.norm3(x + self.dropout(self.feed_forward(x))), weights


@DecoderLayer.alternative
class DecoderWithAList(reference.DecoderLayer):
    def forward(self, x, memory, mask=None, memory_mask=None):
        kept = []

        def attend(layer, *args):
            output, weights = layer(*args)
            kept.append(weights)
            return self.dropout(output)

        steps = [
            (lambda y: attend(self.self_attention, y, y, mask), self.norm1),
            (lambda y: attend(self.cross_attention, y, memory, memory_mask), self.norm2),
            (lambda y: self.dropout(self.feed_forward(y)), self.norm3),
        ]
        for step, norm in steps:
            x = residual(x, step, norm, norm_first=self.norm_first)
        return x, kept[-1]


@DecoderLayer.alternative
class DecoderOnAnEncoderLayer(reference.DecoderLayer):
    def said(self, x, norm, sublayer):
        return sublayer(norm(x) if self.norm_first else x)

    def summed(self, x, said, norm):
        total = x + F.dropout(said, self.dropout.p, training=self.training)
        return total if self.norm_first else norm(total)

    def forward(self, x, memory, mask=None, memory_mask=None):
        said, _ = self.said(x, self.norm1, lambda y: self.self_attention(y, None, mask))
        x = self.summed(x, said, self.norm1)
        said, weights = self.said(
            x, self.norm2, lambda y: self.cross_attention(y, memory, memory_mask=memory_mask)
        )
        x = self.summed(x, said, self.norm2)
        return self.summed(x, self.said(x, self.norm3, self.feed_forward), self.norm3), weights


# ------------------------------------------------------------------------- attention_mask

masking = chapter.exercise(reference.attention_mask, difficulty=2, minutes=8)


def ids(t: Trial, *shape: int, lengths: list[int] | None = None, padding_idx: int = 0) -> Tensor:
    """Random ids from 3 to 10, with padding behind the given lengths."""
    tokens = t.randint(3, 11, shape)
    if lengths is not None:
        real = padding_mask(torch.tensor(lengths), shape[1])[:, 0]
        tokens = tokens.masked_fill(~real, padding_idx)
    return tokens


@masking.group(
    "without causal: who is real",
    points=1,
    hint="`tokens != padding_idx` is (B, T). The keys are the last axis; heads and queries get an "
    "axis of size 1 each.",
)
def _(t: Trial):
    t.same(ids(t, 3, 5, lengths=[4, 5, 2]), 0)
    t.same(ids(t, 2, 7, lengths=[1, 6]), 0, causal=False)


@masking.group(
    "with causal: who is real and not ahead",
    points=2,
    hint="`&` of the first mask with `causal_mask(T)`.",
)
def _(t: Trial):
    t.same(ids(t, 3, 5, lengths=[4, 5, 2]), 0, causal=True)
    t.same(ids(t, 2, 7, lengths=[7, 7]), 0, True)
    if t.graded:
        t.same(ids(t, 4, 6, lengths=[1, 6, 3, 5]), 0, causal=True)


@masking.group(
    "padding of any id at any place, one token",
    points=1,
    hint="Compare each token with `padding_idx`. Do not count on padding at the end.",
)
def _(t: Trial):
    for causal in (False, True):
        tokens = ids(t, 2, 6)
        tokens[0, :2] = tokens[1, 3] = 9
        t.same(tokens, 9, causal)
        t.same(torch.where(tokens == 9, 0, tokens), 0, causal)
        t.same(ids(t, 2, 5, lengths=[3, 5], padding_idx=1), 1, causal)
        t.same(ids(t, 3, 1), 0, causal)


def _masked(tokens, padding_idx, causal):
    real = (tokens != padding_idx)[:, None, None]
    return real & causal_mask(tokens.shape[1]) if causal else real


@masking.mistake("You have it the wrong way round: True is where attention is allowed.")
def inverted_mask(tokens, padding_idx, causal=False):
    return ~_masked(tokens, padding_idx, causal)


@masking.mistake(
    "You left out the axis for the heads: (B, 1, T) would meet (B, H, T, T) with B where H stands."
)
def no_axis_for_heads(tokens, padding_idx, causal=False):
    return _masked(tokens, padding_idx, causal)[:, 0]


@masking.mistake(
    "You hide the queries that are padding. What is to be hidden are the keys, on the last axis."
)
def hides_queries(tokens, padding_idx, causal=False):
    real = (tokens != padding_idx)[:, None, :, None]
    return real & causal_mask(tokens.shape[1]) if causal else real


@masking.mistake(
    "You hide padding as a query, too. It does no harm, but is not asked for, and without "
    "`causal` the mask is to be the same for all queries: (B, 1, 1, T)."
)
def hides_both(tokens, padding_idx, causal=False):
    real = (tokens != padding_idx)[:, None]
    both = (real.mT if real.ndim > 2 else real)[..., None] & real[:, :, None]
    return both & causal_mask(tokens.shape[1]) if causal else both


@masking.mistake("Your causal mask hides a token from itself.")
def strictly_causal(tokens, padding_idx, causal=False):
    mask = _masked(tokens, padding_idx, causal)
    return mask & ~torch.eye(tokens.shape[1], dtype=torch.bool) if causal else mask


@masking.mistake("Your causal mask shows the future and hides the past.")
def future_shown(tokens, padding_idx, causal=False):
    real = (tokens != padding_idx)[:, None, None]
    return real & causal_mask(tokens.shape[1]).T if causal else real


@masking.mistake("You forget padding where the mask is causal. Both conditions hold: `&`.")
def causal_alone(tokens, padding_idx, causal=False):
    b, size = tokens.shape
    if causal:
        return causal_mask(size).expand(b, 1, size, size)
    return _masked(tokens, padding_idx, False)


@masking.mistake("You join the two conditions by `|`. Both have to hold: `&`.")
def either(tokens, padding_idx, causal=False):
    real = (tokens != padding_idx)[:, None, None]
    return real | causal_mask(tokens.shape[1]) if causal else real


@masking.mistake("You ignore `causal`.")
def never_causal(tokens, padding_idx, causal=False):
    return _masked(tokens, padding_idx, False)


@masking.mistake("You ignore `causal`: your mask always is.")
def always_causal(tokens, padding_idx, causal=False):
    return _masked(tokens, padding_idx, True)


@masking.mistake("You take 0 for the padding. It has the id `padding_idx`.")
def padding_is_zero(tokens, padding_idx, causal=False):
    return _masked(tokens, 0, causal)


@masking.mistake("You count real tokens and hide the last ones. Padding may stand anywhere.")
def padding_at_the_end(tokens, padding_idx, causal=False):
    lengths = (tokens != padding_idx).sum(1)
    real = padding_mask(lengths, tokens.shape[1])[:, None]
    return real & causal_mask(tokens.shape[1]) if causal else real


@masking.mistake("You return numbers. A mask holds True and False.")
def mask_of_numbers(tokens, padding_idx, causal=False):
    return _masked(tokens, padding_idx, causal).float()


@masking.alternative
def with_broadcasting(tokens, padding_idx, causal=False):
    b, size = tokens.shape
    real = tokens.ne(padding_idx).view(b, 1, 1, size)
    if not causal:
        return real
    place = torch.arange(size)
    return (place[:, None] >= place) & real


@masking.alternative
def with_loops(tokens, padding_idx, causal=False):
    b, size = tokens.shape
    mask = torch.zeros(b, 1, size if causal else 1, size, dtype=torch.bool)
    for i in range(b):
        for q in range(mask.shape[2]):
            for k in range(size):
                mask[i, 0, q, k] = tokens[i, k] != padding_idx and (not causal or k <= q)
    return mask


@masking.alternative
def with_tril(tokens, padding_idx, causal=False):
    real = torch.logical_not(tokens == padding_idx).unsqueeze(1).unsqueeze(1)
    return real.repeat(1, 1, tokens.size(1), 1).tril() if causal else real


# ---------------------------------------------------------------------------- Transformer

Transformer = chapter.exercise(
    reference.Transformer, difficulty=5, minutes=20, forbidden=[*WHOLE, *ATTENTION]
)
SIZES = (11, 6, 2, 8)  # V, D, H, F


@Transformer.group(
    "its parameters",
    points=1,
    hint="`embedding`, `encoder_layers` and `decoder_layers` (each an `nn.ModuleList`), and a norm "
    "behind each stack if `final_norm`, or, where that is None, if `norm_first`.",
)
def _(t: Trial):
    options = {"norm_first": True, "final_norm": False, "device": "cpu", "dtype": torch.float64}
    m = t.model(80, 16, 2, 4, 1, 1, 7, load=False, **options)
    fresh = m.state()
    t.require(
        all(value.dtype == torch.float64 for value in fresh.values()),
        "With dtype=torch.float64 all parameters should be float64",
    )
    m.load(m.reference.state_dict())  # looks at names and shapes
    options["final_norm"] = None
    normed = t.model(5, 4, 2, 3, 1, 1, load=False, **options).state()
    t.require(
        all(value.dtype == torch.float64 for value in normed.values()),
        "With dtype=torch.float64 the norms behind the stacks should be float64, too",
    )
    table = fresh["embedding.weight"]
    rest = torch.cat([table[:7], table[8:]])
    t.require(
        abs(rest.std().item() * 4 - 1) < 0.1 and not table[7].any(),
        "The table should start with standard deviation 1 / √D, and with zeros for the padding",
        found=rest.std().item(),
    )


@Transformer.group(
    "what it says, post-norm",
    points=2,
    hint="Tokens times √D plus positions, on either side; the encoder's layers; the decoder's "
    "layers, which all ask what the *last* encoder layer has made; dot products with the table.",
)
def _(t: Trial):
    m = with_weights(t, *SIZES, 1, 1, dropout=0.0)
    m.same(ids(t, 2, 5), ids(t, 2, 4))
    if t.graded:
        m = with_weights(t, 9, 12, 3, 10, 1, 3, 0, 0.0, False)
        m.same(t.randint(3, 9, (3, 4)), t.randint(3, 9, (3, 6)))


@Transformer.group(
    "pre-norm, and the norms behind the stacks",
    points=1,
    hint="The memory goes through `encoder_norm`, once, behind the last layer; the stream through "
    "`decoder_norm` before the logits.",
)
def _(t: Trial):
    m = with_weights(t, *SIZES, 2, 1, dropout=0.0, norm_first=True)
    m.same(ids(t, 2, 5), ids(t, 2, 4))
    if t.graded:
        m = with_weights(t, *SIZES, 1, 1, 0, 0.0, False, True)
        m.same(ids(t, 2, 5), ids(t, 2, 4))


@Transformer.group(
    "padding on either side",
    points=1,
    hint="Three masks: the source's for the encoder, the target's, causal, for the decoder's "
    "self-attention, and the source's again for the cross-attention.",
)
def _(t: Trial):
    m = with_weights(t, *SIZES, 1, 1, 9, 0.0)
    source = ids(t, 3, 5, lengths=[2, 5, 3], padding_idx=9)
    target = ids(t, 3, 4, lengths=[4, 3, 1], padding_idx=9)
    source[1, 1] = target[1, 0] = 0  # a word like any other
    target[0, 1] = 9  # in the middle, where the causal mask does not hide it
    m.same(source, target)


@Transformer.group(
    "`encode` and `decode`, one by one",
    points=1,
    hint="`encode` gives the memory alone. `decode` uses the memory that it is given, hides the "
    "source's padding from the cross-attention, and gives the weights of all decoder layers, "
    "stacked: (L, B, H, T, S).",
)
def _(t: Trial):
    options = {"norm_first": True, "dropout": 0.3}
    sizes = (*SIZES, 1, 2)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(t.noise)
        state = shaken(t, reference.Transformer(*sizes, **options))
    source, target = ids(t, 2, 5, lengths=[5, 4]), ids(t, 2, 4, lengths=[3, 4])
    found, expected = t.drive("translator_parts", sizes, options, state, source, target)
    t.equal(found["memory"], expected["memory"], "The memory that `encode` gives is wrong")
    t.equal(found["logits"], expected["logits"], "The logits that `decode` gives are wrong")
    t.equal(found["weights"], expected["weights"], "The weights that `decode` gives are wrong")


@Transformer.group(
    "dropout, in training alone",
    points=1,
    hint="On the sum of tokens and positions, on either side, and in every layer: hand it on.",
)
def _(t: Trial):
    m = with_weights(t, *SIZES, 1, 1, dropout=1.0, norm_first=True)
    m.train().same(ids(t, 2, 5), ids(t, 2, 4))  # only what norms say is left
    if t.graded:
        _share_of_tokens(t)


def _share_of_tokens(t: Trial) -> None:
    """Layers that say nothing: the logits are those of the embedded target, thinned out."""
    m = t.model(12, 6, 2, 8, 1, 1, norm_first=True, final_norm=False, load=False)
    state = {name: torch.zeros_like(value) for name, value in m.reference.state_dict().items()}
    state["embedding.weight"][:6] = torch.eye(6)  # the first six logits are the features
    m.load(state)
    target = torch.full((40, 5), 11)  # a token whose row is zeros: positions alone are left
    places = sinusoidal_encoding(torch.arange(5), 6).expand(40, 5, 6)
    found = m.train().call(target[:, :2], target)[..., :6]
    dropped = (found == 0)[places.abs() > 1e-3].float().mean().item()
    kept = (found - places / 0.9).abs() < 1e-4
    t.require(
        abs(dropped - 0.1) < 0.06 and bool((kept | (found == 0)).all()),
        "With the default dropout, a tenth of the numbers of tokens with their positions should be "
        "dropped, and the others grow by 1 / (1 - 0.1)",
    )


@Transformer.group(
    "gradients, of the table from all three uses",
    points=1,
    hint="The logits are dot products with `self.embedding.weight` itself, not with a copy.",
)
def _(t: Trial):
    m = with_weights(t, *SIZES, 1, 1, dropout=0.0, norm_first=True, dtype=torch.float64)
    # So loose that positions made in float32 pass, which no wrong gradient does.
    m.same_gradients(ids(t, 2, 5), ids(t, 2, 4), tol=1000)


class _Whole(reference.Transformer):
    """The reference with joints."""

    def embed(self, tokens):
        return self.dropped(self.scaled(self.embedding(tokens)) + self.places(tokens))

    def dropped(self, x):
        return self.dropout(x)

    def scaled(self, x):
        return math.sqrt(x.shape[-1]) * x

    def places(self, tokens):
        weight = self.embedding.weight
        return sinusoidal_encoding(
            torch.arange(tokens.shape[1]), weight.shape[1], dtype=weight.dtype
        )

    def source_mask(self, source):
        return reference.attention_mask(source, self.padding_idx)

    def memory_mask(self, source):
        return reference.attention_mask(source, self.padding_idx)

    def target_mask(self, target):
        return reference.attention_mask(target, self.padding_idx, causal=True)

    def encode(self, source):
        x, mask = self.embed(source), self.source_mask(source)
        for layer in self.encoder_layers:
            x = layer(x, mask)
        return self.encoder_norm(x)

    def decode(self, target, memory, source):
        mask, memory_mask = self.target_mask(target), self.memory_mask(source)
        x, seen = self.embed(target), []
        for layer in self.decoder_layers:
            x, weights = layer(x, memory, mask, memory_mask)
            seen.append(weights)
        return self.head(self.decoder_norm(x)), torch.stack(seen)

    def head(self, x):
        return x @ self.embedding.weight.T

    def forward(self, source, target):
        return self.decode(target, self.encode(source), source)[0]


@Transformer.mistake(
    "You do not multiply the tokens by √D: the positions, numbers near 1, shout them down."
)
class NotScaledUp(_Whole):
    def scaled(self, x):
        return x


@Transformer.mistake("You add no positions: the encoder sees a bag of words.")
class WithoutPositions(_Whole):
    def places(self, tokens):
        return 0


@Transformer.mistake("Your cross-attention asks padding. It needs the mask of the source, too.")
class AsksPadding(_Whole):
    def memory_mask(self, source):
        return None


@Transformer.mistake("Your decoder sees its own future: its self-attention has no causal mask.")
class SeesTheFuture(_Whole):
    def target_mask(self, target):
        return reference.attention_mask(target, self.padding_idx)


@Transformer.mistake(
    "Your encoder is causal. The source is known: every token may see every other."
)
class CausalEncoder(_Whole):
    def source_mask(self, source):
        return reference.attention_mask(source, self.padding_idx, causal=True)


@Transformer.mistake("Your memory leaves the encoder without its last norm, `encoder_norm`.")
class MemoryNotNormalised(_Whole):
    def encode(self, source):
        norm, self.encoder_norm = self.encoder_norm, nn.Identity()
        try:
            return super().encode(source)
        finally:
            self.encoder_norm = norm


@Transformer.mistake(
    "You apply the norm behind the stack after every layer. It stands behind the last one."
)
class NormBehindEachLayer(_Whole):
    def encode(self, source):
        x, mask = self.embed(source), self.source_mask(source)
        for layer in self.encoder_layers:
            x = self.encoder_norm(layer(x, mask))
        return x


@Transformer.mistake(
    "You hand each decoder layer the output of the encoder layer of the same height. All decoder "
    "layers ask what the last encoder layer has made."
)
class LayerByLayer(_Whole):
    def encode(self, source):
        x, mask = self.embed(source), self.source_mask(source)
        self.heights = []
        for layer in self.encoder_layers:
            x = layer(x, mask)
            self.heights.append(self.encoder_norm(x))
        return self.encoder_norm(x)

    def decode(self, target, memory, source):
        mask, memory_mask = self.target_mask(target), self.memory_mask(source)
        x, seen = self.embed(target), []
        for i, layer in enumerate(self.decoder_layers):
            own = self.heights[i] if i < len(self.heights) else memory
            x, weights = layer(x, own, mask, memory_mask)
            seen.append(weights)
        return self.head(self.decoder_norm(x)), torch.stack(seen)


@Transformer.mistake(
    "You use one layer again and again. Each layer has weights of its own: `[layer] * n` is one "
    "layer n times."
)
class OneLayerAgainAndAgain(_Whole):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for layers in (self.encoder_layers, self.decoder_layers):
            for i in range(1, len(layers)):
                layers[i] = layers[0]


@Transformer.mistake(
    "You forgot the dropout of tokens with their positions. It is not only in the layers."
)
class NoDropoutAtTheEntry(_Whole):
    def dropped(self, x):
        return x


@Transformer.mistake(
    "Your table starts as `Embedding` or `nn.Embedding` does by default. Its rows are to start "
    "with standard deviation 1 / √D, so that tokens times √D are as large as positions."
)
class StartsSmall(_Whole):
    def __init__(self, v, d, *args, **kwargs):
        super().__init__(v, d, *args, **kwargs)
        with torch.no_grad():
            self.embedding.weight *= 0.02 * math.sqrt(d)


@Transformer.mistake("You ignore `dtype`. Hand it (and `device`) on to every part.")
class WholeIgnoresDtype(_Whole):
    def __init__(self, *args, device=None, dtype=None, **kwargs):
        super().__init__(*args, **kwargs)


@Transformer.alternative
class WithPrivateHelpers(nn.Module):
    def __init__(self, vocab_size, d_model, n_heads, d_ff, n_encoder_layers, n_decoder_layers,
                 padding_idx=0, dropout=0.1, norm_first=False, final_norm=None, device=None,
                 dtype=None):  # fmt: skip
        super().__init__()
        to = dict(device=device, dtype=dtype)
        if final_norm is None:
            final_norm = norm_first
        self.pad, self.d = padding_idx, d_model
        self.embedding = nn.Embedding(vocab_size, d_model, padding_idx, **to)
        nn.init.normal_(self.embedding.weight, std=1 / math.sqrt(d_model))
        with torch.no_grad():
            self.embedding.weight[padding_idx].zero_()
        more = dict(dropout=dropout, norm_first=norm_first, **to)
        encoders, decoders = [], []
        for _ in range(n_encoder_layers):
            encoders.append(reference.EncoderLayer(d_model, n_heads, d_ff, **more))
        for _ in range(n_decoder_layers):
            decoders.append(reference.DecoderLayer(d_model, n_heads, d_ff, **more))
        self.encoder_layers = nn.ModuleList(encoders)
        self.decoder_layers = nn.ModuleList(decoders)
        if final_norm:
            self.encoder_norm = nn.LayerNorm(d_model, **to)
            self.decoder_norm = nn.LayerNorm(d_model, **to)
        self.drop = nn.Dropout(dropout)

    def _enter(self, tokens):
        x = self.embedding(tokens) * self.d**0.5
        table = sinusoidal_encoding(torch.arange(tokens.size(1)), self.d, dtype=x.dtype)
        return self.drop(x + table[None])

    def encode(self, source):
        x = self._enter(source)
        hidden = (source != self.pad)[:, None, None, :]
        for layer in self.encoder_layers:
            x = layer(x, mask=hidden)
        return self.encoder_norm(x) if hasattr(self, "encoder_norm") else x

    def decode(self, target, memory, source):
        x, kept = self._enter(target), ()
        t = target.size(1)
        seen = torch.ones(t, t, dtype=torch.bool).tril() & (target != self.pad)[:, None, None, :]
        for layer in self.decoder_layers:
            x, w = layer(x, memory, seen, (source != self.pad)[:, None, None, :])
            kept += (w,)
        x = self.decoder_norm(x) if hasattr(self, "decoder_norm") else x
        return F.linear(x, self.embedding.weight), torch.stack(kept)

    def forward(self, source, target):
        return self.decode(target, self.encode(source), source)[0]


@Transformer.alternative
class WithEinsumHead(_Whole):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for name in ("encoder_norm", "decoder_norm"):
            if isinstance(getattr(self, name), nn.Identity):
                setattr(self, name, nn.Sequential())

    def head(self, x):
        return torch.einsum("btd,vd->btv", x, self.embedding.weight)


# -------------------------------------------------------------------------- who_sees_whom


def who_sees_whom(
    model: Callable[[Tensor, Tensor], Tensor],
    source: Int[Tensor, "B S"],
    target: Int[Tensor, "B T"],
    vocab_size: int,
) -> tuple[Bool[Tensor, "T S"], Bool[Tensor, "T T"]]:
    """Find out, by trying, on which tokens of either side each output of a translator depends.

    Change one token, in all sequences, to another id, and see which outputs move in any of them.
    Differences up to 1e-6 are rounding; what moves because of a token may move by a thousandth
    only. An output that depends on a token moves whichever other id stands there.

    Args:
        model: takes source and target ids, and gives logits (B, T, V). It may treat each sequence
            in its own way.
        source: ids to try it on, from 0 to V - 1. Left unchanged.
        target: ids to try it on, from 0 to V - 1. Left unchanged.
        vocab_size: number of ids V, at least 2.

    Returns:
        Whether the output at target position t depends on source token s, at [t, s]; and whether
        it depends on target token j, at [t, j].
    """
    before = model(source, target)
    found = []
    for side in (source, target):
        columns = []
        for j in range(side.shape[1]):
            changed = side.clone()
            changed[:, j] = (side[:, j] + 1) % vocab_size
            after = model(changed, target) if side is source else model(source, changed)
            columns.append(((after - before).abs() > 1e-6).any(-1).any(0))  # (T)
        found.append(torch.stack(columns, dim=1))  # output before token
    return found[0], found[1]


# What it is tried on: translators of ids from 0 to 10. The names say what they do.


def _codes(phase: float) -> Tensor:
    """A vector (4) for each of the ids, none of whose numbers another id has."""
    place = torch.arange(11, dtype=torch.float64)[:, None]
    return ((place + 1) * torch.arange(1, 5) * 0.37 + phase).sin() + 0.1 * place


SOURCE_CODES, TARGET_CODES = _codes(0.5), _codes(0.0)


def _sum_where(mask: Tensor, codes: Tensor) -> Tensor:
    """For each output the sum of the codes of the tokens that the mask (T, S) lets it see."""
    return mask.double() @ codes  # (T, S) @ (B, S, 4) -> (B, T, 4)


def _translate(source: Tensor, target: Tensor, of_source: Tensor, of_target: Tensor) -> Tensor:
    return _sum_where(of_source, SOURCE_CODES[source]) + _sum_where(of_target, TARGET_CODES[target])


def _masks(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    t, s = target.shape[1], source.shape[1]
    return torch.ones(t, s, dtype=torch.bool), causal_mask(t)


def encoder_decoder(source, target):
    return _translate(source, target, *_masks(source, target))


def decoder_deaf_to_the_source(source, target):
    of_source, of_target = _masks(source, target)
    return _translate(source, target, torch.zeros_like(of_source), of_target)


def decoder_without_a_mask(source, target):
    of_source, of_target = _masks(source, target)
    return _translate(source, target, of_source, torch.ones_like(of_target))


def decoder_one_too_far(source, target):
    of_source, of_target = _masks(source, target)
    return _translate(source, target, of_source, of_target | of_target.roll(1, 1).tril(1))


def word_by_word(source, target):
    of_source, _ = _masks(source, target)
    return _translate(
        source, target, of_source.tril() & of_source.triu(), torch.eye(target.shape[1])
    )


def source_only_up_to_the_same_place(source, target):
    of_source, of_target = _masks(source, target)
    return _translate(source, target, of_source.tril(), of_target)


def target_unheard(source, target):
    of_source, of_target = _masks(source, target)
    return _translate(source, target, of_source, torch.zeros_like(of_target))


def each_sequence_in_its_own_way(source, target):
    """The first sees the future, the last alone hears the source."""
    of_source, of_target = _masks(source, target)
    place, last = torch.arange(len(source)).view(-1, 1, 1), len(source) - 1
    of_source = of_source & (place == last)  # (B, T, S)
    return _translate(source, target, of_source, of_target | (place == 0))


def a_whisper_of_the_future(source, target):
    return encoder_decoder(source, target) + 0.001 * decoder_without_a_mask(source, target)


def each_logit_in_its_own_way(source, target):
    """The first sees the future, the last alone hears the source."""
    deaf = decoder_deaf_to_the_source(source, target)
    future = deaf - encoder_decoder(source, target) + decoder_without_a_mask(source, target)
    heard = encoder_decoder(source, target)
    return torch.cat([future[..., :1], deaf[..., 1:3], heard[..., 3:]], dim=-1)


def rises_with_the_ids(source, target):
    of_source, of_target = _masks(source, target)
    source, target = source[..., None].double(), target[..., None].double()
    return _sum_where(of_source, source) + _sum_where(of_target, target)


def falls_with_the_ids(source, target):
    return -rises_with_the_ids(source, target)


def influences_that_cancel(source, target):
    """What one sequence gains the other loses; likewise one logit and the next."""
    signs = torch.tensor([1.0, -1.0]).repeat((len(source) + 1) // 2)[: len(source), None, None]
    return signs * encoder_decoder(source[:1].expand_as(source), target[:1].expand_as(target))


seeing = chapter.exercise(who_sees_whom, difficulty=3, minutes=10)


def _see(t: Trial, *models: Callable) -> None:
    for model in models:
        t.same(model, t.randint(0, 11, (3, 5)), t.randint(0, 11, (3, 4)), 11)


@seeing.group(
    "sound translators, and grave faults",
    points=2,
    hint="For each token of either side: a copy with that token changed, the outputs anew, and "
    "which of the T outputs moved.",
)
def _(t: Trial):
    _see(t, encoder_decoder, decoder_deaf_to_the_source, decoder_without_a_mask, target_unheard)
    t.same(encoder_decoder, t.randint(0, 11, (2, 7)), t.randint(0, 11, (2, 3)), 11)
    if t.graded:
        t.same(decoder_one_too_far, t.randint(0, 11, (4, 3)), t.randint(0, 11, (4, 6)), 11)


@seeing.group(
    "faults of one place",
    points=1,
    hint="Output before token: at [t, j] stands what becomes of output t when token j changes.",
)
def _(t: Trial):
    _see(t, decoder_one_too_far, word_by_word, source_only_up_to_the_same_place)


@seeing.group(
    "what shows in one sequence, in one logit, or faintly",
    points=1,
    hint="Any logit of any sequence counts: `.any(-1).any(0)`. Compare with 1e-6, and look at "
    "sizes, not at sums, in which influences may cancel.",
)
def _(t: Trial):
    _see(t, each_sequence_in_its_own_way, each_logit_in_its_own_way)
    _see(t, a_whisper_of_the_future, influences_that_cancel)
    for model in (rises_with_the_ids, falls_with_the_ids):
        t.same(model, t.randint(1, 10, (2, 3)), t.randint(1, 10, (2, 4)), 11)


@seeing.group(
    "every id is changed to another that there is",
    points=1,
    hint="`(id + 1) % vocab_size` is another id, whatever the id, and below vocab_size.",
)
def _(t: Trial):
    for source, target in ((0, 10), (10, 0)):
        t.same(encoder_decoder, torch.full((2, 3), source), torch.full((2, 4), target), 11)
    t.same(encoder_decoder_of_two_ids, t.randint(0, 2, (2, 3)), t.randint(0, 2, (2, 4)), 2)


def encoder_decoder_of_two_ids(source, target):
    for tokens in (source, target):
        if ((tokens < 0) | (tokens > 1)).any():
            raise IndexError(f"this translator knows the ids 0 and 1, and was given {tokens.max()}")
    return encoder_decoder(source, target)


@seeing.group("leaves its inputs alone", points=1, hint="Change a copy: `side.clone()`.")
def _(t: Trial):
    source, target = t.randint(0, 11, (2, 5)), t.randint(0, 11, (2, 4))
    t.unchanged(encoder_decoder, source, target, 11)
    t.same(encoder_decoder, source, target, 11)


def _seen(
    model, source, target, vocab_size, *, change=None, moved=None, sides=(0, 1), fresh=True,
    skip=lambda j, n: False,
):  # fmt: skip
    change = change or (lambda column: (column + 1) % vocab_size)
    moved = moved or (lambda difference: (difference.abs() > 1e-6).any(-1).any(0))
    before, found = model(source, target), []
    for i, side in enumerate((source, target)):
        changed, columns = side.clone(), []
        for j in range(side.shape[1]):
            if fresh:
                changed = side.clone()
            if not skip(j, side.shape[1]):
                changed[:, j] = change(side[:, j])
            after = model(changed, target) if i == 0 else model(source, changed)
            columns.append(moved(after - before))
        found.append(torch.stack(columns, dim=1))
    return tuple(found)


@seeing.mistake("You have it the wrong way round: True means that the output moves.")
def says_what_does_not_move(model, source, target, vocab_size):
    a, b = _seen(model, source, target, vocab_size)
    return ~a, ~b


@seeing.mistake(
    "You return the tables with token before output. It is output before token: [t, s]."
)
def token_before_output(model, source, target, vocab_size):
    a, b = _seen(model, source, target, vocab_size)
    return a.T, b.T


@seeing.mistake("You return the two tables in the wrong order: the source's first.")
def target_first(model, source, target, vocab_size):
    a, b = _seen(model, source, target, vocab_size)
    return b, a


@seeing.mistake(
    "Your test cannot fail: it says what a sound translator would do, and does not try this one."
)
def says_what_should_be(model, source, target, vocab_size):
    model(source, target)
    return _masks(source, target)


@seeing.mistake(
    "You do not put a token back before you change the next one, so that the first change moves "
    "everything. Start from a new copy each time."
)
def changes_pile_up(model, source, target, vocab_size):
    return _seen(model, source, target, vocab_size, fresh=False)


@seeing.mistake("You look at the first sequence alone. Another may be treated in another way.")
def first_sequence_alone(model, source, target, vocab_size):
    return _seen(model, source, target, vocab_size, moved=lambda d: (d.abs() > 1e-6).any(-1)[0])


@seeing.mistake(
    "You ask that an output moves in every sequence. It depends on a token if it moves in any."
)
def in_every_sequence(model, source, target, vocab_size):
    return _seen(model, source, target, vocab_size, moved=lambda d: (d.abs() > 1e-6).any(-1).all(0))


@seeing.mistake("You look at the first logit alone. Any of them may move.")
def first_logit_alone(model, source, target, vocab_size):
    return _seen(model, source, target, vocab_size, moved=lambda d: (d.abs() > 1e-6)[..., 0].any(0))


@seeing.mistake("You ask that every logit moves. One is enough.")
def every_logit(model, source, target, vocab_size):
    return _seen(model, source, target, vocab_size, moved=lambda d: (d.abs() > 1e-6).all(-1).any(0))


@seeing.mistake(
    "You add differences up before you look at their size. What one sequence gains another may "
    "lose. Take the size of each first."
)
def sums_that_cancel(model, source, target, vocab_size):
    return _seen(model, source, target, vocab_size, moved=lambda d: d.sum(0).abs().amax(-1) > 1e-6)


@seeing.mistake("You look at rises alone. An output that falls has moved as well: `.abs()`.")
def rises_alone(model, source, target, vocab_size):
    return _seen(model, source, target, vocab_size, moved=lambda d: (d > 1e-6).any(-1).any(0))


@seeing.mistake("Your comparison is too coarse. What is more than 1e-6 is no rounding.")
def too_coarse(model, source, target, vocab_size):
    return _seen(model, source, target, vocab_size, moved=lambda d: (d.abs() > 1e-2).any(-1).any(0))


@seeing.mistake(
    "You change tokens to a fixed id. Where a token has this id already, nothing is changed."
)
def to_a_fixed_id(model, source, target, vocab_size):
    return _seen(model, source, target, vocab_size, change=lambda c: torch.zeros_like(c))


@seeing.mistake(
    "Your changed ids may be vocab_size, which is none. Ids go from 0 to V - 1: `% vocab_size`."
)
def past_the_last_id(model, source, target, vocab_size):
    return _seen(model, source, target, vocab_size, change=lambda c: c + 1)


@seeing.mistake("You leave out the last token of either side.")
def last_left_out(model, source, target, vocab_size):
    return _seen(model, source, target, vocab_size, skip=lambda j, n: j == n - 1)


@seeing.mistake("You leave out token 0 of either side.")
def first_left_out(model, source, target, vocab_size):
    return _seen(model, source, target, vocab_size, skip=lambda j, n: j == 0)


@seeing.mistake("You change the source itself. The caller still needs it: `source.clone()`.")
def source_spoiled(model, source, target, vocab_size):
    found = _seen(model, source, target, vocab_size)
    source[:, -1] = (source[:, -1] + 1) % vocab_size
    return found


@seeing.alternative
def with_loops_over_outputs(model, source, target, vocab_size):
    before = model(source, target)
    t = target.shape[1]
    tables = [torch.zeros(t, n, dtype=torch.bool) for n in (source.shape[1], t)]
    for side, table in enumerate(tables):
        for j in range(table.shape[1]):
            inputs = [source.clone(), target.clone()]
            inputs[side][:, j] = (inputs[side][:, j] + vocab_size - 1) % vocab_size
            after = model(*inputs)
            for i in range(t):
                table[i, j] = not torch.allclose(after[:, i], before[:, i], rtol=0, atol=1e-6)
    return tables


@seeing.alternative
def with_where(model, source, target, vocab_size):
    before = model(source, target)

    def table(run, side):
        n = side.shape[1]
        other = torch.where(side == 0, 1, 0) if vocab_size == 2 else (side + 1) % vocab_size
        rows = [run(torch.where(torch.arange(n) == j, other, side)) for j in range(n)]
        return torch.stack([(r - before).abs().amax((0, 2)) > 1e-6 for r in rows], -1)

    return table(lambda s: model(s, target), source), table(lambda s: model(source, s), target)


# ----------------------------------------------------------------------- translation_loss

losing = chapter.exercise(reference.translation_loss, difficulty=2, minutes=8, mend="as_handed_out")


def bigrams(source, target):
    """Logits (B, T, 11) that depend on the whole source, the token itself and its place."""
    weights = torch.arange(11, dtype=torch.float64)
    place = 0.2 * torch.arange(target.shape[1]).view(1, -1, 1)
    own = torch.sin((target[..., None] + 1) * (weights + 1) * 0.7 + place)
    read = torch.cos((source[..., None] + 2) * (weights + 1) * 0.3).mean(1, keepdim=True)
    return 2 * own + 3 * read


def prefixes(source, target):
    """Logits (B, T, 11) that depend on all target tokens up to each."""
    sums = (target * (1 + torch.arange(target.shape[1]))).cumsum(1)
    return bigrams(source, sums % 11)


def _sentences(t: Trial, *shape: int, lengths: list[int], padding_idx: int = 0) -> Tensor:
    """Targets: start token, words, end token, padding."""
    target = ids(t, *shape, lengths=lengths, padding_idx=padding_idx)
    target[:, 0] = 1
    target[torch.arange(shape[0]), torch.tensor(lengths) - 1] = 2
    return target


@losing.group(
    "what is read, and what is to be said",
    points=2,
    hint="The model is to read the target without its last token, and to say the target without "
    "its first. What `teacher_forcing` of chapter 05 gives.",
)
def _(t: Trial):
    t.same(bigrams, ids(t, 2, 5), _sentences(t, 2, 6, lengths=[6, 6]))
    t.same(prefixes, ids(t, 3, 4), _sentences(t, 3, 7, lengths=[7, 7, 7]))
    if t.graded:
        t.same(prefixes, ids(t, 1, 6), _sentences(t, 1, 4, lengths=[4]))


@losing.group(
    "padding is not graded, and every token counts alike",
    points=1,
    hint="`ignore_index` of `F.cross_entropy` leaves labels out, of the sum and of the count.",
)
def _(t: Trial):
    t.same(bigrams, ids(t, 3, 5, lengths=[3, 5, 2]), _sentences(t, 3, 7, lengths=[3, 7, 4]))
    t.same(prefixes, ids(t, 2, 4), _sentences(t, 2, 6, lengths=[2, 5]), padding_idx=0)


@losing.group("padding of another id", points=1, hint="Its id is `padding_idx`; 0 may be a word.")
def _(t: Trial):
    target = _sentences(t, 2, 6, lengths=[4, 6], padding_idx=9)
    target[0, 2] = 0
    t.same(bigrams, ids(t, 2, 5), target, 9)
    t.same(prefixes, ids(t, 2, 5), target, padding_idx=9)


def _graded(logits, labels, padding_idx):
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=padding_idx)


@losing.mistake("It reads what it is to say, and padding is graded.")
def as_handed_out(model, source, target, padding_idx=0):
    logits = model(source, target)
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


@losing.mistake(
    "You let the model read the token that it is to say: inputs and labels are the same. It learns "
    "to repeat, with a loss near 0, and can write nothing."
)
def not_shifted(model, source, target, padding_idx=0):
    return _graded(model(source, target), target, padding_idx)


@losing.mistake(
    "You grade padding. The model learns, with most of its effort, to write padding behind the end."
)
def padding_graded(model, source, target, padding_idx=0):
    logits = model(source, target[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten())


@losing.mistake("You shift the wrong way: the model reads a token and is to say the one before it.")
def shifted_backwards(model, source, target, padding_idx=0):
    return _graded(model(source, target[:, 1:]), target[:, :-1], padding_idx)


@losing.mistake("You hand the model the target as its source. First the source, then the target.")
def sides_swapped(model, source, target, padding_idx=0):
    return _graded(model(target[:, :-1], source), target[:, 1:], padding_idx)


@losing.mistake("You average over each sentence first: words of short sentences count for more.")
def mean_of_means(model, source, target, padding_idx=0):
    labels = target[:, 1:]
    losses = F.cross_entropy(model(source, target[:, :-1]).mT, labels, reduction="none")
    real = (labels != padding_idx).double()
    return ((losses * real).sum(1) / real.sum(1)).mean()


@losing.mistake("You leave padding out of the sum, and count it all the same.")
def divided_by_all(model, source, target, padding_idx=0):
    labels = target[:, 1:]
    losses = F.cross_entropy(model(source, target[:, :-1]).mT, labels, reduction="none")
    return (losses * (labels != padding_idx)).mean()


@losing.mistake("You add the surprises up. Their mean is asked for.")
def summed_up(model, source, target, padding_idx=0):
    logits, labels = model(source, target[:, :-1]), target[:, 1:]
    return F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=padding_idx, reduction="sum"
    )


@losing.mistake("You leave out the end token. Without it the model never learns to stop.")
def end_not_graded(model, source, target, padding_idx=0):
    real = target != padding_idx
    last = real & ~torch.cat([real[:, 1:], torch.zeros_like(real[:, :1])], dim=1)
    labels = target.masked_fill(last, -100).masked_fill(~real, -100)[:, 1:]
    return _graded(model(source, target[:, :-1]), labels, -100)


@losing.mistake("You take 0 for the padding. It has the id `padding_idx`.")
def zero_is_padding(model, source, target, padding_idx=0):
    return _graded(model(source, target[:, :-1]), target[:, 1:], 0)


@losing.alternative
def token_by_token(model, source, target, padding_idx=0):
    logits = model(source, target[:, :-1]).log_softmax(-1)
    found = []
    for b in range(target.shape[0]):
        for i in range(1, target.shape[1]):
            if target[b, i] != padding_idx:
                found.append(-logits[b, i - 1, target[b, i]])
    return torch.stack(found).mean()


@losing.alternative
def with_a_boolean_index(model, source, target, padding_idx=0):
    labels = target[:, 1:]
    real = labels != padding_idx
    return F.cross_entropy(model(source, target[:, :-1])[real], labels[real])


@losing.alternative
def with_axes_moved(model, source, target, padding_idx=0):
    return F.cross_entropy(
        model(source, target[:, :-1]).transpose(1, 2), target[:, 1:], ignore_index=padding_idx
    )


# -------------------------------------------------------------------------- greedy_decode

greedy = chapter.exercise(reference.greedy_decode, difficulty=3, minutes=10)

START, END = 1, 2


def _story(t: Trial, lengths: list[int], width: int = 7, padding_idx: int = 0) -> Tensor:
    """What to write, in row i, for a sentence that starts with id i: words, then the end token."""
    script = t.randint(3, 12, (len(lengths), width))
    for row, length in enumerate(lengths):
        script[row, length - 1] = END
        script[row, length:] = t.randint(3, 12, (width - length,))  # what follows if nobody stops
    return script


def _write(t: Trial, script: Tensor, firsts: list[int], max_length: int, **more) -> tuple:
    source = t.randint(3, 12, (len(firsts), 4))
    source[:, 0] = torch.tensor(firsts)
    return t.drive("greedy_run", script, source, more.pop("start", START), END, max_length, **more)


@greedy.group(
    "writes token by token, and returns it without the start",
    points=2,
    hint="The target begins as a column of start tokens. Each step: the logits behind its last "
    "token, the likeliest id, which becomes its next column.",
)
def _(t: Trial):
    script = _story(t, [5, 5, 5])
    for firsts in ([0], [2, 0]):
        found, expected = _write(t, script, firsts, 7)
        t.equal(found["written"], expected["written"], "What is written is wrong")
    found, expected = _write(t, script, [1, 2, 0], 9, start=13)
    t.equal(
        found["written"], expected["written"], "With another start token, what is written is wrong"
    )


@greedy.group(
    "ends, at the end token or at max_length",
    points=1,
    hint="Stop when every sentence has its end token, which is part of what is returned, or when "
    "max_length tokens are written.",
)
def _(t: Trial):
    script = _story(t, [4, 1, 6])
    for firsts, longest in (([0], 7), ([1], 7), ([0], 4), ([0], 3), ([2, 2], 1), ([2], 6)):
        found, expected = _write(t, script, firsts, longest)
        t.equal(
            found["written"], expected["written"],
            f"With max_length={longest}, what is written is wrong",
        )  # fmt: skip


@greedy.group(
    "a sentence that is finished is padded while others go on",
    points=1,
    hint="Remember which sentences are finished. What they write from then on is `padding_idx`.",
)
def _(t: Trial):
    script = _story(t, [2, 5, 3, 1])
    for firsts, padding_idx in (([0, 1], 0), ([1, 3, 2, 0], 0), ([3, 1, 1], 15)):
        found, expected = _write(t, script, firsts, 7, padding_idx=padding_idx)
        t.equal(found["written"], expected["written"], "What is written is wrong")
    found, expected = _write(t, script, [2, 1, 0], 4)
    t.equal(found["written"], expected["written"], "With max_length=4, what is written is wrong")


@greedy.group(
    "reads the source once",
    points=1,
    hint="`model.encode(source)` stands before the loop.",
)
def _(t: Trial):
    found, expected = _write(t, _story(t, [4, 6]), [1, 0], 7)
    t.equal(
        found["read"], expected["read"], "The source should be read once, however much is written"
    )


@greedy.group(
    "in evaluation mode, without a graph, and leaves the mode as it was",
    points=1,
    hint="`model.eval()` first; at the end `model.train(...)` with what `model.training` was. "
    "`@torch.no_grad()` stands above the function already.",
)
def _(t: Trial):
    for training in (True, False):
        found, expected = _write(t, _story(t, [3, 4]), [0, 1], 6, training=training)
        t.equal(
            found["steps"],
            expected["steps"],
            "The model should be used in evaluation mode, without a graph",
        )
        t.equal(
            found["training"],
            expected["training"],
            "The model should be left in the mode in which it came",
        )


def _greedily(
    model, source, start, end, max_length, *, pick=None, again=False, pad=True, keep_start=False,
    stop=lambda finished: finished.all(), mode=True, restore=True, steps=None, feed=None,
):  # fmt: skip
    training = model.training
    if mode:
        model.eval()
    pick = pick or (lambda logits: logits[:, -1].argmax(-1))
    memory = model.encode(source)
    target = torch.full((len(source), 1), start)
    finished = torch.zeros(len(source), dtype=torch.bool)
    for _ in range(max_length if steps is None else steps):
        if again:
            memory = model.encode(source)
        logits, _ = model.decode(feed(target) if feed else target, memory, source)
        written = pick(logits)
        if pad:
            written = torch.where(finished, model.padding_idx, written)
        target = torch.cat([target, written[:, None]], dim=1)
        finished = finished | (written == end)
        if stop(finished):
            break
    if restore:
        model.train(training)
    return target if keep_start else target[:, 1:]


@greedy.mistake("You return the start token as well. What was written comes behind it.")
@torch.no_grad()
def start_kept(model, source, start, end, max_length):
    return _greedily(model, source, start, end, max_length, keep_start=True)


@greedy.mistake(
    "You take the logits behind the first token of the target. The next token is said behind the "
    "last one: `logits[:, -1]`."
)
@torch.no_grad()
def first_logits(model, source, start, end, max_length):
    return _greedily(
        model, source, start, end, max_length, pick=lambda logits: logits[:, 0].argmax(-1)
    )


@greedy.mistake("You take the least likely token: it is the largest logit that counts.")
@torch.no_grad()
def least_likely(model, source, start, end, max_length):
    return _greedily(
        model, source, start, end, max_length, pick=lambda logits: logits[:, -1].argmin(-1)
    )


@greedy.mistake("You draw the token at random. Greedy decoding takes the likeliest.")
@torch.no_grad()
def drawn_at_random(model, source, start, end, max_length):
    return _greedily(
        model, source, start, end, max_length,
        pick=lambda logits: torch.multinomial((0.1 * logits[:, -1]).softmax(-1), 1)[:, 0],
    )  # fmt: skip


@greedy.mistake(
    "You hand the decoder its last token alone. It needs everything written so far, from the start "
    "token on."
)
@torch.no_grad()
def last_token_alone(model, source, start, end, max_length):
    return _greedily(model, source, start, end, max_length, feed=lambda target: target[:, -1:])


@greedy.mistake(
    "You do not stop at the end token. When every sentence has one, nothing more is written."
)
@torch.no_grad()
def never_stops(model, source, start, end, max_length):
    return _greedily(model, source, start, end, max_length, stop=lambda finished: False)


@greedy.mistake("You stop as soon as one sentence is finished. The others go on.")
@torch.no_grad()
def stops_with_the_first(model, source, start, end, max_length):
    return _greedily(model, source, start, end, max_length, stop=lambda finished: finished.any())


@greedy.mistake(
    "You let finished sentences go on writing while others are not finished. Behind an end token "
    "stands padding."
)
@torch.no_grad()
def writes_on(model, source, start, end, max_length):
    return _greedily(model, source, start, end, max_length, pad=False)


@greedy.mistake("You pad with 0. The model says what its padding is: `model.padding_idx`.")
@torch.no_grad()
def padded_with_zero(model, source, start, end, max_length):
    padding_idx, model.padding_idx = model.padding_idx, 0
    found = _greedily(model, source, start, end, max_length)
    model.padding_idx = padding_idx
    return found


@greedy.mistake("You fill up with end tokens. Behind the end token stands padding.")
@torch.no_grad()
def padded_with_ends(model, source, start, end, max_length):
    padding_idx, model.padding_idx = model.padding_idx, end
    found = _greedily(model, source, start, end, max_length)
    model.padding_idx = padding_idx
    return found


@greedy.mistake("You cut the end tokens off. They are part of what is written.")
@torch.no_grad()
def ends_cut_off(model, source, start, end, max_length):
    found = _greedily(model, source, start, end, max_length)
    found = torch.where(found == end, model.padding_idx, found)
    return found[:, (found != model.padding_idx).any(0)]


@greedy.mistake("You write one token more than max_length.")
@torch.no_grad()
def one_too_many(model, source, start, end, max_length):
    return _greedily(model, source, start, end, max_length, steps=max_length + 1)


@greedy.mistake("You write one token less than max_length: the start token does not count.")
@torch.no_grad()
def one_too_few(model, source, start, end, max_length):
    return _greedily(model, source, start, end, max_length, steps=max_length - 1)


@greedy.mistake("You read the source anew for every token. It does not change: once is enough.")
@torch.no_grad()
def reads_again(model, source, start, end, max_length):
    return _greedily(model, source, start, end, max_length, again=True)


@greedy.mistake(
    "You leave the model in training mode while it writes: dropout makes every word a lottery. "
    "`model.eval()`."
)
@torch.no_grad()
def in_training_mode(model, source, start, end, max_length):
    return _greedily(model, source, start, end, max_length, mode=False)


@greedy.mistake(
    "You leave the model in evaluation mode. If training goes on, its dropout is off from here on."
)
@torch.no_grad()
def mode_not_restored(model, source, start, end, max_length):
    return _greedily(model, source, start, end, max_length, restore=False)


@greedy.mistake("You leave the model in training mode, whichever it came in.")
@torch.no_grad()
def always_back_to_training(model, source, start, end, max_length):
    found = _greedily(model, source, start, end, max_length)
    model.train()
    return found


@greedy.mistake("You build a graph for gradients that nobody needs. `torch.no_grad()`.")
def with_a_graph(model, source, start, end, max_length):
    return _greedily(model, source, start, end, max_length)


@greedy.alternative
def into_a_buffer(model, source, start, end, max_length):
    mode = model.training
    model.train(False)
    with torch.inference_mode():
        memory = model.encode(source)
        target = source.new_full((source.shape[0], max_length + 1), model.padding_idx)
        target[:, 0] = start
        going = torch.ones(source.shape[0], dtype=torch.bool)
        n = 0
        while n < max_length and going.any():
            logits = model.decode(target[:, : n + 1], memory, source)[0]
            n += 1
            target[going, n] = logits[going, -1].max(-1).indices
            going &= target[:, n] != end
    model.train(mode)
    return target[:, 1 : n + 1].clone()


@greedy.alternative
@torch.no_grad()
def sentence_by_sentence(model, source, start, end, max_length):
    mode = model.training
    model.eval()
    memory, rows = model.encode(source), []
    for b in range(len(source)):
        written = [start]
        while len(written) <= max_length:
            logits, _ = model.decode(torch.tensor([written]), memory[b : b + 1], source[b : b + 1])
            written.append(int(logits[0, -1].argmax()))
            if written[-1] == end:
                break
        rows.append(written[1:])
    model.train(mode)
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [model.padding_idx] * (longest - len(row)) for row in rows])
