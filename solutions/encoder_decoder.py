"""The transformer of 2017: an encoder, a decoder, and cross-attention between them (chapter 11)."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from solutions import multi_head_attention
from solutions.embeddings import Embedding
from solutions.feed_forward import FeedForward
from solutions.masking import causal_mask, masked_attention, teacher_forcing
from solutions.multi_head_attention import MultiHeadAttention, merge_heads, split_heads
from solutions.positional_encoding import sinusoidal_encoding
from solutions.residuals_and_norms import LayerNorm, residual


class EncoderLayer(nn.Module):
    """Let tokens look at each other, then let each of them think: two residual blocks.

    Its parts are `self_attention`, a `MultiHeadAttention`, with the norm `norm1`, and
    `feed_forward`, a `FeedForward` with ReLU, with the norm `norm2`; both norms are `LayerNorm`.
    In training, dropout falls on what a sublayer says, just before it is added to the stream, and
    nowhere else.

    Args:
        d_model: width D of the tokens.
        n_heads: number of heads H of the attention.
        d_ff: width F inside the feed-forward network.
        dropout: share of the numbers that are dropped, from 0 to 1.
        norm_first: False for post-norm, as in 2017; True for pre-norm.
        device: of the parameters, as in torch.nn.
        dtype: of the parameters, as in torch.nn.

    Source: Vaswani et al. 2017, sections 3.1 and 5.4.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        dropout: float = 0.1,
        norm_first: bool = False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        options = {"device": device, "dtype": dtype}
        self.self_attention = MultiHeadAttention(d_model, n_heads, **options)
        self.feed_forward = FeedForward(d_model, d_ff, **options)
        self.norm1 = LayerNorm(d_model, **options)
        self.norm2 = LayerNorm(d_model, **options)
        self.dropout = nn.Dropout(dropout)
        self.norm_first = norm_first

    def forward(
        self, x: Float[Tensor, "*batch T D"], mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "*batch T D"]:
        """Look around, then think.

        Args:
            x: T tokens, after any number of leading axes. Left unchanged.
            mask: True where attention is allowed; any shape that broadcasts to (*batch, H, T, T).
                None allows everything.

        Returns:
            The stream behind both blocks.
        """

        def attend(y):
            output, _ = self.self_attention(y, mask=mask)
            return self.dropout(output)

        def think(y):
            return self.dropout(self.feed_forward(y))

        x = residual(x, attend, self.norm1, self.norm_first)
        return residual(x, think, self.norm2, self.norm_first)


class CrossAttention(nn.Module):
    """Let the tokens of one sequence ask those of another, in several heads.

    Four linear maps, each an `nn.Linear` with bias: `query` of the tokens that ask, from d_model
    to d_model; `key` and `value` of the memory that is asked, from d_memory to d_model; `output`
    of the merged heads, from d_model to d_model. Heads are those of `split_heads`.

    Args:
        d_model: width D of the tokens that ask.
        n_heads: number of heads, H; the width of a head is D / H.
        d_memory: width M of the memory; None for d_model.
        device: of the parameters, as in torch.nn.
        dtype: of the parameters, as in torch.nn.

    Raises:
        ValueError: n_heads does not divide d_model; the message gives both numbers.

    Source: Vaswani et al. 2017, section 3.2.3, "encoder-decoder attention".
    """

    def __init__(
        self, d_model: int, n_heads: int, d_memory: int | None = None, device=None, dtype=None
    ):
        super().__init__()
        if d_model % n_heads != 0:
            raise ValueError(f"d_model={d_model} is not a multiple of n_heads={n_heads}")
        d_memory = d_model if d_memory is None else d_memory
        options = {"device": device, "dtype": dtype}
        self.n_heads = n_heads
        self.query = nn.Linear(d_model, d_model, **options)
        self.key = nn.Linear(d_memory, d_model, **options)
        self.value = nn.Linear(d_memory, d_model, **options)
        self.output = nn.Linear(d_model, d_model, **options)

    def forward(
        self,
        x: Float[Tensor, "*batch T D"],
        memory: Float[Tensor, "*batch S M"],
        memory_mask: Bool[Tensor, "..."] | None = None,
    ) -> tuple[Float[Tensor, "*batch T D"], Float[Tensor, "*batch H T S"]]:
        """Ask.

        Args:
            x: T tokens that ask, after any number of leading axes.
            memory: S tokens that are asked: what the encoder made of the source.
            memory_mask: True where attention is allowed; any shape that broadcasts to
                (*batch, H, T, S). None allows everything.

        Returns:
            output: what each token has found, mixed from all heads.
            weights: of each head, how much token t takes of memory s, at [..., h, t, s].

        Raises:
            ValueError: x is not d_model wide, or memory not d_memory; the message says which of
                the two, and gives the width found and the one expected.
        """
        for name, tokens, expected in (
            ("x", x, self.query.in_features),
            ("memory", memory, self.key.in_features),
        ):
            if tokens.shape[-1] != expected:
                raise ValueError(f"{name} has width {tokens.shape[-1]}, expected {expected}")
        q = split_heads(self.query(x), self.n_heads)  # (*batch, H, T, K)
        k = split_heads(self.key(memory), self.n_heads)  # (*batch, H, S, K)
        v = split_heads(self.value(memory), self.n_heads)  # (*batch, H, S, K)
        heads, weights = masked_attention(q, k, v, memory_mask)
        return self.output(merge_heads(heads)), weights


class DecoderLayer(nn.Module):
    """Look back at what is written, ask the source, think: three residual blocks.

    Its parts, in this order: `self_attention`, a `MultiHeadAttention`, with the norm `norm1`;
    `cross_attention`, a `CrossAttention`, with `norm2`; `feed_forward`, a `FeedForward` with ReLU,
    with `norm3`. The norms are `LayerNorm`, and are for the stream: the memory comes normalised
    from the encoder. In training, dropout falls on what a sublayer says, just before it is added
    to the stream, and nowhere else.

    Args:
        d_model: width D of the tokens, and of the memory.
        n_heads: number of heads H of both attentions.
        d_ff: width F inside the feed-forward network.
        dropout: share of the numbers that are dropped, from 0 to 1.
        norm_first: False for post-norm, as in 2017; True for pre-norm.
        device: of the parameters, as in torch.nn.
        dtype: of the parameters, as in torch.nn.

    Source: Vaswani et al. 2017, sections 3.1 and 5.4.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        dropout: float = 0.1,
        norm_first: bool = False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        options = {"device": device, "dtype": dtype}
        self.self_attention = MultiHeadAttention(d_model, n_heads, **options)
        self.cross_attention = CrossAttention(d_model, n_heads, **options)
        self.feed_forward = FeedForward(d_model, d_ff, **options)
        self.norm1 = LayerNorm(d_model, **options)
        self.norm2 = LayerNorm(d_model, **options)
        self.norm3 = LayerNorm(d_model, **options)
        self.dropout = nn.Dropout(dropout)
        self.norm_first = norm_first

    def forward(
        self,
        x: Float[Tensor, "*batch T D"],
        memory: Float[Tensor, "*batch S D"],
        mask: Bool[Tensor, "..."] | None = None,
        memory_mask: Bool[Tensor, "..."] | None = None,
    ) -> tuple[Float[Tensor, "*batch T D"], Float[Tensor, "*batch H T S"]]:
        """Look back, ask, think.

        Args:
            x: T tokens of the target, after any number of leading axes. Left unchanged.
            memory: S tokens, as the encoder gives them.
            mask: of the self-attention, True where it is allowed; any shape that broadcasts to
                (*batch, H, T, T). None allows everything.
            memory_mask: of the cross-attention; any shape that broadcasts to (*batch, H, T, S).
                None allows everything.

        Returns:
            The stream behind the three blocks, and the weights of the cross-attention.
        """
        weights = None

        def look_back(y):
            output, _ = self.self_attention(y, mask=mask)
            return self.dropout(output)

        def ask(y):
            nonlocal weights
            output, weights = self.cross_attention(y, memory, memory_mask)
            return self.dropout(output)

        def think(y):
            return self.dropout(self.feed_forward(y))

        x = residual(x, look_back, self.norm1, self.norm_first)
        x = residual(x, ask, self.norm2, self.norm_first)
        return residual(x, think, self.norm3, self.norm_first), weights


def attention_mask(
    tokens: Int[Tensor, "B T"], padding_idx: int, causal: bool = False
) -> Bool[Tensor, "B 1 U T"]:
    """Say which tokens of a padded batch may be looked at, by all queries or by each.

    Without `causal` it is the mask for whoever asks these tokens: the encoder's self-attention, and
    the decoder's cross-attention. With it, the mask of the decoder's self-attention.

    Args:
        tokens: ids; padding may stand anywhere.
        padding_idx: id of the padding.
        causal: whether query t may look at positions 0 to t alone.

    Returns:
        Booleans, True where attention is allowed, with an axis of size 1 for the heads. U is 1
        without `causal`: the same for all queries. With it U is T, query before key.

    Source: Vaswani et al. 2017, section 3.2.3.
    """
    real = (tokens != padding_idx)[:, None, None, :]  # (B, 1, 1, T)
    if causal:
        return real & causal_mask(tokens.shape[1], device=tokens.device)  # (B, 1, T, T)
    return real


class Transformer(nn.Module):
    """The model of 2017 whole: read the source, then say what follows each prefix of the target.

    One table, `embedding`, an `Embedding` whose rows start with standard deviation 1 / √D, serves
    three times: source and target tokens are looked up in it, and logits are dot products with
    its rows. `encoder_layers` and `decoder_layers` are each an `nn.ModuleList`. `encoder_norm` and
    `decoder_norm` stand behind the stacks: a `LayerNorm`, or nothing (`nn.Identity`). There are no
    other parameters.

    Args:
        vocab_size: number of tokens V, those of both languages together.
        d_model: width D.
        n_heads: number of heads H of every attention.
        d_ff: width F inside the feed-forward networks.
        n_encoder_layers: number of layers that read.
        n_decoder_layers: number of layers that write.
        padding_idx: id of the padding token; nobody looks at it.
        dropout: share of the numbers dropped, in training, from tokens with their positions, and
            from what sublayers say.
        norm_first: False for post-norm, as in 2017; True for pre-norm.
        final_norm: whether there is a norm behind each stack. None for what belongs to the order:
            one in pre-norm, none in post-norm. torch.nn.Transformer always has one.
        device: of the parameters, as in torch.nn.
        dtype: of the parameters, as in torch.nn.

    Source: Vaswani et al. 2017, section 3.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        n_heads: int,
        d_ff: int,
        n_encoder_layers: int,
        n_decoder_layers: int,
        padding_idx: int = 0,
        dropout: float = 0.1,
        norm_first: bool = False,
        final_norm: bool | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        options = {"device": device, "dtype": dtype}
        sizes = (d_model, n_heads, d_ff, dropout, norm_first)
        final_norm = norm_first if final_norm is None else final_norm
        self.embedding = Embedding(vocab_size, d_model, padding_idx, d_model**-0.5, **options)
        self.encoder_layers = nn.ModuleList(
            EncoderLayer(*sizes, **options) for _ in range(n_encoder_layers)
        )
        self.decoder_layers = nn.ModuleList(
            DecoderLayer(*sizes, **options) for _ in range(n_decoder_layers)
        )
        self.encoder_norm = LayerNorm(d_model, **options) if final_norm else nn.Identity()
        self.decoder_norm = LayerNorm(d_model, **options) if final_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.padding_idx = padding_idx

    def embed(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Look tokens up, times √D, and add the sinusoidal encoding of positions 0 to T - 1."""
        x = self.embedding(tokens)  # (B, T, D)
        d_model = x.shape[-1]
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        places = sinusoidal_encoding(positions, d_model, dtype=x.dtype)  # (T, D)
        return self.dropout(math.sqrt(d_model) * x + places)

    def encode(self, source: Int[Tensor, "B S"]) -> Float[Tensor, "B S D"]:
        """Read: the memory that the decoder will ask."""
        mask = attention_mask(source, self.padding_idx)
        x = self.embed(source)
        for layer in self.encoder_layers:
            x = layer(x, mask)
        return self.encoder_norm(x)

    def decode(
        self,
        target: Int[Tensor, "B T"],
        memory: Float[Tensor, "B S D"],
        source: Int[Tensor, "B S"],
    ) -> tuple[Float[Tensor, "B T V"], Float[Tensor, "L B H T S"]]:
        """Say what follows each prefix of the target.

        Args:
            target: what has been written so far, with the start token.
            memory: of the source.
            source: where the source is padding, the memory is not asked.

        Returns:
            logits: behind target tokens 0 to t, at [b, t].
            weights: of the cross-attention in each of the L decoder layers.
        """
        mask = attention_mask(target, self.padding_idx, causal=True)
        memory_mask = attention_mask(source, self.padding_idx)
        x, seen = self.embed(target), []
        for layer in self.decoder_layers:
            x, weights = layer(x, memory, mask, memory_mask)
            seen.append(weights)
        return self.decoder_norm(x) @ self.embedding.weight.T, torch.stack(seen)

    def forward(
        self, source: Int[Tensor, "B S"], target: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T V"]:
        """Read the source, and say what follows each prefix of the target.

        Args:
            source: ids, padded.
            target: ids, padded, with the start token.

        Returns:
            Logits for the token behind target tokens 0 to t, at [b, t].
        """
        logits, _ = self.decode(target, self.encode(source), source)
        return logits


def translation_loss(
    model: Callable[[Tensor, Tensor], Tensor],
    source: Int[Tensor, "B S"],
    target: Int[Tensor, "B n"],
    padding_idx: int = 0,
) -> Float[Tensor, ""]:
    """Average the surprise at each token of the translations, the end token included.

    The model reads the source and the true target up to a token, and is graded on the token that
    follows. Every graded token counts alike, whichever sentence it is in; padding is not graded.

    Args:
        model: takes source and target ids, and gives logits (B, T, V) for T target ids.
        source: ids, padded.
        target: ids: the start token, the translation, the end token, padding.
        padding_idx: id of the padding.

    Returns:
        The mean cross-entropy in nats, a tensor without axes.
    """
    inputs, labels = teacher_forcing(target)  # (B, n - 1) each
    logits = model(source, inputs)  # (B, n - 1, V)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=padding_idx)


@torch.no_grad()
def greedy_decode(
    model: nn.Module, source: Int[Tensor, "B S"], start: int, end: int, max_length: int
) -> Int[Tensor, "B N"]:
    """Translate: write the likeliest token, read it, write the next.

    The source is read once, by `model.encode(source)`; each step asks `model.decode(target,
    memory, source)` what follows the target so far, which begins with the start token. It ends when
    every sentence has its end token, or has max_length tokens. The model works in evaluation mode,
    and is left in the mode in which it came.

    Args:
        model: a `Transformer`, or a module with its `encode`, `decode` and `padding_idx`.
        source: ids, padded.
        start: id with which every target begins.
        end: id that ends a translation.
        max_length: largest number of tokens to write, the end token included; at least 1.

    Returns:
        What was written, without the start token: N tokens, as many as the longest translation has
        with its end token. Behind an end token stands padding.
    """
    was_training = model.training
    model.eval()
    memory = model.encode(source)
    target = torch.full_like(source[:, :1], start)  # (B, 1)
    finished = torch.zeros_like(target[:, 0], dtype=torch.bool)  # (B)
    for _ in range(max_length):
        logits, _ = model.decode(target, memory, source)
        written = logits[:, -1].argmax(-1).masked_fill(finished, model.padding_idx)  # (B)
        target = torch.cat([target, written[:, None]], dim=1)
        finished = finished | (written == end)
        if finished.all():
            break
    model.train(was_training)
    return target[:, 1:]


def state_from_torch(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a `torch.nn.Transformer` to those of `Transformer`.

    Args:
        state: its state dict. The model has biases, which is the default, and layers of the
            standard kind with ReLU. Left unchanged.

    Returns:
        The same numbers, in their dtype, under the names of `Transformer`, except for
        `embedding.weight`: torch's model takes vectors, and has no table. Since it has a norm
        behind each stack in either order, so must ours: `final_norm=True`.
    """
    names = {
        "encoder.layers.": "encoder_layers.",
        "decoder.layers.": "decoder_layers.",
        "encoder.norm.": "encoder_norm.",
        "decoder.norm.": "decoder_norm.",
        "self_attn.": "self_attention.",
        "multihead_attn.": "cross_attention.",
        "linear1.": "feed_forward.w_in.",
        "linear2.": "feed_forward.w_out.",
    }
    renamed: dict[str, Tensor] = {}
    attentions: dict[str, dict[str, Tensor]] = {}  # the state dict of each, by its place
    for name, value in state.items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        place, attention, own_name = name.partition("attention.")
        if attention:
            attentions.setdefault(place + attention, {})[own_name] = value
        else:
            renamed[name] = value
    for place, own in attentions.items():
        own = multi_head_attention.state_from_torch(own)
        renamed |= {place + own_name: value for own_name, value in own.items()}
    return renamed
