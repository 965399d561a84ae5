"""Embeddings: from ids to vectors, what is near what, and back to ids (chapter 03)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Embedding(nn.Module):
    """Give each token its vector: a table with one row for each id, looked up.

    The only parameter is `weight`, the table, of shape (vocab_size, d_model). Its numbers start
    normal with mean 0 and standard deviation std; the row of padding_idx starts at 0.

    Args:
        vocab_size: number of rows V.
        d_model: width D of a row.
        padding_idx: id of the padding token, from 0 to V - 1; None if there is none.
        std: standard deviation at the start.
        device: of the parameter, as in torch.nn.
        dtype: of the parameter, as in torch.nn.

    Source: Bengio et al. 2003 (the table C); Radford et al. 2018, section 4.1 (0.02).
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        padding_idx: int | None = None,
        std: float = 0.02,
        device=None,
        dtype=None,
    ):
        super().__init__()
        table = torch.empty(vocab_size, d_model, device=device, dtype=dtype).normal_(std=std)
        if padding_idx is not None:
            table[padding_idx] = 0
        self.weight = nn.Parameter(table)
        self.padding_idx = padding_idx

    def forward(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        """Look up.

        Args:
            ids: whole numbers (int64 or int32) from 0 to V - 1, in any shape, also a single one.

        Returns:
            The row of each id along a new last axis, in the table's dtype. For padding_idx it is
            0, whatever the table holds, and sends no gradient back.

        Raises:
            IndexError: an id is below 0 or above V - 1; the message gives that id.
        """
        rows = self.weight.shape[0]
        wrong = ids[(ids < 0) | (ids >= rows)]
        if wrong.numel():
            raise IndexError(f"id {wrong[0].item()}, expected 0 to {rows - 1}")
        x = self.weight[ids]  # (*shape, D)
        if self.padding_idx is not None:
            x = x.masked_fill((ids == self.padding_idx).unsqueeze(-1), 0)
        return x


def lookup_gradient(
    grad: Float[Tensor, "*shape D"], ids: Int[Tensor, "*shape"], vocab_size: int
) -> Float[Tensor, "V D"]:
    """Go back through a lookup: give each row of the table the gradients of all its places.

    Args:
        grad: gradient of the loss with respect to each vector that was looked up.
        ids: what was looked up, in any shape; an id may occur any number of times, also never.
        vocab_size: number of rows V.

    Returns:
        The gradient of the table: in row i the sum of grad over all places where ids is i, zeros
        where there is none. In the dtype of grad; the inputs are left unchanged.
    """
    table = grad.new_zeros(vocab_size, grad.shape[-1])
    return table.index_add(0, ids.reshape(-1), grad.reshape(-1, grad.shape[-1]))


def cosine_similarity(
    a: Float[Tensor, "*batch N D"], b: Float[Tensor, "*batch M D"]
) -> Float[Tensor, "*batch N M"]:
    """Compare the directions of all vectors of one set with all of another: 1, same; -1, opposite.

    Args:
        a: N vectors of width D, after any number of leading axes (also none).
        b: M vectors of width D, with the same leading axes.

    Returns:
        The cosine of the angle between a[..., n, :] and b[..., m, :] at [..., n, m], in the dtype
        of the inputs, which are left unchanged. It is exact up to rounding for vectors of any
        length from 1e-6 to 1e6. A vector of zeros has no direction; its similarity is 0. Gradients
        flow back to both inputs (which gradient a vector of zeros gets does not matter).

    Source: Salton et al. 1975 (between documents).
    """
    units = []
    for x in (a, b):
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        units.append(x / length.masked_fill(length == 0, 1.0))
    return units[0] @ units[1].mT


def nearest(
    query: Float[Tensor, "Q D"],
    table: Float[Tensor, "V D"],
    k: int,
    exclude: Int[Tensor, "Q E"] | None = None,
) -> tuple[Int[Tensor, "Q k"], Float[Tensor, "Q k"]]:
    """Find the k rows of a table that are most similar to each query, by cosine.

    Args:
        query: Q vectors of width D.
        table: V vectors of width D.
        k: how many to find.
        exclude: for each query, ids of E rows that may not be found, such as the query's own;
            None excludes nothing.

    Returns:
        ids: of the rows found for query q, the most similar first, at [q]. Rows that are equally
            similar may come in any order.
        similarity: their cosines.

    Raises:
        ValueError: k is more than the V - E rows that are left; the message gives k and V - E.
    """
    left = table.shape[0] - (0 if exclude is None else exclude.shape[1])
    if k > left:
        raise ValueError(f"k={k} is more than the {left} rows that are left")
    similarity = cosine_similarity(query, table)  # (Q, V)
    if exclude is not None:
        similarity = similarity.scatter(1, exclude, -torch.inf)
    found = similarity.topk(k)  # the largest first
    return found.indices, found.values


def cooccurrence(ids: Int[Tensor, "n"], vocab_size: int, window: int) -> Float[Tensor, "V V"]:
    """Count how often each two words stand near each other.

    Args:
        ids: a text; an id below 0 stands for a word that is not counted.
        vocab_size: number of words V.
        window: two places are near if they are at most this far apart.

    Returns:
        The number of times that word j is near word i, at [i, j]; symmetric.
    """
    counts = torch.zeros(vocab_size, vocab_size)
    for distance in range(1, window + 1):
        left, right = ids[:-distance], ids[distance:]
        known = (left >= 0) & (right >= 0)
        ones = torch.ones(int(known.sum()))
        counts.index_put_((left[known], right[known]), ones, accumulate=True)
    return counts + counts.T


def ppmi(counts: Float[Tensor, "V V"]) -> Float[Tensor, "V V"]:
    """Say how much more often two words meet than chance would have it: log p(i, j) / p(i) p(j).

    Args:
        counts: symmetric; each word meets some other.

    Returns:
        The positive pointwise mutual information, in nats: 0 where a pair meets as often as chance
        would have it, or less often, or never.

    Source: Levy et al. 2015, section 2.1.
    """
    share = counts.sum(1) / counts.sum()
    expected = counts.sum() * share[:, None] * share[None, :]
    return (counts / expected).clamp(min=1.0).log()


class TiedHead(nn.Module):
    """Score each token of the vocabulary, with the table that turned tokens into vectors.

    It keeps the very module that it is given, as `embedding`, and has no parameter of its own: its
    state dict holds `embedding.weight`, and whatever else that module has. What training does to
    the table at either end, both ends see, for `forward` reads the weight anew each time.

    Args:
        embedding: an `Embedding`, or any module whose `weight` has shape (V, D); only its weight
            is used.

    Source: Press and Wolf 2017, section 3; Vaswani et al. 2017, section 3.4.
    """

    def __init__(self, embedding: nn.Module):
        super().__init__()
        self.embedding = embedding

    def forward(self, x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape V"]:
        """Score.

        Args:
            x: vectors of width D, after any number of leading axes (also none).

        Returns:
            Logits: the dot product of each vector with each row of the table.
        """
        return x @ self.embedding.weight.T


def count_parameters(module: nn.Module) -> int:
    """Count the numbers in a module's parameters; a parameter that is used twice counts once.

    Frozen parameters count. Buffers, such as running means, do not.

    Args:
        module: any module, with all its submodules.
    """
    return sum(parameter.numel() for parameter in module.parameters())


def gpt2_parameters(
    n_layers: int,
    d_model: int,
    vocab_size: int = 50_257,
    context: int = 1024,
    tied: bool = True,
) -> int:
    """Count the parameters of a GPT-2 from its sizes alone.

    Its parts: a table of tokens (V, D) and one of positions (context, D). In each layer a
    LayerNorm, a linear map from D to 3 D, one from D to D, a LayerNorm, a linear map from D to 4 D
    and one back. At the end a LayerNorm, and a head from D to V without bias, which is the table of
    tokens again if tied. Every other linear map has a bias. A LayerNorm has 2 D parameters.

    Args:
        n_layers: number of layers L.
        d_model: width D.
        vocab_size: number of tokens V.
        context: number of positions.
        tied: whether the head shares the table of tokens.

    Source: Radford et al. 2019, table 2; the shapes are those of the released code.
    """
    table, positions = vocab_size * d_model, context * d_model
    norm = 2 * d_model
    attention = (d_model * 3 * d_model + 3 * d_model) + (d_model * d_model + d_model)
    feed_forward = (d_model * 4 * d_model + 4 * d_model) + (4 * d_model * d_model + d_model)
    layer = norm + attention + norm + feed_forward
    head = 0 if tied else vocab_size * d_model
    return table + positions + n_layers * layer + norm + head
