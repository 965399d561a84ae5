"""Checks of chapter 14: a model that writes, one token at a time."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional as F

from autograder.checking import Chapter, Trial
from solutions import gpt as reference
from solutions.gpt import (
    GPTConfig,
    config_from_hf,
    names_from_hf,
    next_logits,
)
from solutions.positional_encoding import LearnedPositions
from solutions.residuals_and_norms import init_scale, residual

chapter = Chapter("14_gpt", "GPT")
check = chapter.check


def shaken(t: Trial, m) -> dict[str, Tensor]:
    """Weights of a module in which nothing is 0, 1 or equal to another; a tied table stays tied."""
    state = {k: 0.5 * t.randn(*v.shape) for k, v in m.reference.state_dict().items()}
    if "head.embedding.weight" in state:
        state["head.embedding.weight"] = state["embedding.weight"]
    return state


# --------------------------------------------------------------------------------- Block

Block = chapter.exercise(reference.Block, difficulty=2, minutes=9)

BLOCKS = GPTConfig(vocab_size=11, n_positions=9, d_model=6, n_layers=2, n_heads=3)


def sized(**other) -> GPTConfig:
    return GPTConfig(**(BLOCKS.__dict__ | other))


def doubled(t: Trial, config: GPTConfig) -> None:
    """Require that every parameter has the dtype that was asked for."""
    m = t.model(config, dtype=torch.float64, load=False)
    for name, p in m.state().items():
        said = "A parameter does not have the dtype that was asked for"
        t.require(p.dtype == torch.float64, said, parameter=name, found=str(p.dtype))


@Block.group(
    "both halves, pre-norm",
    points=2,
    hint="x plus attention of norm_1 of x; then, of that, plus feed_forward of norm_2 of it.",
)
def _(t: Trial):
    m = t.model(BLOCKS, load=False)
    m.load(shaken(t, m))
    m.same(t.randn(2, 5, 6))
    m.same(t.randn(3, 1, 6))


@Block.group(
    "what the config asks for, and the dtype",
    points=2,
    hint="The width d_ff (4 * d_model if it is None), the activation and the eps of both norms. "
    "`device` and `dtype` go to every part.",
)
def _(t: Trial):
    for config in (
        sized(d_ff=7),
        sized(activation="relu", d_model=8, n_heads=2),
        sized(activation="gelu", eps=0.3, n_heads=1),
    ):
        m = t.model(config, load=False)
        m.load(shaken(t, m))
        m.same(t.randn(2, 4, config.d_model))
    doubled(t, BLOCKS)


@Block.group(
    "no token sees what comes after it",
    points=1,
    hint="`CausalSelfAttention` has its mask built in; `MultiHeadAttention` has none.",
)
def _(t: Trial):
    m = t.model(BLOCKS, load=False)
    m.load(shaken(t, m))
    x = t.randn(2, 5, 6)
    before = m.call(x)
    for s in (1, 3, 4):
        changed = x.clone()
        changed[:, s:] += t.randn(2, 5 - s, 6)
        now = m.call(changed)
        t.equal(now[:, :s], before[:, :s], f"Token {s} changes what stands before it")


@Block.group(
    "gradients",
    points=1,
    hint="They flow back through both sublayers and past them. Write x + ..., not x += ...",
)
def _(t: Trial):
    m = t.model(sized(d_ff=5), load=False)
    m.load(shaken(t, m))
    m.same_gradients(t.randn(2, 4, 6))


class _Block(reference.Block):
    """The reference, so that single parts can be got wrong."""


@Block.mistake(
    "You normalise the sums: that is post-norm, as in 2017. GPT-2 is pre-norm: each sublayer reads "
    "a normalised copy, and the stream itself stays as it is."
)
class post_norm(_Block):
    def forward(self, x):
        x = residual(x, self.attention, self.norm_1, norm_first=False)
        return residual(x, self.feed_forward, self.norm_2, norm_first=False)


@Block.mistake(
    "Your feed-forward layer reads what came into the block. It comes second: it reads the stream "
    "behind attention."
)
class side_by_side(_Block):
    def forward(self, x):
        return x + self.attention(self.norm_1(x)) + self.feed_forward(self.norm_2(x))


@Block.mistake(
    "You put the normalised copy in place of the stream: `x = norm(x)`. The copy is for the "
    "sublayer alone; what is added to is x."
)
class the_copy_becomes_the_stream(_Block):
    def forward(self, x):
        x = self.norm_1(x)
        x = x + self.attention(x)
        x = self.norm_2(x)
        return x + self.feed_forward(x)


@Block.mistake("You use norm_1 twice. Each sublayer has a norm of its own.")
class one_norm_for_both(_Block):
    def forward(self, x):
        x = residual(x, self.attention, self.norm_1)
        return residual(x, self.feed_forward, self.norm_1)


@Block.mistake("You swapped the norms: norm_1 belongs to attention, norm_2 to the feed-forward.")
class norms_swapped(_Block):
    def forward(self, x):
        x = residual(x, self.attention, self.norm_2)
        return residual(x, self.feed_forward, self.norm_1)


@Block.mistake("You have the feed-forward layer first. Attention comes first.")
class feed_forward_first(_Block):
    def forward(self, x):
        x = residual(x, self.feed_forward, self.norm_2)
        return residual(x, self.attention, self.norm_1)


@Block.mistake(
    "You return what the feed-forward layer says, and not the stream with it added. Then nothing "
    "that was known before gets past this block."
)
class second_sum_forgotten(_Block):
    def forward(self, x):
        x = residual(x, self.attention, self.norm_1)
        return self.feed_forward(self.norm_2(x))


@Block.mistake(
    "Your attention replaces the stream instead of adding to it. What the token was is lost."
)
class first_sum_forgotten(_Block):
    def forward(self, x):
        x = self.attention(self.norm_1(x))
        return residual(x, self.feed_forward, self.norm_2)


@Block.mistake("You left the feed-forward layer out of `forward`.")
class attention_alone(_Block):
    def forward(self, x):
        return residual(x, self.attention, self.norm_1)


@Block.mistake("You left attention out of `forward`: no token learns of another.")
class feed_forward_alone(_Block):
    def forward(self, x):
        return residual(x, self.feed_forward, self.norm_2)


@Block.mistake("Your sublayers read the stream as it is. A norm goes before each of them.")
class no_norms(_Block):
    def forward(self, x):
        x = x + self.attention(x)
        return x + self.feed_forward(x)


@Block.mistake(
    "Your attention has no mask: every token sees the whole sequence, and the model would be "
    "trained to copy the next token, which it will not have when it writes."
)
class open_attention(_Block):
    def forward(self, x):
        def attend(y):
            return reference.MultiHeadAttention.forward(self.attention, y)[0]

        x = residual(x, attend, self.norm_1)
        return residual(x, self.feed_forward, self.norm_2)


def _block_of(change: Callable[[GPTConfig], GPTConfig]) -> type[nn.Module]:
    class Other(_Block):
        def __init__(self, config, device=None, dtype=None):
            super().__init__(change(config), device, dtype)

    return Other


@Block.mistake(
    "You left the activation to `FeedForward`'s own default, which is the ReLU. The config says "
    "which it is."
)
class default_activation(_Block):
    def __init__(self, config, device=None, dtype=None):
        super().__init__(GPTConfig(**(config.__dict__ | {"activation": "relu"})), device, dtype)


@Block.mistake("You fixed the activation to GPT-2's. The config says which it is.")
class activation_of_gpt2(_Block):
    def __init__(self, config, device=None, dtype=None):
        changed = config.__dict__ | {"activation": "gelu_tanh"}
        super().__init__(GPTConfig(**changed), device, dtype)


@Block.mistake("You left eps to the norms' own default. The config says what it is.")
class default_eps(_Block):
    def __init__(self, config, device=None, dtype=None):
        super().__init__(GPTConfig(**(config.__dict__ | {"eps": 1e-5})), device, dtype)


@Block.mistake("You do not hand `dtype` (and `device`) on to the parts.")
class options_ignored(_Block):
    def __init__(self, config, device=None, dtype=None):
        super().__init__(config)


@Block.mistake("You made the feed-forward layer 4 * d_model wide although d_ff is given.")
class always_four_times(_Block):
    def __init__(self, config, device=None, dtype=None):
        super().__init__(GPTConfig(**(config.__dict__ | {"d_ff": None})), device, dtype)


@Block.alternative
class written_out(nn.Module):
    def __init__(self, config, device=None, dtype=None):
        super().__init__()
        more = {"device": device, "dtype": dtype}
        self.norm_1 = nn.LayerNorm(config.d_model, config.eps, **more)
        self.attention = reference.CausalSelfAttention(config.d_model, config.n_heads, **more)
        self.norm_2 = nn.LayerNorm(config.d_model, config.eps, **more)
        self.feed_forward = reference.FeedForward(
            config.d_model, config.d_ff or 4 * config.d_model, config.activation, **more
        )

    def forward(self, x):
        h = x + self.attention(self.norm_1(x))
        return h + self.feed_forward(self.norm_2(h))


@Block.alternative
class with_a_mask_made_each_time(_Block):
    def forward(self, x):
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        y = self.norm_1(x)
        x = x + reference.MultiHeadAttention.forward(self.attention, y, mask=mask)[0]
        return x + self.feed_forward(self.norm_2(x))


@Block.alternative
class one_sequence_at_a_time(_Block):
    def forward(self, x):
        return torch.cat([super(one_sequence_at_a_time, self).forward(s[None]) for s in x])


# ----------------------------------------------------------------------------------- GPT

GPT = chapter.exercise(reference.GPT, difficulty=4, minutes=22)

MODELS = GPTConfig(vocab_size=11, n_positions=7, d_model=6, n_layers=2, n_heads=2)


def model_of(**other) -> GPTConfig:
    return GPTConfig(**(MODELS.__dict__ | other))


@GPT.group(
    "logits",
    points=2,
    hint="Embedding plus position; the blocks, one after the other; the last norm; the head.",
)
def _(t: Trial):
    m = t.model(MODELS, load=False)
    m.load(shaken(t, m))
    m.same(t.randint(0, 11, (2, 5)))
    m.same(t.randint(0, 11, (3, 1)))
    m.same(t.randint(0, 11, (1, 7)))
    m.same_gradients(t.randint(0, 11, (2, 4)))


@GPT.group(
    "what the config asks for",
    points=2,
    hint="Every part takes its sizes from the config; eps is for the last norm, too; the head has "
    "a matrix of its own if `tied` is False.",
)
def _(t: Trial):
    own = {"tied": False, "d_ff": 5, "activation": "relu", "eps": 0.4, "vocab_size": 5}
    for config in (
        model_of(**own, n_layers=1),
        *([model_of(d_model=8, n_heads=4, n_layers=3)] if t.graded else []),
    ):
        m = t.model(config, load=False)
        m.load(shaken(t, m))
        m.same(t.randint(0, config.vocab_size, (2, 6)))


@GPT.group(
    "stream and read",
    points=2,
    hint="`stream` stops behind `depth` blocks, before the last norm; `read` is norm and head; "
    "`forward` is the one after the other.",
)
def _(t: Trial):
    for tied in (True, False) if t.graded else (True,):
        config = model_of(tied=tied)
        like = reference.GPT(config).state_dict()
        state = {k: 0.5 * t.randn(*v.shape) for k, v in like.items()}
        if tied:
            state["head.embedding.weight"] = state["embedding.weight"]
        depths = [0, 1, 2, None]
        found, expected = t.drive("gpt_parts", config, state, t.randint(0, 11, (2, 5)), depths)
        for depth, have, want in zip(depths, found["streams"], expected["streams"]):
            t.equal(have, want, f"The stream at depth {depth} is not what it should be")
        t.equal(found["read"], expected["read"], "`read` does not give the logits of a stream")
        t.equal(found["logits"], expected["logits"], "`forward` does not give the logits")
        said = "A tied head must follow the table of embeddings, and one of its own must not"
        t.equal(found["follows"], expected["follows"], said)


@GPT.group(
    "the context window",
    points=1,
    hint="Compare T with n_positions before you look anything up, and name both in the message.",
)
def _(t: Trial):
    m = t.model(model_of(n_layers=1), load=False)
    m.raises(ValueError, t.randint(0, 11, (2, 8)), naming="8")
    m.raises(ValueError, t.randint(0, 11, (1, 9)), naming="7")


@GPT.group(
    "weights at the start, and their dtype",
    points=2,
    hint="Normal with standard deviation config.std, times init_scale(L) for the two maps of a "
    "block that write into the stream. Biases are 0. `device` and `dtype` go to every part.",
)
def _(t: Trial):
    for n_layers in (2, 8) if t.graded else (2,):
        config = model_of(
            d_model=24, n_layers=n_layers, vocab_size=45, n_positions=30, tied=False, std=0.04
        )
        found, expected = t.drive("initial_weights", config, torch.float64)
        t.equal(sorted(found), sorted(expected), "The parameters are not those of the docstring")
        for name in expected:
            have = found.get(name, "missing")
            t.require(
                have == expected[name],
                "The weights at the start are not as the docstring says",
                parameter=name,
                found=have,
                expected=expected[name],
            )


class _Model(reference.GPT):
    """The reference, so that single parts can be got wrong."""


@GPT.mistake(
    "You left the positions out: the model sees which tokens came, and hardly in which order."
)
class no_positions(_Model):
    def stream(self, ids, depth=None):
        return (
            super().stream(ids, depth)
            if ids.shape[1] > self.config.n_positions
            else _run(self, self.embedding(ids), depth)
        )


def _run(model, x, depth=None):
    for block in model.blocks[:depth]:
        x = block(x)
    return x


def _start(model, ids, places):
    if ids.shape[1] > model.config.n_positions:
        raise ValueError(f"{ids.shape[1]} tokens, more than {model.config.n_positions}")
    return model.embedding(ids) + model.positions(places)


@GPT.mistake("Your positions count from 1. The first token stands at position 0.")
class positions_from_one(_Model):
    def stream(self, ids, depth=None):
        # The last position has no place left, so it shares one.
        places = (torch.arange(ids.shape[1]) + 1).clamp(max=self.config.n_positions - 1)
        return _run(self, _start(self, ids, places), depth)


@GPT.mistake(
    "You took the same position for all tokens of a sequence (its length, say). Token t stands at "
    "position t."
)
class one_position_for_all(_Model):
    def stream(self, ids, depth=None):
        places = torch.full((ids.shape[1],), ids.shape[1] - 1)
        return _run(self, _start(self, ids, places), depth)


@GPT.mistake(
    "You forgot the last norm. In pre-norm nothing has normalised the stream by then, so the head "
    "reads a stream that has grown from block to block."
)
class last_norm_forgotten(_Model):
    def read(self, x):
        return self.head(x)


@GPT.mistake(
    "You put the last norm into `stream`. The stream is what the blocks leave; `read` normalises."
)
class norm_in_the_stream(_Model):
    def stream(self, ids, depth=None):
        return self.norm(super().stream(ids, depth))

    def read(self, x):
        return self.head(x)


@GPT.mistake("You normalise the stream after every block. The norm is for `read` alone.")
class norm_after_every_block(_Model):
    def stream(self, ids, depth=None):
        x = super().stream(ids, 0)
        for block in self.blocks[:depth]:
            x = self.norm(block(x))
        return x


@GPT.mistake("You normalise the embeddings before the first block. GPT-2 does not.")
class norm_before_the_blocks(_Model):
    def stream(self, ids, depth=None):
        return _run(self, self.norm(super().stream(ids, 0)), depth)


@GPT.mistake("Your `stream` ignores `depth`, and always runs through all blocks.")
class depth_ignored(_Model):
    def stream(self, ids, depth=None):
        return super().stream(ids)


@GPT.mistake(
    "You test `if depth` or write `depth or L`, so that depth 0 counts as all blocks. Compare with "
    "None, or slice with `[:depth]`."
)
class depth_zero_is_all(_Model):
    def stream(self, ids, depth=None):
        return super().stream(ids, depth or None)


@GPT.mistake("Your `depth` is off by one: behind depth blocks, so depth 0 is before the first.")
class depth_plus_one(_Model):
    def stream(self, ids, depth=None):
        return super().stream(ids, None if depth is None else depth + 1)


@GPT.mistake("You send the tokens through the first block over and over, L times.")
class first_block_only(_Model):
    def stream(self, ids, depth=None):
        x = super().stream(ids, 0)
        for _ in self.blocks[:depth]:
            x = self.blocks[0](x)
        return x


@GPT.mistake("You run the blocks in the opposite order. Block 0 comes first.")
class blocks_from_the_top(_Model):
    def stream(self, ids, depth=None):
        x = super().stream(ids, 0)
        for block in list(self.blocks)[::-1][:depth]:
            x = block(x)
        return x


@GPT.mistake(
    "You return probabilities. A model returns logits: the loss and the choice of a token take the "
    "softmax themselves, and a second one flattens everything."
)
class probabilities(_Model):
    def read(self, x):
        return super().read(x).softmax(-1)


@GPT.mistake("You return log-probabilities. `read` gives the logits as the head leaves them.")
class log_probabilities(_Model):
    def read(self, x):
        return super().read(x).log_softmax(-1)


@GPT.mistake(
    "You return the logits of the last position alone. `forward` answers at all positions: "
    "training grades every one."
)
class last_position_alone(_Model):
    def forward(self, ids):
        return super().forward(ids)[:, -1]


@GPT.mistake("You add the stream to what a block returns. The block has added it already.")
class added_once_more(_Model):
    def stream(self, ids, depth=None):
        x = super().stream(ids, 0)
        for block in self.blocks[:depth]:
            x = x + block(x)
        return x


@GPT.mistake("You multiplied the embeddings by √D, as the model of 2017 does. GPT-2 does not.")
class scaled_embeddings(_Model):
    def stream(self, ids, depth=None):
        places = torch.arange(ids.shape[1])
        x = _start(self, ids, places) + (math.sqrt(self.config.d_model) - 1) * self.embedding(ids)
        return _run(self, x, depth)


@GPT.mistake(
    "You leave it to the table of positions to complain about a text that is too long. Say so "
    "yourself, with a ValueError that names T and n_positions."
)
class length_not_looked_at(_Model):
    def stream(self, ids, depth=None):
        x = self.embedding(ids) + self.positions.weight[: ids.shape[1]]
        return _run(self, x, depth)


@GPT.mistake(
    "You cut off what does not fit into the window, without a word. Then logits are missing, or "
    "belong to other tokens: raise a ValueError. Cropping is for the one who writes."
)
class crops_in_silence(_Model):
    def stream(self, ids, depth=None):
        return super().stream(ids[:, -self.config.n_positions :], depth)


@GPT.mistake("Your limit is off by one: n_positions tokens do fit.")
class one_position_too_few(_Model):
    def stream(self, ids, depth=None):
        if ids.shape[1] >= self.config.n_positions:
            raise ValueError(f"{ids.shape[1]} tokens, more than {self.config.n_positions}")
        return super().stream(ids, depth)


@GPT.mistake("Your message gives only one of the two numbers. Name T and n_positions.")
class names_the_length_alone(_Model):
    def stream(self, ids, depth=None):
        if ids.shape[1] > self.config.n_positions:
            raise ValueError(f"{ids.shape[1]} tokens are too many")
        return super().stream(ids, depth)


@GPT.mistake("You hand `dtype` (and `device`) to the blocks, and not to the other parts.")
class options_for_the_blocks_alone(_Model):
    def __init__(self, config, device=None, dtype=None):
        super().__init__(config)
        self.blocks.to(device=device, dtype=dtype)


@GPT.mistake("You left eps of the last norm at its default. The config says what it is.")
class default_eps_at_the_end(_Model):
    def __init__(self, config, device=None, dtype=None):
        super().__init__(config, device, dtype)
        self.norm.eps = 1e-5


class _Copied(nn.Module):
    """Starts as the table of embeddings, under the name that a tied head has, and goes its way."""

    def __init__(self, embedding):
        super().__init__()
        self.embedding = reference.Embedding(*embedding.weight.shape)

    def forward(self, x):
        return x @ self.embedding.weight.T


@GPT.mistake(
    "You gave a tied head a copy of the table. It has to be the very same parameter, so that "
    "training moves both."
)
class copied_table(_Model):
    def __init__(self, config, device=None, dtype=None):
        super().__init__(config, device, dtype)
        if config.tied:
            self.head = _Copied(self.embedding)


@GPT.mistake("You ignore `tied`: there is always one table for both ends.")
class always_tied(_Model):
    def __init__(self, config, device=None, dtype=None):
        super().__init__(GPTConfig(**(config.__dict__ | {"tied": True})), device, dtype)


@GPT.mistake("You ignore `tied`: the head always has a matrix of its own.")
class never_tied(_Model):
    def __init__(self, config, device=None, dtype=None):
        super().__init__(GPTConfig(**(config.__dict__ | {"tied": False})), device, dtype)


@GPT.mistake("Your head has a bias. GPT-2's has none.")
class head_with_a_bias(_Model):
    def __init__(self, config, device=None, dtype=None):
        super().__init__(config, device, dtype)
        if not config.tied:
            self.head = nn.Linear(config.d_model, config.vocab_size)


@GPT.mistake(
    "Your blocks stand in a plain list, where PyTorch does not find their parameters: neither the "
    "optimizer nor a checkpoint would see them. Use `nn.ModuleList`."
)
class plain_list(_Model):
    def __init__(self, config, device=None, dtype=None):
        super().__init__(config, device, dtype)
        blocks = list(self.blocks)
        del self.blocks
        self.blocks = blocks


@GPT.mistake(
    "You repeat one block L times (`[Block(config)] * L`): the layers share their weights."
)
class shared_blocks(_Model):
    def __init__(self, config, device=None, dtype=None):
        super().__init__(config, device, dtype)
        self.blocks = nn.ModuleList([self.blocks[0]] * config.n_layers)


def _drawn(model, std_of):
    for name, p in model.named_parameters():
        if p.ndim == 2:
            nn.init.normal_(p, std=std_of(name))


def _writes(name):
    return name.endswith(("attention.output.weight", "feed_forward.w_out.weight"))


@GPT.mistake(
    "You did not shrink the two maps that write into the stream by 1 / √(2L): the stream starts "
    "out growing with depth."
)
class not_shrunk(_Model):
    def reset_parameters(self):
        super().reset_parameters()
        _drawn(self, lambda name: self.config.std)


@GPT.mistake("You shrank by 1 / √L. A layer writes twice: 1 / √(2L).")
class shrunk_by_layers(_Model):
    def reset_parameters(self):
        super().reset_parameters()
        scale = math.sqrt(2) * init_scale(self.config.n_layers)
        _drawn(self, lambda name: self.config.std * (scale if _writes(name) else 1))


@GPT.mistake(
    "You shrank all weights by 1 / √(2L). It is for the two maps of a block that write into the "
    "stream."
)
class all_shrunk(_Model):
    def reset_parameters(self):
        super().reset_parameters()
        _drawn(self, lambda name: self.config.std * init_scale(self.config.n_layers))


@GPT.mistake("You shrank attention's map, and not the feed-forward layer's. Both write.")
class only_attention_shrunk(_Model):
    def reset_parameters(self):
        super().reset_parameters()
        scale = init_scale(self.config.n_layers)
        _drawn(
            self, lambda name: self.config.std * (scale if name.endswith("output.weight") else 1)
        )


@GPT.mistake("You fixed the standard deviation at 0.02. `config.std` says what it is.")
class always_gpt2s_std(_Model):
    def reset_parameters(self):
        super().reset_parameters()
        scale = init_scale(self.config.n_layers)
        _drawn(self, lambda name: 0.02 * (scale if _writes(name) else 1))


@GPT.mistake("You left the biases as `nn.Linear` draws them. They start at 0.")
class biases_of_torch(_Model):
    def reset_parameters(self):
        super().reset_parameters()
        for name, p in self.named_parameters():
            if p.ndim == 1 and "norm" not in name:
                nn.init.uniform_(p, -0.1, 0.1)


@GPT.mistake(
    "You set every bias and every norm to 0, their scales too: a norm that multiplies by 0 lets "
    "nothing through."
)
class norms_at_zero(_Model):
    def reset_parameters(self):
        super().reset_parameters()
        for p in self.parameters():
            if p.ndim == 1:
                nn.init.zeros_(p)


@GPT.mistake(
    "You left the weights as `nn.Linear` draws them: even, and wider the narrower the model."
)
class weights_of_torch(_Model):
    def reset_parameters(self):
        super().reset_parameters()
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.kaiming_uniform_(part.weight, a=math.sqrt(5))


@GPT.mistake("You never call `reset_parameters`, so the weights stay as the parts draw them.")
class not_called(_Model):
    def reset_parameters(self):
        for part in self.modules():
            if isinstance(part, nn.Linear):
                part.reset_parameters()


@GPT.alternative
class all_in_one(nn.Module):
    def __init__(self, config, device=None, dtype=None):
        super().__init__()
        more = {"device": device, "dtype": dtype}
        self.config = config
        self.embedding = reference.Embedding(config.vocab_size, config.d_model, **more)
        self.positions = LearnedPositions(config.n_positions, config.d_model, **more)
        self.blocks = nn.ModuleList()
        for _ in range(config.n_layers):
            self.blocks.append(reference.Block(config, **more))
        self.norm = nn.LayerNorm(config.d_model, config.eps, **more)
        own = nn.Linear(config.d_model, config.vocab_size, bias=False, **more)
        self.head = reference.TiedHead(self.embedding) if config.tied else own
        for part in self.modules():
            if isinstance(part, (nn.Linear, reference.Embedding, LearnedPositions)):
                nn.init.normal_(part.weight, 0.0, config.std)
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)
        for block in self.blocks:
            for part in (block.attention.output, block.feed_forward.w_out):
                part.weight.data /= math.sqrt(2 * config.n_layers)

    def stream(self, ids, depth=None):
        batch, length = ids.shape
        if length > self.config.n_positions:
            raise ValueError(f"T={length}, n_positions={self.config.n_positions}")
        places = torch.arange(length).expand(batch, length)
        x = self.embedding(ids) + self.positions(places)
        depth = len(self.blocks) if depth is None else depth
        for i in range(depth):
            x = self.blocks[i](x)
        return x

    def read(self, x):
        return self.head(self.norm(x))

    def forward(self, ids):
        return self.read(self.stream(ids))


@GPT.alternative
class by_prefixes(_Model):
    def forward(self, ids):
        ends = [self.read(self.stream(ids[:, : t + 1]))[:, t] for t in range(ids.shape[1])]
        return torch.stack(ends, 1)


@GPT.alternative
class by_a_slice_of_the_table(_Model):
    def stream(self, ids, depth=None):
        window, length = len(self.positions.weight), ids.size(1)
        if length > window:
            raise ValueError(f"{length} tokens do not fit into a window of {window}")
        x = self.embedding(ids) + self.positions.weight[None, :length]
        return nn.Sequential(*self.blocks[:depth])(x)


# ------------------------------------------------------------------------ reads_as_it_writes


def reads_as_it_writes(model: Callable[[Tensor], Tensor], ids: Int[Tensor, "B T"]) -> bool:
    """Find out whether one pass over a text says what a model would say while writing it.

    In training a model reads a whole text, and is graded at every position at once. When it
    writes, it has at position t only the tokens 0 to t. The two agree if, for every t, the logits
    at position t of the whole text are those at the end of the text that stops there. Differences
    up to 1e-6 are rounding; what is wrong may be as small as a thousandth.

    Args:
        model: takes ids (B, T), of any length from 1 on, and gives logits (B, T, V). It may treat
            each sequence of the batch in its own way.
        ids: texts to try it on. Left unchanged.

    Returns:
        True if they agree at every position, in every sequence and for every token.
    """
    whole = model(ids)
    for t in range(ids.shape[1]):
        end = model(ids[:, : t + 1])[:, -1]
        if not torch.allclose(end, whole[:, t], rtol=0, atol=1e-6):
            return False
    return True


# What it is tried on: functions of ids (B, T) with logits of 7 tokens. The names say what they do.


def _rows(ids: Tensor) -> Tensor:
    """A vector of 7 numbers for each of 7 tokens, the same each time: (B, T) -> (B, T, 7)."""
    return (1.7 * torch.arange(49, dtype=torch.float64)).sin().view(7, 7)[ids]


def _weighted(ids: Tensor, allowed: Tensor) -> Tensor:
    x = _rows(ids)
    scores = (x @ x.mT).masked_fill(~allowed, -torch.inf)
    return x + 2 * scores.softmax(-1) @ x


def _causal(ids: Tensor) -> Tensor:
    return torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()


def table_of_pairs(ids):
    return _rows(ids)


def causal_model(ids):
    return _weighted(ids, _causal(ids))


def model_with_positions(ids):
    places = torch.arange(ids.shape[1], dtype=torch.float64)[:, None]
    return causal_model(ids) + (0.3 * places).cos()


def model_that_adds_up(ids):
    return _rows(ids).cumsum(1).tanh()


def second_sequence_looks_back_less(ids):
    second = (torch.arange(len(ids)) == 1).view(-1, 1, 1)
    near = _causal(ids).triu(-1)
    return _weighted(ids, torch.where(second, near, _causal(ids)))


def rounding_only(ids):
    return causal_model(ids) + 1e-9 * ids.shape[1]


def open_model(ids):
    return _weighted(ids, torch.ones_like(_causal(ids)))


def sees_the_next_token(ids):
    return _weighted(ids, _causal(ids) | _causal(ids).roll(1, 0).tril(1))


def one_too_wide(ids):
    n = ids.shape[1]
    return _weighted(ids, torch.ones(n, n, dtype=torch.bool).tril(1))


def counts_positions_from_the_end(ids):
    places = torch.arange(ids.shape[1], dtype=torch.float64).flip(0)[:, None]
    return causal_model(ids) + (0.3 * places).cos()


def divides_by_the_length(ids):
    return _rows(ids).cumsum(1) / ids.shape[1]


def second_sequence_is_open(ids):
    second = (torch.arange(len(ids)) == 1).view(-1, 1, 1)
    return _weighted(ids, _causal(ids) | second)


def first_position_sees_the_second_token(ids):
    x = causal_model(ids)
    if ids.shape[1] > 1:
        x = torch.cat([x[:, :1] + _rows(ids)[:, 1:2], x[:, 1:]], 1)
    return x


def fourth_position_sees_the_fifth_token(ids):
    x = causal_model(ids)
    if ids.shape[1] > 4:
        x = torch.cat([x[:, :3], x[:, 3:4] + _rows(ids)[:, 4:5], x[:, 4:]], 1)
    return x


def last_but_one_sees_the_last_token(ids):
    x = causal_model(ids)
    if ids.shape[1] == 6:  # the text that it is tried on
        x = torch.cat([x[:, :4], x[:, 4:5] + _rows(ids)[:, 5:6], x[:, 5:]], 1)
    return x


def a_whisper(ids):
    return causal_model(ids) + 0.001 * _rows(ids).mean(1, keepdim=True)


def leak_into_one_logit(ids):
    leak = torch.zeros(7, dtype=torch.float64)
    leak[5] = 1.0
    return causal_model(ids) - leak * (2.0 + _rows(ids).mean((1, 2))[:, None, None].abs())


def sure_of_itself(ids):
    """The future moves the logits, and never the choice of the most likely token."""
    top = 50 * F.one_hot(ids, 7).double()
    return open_model(ids) + top


agreement = chapter.exercise(reads_as_it_writes, difficulty=3, minutes=10)


def tried(t: Trial, *models: Callable) -> None:
    for model in models:
        ids = torch.stack([t.randperm(7)[:6] for _ in range(2)])  # all tokens differ
        t.same(model, ids)


@agreement.group(
    "models that agree and models that do not",
    points=2,
    hint="For every t: the logits at position t of the whole, and the last ones of "
    "`ids[:, : t + 1]`.",
)
def _(t: Trial):
    tried(t, causal_model, open_model, model_with_positions, one_too_wide)
    if t.graded:
        tried(t, table_of_pairs, model_that_adds_up)


@agreement.group(
    "models that know how long the text is",
    points=1,
    hint="Such a model needs no later token to give itself away: it does so when the text is "
    "shorter. Do not change tokens, leave them out.",
)
def _(t: Trial):
    tried(t, counts_positions_from_the_end, divides_by_the_length)


@agreement.group(
    "one position, one sequence, one logit; and faint ones",
    points=2,
    hint="Try every position. Compare logits, of all sequences and all tokens, to within 1e-6.",
)
def _(t: Trial):
    tried(t, first_position_sees_the_second_token, fourth_position_sees_the_fifth_token)
    tried(t, last_but_one_sees_the_last_token, second_sequence_is_open, leak_into_one_logit)
    tried(t, sure_of_itself, a_whisper, second_sequence_looks_back_less, rounding_only)


@agreement.group("ids stay as they are", points=1, hint="A slice reads; do not write into it.")
def _(t: Trial):
    ids = torch.stack([t.randperm(7)[:6] for _ in range(2)])
    t.unchanged(causal_model, ids)
    t.same(open_model, ids)


def _agrees(model, ids, lengths, same=None):
    same = same or (lambda a, b: torch.allclose(a, b, rtol=0, atol=1e-6))
    whole = model(ids)
    return all(same(model(ids[:, :n])[:, -1], whole[:, n - 1]) for n in lengths)


def _all(ids):
    return range(1, ids.shape[1] + 1)


@agreement.mistake("You answer the wrong way round: True means that they agree.")
def the_wrong_way_round(model, ids):
    return not _agrees(model, ids, _all(ids))


@agreement.mistake(
    "You changed later tokens, as in chapter 05, and kept the length. A model that uses the length "
    "of the text goes unseen: cut the text off."
)
def changed_later_tokens(model, ids):
    before = model(ids)
    for t in range(1, ids.shape[1]):
        changed = ids.clone()
        changed[:, t:] = (changed[:, t:] + 1) % 7
        if not torch.allclose(model(changed)[:, :t], before[:, :t], rtol=0, atol=1e-6):
            return False
    return True


@agreement.mistake("You compared the last position alone, where the text is not cut off at all.")
def the_whole_text_only(model, ids):
    return _agrees(model, ids, [ids.shape[1]])


@agreement.mistake(
    "You cut the text off at one place. What goes wrong elsewhere is not seen: try every length."
)
def one_cut(model, ids):
    n = ids.shape[1] // 2
    return torch.allclose(model(ids[:, :n]), model(ids)[:, :n], rtol=0, atol=1e-6)


@agreement.mistake("You left out the text of one token.")
def not_the_first_position(model, ids):
    return _agrees(model, ids, range(2, ids.shape[1] + 1))


@agreement.mistake(
    "You left out the text that lacks its last token only. A leak from the last token into the "
    "position before it goes unseen."
)
def not_the_last_but_one(model, ids):
    return _agrees(model, ids, range(1, ids.shape[1] - 1))


@agreement.mistake(
    "You are off by one: the text that ends with token t holds t + 1 tokens, `ids[:, : t + 1]`."
)
def off_by_one(model, ids):
    whole = model(ids)
    return all(
        torch.allclose(model(ids[:, :t])[:, -1], whole[:, t], rtol=0, atol=1e-6)
        for t in range(1, ids.shape[1])
    )


@agreement.mistake(
    "You compared which token is the most likely. The logits may differ and the choice agree: "
    "anyone who samples, or trains, uses them all."
)
def compared_choices(model, ids):
    return _agrees(model, ids, _all(ids), lambda a, b: torch.equal(a.argmax(-1), b.argmax(-1)))


@agreement.mistake("You compared the first sequence alone. Another one may disagree.")
def one_sequence(model, ids):
    return _agrees(lambda y: model(y)[:1], ids, _all(ids))


@agreement.mistake(
    "Your tolerance is so wide that a faint difference passes for rounding. Rounding stays below "
    "1e-6."
)
def too_tolerant(model, ids):
    return _agrees(model, ids, _all(ids), lambda a, b: torch.allclose(a, b, atol=1e-2))


@agreement.mistake(
    "You ask for equality to the last digit. Rounding may differ between texts of different length."
)
def exact(model, ids):
    return _agrees(model, ids, _all(ids), torch.equal)


@agreement.mistake("You overwrite the tokens of the caller's text. Cut the text, do not blank it.")
def blanked(model, ids):
    agrees = _agrees(model, ids, _all(ids))
    ids[:, 1:] = 0
    return agrees


@agreement.alternative
def growing(model, ids):
    ends = [model(ids[:, :n])[:, -1:] for n in range(1, ids.shape[1] + 1)]
    return bool(((torch.cat(ends, 1) - model(ids)).abs() < 1e-6).all())


@agreement.alternative
def whole_prefixes(model, ids):
    whole = model(ids)
    for n in range(ids.shape[1], 0, -1):
        if (model(ids[:, :n]) - whole[:, :n]).abs().max().item() > 1e-6:
            return False
    return True


@agreement.alternative
def each_sequence_where_it_stands(model, ids):
    whole, agrees = model(ids), True
    for b in range(len(ids)):
        for t in range(ids.size(1)):
            one = model(ids[:, : t + 1])[b, t]
            agrees = agrees and torch.allclose(one, whole[b, t], atol=1e-6, rtol=0)
    return agrees


# --------------------------------------------------------------------------- next_logits

following = chapter.exercise(reference.next_logits, difficulty=2, minutes=7)


def table_of(t: Trial, vocab: int = 7) -> Tensor:
    return t.randn(vocab, vocab, dtype=torch.float64)


@following.group(
    "a text that fits",
    points=2,
    hint="The logits at the last position are those of the next token: (B, V), no axis for time.",
)
def _(t: Trial):
    for window, shape in ((9, (2, 5)), (6, (3, 6)), (4, (2, 1))):
        found, expected = t.drive("reading", table_of(t), window, t.randint(0, 7, shape))
        t.equal(found["logits"], expected["logits"], "These are not the logits of the next token")


@following.group(
    "a text longer than the context window",
    points=2,
    hint="Give the model the last n_positions tokens, and no more: `ids[:, -n_positions:]`.",
)
def _(t: Trial):
    for window, shape in ((4, (2, 9)), (5, (3, 6)), (1, (2, 3))):
        found, expected = t.drive("reading", table_of(t), window, t.randint(0, 7, shape))
        t.equal(found["logits"], expected["logits"], "These are not the logits of the next token")
        said = "The model should read as much of the text as its window holds, once"
        t.equal(found["lengths"], expected["lengths"], said)


@following.group(
    "the head reads one position",
    points=1,
    hint="Take the last position of the stream first, and let `read` see nothing else.",
)
def _(t: Trial):
    found, _ = t.drive("reading", table_of(t), 8, t.randint(0, 7, (2, 6)))
    t.require(
        found["positions"] == [1],
        "The head should be asked once, about the last position alone",
        positions=found["positions"],
    )
    t.require(not found["graph"], "The logits carry a graph for gradients")


@following.mistake(
    "You cropped the text to its first n_positions tokens. The next token depends on the last ones."
)
@torch.no_grad()
def keeps_the_beginning(model, ids):
    return model.read(model.stream(ids[:, : model.config.n_positions])[:, -1])


@following.mistake(
    "You do not crop. A text that is longer than the context window makes the model complain."
)
@torch.no_grad()
def does_not_crop(model, ids):
    return model.read(model.stream(ids)[:, -1])


@following.mistake("You keep one token less than the window holds. n_positions tokens do fit.")
@torch.no_grad()
def crops_too_much(model, ids):
    window = ids[:, -max(1, model.config.n_positions - 1) :]
    return model.read(model.stream(window)[:, -1])


@following.mistake(
    "You cut the text into windows and read the last, which may hold a few tokens only. Let the "
    "window end where the text ends, and reach back as far as it can."
)
@torch.no_grad()
def last_piece(model, ids):
    return model.read(model.stream(ids.split(model.config.n_positions, dim=1)[-1])[:, -1])


@following.mistake(
    "You let the head read every position, and throw all but one away. It is the largest matrix of "
    "the model: take the last position of the stream first."
)
@torch.no_grad()
def reads_everything(model, ids):
    return model(ids[:, -model.config.n_positions :])[:, -1]


@following.mistake("You return the logits at every position. Asked for is the next token alone.")
@torch.no_grad()
def all_positions(model, ids):
    return model(ids[:, -model.config.n_positions :])


@following.mistake("You kept the axis of time: `[:, -1]` takes it away, `[:, -1:]` leaves it.")
@torch.no_grad()
def keeps_the_axis(model, ids):
    return model.read(model.stream(ids[:, -model.config.n_positions :])[:, -1:])


@following.mistake("You took the logits at the first position. The next token follows the last.")
@torch.no_grad()
def first_position(model, ids):
    return model.read(model.stream(ids[:, -model.config.n_positions :])[:, 0])


@following.mistake("You took the last sequence of the batch: time is the second axis, `[:, -1]`.")
@torch.no_grad()
def last_sequence(model, ids):
    return model.read(model.stream(ids[:, -model.config.n_positions :])[-1])


@following.mistake("You return the stream at the last position. `model.read` makes logits of it.")
@torch.no_grad()
def not_read(model, ids):
    return model.stream(ids[:, -model.config.n_positions :])[:, -1]


@following.mistake("You return probabilities. The one who chooses takes the softmax.")
@torch.no_grad()
def next_probabilities(model, ids):
    return model.read(model.stream(ids[:, -model.config.n_positions :])[:, -1]).softmax(-1)


@following.mistake("You chose a token already. Return the logits: others choose.")
@torch.no_grad()
def chooses(model, ids):
    return model.read(model.stream(ids[:, -model.config.n_positions :])[:, -1]).argmax(-1)


@following.alternative
def step_by_step(model, ids):
    with torch.inference_mode():
        first = max(0, ids.shape[1] - model.config.n_positions)
        x = model.stream(ids[:, first:])
        return model.read(x.select(1, -1)).clone()


@following.alternative
@torch.no_grad()
def with_the_axis_and_without(model, ids):
    x = model.stream(torch.stack(ids.unbind(1)[-model.config.n_positions :], 1))
    return model.read(x[:, -1:])[:, 0]


# ------------------------------------------------------------------------------ generate

writing = chapter.exercise(reference.generate, difficulty=2, minutes=9)


def written(t: Trial, *, window: int, shape: tuple, n: int, rank: int | None = None) -> dict:
    prompt = t.randint(0, 7, shape)
    found, expected = t.drive("writing", table_of(t), window, prompt, n, rank)
    t.equal(found["ids"], expected["ids"], "The text is not what the model would have written")
    return found | {"expected": expected, "given": prompt}


@writing.group(
    "one token at a time",
    points=2,
    hint="Choose from the logits of the next token, put it behind the text, and ask again with the "
    "longer text.",
)
def _(t: Trial):
    written(t, window=12, shape=(2, 3), n=5)
    written(t, window=8, shape=(3, 1), n=4)
    written(t, window=8, shape=(2, 4), n=0)


@writing.group(
    "past the end of the context window",
    points=1,
    hint="`next_logits` crops what the model reads. What is returned is the whole text.",
)
def _(t: Trial):
    written(t, window=4, shape=(2, 2), n=7)
    written(t, window=3, shape=(1, 6), n=3)


@writing.group(
    "as `choose` says",
    points=2,
    hint="`choose` takes logits (B, V), of all sequences at once, and gives ids (B,).",
)
def _(t: Trial):
    for rank in (1, 5):
        found = written(t, window=6, shape=(2, 3), n=4, rank=rank)
        said = "`choose` should be given the logits of the next token, (B, V), once a step"
        t.equal(found["asked"], found["expected"]["asked"], said)


@writing.group(
    "the prompt stays, and nothing is computed twice",
    points=1,
    hint="`torch.cat` makes a new tensor. Each token costs one pass, and the last one none.",
)
def _(t: Trial):
    found = written(t, window=9, shape=(2, 3), n=4)
    t.equal(found["prompt"], found["given"], "You changed the caller's prompt")
    said = "Each token should cost the model one pass over the text so far"
    t.equal(found["lengths"], found["expected"]["lengths"], said)


def _writing(model, ids, n, choose, follow=next_logits):
    for _ in range(n):
        ids = torch.cat([ids, choose(follow(model, ids))[:, None]], dim=1)
    return ids


most_likely = reference.most_likely


@writing.mistake("You return what was written alone. Asked for is the prompt with it.")
def without_the_prompt(model, ids, n, choose=most_likely):
    return _writing(model, ids, n, choose)[:, ids.shape[1] :]


@writing.mistake(
    "You write until the text is n tokens long. n is how many tokens come after the prompt."
)
def n_in_all(model, ids, n, choose=most_likely):
    return _writing(model, ids, n - ids.shape[1], choose)


@writing.mistake("You write one token too many.")
def one_too_many(model, ids, n, choose=most_likely):
    return _writing(model, ids, n + 1, choose)


@writing.mistake("You write one token too few.")
def one_too_few(model, ids, n, choose=most_likely):
    return _writing(model, ids, n - 1, choose)


@writing.mistake(
    "You give the model the last token alone. It has no memory: it has to read the whole text "
    "again (chapter 20 gives it a memory)."
)
def last_token_alone(model, ids, n, choose=most_likely):
    return _writing(model, ids, n, choose, lambda m, text: next_logits(m, text[:, -1:]))


@writing.mistake(
    "You ask for the logits once, before the loop, so that each new token is chosen as if nothing "
    "had been written."
)
def logits_before_the_loop(model, ids, n, choose=most_likely):
    logits = next_logits(model, ids)
    return _writing(model, ids, n, choose, lambda m, text: logits)


@writing.mistake("You ignore `choose` and always take the most likely token.")
def never_asks(model, ids, n, choose=most_likely):
    return _writing(model, ids, n, most_likely)


@writing.mistake(
    "You return only as much of the text as the context window holds. The model forgets the "
    "beginning, the caller does not."
)
def crops_the_text(model, ids, n, choose=most_likely):
    window = model.config.n_positions
    for _ in range(n):
        ids = torch.cat([ids, choose(next_logits(model, ids))[:, None]], dim=1)[:, -window:]
    return ids


@writing.mistake("You stop when the context window is full. Crop what the model reads, and go on.")
def stops_when_full(model, ids, n, choose=most_likely):
    return _writing(model, ids, min(n, max(0, model.config.n_positions - ids.shape[1])), choose)


@writing.mistake(
    "You call the model on the whole text, which may be longer than the context window. "
    "`next_logits` crops it."
)
def reads_too_much(model, ids, n, choose=most_likely):
    return _writing(model, ids, n, choose, lambda m, text: m.read(m.stream(text)[:, -1]))


@writing.mistake("You put each new token in front of the text. It goes behind it.")
def in_front(model, ids, n, choose=most_likely):
    for _ in range(n):
        ids = torch.cat([choose(next_logits(model, ids))[:, None], ids], dim=1)
    return ids


@writing.mistake(
    "You joined along the batch: the new tokens are further sequences. Time is the second axis."
)
def along_the_batch(model, ids, n, choose=most_likely):
    for _ in range(n):
        ids = torch.cat([ids, choose(next_logits(model, ids))[:, None].expand(-1, ids.shape[1])])
    return ids


@writing.mistake("You write the same token into all sequences: that of the first.")
def first_sequences_choice(model, ids, n, choose=most_likely):
    for _ in range(n):
        chosen = choose(next_logits(model, ids))
        ids = torch.cat([ids, chosen[:1].expand(len(ids))[:, None]], dim=1)
    return ids


@writing.mistake("You read the text once more after the last token. Nobody asks what would follow.")
def one_pass_too_many(model, ids, n, choose=most_likely):
    logits = next_logits(model, ids)
    for _ in range(n):
        ids = torch.cat([ids, choose(logits)[:, None]], dim=1)
        logits = next_logits(model, ids)
    return ids


@writing.alternative
def into_a_prepared_tensor(model, ids, n, choose=most_likely):
    batch, length = ids.shape
    text = torch.zeros(batch, length + n, dtype=torch.long)
    text[:, :length] = ids
    for i in range(length, length + n):
        text[:, i] = choose(next_logits(model, text[:, :i]))
    return text


@writing.alternative
def by_recursion(model, ids, n, choose=most_likely):
    if n == 0:
        return ids
    chosen = choose(next_logits(model, ids)).unsqueeze(1)
    return by_recursion(model, torch.cat((ids, chosen), 1), n - 1, choose)


@writing.alternative
def with_a_list(model, ids, n, choose=most_likely):
    columns = list(ids.unbind(1))
    with torch.no_grad():
        while len(columns) < ids.shape[1] + n:
            window = torch.stack(columns[-model.config.n_positions :], dim=1)
            columns.append(choose(model.read(model.stream(window)[:, -1])))
    return torch.stack(columns, dim=1)


# -------------------------------------------------------------------- positions_computed

costs = chapter.exercise(reference.positions_computed, difficulty=2, minutes=6)


@costs.group(
    "while everything fits",
    points=1,
    hint="The first token costs a pass over the prompt, the second a pass over one token more.",
)
def _(t: Trial):
    for prompt, n in ((5, 1), (3, 4), (1, 6), (7, 0)):
        t.same(prompt, n, 100)


@costs.group(
    "past the window",
    points=1,
    hint="A pass never reads more than the window holds.",
)
def _(t: Trial):
    for prompt, n, window in ((5, 6, 8), (9, 3, 4), (4, 5, 4), (3, 40, 16)):
        t.same(prompt, n, window)
    if t.graded:
        t.same(t.integer(1, 50), t.integer(1, 90), t.integer(2, 64))


@costs.mistake(
    "You count each token once, as a model with a memory would. Without one, every step reads the "
    "whole text again."
)
def each_token_once(prompt, n, window):
    return min(prompt, window) + n - 1 if n else 0


@costs.mistake("You forgot the prompt, which every step reads as well.")
def prompt_forgotten(prompt, n, window):
    return sum(min(i, window) for i in range(n))


@costs.mistake("You let a pass read more than the context window holds.")
def no_window(prompt, n, window):
    return sum(prompt + i for i in range(n))


@costs.mistake("You count one pass too many: nothing is read after the last token.")
def reads_after_the_last(prompt, n, window):
    return sum(min(prompt + i, window) for i in range(n + 1))


@costs.mistake(
    "You are one token ahead: the first new token is chosen after a pass over the prompt alone."
)
def one_token_ahead(prompt, n, window):
    return sum(min(prompt + i, window) for i in range(1, n + 1))


@costs.mistake("You took the length at the end for every step. The text grows.")
def always_the_longest(prompt, n, window):
    return n * min(prompt + n - 1, window)


@costs.mistake("You took the length of the prompt for every step. The text grows.")
def always_the_prompt(prompt, n, window):
    return n * min(prompt, window)


@costs.mistake("You cap the sum. It is each single pass that the window caps.")
def sum_capped(prompt, n, window):
    return min(sum(prompt + i for i in range(n)), n * window)


@costs.alternative
def in_closed_form(prompt, n, window):
    growing = max(0, min(n, window - prompt))
    return growing * prompt + growing * (growing - 1) // 2 + (n - growing) * window


@costs.alternative
def step_after_step(prompt, n, window):
    total, length = 0, prompt
    while n > 0:
        total += length if length < window else window
        length, n = length + 1, n - 1
    return total


@costs.alternative
def with_torch(prompt, n, window):
    return int(torch.arange(prompt, prompt + n).clamp(max=window).sum())


# ----------------------------------------------------------------------- sliding_windows

sliding = chapter.exercise(reference.sliding_windows, difficulty=3, minutes=9, mend="as_handed_out")


@sliding.group(
    "every token is graded once",
    points=2,
    hint="Write the windows of a short text down by hand: n = 10, window = 6, stride = 3. Which "
    "tokens does the second window grade?",
)
def _(t: Trial):
    for n, window, stride in ((10, 6, 3), (23, 8, 4), (17, 5, 2)):
        found = t.call(n, window, stride)
        graded = [i for piece in found if len(piece) == 3 for i in range(piece[1], piece[2])]
        said = "Tokens are not graded once each, in order, from token 1 to the last"
        t.equal(graded, list(range(1, n)), said)
        t.same(n, window, stride)


@sliding.group(
    "the end of the text",
    points=1,
    hint="The last window stops where the text stops, and there is none after it.",
)
def _(t: Trial):
    for n, window, stride in ((9, 6, 3), (12, 4, 3), (13, 4, 3), (7, 6, 5)):
        t.same(n, window, stride)


@sliding.group(
    "short texts, and the widest and narrowest stride",
    points=1,
    hint="A text that fits needs one window, which grades from token 1 on.",
)
def _(t: Trial):
    for n, window, stride in ((5, 8, 3), (6, 6, 2), (2, 2, 1), (9, 4, 1), (14, 5, 4)):
        t.same(n, window, stride)
    if t.graded:
        window = t.integer(2, 12)
        t.same(t.integer(2, 60), window, t.integer(1, window))


@sliding.mistake(
    "You grade the overlap twice, and the tail of the text never: that is how it was handed out."
)
def as_handed_out(n, window, stride):
    windows = []
    for start in range(0, max(1, n - window), stride):
        end = min(start + window, n)
        windows.append((start, start + 1, end))
    return windows


@sliding.mistake(
    "Your windows grade all of their tokens, so that the overlap counts twice, the second time "
    "with hardly anything before it. A window grades what no window before it has."
)
def overlap_twice(n, window, stride):
    windows = []
    for start in range(0, n, stride):
        end = min(start + window, n)
        windows.append((start, start + 1, end))
        if end == n:
            break
    return windows


@sliding.mistake(
    "You never get to the end of the text: windows that would reach beyond it are left out. Let "
    "the last one stop where the text stops."
)
def tail_left_out(n, window, stride):
    windows, graded = [], 1
    for start in range(0, max(1, n - window), stride):
        end = min(start + window, n)
        windows.append((start, graded, end))
        graded = end
    return windows


@sliding.mistake("You go on after the end is reached: windows follow that have nothing to grade.")
def goes_on_after_the_end(n, window, stride):
    windows, graded = [], 1
    for start in range(0, n, stride):
        end = min(start + window, n)
        windows.append((start, graded, end))
        graded = end
    return windows


@sliding.mistake("Your last window reaches beyond the text.")
def beyond_the_text(n, window, stride):
    windows, graded = [], 1
    for start in range(0, n, stride):
        end = start + window
        windows.append((start, graded, end))
        graded = end
        if end >= n:
            break
    return windows


@sliding.mistake(
    "You grade token 0 as well. Nothing stands before it: there is no position whose logits are "
    "about it."
)
def grades_the_first(n, window, stride):
    windows = reference.sliding_windows(n, window, stride)
    return [(0, 0, windows[0][2]), *windows[1:]]


@sliding.mistake(
    "You move on by a whole window each time, so that no token of a window has more before it than "
    "the window's own beginning. Move by `stride`."
)
def no_overlap(n, window, stride):
    windows, graded = [], 1
    for start in range(0, n, window):
        end = min(start + window, n)
        windows.append((start, graded, end))
        graded = end
        if end == n:
            break
    return windows


@sliding.mistake(
    "You grade from start + window - stride in every window, the first too, whose first tokens are "
    "then never graded."
)
def first_as_the_others(n, window, stride):
    windows = reference.sliding_windows(n, window, stride)
    return [(s, max(1, s + window - stride) if len(windows) > 1 else g, e) for s, g, e in windows]


@sliding.mistake(
    "You skip a token at every seam: a window's first graded token is the one at which the window "
    "before it ended, for `end` itself is not in it."
)
def skips_a_token(n, window, stride):
    windows = reference.sliding_windows(n, window, stride)
    return [windows[0], *((s, g + 1, e) for s, g, e in windows[1:])]


@sliding.alternative
def from_the_ends(n, window, stride):
    starts = [0]
    while starts[-1] + window < n:
        starts.append(starts[-1] + stride)
    ends = [min(n, s + window) for s in starts]
    return list(zip(starts, [1, *ends], ends))


@sliding.alternative
def with_a_formula(n, window, stride):
    count = 1 + max(0, math.ceil((n - window) / stride))
    found = [(0, 1, min(window, n))]
    for i in range(1, count):
        found.append((i * stride, (i - 1) * stride + window, min(i * stride + window, n)))
    return found


# -------------------------------------------------------------------------- from_hf_gpt2

loading = chapter.exercise(reference.from_hf_gpt2, difficulty=4, minutes=16)

THEIRS = {
    "model_type": "gpt2", "vocab_size": 13, "n_positions": 9, "n_embd": 12, "n_layer": 2,
    "n_head": 3,
}  # fmt: skip


def hf_weights(t: Trial, config: dict, prefix: str = "transformer.") -> dict[str, Tensor]:
    """Random weights with the names and shapes of Hugging Face's GPT-2, in no particular order."""
    d, v = config["n_embd"], config["vocab_size"]
    f = config.get("n_inner") or 4 * d
    shapes = {"wte.weight": (v, d), "wpe.weight": (config["n_positions"], d)}
    shapes |= {"ln_f.weight": (d,), "ln_f.bias": (d,)}
    for i in range(config["n_layer"]):
        maps = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, f)}
        for name, shape in (maps | {"mlp.c_proj": (f, d)}).items():
            shapes[f"h.{i}.{name}.weight"] = shape
            shapes[f"h.{i}.{name}.bias"] = shape[1:]
        for name in ("ln_1", "ln_2"):
            shapes[f"h.{i}.{name}.weight"] = shapes[f"h.{i}.{name}.bias"] = (d,)
    names = sorted(shapes)
    order = [names[i] for i in t.randperm(len(names)).tolist()]
    state = {prefix + name: 0.4 * t.randn(*shapes[name]) for name in order}
    if not config.get("tie_word_embeddings", True):
        state["lm_head.weight"] = t.randn(v, d)
    return state


def load(t: Trial, config: dict, state: dict | None = None, said: str = "") -> None:
    state = hf_weights(t, config) if state is None else state
    ids = t.randint(0, config["vocab_size"], (2, 5))
    found, expected = t.drive("loaded", state, config, ids)
    said = said or "The logits are not those that Hugging Face's model would give"
    t.equal(found["logits"], expected["logits"], said)
    t.equal(found["dtype"], expected["dtype"], "The model has another dtype than the embeddings")


@loading.group(
    "the same logits",
    points=3,
    hint="Transpose the four maps of a block. Then cut `c_attn` in three, along the axis that is "
    "3D long: query, key, value.",
)
def _(t: Trial):
    load(t, THEIRS)
    load(t, THEIRS | {"n_layer": 1, "n_head": 4, "n_inner": 12, "activation_function": "relu"})
    load(t, THEIRS | {"n_layer": 11, "n_embd": 6, "n_head": 2, "layer_norm_epsilon": 0.2})
    load(t, THEIRS, {name: w.double() for name, w in hf_weights(t, THEIRS).items()})


@loading.group(
    "with the prefix and without, old masks, a tied head that is written out",
    points=1,
    hint='`name.removeprefix("transformer.")`. Names that end in ".attn.bias" or '
    '".attn.masked_bias" are masks.',
)
def _(t: Trial):
    load(t, THEIRS, hf_weights(t, THEIRS, prefix=""))
    state = hf_weights(t, THEIRS)
    for i in range(2):
        state[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 9, 9).tril().bool()
        state[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    state["lm_head.weight"] = state["transformer.wte.weight"]
    load(t, THEIRS, state)


@loading.group(
    "scores that are scaled in another way",
    points=2,
    hint="Multiply query weight and bias: by √K if they are not divided by √K there, and by "
    "1 / (i + 1) in block i if they are divided by the layer's number.",
)
def _(t: Trial):
    load(t, THEIRS | {"scale_attn_weights": False})
    load(t, THEIRS | {"scale_attn_by_inverse_layer_idx": True, "n_layer": 3})
    both = {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}
    load(t, THEIRS | both | {"n_head": 2})


@loading.group(
    "a head of its own",
    points=1,
    hint="`names_from_hf` has `lm_head.weight` if the model is not tied. A tied one needs "
    "`head.embedding.weight`.",
)
def _(t: Trial):
    load(t, THEIRS | {"tie_word_embeddings": False})


@loading.group(
    "what does not fit is refused, and the weights are left alone",
    points=2,
    hint="Compare the names that you have with those that you need, both ways, and raise a "
    "ValueError that gives those that differ.",
)
def _(t: Trial):
    def refused(state: dict, config: dict, naming: str) -> None:
        found, _ = t.drive("refusal", state, config, naming)
        t.require(
            found["refused"] == "ValueError",
            f"Weights with something wrong about {naming!r} should be refused with a ValueError",
            raised=found["refused"] or "nothing",
        )
        if found["refused"] == "ValueError":
            t.require(found["named"], f"The message of the ValueError should name {naming!r}")

    refused(hf_weights(t, THEIRS), THEIRS | {"activation_function": "silu"}, "silu")
    state = hf_weights(t, THEIRS)
    refused(state, THEIRS | {"n_layer": 1}, "h.1.ln_1.weight")
    del state["transformer.h.1.mlp.c_fc.bias"]
    refused(state, THEIRS, "h.1.mlp.c_fc.bias")
    refused(hf_weights(t, THEIRS) | {"score.weight": t.randn(2, 12)}, THEIRS, "score.weight")
    own = {"lm_head.weight": t.randn(13, 12)}
    refused(hf_weights(t, THEIRS) | own, THEIRS, "lm_head.weight")
    state = hf_weights(t, THEIRS)
    found, _ = t.drive("loaded", state, THEIRS, t.randint(0, 13, (1, 3)))
    t.equal(found["state"], state, "You changed the caller's weights")


def _loading(
    state,
    config,
    *,
    sizes=None,
    names=None,
    strip=lambda name: name.removeprefix("transformer."),
    masks=(".attn.bias", ".attn.masked_bias"),
    turned=lambda name: name.startswith("h."),
    cut=lambda w: w.chunk(3),
    order=("query", "key", "value"),
    scale=None,
    scaled=("weight", "bias"),
    tie=True,
    head=True,
    strict=True,
    typed=True,
):
    """The reference in parts, so that each can be got wrong."""
    sizes = sizes or config_from_hf(config)
    names = names or names_from_hf(sizes)
    theirs = {strip(k): w for k, w in state.items() if not k.endswith(masks)}
    if sizes.tied:
        own = theirs.pop("lm_head.weight", None)
        if head and own is not None and not torch.equal(own, theirs["wte.weight"]):
            raise ValueError("lm_head.weight is not wte.weight, and the config says tied")
    if strict and (wrong := names.keys() ^ theirs.keys()):
        raise ValueError(f"missing, or not expected, among the weights: {sorted(wrong)}")
    like = theirs.get("wte.weight", torch.zeros(()))
    model = reference.GPT(sizes, dtype=like.dtype if typed else None)
    ours = {"head.embedding.weight": theirs["wte.weight"]} if sizes.tied and tie else {}
    for old, new in names.items():
        if old not in theirs:
            continue
        w = theirs[old]
        if w.ndim == 2 and turned(old):
            w = w.T
        if ".c_attn." not in old:
            ours[new] = w
            continue
        layer, kind = int(old.split(".")[1]), old.rpartition(".")[2]
        factor = (scale or _scale)(config, sizes, layer) if kind in scaled else 1.0
        for part, piece in zip(order, cut(w)):
            piece = piece * factor if part == "query" else piece
            ours[new.replace("attention", f"attention.{part}")] = piece
    model.load_state_dict(ours, strict=strict)
    return model


def _scale(config, sizes, layer):
    scale = 1.0 if config.get("scale_attn_weights", True) else math.sqrt(sizes.d_head)
    return scale / (layer + 1 if config.get("scale_attn_by_inverse_layer_idx", False) else 1)


@loading.mistake(
    "You did not transpose `attn.c_proj`. It is square, so nothing complains; all four maps of a "
    "block are kept as (in, out)."
)
def square_map_not_turned(state, config):
    return _loading(state, config, turned=lambda n: n.startswith("h.") and "attn.c_proj" not in n)


@loading.mistake(
    "You cut `c_attn` before you transposed it, along the axis that stays: the parts are made of "
    "pieces of all three."
)
def cut_and_mixed(state, config):
    return _loading(
        state,
        config,
        cut=lambda w: [w.unflatten(0, (-1, 3))[:, i] for i in range(3)],
    )


@loading.mistake("You took the parts of `c_attn` as key, query, value. It is query, key, value.")
def key_first(state, config):
    return _loading(state, config, order=("key", "query", "value"))


@loading.mistake("You took the parts of `c_attn` as value, key, query. It is query, key, value.")
def value_first(state, config):
    return _loading(state, config, order=("value", "key", "query"))


@loading.mistake("You swapped key and value.")
def key_and_value_swapped(state, config):
    return _loading(state, config, order=("query", "value", "key"))


def _swapped(names, one, other):
    return {
        old: new.replace(one, "?").replace(other, one).replace("?", other)
        for old, new in names.items()
    }


@loading.mistake("You swapped the two norms of a block: ln_1 is norm_1.")
def ln_swapped(state, config):
    names = _swapped(names_from_hf(config_from_hf(config)), "norm_1", "norm_2")
    return _loading(state, config, names=names)


@loading.mistake(
    "You went through the layers in alphabetical order, in which `h.10` comes before `h.2`."
)
def alphabetical_layers(state, config):
    sizes = config_from_hf(config)
    layers = sorted(range(sizes.n_layers), key=str)
    names = {}
    for old, new in names_from_hf(sizes).items():
        head, *rest = new.split(".")
        if head == "blocks":
            new = ".".join(["blocks", str(layers.index(int(rest[0]))), *rest[1:]])
        names[old] = new
    return _loading(state, config, names=names)


@loading.mistake(
    'You expect every name to begin with "transformer.". Files that hold the model without its '
    "head have no such prefix."
)
def prefix_expected(state, config):
    def strip(name):
        inside = name.startswith("transformer.") or name == "lm_head.weight"
        return name.removeprefix("transformer.") if inside else f"unknown {name}"

    return _loading(state, config, strip=strip)


@loading.mistake('You expect no name to begin with "transformer.". Most files have that prefix.')
def no_prefix_expected(state, config):
    return _loading(state, config, strip=lambda name: name)


@loading.mistake(
    "You trip over the masks of old files, `attn.bias` and `attn.masked_bias`. They are no weights."
)
def masks_unexpected(state, config):
    return _loading(state, config, masks=("no such name",))


@loading.mistake(
    "You leave out `scale_attn_weights`. If it is false, their scores are not divided by √K, and "
    "ours are: the queries must be √K times as large."
)
def scaling_ignored(state, config):
    return _loading(state, config | {"scale_attn_weights": True})


@loading.mistake(
    "You leave out `scale_attn_by_inverse_layer_idx`: if it is true, block i divides its scores by "
    "i + 1."
)
def layers_number_ignored(state, config):
    return _loading(state, config | {"scale_attn_by_inverse_layer_idx": False})


@loading.mistake(
    "You divide block i's queries by i, or by i + 2. Their layer_idx counts from 0, and they "
    "divide by layer_idx + 1."
)
def layers_number_off_by_one(state, config):
    def scale(config, sizes, layer):
        return _scale(config, sizes, max(0, layer - 1))

    return _loading(state, config, scale=scale)


@loading.mistake(
    "You scale the query's weight and not its bias. Scores are in proportion to all of the query."
)
def bias_not_scaled(state, config):
    return _loading(state, config, scaled=("weight",))


@loading.mistake("You took √D for √K. It is the width of a head that scores are divided by.")
def root_of_the_width(state, config):
    def scale(config, sizes, layer):
        plain = config.get("scale_attn_weights", True)
        more = 1.0 if plain else math.sqrt(sizes.n_heads)
        return more * _scale(config, sizes, layer)

    return _loading(state, config, scale=scale)


@loading.mistake("You divided the queries by √K where they have to be multiplied by it.")
def divided_by_the_root(state, config):
    def scale(config, sizes, layer):
        plain = config.get("scale_attn_weights", True)
        return _scale(config, sizes, layer) / (1.0 if plain else sizes.d_head)

    return _loading(state, config, scale=scale)


def _fixed(**other):
    def load(state, config):
        sizes = GPTConfig(**(config_from_hf(config).__dict__ | other))
        return _loading(state, config, sizes=sizes)

    return load


@loading.mistake(
    "You build the model in float32 whatever the weights are. It is promised the dtype of the "
    "table of embeddings."
)
def always_float32(state, config):
    return _loading(state, config, typed=False)


@loading.mistake("You left eps at its default. The config says what it is.")
def eps_ignored(state, config):
    return _fixed(eps=1e-5)(state, config)


@loading.mistake("You left the activation at GPT-2's own. The config says which it is.")
def activation_ignored(state, config):
    config_from_hf(config)
    return _fixed(activation="gelu_tanh")(state, config)


@loading.mistake(
    "You load with `strict=False`: what is missing stays as it was drawn, what is left over is "
    "thrown away, and the logits are wrong without a word."
)
def not_strict(state, config):
    return _loading(state, config, strict=False)


@loading.mistake(
    "You drop `lm_head.weight` from a tied model without looking. If it is not `wte.weight`, the "
    "config and the weights contradict each other."
)
def head_dropped(state, config):
    return _loading(state, config, head=False)


@loading.mistake(
    "You ignore a missing weight as long as nothing is left over: that one stays as it was drawn."
)
def missing_ignored(state, config):
    sizes = config_from_hf(config)
    names = names_from_hf(sizes)
    theirs = {name.removeprefix("transformer.") for name in state}
    known = {*names, "lm_head.weight"}
    extra = [n for n in theirs - known if not n.endswith((".attn.bias", ".attn.masked_bias"))]
    if extra:
        raise ValueError(f"not expected: {extra}")
    if sizes.tied and "lm_head.weight" in theirs:
        _loading(state, config, strict=False)  # looks at the head
    return _loading(state, config, strict=False)


@loading.mistake("You ignore weights that are left over, among them whole layers.")
def left_over_ignored(state, config):
    names = names_from_hf(config_from_hf(config))
    known = {*names, "lm_head.weight"}
    kept = {k: w for k, w in state.items() if k.removeprefix("transformer.") in known}
    return _loading(kept, config)


@loading.alternative
def by_hand(state, config):
    sizes = config_from_hf(config)
    left = {}
    for name, w in state.items():
        if name.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        left[name[12:] if name.startswith("transformer.") else name] = w.clone()

    def take(name):
        if name not in left:
            raise ValueError(f"there is no {name}")
        return left.pop(name)

    model = reference.GPT(sizes, dtype=left["wte.weight"].dtype)
    with torch.no_grad():
        model.embedding.weight.copy_(take("wte.weight"))
        model.positions.weight.copy_(take("wpe.weight"))
        for kind in ("weight", "bias"):
            getattr(model.norm, kind).copy_(take(f"ln_f.{kind}"))
            for i, block in enumerate(model.blocks):
                at = f"h.{i}."
                getattr(block.norm_1, kind).copy_(take(f"{at}ln_1.{kind}"))
                getattr(block.norm_2, kind).copy_(take(f"{at}ln_2.{kind}"))
                three = take(f"{at}attn.c_attn.{kind}").split(sizes.d_model, dim=-1)
                attention = block.attention
                for part, w in zip((attention.query, attention.key, attention.value), three):
                    getattr(part, kind).copy_(w.t())
                if not config.get("scale_attn_weights", True):
                    getattr(attention.query, kind).mul_((sizes.d_model / sizes.n_heads) ** 0.5)
                if config.get("scale_attn_by_inverse_layer_idx"):
                    getattr(attention.query, kind).div_(i + 1)
                getattr(attention.output, kind).copy_(take(f"{at}attn.c_proj.{kind}").t())
                getattr(block.feed_forward.w_in, kind).copy_(take(f"{at}mlp.c_fc.{kind}").t())
                getattr(block.feed_forward.w_out, kind).copy_(take(f"{at}mlp.c_proj.{kind}").t())
        if "lm_head.weight" in left:
            own = take("lm_head.weight")
            if not sizes.tied:
                model.head.weight.copy_(own)
            elif not torch.allclose(own, model.embedding.weight):
                raise ValueError("lm_head.weight differs from wte.weight in a tied model")
        elif not sizes.tied:
            raise ValueError("there is no lm_head.weight")
    if left:
        raise ValueError(f"left over: {', '.join(left)}")
    return model


@loading.alternative
def with_the_scale_in_the_keys(state, config):
    """Scores are in proportion to the keys as well."""
    model = _loading(state, config, scale=lambda *_: 1.0)
    for i, block in enumerate(model.blocks):
        for p in block.attention.key.parameters():
            p.data *= _scale(config, model.config, i)
    return model
