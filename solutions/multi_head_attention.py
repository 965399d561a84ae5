"""Multi-head attention: several relations at once (chapter 06)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from solutions.masking import masked_attention


def split_heads(x: Float[Tensor, "*batch T D"], n_heads: int) -> Float[Tensor, "*batch H T K"]:
    """Give each head its slice of every token: head h gets features h * K to (h + 1) * K - 1.

    Args:
        x: T tokens of width D = H * K, after any number of leading axes. It may be a transposed
            or a sliced view, whose numbers do not lie in order in memory. Left unchanged.
        n_heads: number of heads, H.

    Returns:
        Feature h * K + i of token t, at [..., h, t, i], in the dtype of x. Gradients flow back.

    Raises:
        ValueError: D cannot be cut into n_heads equal slices; the message gives both numbers.

    Source: Vaswani et al. 2017, section 3.2.2.
    """
    d_model = x.shape[-1]
    if d_model % n_heads != 0:
        raise ValueError(f"width {d_model} cannot be cut into n_heads={n_heads} equal slices")
    x = x.unflatten(-1, (n_heads, d_model // n_heads))  # (*batch, T, H, K)
    return x.transpose(-3, -2)  # (*batch, H, T, K)


def merge_heads(x: Float[Tensor, "*batch H T K"]) -> Float[Tensor, "*batch T D"]:
    """Put the heads' slices of each token side by side again: the inverse of `split_heads`.

    Args:
        x: H heads of width K for each of T tokens, after any number of leading axes. It may be a
            transposed or a sliced view. Left unchanged.

    Returns:
        Tokens of width D = H * K: number i of head h for token t, at [..., t, h * K + i], in the
        dtype of x. Gradients flow back.

    Source: Vaswani et al. 2017, section 3.2.2 ("Concat").
    """
    return x.transpose(-3, -2).flatten(-2)  # (*batch, T, H, K) -> (*batch, T, D)


class MultiHeadAttention(nn.Module):
    """Attend in several ways at once: each head on its own slice, and one map to mix the results.

    Four linear maps from d_model to d_model, each an `nn.Linear`: `query` of x, `key` and `value`
    of the source, and `output` of the merged heads. The heads' slices are those of `split_heads`.
    The attributes `n_heads` and `d_head` hold the number of heads H and their width K.

    Args:
        d_model: width D of the tokens.
        n_heads: number of heads, H; the width of a head is K = D / H.
        bias: whether the four maps have a bias.
        device: of the parameters, as in torch.nn.
        dtype: of the parameters, as in torch.nn.

    Raises:
        ValueError: n_heads does not divide d_model; the message gives both numbers.

    Source: Vaswani et al. 2017, section 3.2.2.
    """

    def __init__(self, d_model: int, n_heads: int, bias: bool = True, device=None, dtype=None):
        super().__init__()
        if d_model % n_heads != 0:
            raise ValueError(f"d_model={d_model} is not a multiple of n_heads={n_heads}")
        options = {"bias": bias, "device": device, "dtype": dtype}
        self.n_heads, self.d_head = n_heads, d_model // n_heads
        self.query = nn.Linear(d_model, d_model, **options)
        self.key = nn.Linear(d_model, d_model, **options)
        self.value = nn.Linear(d_model, d_model, **options)
        self.output = nn.Linear(d_model, d_model, **options)

    def forward(
        self,
        x: Float[Tensor, "*batch T D"],
        source: Float[Tensor, "*batch S D"] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> tuple[Float[Tensor, "*batch T D"], Float[Tensor, "*batch H T S"]]:
        """Attend.

        Args:
            x: T tokens that ask, after any number of leading axes.
            source: S tokens that are asked (cross-attention); None for x itself (self-attention).
            mask: True where attention is allowed; any shape that broadcasts to (*batch, H, T, S).
                None allows everything. A mask that differs between the sequences of a batch
                needs an axis of size 1 for the heads: (B, 1, T, S).

        Returns:
            output: what each token has found, mixed from all heads. A token that may see nothing
                finds zeros, and its output is the bias of `output` alone.
            weights: of each head, how much token t takes of source token s, at [..., h, t, s].

        Raises:
            ValueError: x or source is not d_model wide; the message says which of the two, and
                gives the width found and d_model.
        """
        source = x if source is None else source
        d_model = self.query.in_features
        for name, tokens in (("x", x), ("source", source)):
            if tokens.shape[-1] != d_model:
                raise ValueError(f"{name} has width {tokens.shape[-1]}, expected d_model={d_model}")
        q = split_heads(self.query(x), self.n_heads)  # (*batch, H, T, K)
        k = split_heads(self.key(source), self.n_heads)  # (*batch, H, S, K)
        v = split_heads(self.value(source), self.n_heads)  # (*batch, H, S, K)
        heads, weights = masked_attention(q, k, v, mask)
        return self.output(merge_heads(heads)), weights


def state_from_torch(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a `torch.nn.MultiheadAttention` to those of `MultiHeadAttention`.

    Args:
        state: its state dict. `in_proj_weight` is three (D, D) matrices on top of each other, for
            queries, keys and values in this order, (3D, D), and `in_proj_bias` their biases,
            (3D,). `out_proj.weight` is (D, D), `out_proj.bias` (D,). A layer without bias lacks
            both biases. Left unchanged.

    Returns:
        The same numbers, in their dtype, as `query.weight`, `key.weight`, `value.weight` and
        `output.weight`; and, if there are biases, `query.bias`, `key.bias`, `value.bias` and
        `output.bias`.
    """
    renamed = {}
    for kind in ("weight", "bias"):
        if f"in_proj_{kind}" in state:
            q, k, v = state[f"in_proj_{kind}"].chunk(3)
            renamed |= {f"query.{kind}": q, f"key.{kind}": k, f"value.{kind}": v}
            renamed[f"output.{kind}"] = state[f"out_proj.{kind}"]
    return renamed


def head_contributions(
    heads: Float[Tensor, "*batch H T K"], weight: Float[Tensor, "D HK"]
) -> Float[Tensor, "*batch H T D"]:
    """Say what each head adds to the output of its layer.

    Merging the heads and mapping them by `output` is the same as mapping each head by its own
    columns of the matrix and adding up. So the sum of the contributions over the heads is the
    layer's output, less its bias; and leaving a head out means leaving out its term.

    Args:
        heads: what each of H heads found for each of T tokens, after any number of leading axes.
        weight: of the map `output`, as `nn.Linear` keeps it: row d makes feature d of the layer's
            output, columns h * K to (h + 1) * K - 1 belong to head h. D need not be H * K.

    Returns:
        The contribution of head h to the output of token t, at [..., h, t, :]; in the dtype of the
        inputs, to which gradients flow back.

    Source: Elhage et al. 2021, "Attention heads are independent and additive".
    """
    n_heads, d_head = heads.shape[-3], heads.shape[-1]
    columns = weight.unflatten(-1, (n_heads, d_head))  # (D, H, K)
    return torch.einsum("...htk,dhk->...htd", heads, columns)
