"""Positions: telling a model in which order its tokens stand (chapter 07)."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from solutions.masking import masked_softmax
from solutions.self_attention import attention_scores, softmax

# ------------------------------------------------------------------- added to the tokens


def sinusoidal_encoding(
    positions: Int[Tensor, "*shape"],
    d_model: int,
    base: float = 10_000.0,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "*shape D"]:
    """Describe each position by sines and cosines of d_model / 2 frequencies.

    Frequency i is base^(-2i / d_model), and turns position p by the angle p · base^(-2i / d_model).
    Element 2i is the sine of that angle, element 2i + 1 its cosine. Angles are computed in float64,
    so that the result is right to the last digits of dtype for positions in the millions.

    Args:
        positions: whole numbers, in a tensor of any shape.
        d_model: width D of the encoding, an even number.
        base: the larger, the slower the slow frequencies.
        dtype: of the result.

    Returns:
        The encoding of each position along a new last axis, on the device of positions.

    Raises:
        ValueError: d_model is odd; the message gives it.

    Source: Vaswani et al. 2017, section 3.5.
    """
    if d_model % 2:
        raise ValueError(f"sines and cosines come in pairs: d_model={d_model} is odd")
    i = torch.arange(d_model // 2, dtype=torch.float64, device=positions.device)
    angles = positions.double().unsqueeze(-1) * base ** (-2 * i / d_model)  # (*shape, D/2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2).to(dtype)


class LearnedPositions(nn.Module):
    """A table with a learned vector for each position, as many as there are and no more.

    The table is the parameter `weight`, of shape (max_length, d_model), drawn at first from a
    normal distribution with mean 0 and standard deviation 0.02.

    Args:
        max_length: number of positions, 0 to max_length - 1.
        d_model: width D of the vectors.
        device: of the parameter, as in torch.nn.
        dtype: of the parameter, as in torch.nn.

    Source: Gehring et al. 2017, section 3.1; the standard deviation is that of Radford et al. 2018.
    """

    def __init__(self, max_length: int, d_model: int, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(max_length, d_model, device=device, dtype=dtype))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, positions: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        """Look up the vectors.

        Args:
            positions: whole numbers from 0 to max_length - 1, in a tensor of any shape, which may
                have no elements.

        Returns:
            The vector of each position along a new last axis. Gradients flow back to the table.

        Raises:
            ValueError: a position is negative, or not in the table; the message gives that
                position and max_length.
        """
        outside = (positions < 0) | (positions >= len(self.weight))
        if outside.any():
            raise ValueError(
                f"position {positions[outside][0].item()} is not in the table: "
                f"max_length={len(self.weight)}"
            )
        return self.weight[positions]


# ------------------------------------------------------- rotating queries and keys (RoPE)


def rope_angles(
    positions: Int[Tensor, "*shape"], d_head: int, base: float = 10_000.0, scale: float = 1.0
) -> Float[Tensor, "*shape K/2"]:
    """By which angle each pair of features is turned at each position.

    Pair i turns by base^(-2i / d_head) from one position to the next. All positions are divided by
    scale first: with scale = 4, position interpolation, position 100 gets the angles that
    position 25 would have had.

    Args:
        positions: whole numbers, in a tensor of any shape; negative ones are allowed.
        d_head: width K of a head, an even number.
        base: the larger, the slower the slow pairs.
        scale: by how much to squeeze the positions together.

    Returns:
        Angles in radians, of dtype float64: in float32 the angle 1,000,000 is off by as much as
        0.03. They stand along a new last axis, on the device of positions.

    Raises:
        ValueError: d_head is odd; the message gives it.

    Source: Su et al. 2021, section 3.2.2; for scale, Chen et al. 2023, section 2.3.
    """
    if d_head % 2:
        raise ValueError(f"RoPE turns pairs of features: d_head={d_head} is odd")
    i = torch.arange(d_head // 2, dtype=torch.float64, device=positions.device)
    return positions.double().unsqueeze(-1) / scale * base ** (-2 * i / d_head)


def apply_rope(
    x: Float[Tensor, "*batch T K"], angles: Float[Tensor, "..."], interleaved: bool = True
) -> Float[Tensor, "*batch T K"]:
    """Turn each pair of features (a, b) by its angle: (a cos - b sin, a sin + b cos).

    Args:
        x: queries or keys, K wide, after any number of leading axes. Left unchanged.
        angles: K/2 angles for each position, from `rope_angles`: (T, K/2), or any shape that
            broadcasts to that of x with K/2 in place of K.
        interleaved: True pairs features 2i and 2i + 1, as the paper does; False pairs features i
            and i + K/2, the halves, as the checkpoints of GPT-NeoX and Llama in Hugging Face's
            format do.

    Returns:
        x, turned, in the dtype of x, each feature in its place. Sines and cosines are taken in the
        dtype of the angles. Gradients flow back to x and to angles.

    Source: Su et al. 2021, section 3.4.2; for the halves, Black et al. 2022.
    """
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]  # (*batch, T, K/2) each
    else:
        a, b = x.chunk(2, dim=-1)
    turned = a * cos - b * sin, a * sin + b * cos
    if interleaved:
        return torch.stack(turned, dim=-1).flatten(-2)  # (*batch, T, K/2, 2) -> (*batch, T, K)
    return torch.cat(turned, dim=-1)


def to_halves(weight: Float[Tensor, "HK *rest"], n_heads: int) -> Float[Tensor, "HK *rest"]:
    """Reorder a query or key projection made for interleaved pairs, so that it serves halves.

    Within each head, feature 2i moves to place i, and feature 2i + 1 to place i + K/2. Do it to
    the projection of the queries and to that of the keys, and the scores stay what they were.

    Args:
        weight: as in nn.Linear, one row for each feature of each head, head after head; or its
            bias, which has no further axes. Left unchanged.
        n_heads: number of heads H in it. Of keys that several heads share, the number of key heads.

    Returns:
        The same rows in another order.

    Raises:
        ValueError: the rows cannot be divided among n_heads heads of even width; the message gives
            both numbers.

    Source: the converter of Llama's checkpoints in Hugging Face transformers, 2023.
    """
    rows = len(weight)
    if rows % (2 * n_heads):
        raise ValueError(f"{rows} rows do not make n_heads={n_heads} heads of even width")
    pairs = weight.reshape(n_heads, -1, 2, *weight.shape[1:])  # (H, K/2, 2, *rest)
    return pairs.transpose(1, 2).reshape(weight.shape)  # (H, 2, K/2, *rest) -> (HK, *rest)


def to_interleaved(weight: Float[Tensor, "HK *rest"], n_heads: int) -> Float[Tensor, "HK *rest"]:
    """Undo `to_halves`: from a checkpoint in Hugging Face's format to interleaved pairs.

    Args:
        weight: as in nn.Linear, one row for each feature of each head, head after head; or its
            bias. Left unchanged.
        n_heads: number of heads H in it.

    Returns:
        The same rows in another order: within each head, the feature at place i stands at 2i, the
        one at place i + K/2 at 2i + 1.

    Raises:
        ValueError: the rows cannot be divided among n_heads heads of even width.
    """
    rows = len(weight)
    if rows % (2 * n_heads):
        raise ValueError(f"{rows} rows do not make n_heads={n_heads} heads of even width")
    halves = weight.reshape(n_heads, 2, -1, *weight.shape[1:])  # (H, 2, K/2, *rest)
    return halves.transpose(1, 2).reshape(weight.shape)  # (H, K/2, 2, *rest) -> (HK, *rest)


def ntk_base(base: float, scale: float, d_head: int) -> float:
    """The base with which the slowest pair turns scale times slower, and the fastest as before.

    With it, `rope_angles` squeezes the slow pairs into the range of angles that a model was trained
    on, and leaves the fast ones, which tell neighbours apart, as they were.

    Args:
        base: that the model was trained with.
        scale: how many times longer the texts are to be.
        d_head: width K of a head, 4 or more.

    Returns:
        base · scale^(K / (K - 2)).

    Source: bloc97 2023; Peng et al. 2024, section 3.1.
    """
    return base * scale ** (d_head / (d_head - 2))


# -------------------------------------------------------------- added to the scores (ALiBi)


def alibi_slopes(n_heads: int) -> Float[Tensor, "H"]:
    """How much each head dislikes distance.

    For a power of two, head h of n has the slope 2^(-8 (h + 1) / n): a geometric series that starts
    with its own ratio and ends with 1/256. For another n, let p be the largest power of two below
    it: the first p slopes are those for p heads, and the others are every other slope of those for
    2p heads, beginning with the first.

    Args:
        n_heads: number of heads H, 1 or more.

    Returns:
        Slopes, all positive, float32.

    Raises:
        ValueError: n_heads is less than 1; the message gives it.

    Source: Press et al. 2022, section 3; for other head counts, the code published with it.
    """
    if n_heads < 1:
        raise ValueError(f"n_heads={n_heads}: expected 1 or more")
    p = 2 ** (n_heads.bit_length() - 1)  # the largest power of two up to n_heads
    exponents = [8 * (h + 1) / p for h in range(p)]
    exponents += [8 * (h + 1) / (2 * p) for h in range(0, 2 * p, 2)][: n_heads - p]
    return 2.0 ** -torch.tensor(exponents)


def alibi_bias(
    query_positions: Int[Tensor, "*batch T"],
    key_positions: Int[Tensor, "*batch S"],
    slopes: Float[Tensor, "H"],
) -> Float[Tensor, "*batch H T S"]:
    """What is added to the scores: minus the distance between query and key, times the slope.

    Args:
        query_positions: whole numbers, after any number of leading axes.
        key_positions: the same for the keys.
        slopes: one for each head, from `alibi_slopes`.

    Returns:
        -slopes[h] · |distance| for query t and key s at [..., h, t, s], in the dtype of the slopes:
        0 for a key at the query's own position, negative before it and after it.

    Source: Press et al. 2022, section 3.
    """
    distance = (query_positions.unsqueeze(-1) - key_positions.unsqueeze(-2)).abs()
    return -slopes[:, None, None] * distance.unsqueeze(-3)  # (H, 1, 1) * (*batch, 1, T, S)


# ------------------------------------------------------------------------------- one API


def biased_attention(
    q: Float[Tensor, "*batch T K"],
    k: Float[Tensor, "*batch S K"],
    v: Float[Tensor, "*batch S Kv"],
    bias: Float[Tensor, "..."] | None = None,
    mask: Bool[Tensor, "..."] | None = None,
) -> tuple[Float[Tensor, "*batch T Kv"], Float[Tensor, "*batch T S"]]:
    """Attend, with a number added to each score.

    Args:
        q: T queries of width K, after any number of leading axes.
        k: S keys of width K.
        v: S values of width Kv.
        bias: added to the scores, after they are divided by √K; any shape that broadcasts to
            (*batch, T, S). None adds nothing: masked attention.
        mask: True where attention is allowed, as in `masked_attention`.

    Returns:
        output: for each query the weighted average of the values it may see.
        weights: how much of value s is in output t, at [..., t, s].
    """
    scores = attention_scores(q, k)  # (*batch, T, S)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    weights = softmax(scores) if mask is None else masked_softmax(scores, mask)
    return weights @ v, weights  # (*batch, T, Kv)


class Positions(nn.Module):
    """What a model asks of a scheme of positions, in three places. This one: no positions at all.

    A model calls all three, whatever the scheme, and so can do with any of them: `embed` on the
    tokens before the first layer, `rotate` on the queries and keys of every layer, `bias` for the
    scores of every layer. A scheme answers in its own place, and changes nothing in the others.
    """

    def embed(
        self, x: Float[Tensor, "*batch T D"], positions: Int[Tensor, "..."]
    ) -> Float[Tensor, "*batch T D"]:
        """Tokens x that know their positions, of a shape that broadcasts to (*batch, T)."""
        return x

    def rotate(
        self, x: Float[Tensor, "*batch T K"], positions: Int[Tensor, "..."]
    ) -> Float[Tensor, "*batch T K"]:
        """Queries or keys x that know their positions, of a shape that broadcasts to (*batch, T).

        Rotated keys may be kept for later queries: they are not rotated again.
        """
        return x

    def bias(
        self, query_positions: Int[Tensor, "*batch T"], key_positions: Int[Tensor, "*batch S"]
    ) -> Float[Tensor, "*batch H T S"] | None:
        """What is to be added to the scores; None for nothing."""
        return None


class AddedPositions(Positions):
    """Positions that are added to the tokens: sinusoidal or learned.

    Args:
        encoding: gives the vectors of positions, such as a `LearnedPositions`.
    """

    def __init__(self, encoding: Callable[[Tensor], Tensor]):
        super().__init__()
        self.encoding = encoding

    def embed(self, x, positions):
        """x + encoding(positions), in the dtype of x."""
        return x + self.encoding(positions).to(x.dtype)


class RotaryPositions(Positions):
    """RoPE: queries and keys are turned.

    Args:
        d_head: width K of a head.
        base, scale: as in `rope_angles`.
        interleaved: as in `apply_rope`.
    """

    def __init__(
        self, d_head: int, base: float = 10_000.0, scale: float = 1.0, interleaved: bool = True
    ):
        super().__init__()
        self.d_head, self.base, self.scale, self.interleaved = d_head, base, scale, interleaved

    def rotate(self, x, positions):
        """x, turned."""
        angles = rope_angles(positions, self.d_head, self.base, self.scale)
        return apply_rope(x, angles, self.interleaved)


class AlibiPositions(Positions):
    """ALiBi: the farther, the lower the score.

    Args:
        n_heads: number of heads H.
        device: of the slopes, as in torch.nn.
    """

    def __init__(self, n_heads: int, device=None):
        super().__init__()
        # Not a parameter, and no part of a checkpoint: it follows from the number of heads.
        self.register_buffer("slopes", alibi_slopes(n_heads).to(device), persistent=False)

    def bias(self, query_positions, key_positions):
        """Minus slope times distance."""
        return alibi_bias(query_positions, key_positions, self.slopes)


def positions_named(
    name: str, *, d_model: int, n_heads: int, max_length: int, base: float = 10_000.0
) -> Positions:
    """The scheme of a name, for a model of given sizes.

    Args:
        name: "none", "sinusoidal", "learned", "rope" or "alibi".
        d_model: width D of the tokens.
        n_heads: number of heads H.
        max_length: rows of the table of learned positions; the other schemes have no limit.
        base: of the frequencies, sinusoidal and RoPE.

    Raises:
        ValueError: there is no scheme of that name; the message lists those that there are.
    """
    if name == "none":
        return Positions()
    if name == "sinusoidal":
        return AddedPositions(partial(sinusoidal_encoding, d_model=d_model, base=base))
    if name == "learned":
        return AddedPositions(LearnedPositions(max_length, d_model))
    if name == "rope":
        return RotaryPositions(d_model // n_heads, base)
    if name == "alibi":
        return AlibiPositions(n_heads)
    raise ValueError(f"no positions named {name!r}: none, sinusoidal, learned, rope or alibi")
