"""What the square of the length costs, and attention in less memory (chapter 08)."""

import math
import statistics
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from solutions.masking import causal_mask, masked_attention, masked_softmax
from solutions.self_attention import attention_entropy, attention_scores


def attention_flops(t: int, d_model: int, *, causal: bool = False) -> dict[str, int]:
    """Count the floating-point operations of one self-attention layer, by part.

    The layer has a query, a key, a value and an output projection, each from D to D, and any number
    of heads that share the width D: H K = D. Only matrix products are counted, with 2 operations
    for each pair of numbers multiplied and added: (n, m) @ (m, p) takes 2 n m p. Causal attention
    is counted for the pairs that its mask allows, as if the others were skipped.

    Args:
        t: number of tokens T of one sequence; each is a query and a key.
        d_model: width D.
        causal: whether query i sees the keys 0 to i alone, instead of all T.

    Returns:
        "projections": the four linear maps;
        "scores": queries times keys, over all heads;
        "values": weights times values, over all heads.

    Source: Kaplan et al. 2020, table 1 (for each token, and causal).
    """
    pairs = t * (t + 1) // 2 if causal else t * t
    return {
        "projections": 4 * 2 * t * d_model * d_model,
        "scores": 2 * pairs * d_model,
        "values": 2 * pairs * d_model,
    }


def crossover_length(d_model: int, parameters: int, *, causal: bool = False) -> float:
    """Find the length at which scores and values cost as much as all the rest of a layer.

    The rest are products of each token with the layer's weight matrices (projections and
    feed-forward): 2 operations for each token and each parameter. Scores and values are counted as
    in `attention_flops`.

    Args:
        d_model: width D.
        parameters: how many numbers the layer's weight matrices hold, all together.
        causal: whether query i sees the keys 0 to i alone.

    Returns:
        The number of tokens T at which the two are equal; it need not be whole.

    Source: Kaplan et al. 2020, section 2.1, who compare the two for causal models.
    """
    full = parameters / (2 * d_model)  # from 4 T² D = 2 T P
    return 2 * full - 1 if causal else full  # from 2 T (T + 1) D = 2 T P


def attention_memory(
    t: int,
    s: int | None = None,
    *,
    n_heads: int = 1,
    batch: int = 1,
    chunk: int | None = None,
    itemsize: int = 4,
) -> int:
    """Count the bytes of the scores that exist at the same time: what grows with the square.

    Args:
        t: number of queries T.
        s: number of keys S; None for as many as there are queries.
        n_heads: heads H, each with scores of its own.
        batch: sequences B that are processed at once.
        chunk: how many of the queries are processed at once, at the most; None for all.
        itemsize: bytes of one number: 4 for float32, 2 for bfloat16 (`Tensor.itemsize`).

    Returns:
        Bytes of a score for each sequence, head, query that is processed at once, and key.

    Source: Rabe and Staats 2021, who show that it need not grow so.
    """
    s = t if s is None else s
    rows = t if chunk is None else min(chunk, t)
    return batch * n_heads * rows * s * itemsize


def largest_context(
    budget: int, *, n_heads: int = 1, chunk: int | None = None, itemsize: int = 4
) -> int:
    """Find how many tokens one sequence may have so that its scores fit into a memory.

    Args:
        budget: bytes that the scores may take, `attention_memory(t, ...)`.
        n_heads: heads H.
        chunk: how many queries are processed at once, at the most; None for all.
        itemsize: bytes of one number.

    Returns:
        The largest t whose scores, of t queries for t keys, take no more than the budget: a whole
        number, and exact, however large.
    """
    numbers = budget // (n_heads * itemsize)
    whole = math.isqrt(numbers)  # exact, where int(math.sqrt(...)) may be one too many
    return whole if chunk is None else max(whole, numbers // chunk)


def chunked_attention(
    q: Float[Tensor, "*batch T K"],
    k: Float[Tensor, "*batch S K"],
    v: Float[Tensor, "*batch S Kv"],
    mask: Bool[Tensor, "..."] | None = None,
    *,
    chunk: int,
    causal: bool = False,
    recompute: bool = False,
    attend: Callable[..., tuple[Tensor, Tensor]] = masked_attention,
) -> Float[Tensor, "*batch T Kv"]:
    """Attend in less memory: by a chunk of queries at a time, each against all its keys.

    The result is the output of masked_attention, and so are its gradients. The first chunk holds
    the queries 0 to chunk - 1, and so on; the last one may be smaller. The weights are not
    returned, and those of one chunk are let go before the next but one is computed.

    Args:
        q: T queries of width K, after any number of leading axes.
        k: S keys of width K.
        v: S values of width Kv.
        mask: True where attention is allowed; any shape that broadcasts to (*batch, T, S). None
            allows everything.
        chunk: how many queries are processed at once; may be more than T.
        causal: whether query i, which stands at position S - T + i, may see the keys up to its
            own position only (and of these only what the mask allows, if there is one). The keys
            after a chunk's last query are not handed to attend.
        recompute: whether the forward pass keeps nothing of a chunk but its inputs and output,
            and the backward pass computes each chunk once more, just before it needs it.
        attend: what computes a chunk, called as attend(queries, keys, values, mask): once for
            each chunk, in order, and once more on the way back if recompute. Returns output and
            weights, as masked_attention does.

    Returns:
        For each query the weighted average of the values it may see; zeros for a query that may
        see none.

    Raises:
        ValueError: chunk is less than 1; the message gives it. Or causal, with more queries than
            keys; the message gives both numbers.

    Source: Rabe and Staats 2021 (who cut the keys as well); Chen et al. 2016 (recompute).
    """
    t, s = q.shape[-2], k.shape[-2]
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: expected 1 query or more")
    if causal and t > s:
        raise ValueError(f"causal: the {t} queries are the last of the {s} keys' positions")
    if mask is not None:
        mask = mask.expand(*q.shape[:-1], s)  # (*batch, T, S), a view: it takes no memory

    def part(start: int) -> Float[Tensor, "*batch rows Kv"]:
        stop = min(start + chunk, t)
        end = s - t + stop if causal else s  # of the keys that some query of this chunk may see
        allowed = None if mask is None else mask[..., start:stop, :end]
        if causal:
            triangle = causal_mask(stop - start, end, device=q.device)
            allowed = triangle if allowed is None else allowed & triangle
        return attend(q[..., start:stop, :], k[..., :end, :], v[..., :end, :], allowed)[0]

    starts = range(0, t, chunk)
    if recompute:
        return torch.cat([checkpoint(part, i, use_reentrant=False) for i in starts], dim=-2)
    return torch.cat([part(i) for i in starts], dim=-2)


def chunked_entropy(
    q: Float[Tensor, "*batch T K"], k: Float[Tensor, "*batch S K"], *, chunk: int
) -> Float[Tensor, "*batch T"]:
    """Measure how spread out each query's causal attention is, by a chunk of queries at a time.

    Args:
        q: T queries, the last T of S positions: query i stands at position S - T + i.
        k: S keys, at least T.
        chunk: how many queries are processed at once, 1 or more; need not divide T.

    Returns:
        The entropy in nats of each query's weights over the keys up to its own position.

    Source: Shannon 1948, section 6.
    """
    t, s = q.shape[-2], k.shape[-2]
    entropies = []
    for start in range(0, t, chunk):
        stop = min(start + chunk, t)
        end = s - t + stop
        scores = attention_scores(q[..., start:stop, :], k[..., :end, :])  # (*batch, chunk, end)
        weights = masked_softmax(scores, causal_mask(stop - start, end, device=q.device))
        entropies.append(attention_entropy(weights))  # (*batch, chunk)
    return torch.cat(entropies, dim=-1)


def fit_exponent(lengths: Sequence[int], runs: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Fit a power law to measurements: cost ≈ factor · length^exponent.

    Each length was measured several times; its cost is the median of its runs (of an even number,
    the mean of the two in the middle). The fit is a straight line through the logarithms of
    lengths and costs, by least squares.

    Args:
        lengths: two or more different ones, in any order.
        runs: for each length what was measured, in seconds or bytes; all positive. Lengths may
            have different numbers of runs.

    Returns:
        exponent: the slope of the line.
        factor: the cost of length 1, by the line.
    """
    x = torch.tensor(lengths, dtype=torch.float64).log()
    y = torch.tensor([statistics.median(run) for run in runs], dtype=torch.float64).log()
    exponent = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    factor = (y.mean() - exponent * x.mean()).exp()
    return exponent.item(), factor.item()
