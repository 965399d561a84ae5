"""GPT: a stack of decoder blocks that writes one token at a time (chapter 14)."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_model
from torch import Tensor, nn
from torch.nn import LayerNorm  # chapter 10's, parameters and all, in one kernel
from torch.nn import functional as F

from solutions.embeddings import Embedding, TiedHead
from solutions.feed_forward import FeedForward
from solutions.multi_head_attention import MultiHeadAttention, merge_heads, split_heads
from solutions.positional_encoding import LearnedPositions
from solutions.residuals_and_norms import init_scale, residual
from solutions.stories import Stories

CHECKPOINT = Path(__file__).parent / "weights" / "gpt.safetensors"

# ------------------------------------------------------------------------------ the model


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT.

    Args:
        vocab_size: number of tokens V.
        n_positions: the context window: the longest sequence that it can read.
        d_model: width D of the residual stream.
        n_layers: number of blocks L.
        n_heads: attention heads H in each; divides d_model.
        d_ff: width F of the feed-forward layers; None for 4 * d_model.
        activation: of the feed-forward layers, as in `FeedForward`.
        eps: of the norms.
        tied: whether the head shares the table of embeddings; otherwise it has one of its own.
        std: standard deviation of the weights at the start.
    """

    vocab_size: int
    n_positions: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int | None = None
    activation: str = "gelu_tanh"
    eps: float = 1e-5
    tied: bool = True
    std: float = 0.02

    @property
    def d_head(self) -> int:
        """Width K of a head."""
        return self.d_model // self.n_heads


class CausalSelfAttention(MultiHeadAttention):
    """`MultiHeadAttention` of a sequence to itself, each token to what is not after it; fused.

    It has the parameters of `MultiHeadAttention` and gives its output under a causal mask, with
    neither the mask nor the tables of weights ever made.
    """

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Attend.

        Args:
            x: T tokens of width D.

        Returns:
            What each token has found among the tokens up to itself.
        """
        q = split_heads(self.query(x), self.n_heads)  # (B, H, T, K)
        k = split_heads(self.key(x), self.n_heads)  # (B, H, T, K)
        v = split_heads(self.value(x), self.n_heads)  # (B, H, T, K)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, K)
        return self.output(merge_heads(heads))  # (B, T, D)


class Block(nn.Module):
    """One layer of a GPT: causal self-attention, then a feed-forward layer, both pre-norm.

    Its parts, in this order: `norm_1`, a `LayerNorm`; `attention`, a `CausalSelfAttention`;
    `norm_2`, a `LayerNorm`; `feed_forward`, a `FeedForward`. All linear maps have a bias.

    Args:
        config: the sizes.
        device: of the parameters, as in torch.nn.
        dtype: of the parameters, as in torch.nn.

    Source: Radford et al. 2019, section 2.3.
    """

    def __init__(self, config: GPTConfig, device=None, dtype=None):
        super().__init__()
        options = {"device": device, "dtype": dtype}
        d_model = config.d_model
        d_ff = 4 * d_model if config.d_ff is None else config.d_ff
        self.norm_1 = LayerNorm(d_model, eps=config.eps, **options)
        self.attention = CausalSelfAttention(d_model, config.n_heads, **options)
        self.norm_2 = LayerNorm(d_model, eps=config.eps, **options)
        self.feed_forward = FeedForward(d_model, d_ff, config.activation, **options)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Read the stream twice and add to it twice.

        Args:
            x: the residual stream of T tokens. Left unchanged.

        Returns:
            The stream behind the block; at token t it depends on tokens 0 to t alone.
        """
        x = residual(x, self.attention, self.norm_1)
        return residual(x, self.feed_forward, self.norm_2)


class GPT(nn.Module):
    """A decoder-only transformer: it says, at every position, which token may come next.

    Its parts: `embedding`, an `Embedding`; `positions`, `LearnedPositions`; `blocks`, an
    `nn.ModuleList` of L `Block`s; `norm`, a last `LayerNorm`; and `head`, a `TiedHead` of the
    embedding or, if not tied, an `nn.Linear` from D to V without bias. `config` is kept.

    Args:
        config: the sizes.
        device: of the parameters, as in torch.nn.
        dtype: of the parameters, as in torch.nn.

    Raises:
        ValueError: n_heads does not divide d_model, or the activation is unknown; the message
            gives what was asked for.

    Source: Radford et al. 2019, sections 2 and 2.3.
    """

    def __init__(self, config: GPTConfig, device=None, dtype=None):
        super().__init__()
        options = {"device": device, "dtype": dtype}
        vocab_size, d_model = config.vocab_size, config.d_model
        self.config = config
        self.embedding = Embedding(vocab_size, d_model, **options)
        self.positions = LearnedPositions(config.n_positions, d_model, **options)
        self.blocks = nn.ModuleList(Block(config, **options) for _ in range(config.n_layers))
        self.norm = LayerNorm(d_model, eps=config.eps, **options)
        if config.tied:
            self.head = TiedHead(self.embedding)
        else:
            self.head = nn.Linear(d_model, vocab_size, bias=False, **options)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, as GPT-2 does.

        All weights are normal with mean 0 and the standard deviation `config.std`, all biases 0,
        the norms scale by 1 and shift by 0. The two maps of a block that write into the stream,
        `attention.output` and `feed_forward.w_out`, have `config.std` / √(2L).
        """
        for name, p in self.named_parameters():
            if p.ndim == 2:
                writes = name.endswith(("attention.output.weight", "feed_forward.w_out.weight"))
                scale = init_scale(self.config.n_layers) if writes else 1
                nn.init.normal_(p, std=self.config.std * scale)
            else:
                nn.init.constant_(p, 1 if name.endswith("weight") else 0)  # of a norm, else a bias

    def stream(self, ids: Int[Tensor, "B T"], depth: int | None = None) -> Float[Tensor, "B T D"]:
        """Run the residual stream up, all the way or a part of it.

        Args:
            ids: T tokens, from 1 to n_positions of them.
            depth: behind how many blocks to stop, from 0 (embedding and position alone) to L;
                None for all of them.

        Returns:
            The stream there, as the blocks leave it: not normalised.

        Raises:
            ValueError: T is more than n_positions; the message gives both.
        """
        n_tokens = ids.shape[1]
        if n_tokens > self.config.n_positions:
            raise ValueError(f"{n_tokens} tokens, more than n_positions={self.config.n_positions}")
        x = self.embedding(ids) + self.positions(torch.arange(n_tokens, device=ids.device))
        for block in self.blocks[:depth]:
            x = block(x)
        return x  # (B, T, D)

    def read(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        """Read the next token off the stream: the last norm, then the head.

        Args:
            x: the stream, of any number of tokens.

        Returns:
            Logits of the next token.
        """
        return self.head(self.norm(x))

    def forward(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Say what may follow, at all positions at once.

        Args:
            ids: T tokens, from 1 to n_positions of them.

        Returns:
            Logits of the token that follows token t, given tokens 0 to t, at [:, t].

        Raises:
            ValueError: T is more than n_positions; the message gives both.
        """
        return self.read(self.stream(ids))


# ------------------------------------------------------------------------------- writing


def most_likely(logits: Float[Tensor, "B V"]) -> Int[Tensor, "B"]:
    """Choose the most likely token of each row."""
    return logits.argmax(dim=-1)


@torch.no_grad()
def next_logits(model: GPT, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B V"]:
    """Say what may follow a text of any length.

    The model reads no more than its context window holds: the last n_positions tokens, which
    count their positions from 0. The head, its largest matrix, reads the last position alone. No
    graph is kept for gradients.

    Args:
        model: used through its `config`, `stream` and `read`.
        ids: at least one token.

    Returns:
        Logits of the token that follows the last.
    """
    window = ids[:, -model.config.n_positions :]
    return model.read(model.stream(window)[:, -1])


def generate(
    model: GPT,
    ids: Int[Tensor, "B T"],
    n: int,
    choose: Callable[[Tensor], Tensor] = most_likely,
) -> Int[Tensor, "B T+n"]:
    """Write n tokens, one at a time: each is chosen, put behind the text, and read with it.

    Args:
        model: as in `next_logits`.
        ids: the prompt, at least one token for each sequence. Left unchanged.
        n: how many tokens to write; 0 for none. There may be more in all than the context window
            holds; then the beginning drops out of sight.
        choose: from logits (B, V) to ids (B,).

    Returns:
        The prompt and what was written.

    Source: Radford et al. 2019, section 2 (a text's probability is a product over its tokens).
    """
    for _ in range(n):
        chosen = choose(next_logits(model, ids))  # (B,)
        ids = torch.cat([ids, chosen[:, None]], dim=1)
    return ids


def positions_computed(prompt: int, n: int, window: int) -> int:
    """Count the token positions that go through the blocks while n tokens are written.

    Every step reads the text so far, or as much of it as the context window holds, from scratch.

    Args:
        prompt: tokens in the prompt, at least 1.
        n: tokens to write.
        window: size of the context window.
    """
    return sum(min(prompt + i, window) for i in range(n))


def sliding_windows(n: int, window: int, stride: int) -> list[tuple[int, int, int]]:
    """Cut a text that is longer than the context window, so that each token is graded once.

    The first window starts at token 0, each further one `stride` tokens after the one before, and
    the last is the first to reach the end of the text, where it stops. A window grades the tokens
    that no window before it has graded; the others in it are context. Token 0, which nothing
    precedes, is never graded.

    Args:
        n: tokens in the text, at least 2.
        window: the most tokens that fit in a window, at least 2.
        stride: from 1 to window - 1, so that each graded token has one before it in its window.

    Returns:
        For each window (start, graded, end): it holds the tokens start to end - 1 and grades the
        tokens graded to end - 1.
    """
    windows, graded = [], 1
    for start in range(0, n, stride):
        end = min(start + window, n)
        windows.append((start, graded, end))
        graded = end
        if end == n:
            break
    return windows


# ---------------------------------------------------------------- other people's weights


ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "relu": "relu",
}


def config_from_hf(config: Mapping[str, Any]) -> GPTConfig:
    """Turn the config.json of a Hugging Face GPT-2 into a `GPTConfig`, or refuse.

    Dropout is left out: the weights are those of a model that has been trained.

    Args:
        config: its content; what is not in it has Hugging Face's default, except for the sizes.

    Raises:
        ValueError: a size is missing, or the model is something that `GPT` is not; the message
            names it.
    """
    kind = config.get("model_type", "gpt2")
    if kind != "gpt2":
        raise ValueError(f"model_type={kind!r}, expected 'gpt2'")
    for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
        if name not in config:
            raise ValueError(f"the config has no {name!r}")
    for name in ("add_cross_attention", "quantization_config"):
        if config.get(name):
            raise ValueError(f"{name}={config[name]!r} is not supported")
    activation = config.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation_function={activation!r}, expected one of {[*ACTIVATIONS]}")
    return GPTConfig(
        vocab_size=config["vocab_size"],
        n_positions=config["n_positions"],
        d_model=config["n_embd"],
        n_layers=config["n_layer"],
        n_heads=config["n_head"],
        d_ff=config.get("n_inner"),
        activation=ACTIVATIONS[activation],
        eps=config.get("layer_norm_epsilon", 1e-5),
        tied=config.get("tie_word_embeddings", True),
    )


PARTS = {
    "ln_1": "norm_1",
    "attn.c_attn": "attention",
    "attn.c_proj": "attention.output",
    "ln_2": "norm_2",
    "mlp.c_fc": "feed_forward.w_in",
    "mlp.c_proj": "feed_forward.w_out",
}


def names_from_hf(config: GPTConfig) -> dict[str, str]:
    """Say what each weight of a Hugging Face GPT-2 is called here.

    There `c_attn` holds query, key and value in one; it stands here for `attention`, in which they
    are apart.

    Args:
        config: the sizes.

    Returns:
        Their name of each weight, without "transformer.", and ours.
    """
    names = {
        "wte.weight": "embedding.weight",
        "wpe.weight": "positions.weight",
        "ln_f.weight": "norm.weight",
        "ln_f.bias": "norm.bias",
    }
    for i in range(config.n_layers):
        for theirs, ours in PARTS.items():
            for kind in ("weight", "bias"):
                names[f"h.{i}.{theirs}.{kind}"] = f"blocks.{i}.{ours}.{kind}"
    if not config.tied:
        names["lm_head.weight"] = "head.weight"
    return names


def from_hf_gpt2(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> GPT:
    """Make a `GPT` that gives the logits of a Hugging Face GPT-2.

    `names_from_hf` has the names. Three things are kept in another way there. The maps in a block
    have their weights as (in, out), the transpose of what `nn.Linear` keeps. `attn.c_attn` is the
    maps of query, key and value side by side, in this order. And scores are divided by √K only if
    scale_attn_weights is true, and by i + 1 in block i if scale_attn_by_inverse_layer_idx is true.
    Here they are always divided by √K alone; what is different goes into the query map, weight
    and bias, for the scores are in proportion to the queries.

    Args:
        state: the weights, whose names may begin with "transformer.". Left unchanged. The masks
            of old files, `attn.bias` and `attn.masked_bias` of a block, are passed over.
        config: as in `config_from_hf`.

    Returns:
        The model, in the dtype and on the device of the table of embeddings.

    Raises:
        ValueError: as `config_from_hf`; or a weight is missing, or left over, or there is an
            `lm_head.weight` of its own in a model that is tied. The message names it.
        RuntimeError: a weight has another shape than the config says; torch's message names it.

    Source: the released code of GPT-2 (Radford et al. 2019) and that of transformers.
    """
    sizes = config_from_hf(config)
    names = names_from_hf(sizes)
    masks = (".attn.bias", ".attn.masked_bias")
    theirs = {k.removeprefix("transformer."): w for k, w in state.items() if not k.endswith(masks)}
    if sizes.tied:
        head = theirs.pop("lm_head.weight", None)
        if head is not None and not torch.equal(head, theirs.get("wte.weight", head)):
            raise ValueError("lm_head.weight is not wte.weight, and the config says tied")
    if wrong := names.keys() ^ theirs.keys():
        raise ValueError(f"missing, or not expected, among the weights: {sorted(wrong)}")
    table = theirs["wte.weight"]
    model = GPT(sizes, device=table.device, dtype=table.dtype)
    ours = {"head.embedding.weight": table} if sizes.tied else {}
    for old, new in names.items():
        w = theirs[old]
        if old.startswith("h.") and w.ndim == 2:
            w = w.T  # (in, out) -> (out, in)
        if ".c_attn." not in old:
            ours[new] = w
            continue
        layer = int(old.split(".")[1])
        scale = 1.0 if config.get("scale_attn_weights", True) else model.config.d_head**0.5
        scale /= layer + 1 if config.get("scale_attn_by_inverse_layer_idx", False) else 1
        q, k, v = w.chunk(3)  # (3D, D) or (3D,) -> three of (D, D) or (D,)
        for part, piece in (("query", q * scale), ("key", k), ("value", v)):
            ours[new.replace("attention", f"attention.{part}")] = piece
    model.load_state_dict(ours)
    return model


def load_hf_gpt2(folder: str | Path) -> GPT:
    """Load a GPT-2 that somebody has saved with Hugging Face's `save_pretrained`.

    Args:
        folder: holds config.json, and model.safetensors or the parts of it that
            model.safetensors.index.json names.

    Raises:
        FileNotFoundError: one of them is missing; the message names it.
        ValueError, RuntimeError: as `from_hf_gpt2`.
    """
    folder = Path(folder)
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    files = [whole]
    if not whole.exists() and index.exists():
        parts = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = [folder / part for part in sorted(set(parts))]
    state: dict[str, Tensor] = {}
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"{file} is missing (weights are read as safetensors only)")
        state |= load_file(file)
    return from_hf_gpt2(state, config)


# ------------------------------------------------------------------- a model to start from


def save(model: GPT, path: Path, **about: Any) -> None:
    """Write a model into a safetensors file that says by itself what it is.

    Args:
        model: its weights and its config are kept.
        path: the file.
        about: what else is to be known, as JSON would hold it.
    """
    notes = {"config": asdict(model.config), **about}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(model, str(path), {"about": json.dumps(notes)})


def trained(path: Path = CHECKPOINT) -> tuple[GPT, Stories]:
    """Load the GPT that `experiments/14_training.py` has trained, and the language it has learned.

    Args:
        path: a file of `save`, whose notes hold the arguments of `Stories` as `language`.

    Returns:
        The model, in evaluation mode, and the language.
    """
    with safe_open(str(path), "pt") as file:
        notes = json.loads(file.metadata()["about"])
    model = GPT(GPTConfig(**notes["config"]))
    load_model(model, str(path))
    return model.eval(), Stories(**notes["language"])
