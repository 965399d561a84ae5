"""Models: the GPT of `solutions` against what one would take instead, in one run.

Training and writing, in tokens a second: `solutions.gpt`; Hugging Face's GPT-2; and
`torch.nn.TransformerEncoder` with a causal mask, between the same embedding and head. All have the
same shape and the very same weights, and are seen to give the same logits before the clock starts.
Then they take turns. Two more rows show where the time goes: Hugging Face's with GPT-2's own form
of the GELU, and the course's with the norms, the GELU and the attention written out as in chapters
10, 09 and 06. Run it while nothing else computes: five minutes.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments._record import record
from solutions.feed_forward import gelu
from solutions.gpt import GPT, from_hf_gpt2, generate
from solutions.masking import causal_mask
from solutions.multi_head_attention import MultiHeadAttention
from solutions.residuals_and_norms import LayerNorm

try:
    from transformers import GPT2Config, GPT2LMHeadModel
except ImportError:
    sys.exit("This benchmark needs transformers: pip install -r requirements-test.txt")

OURS, THEIRS = "solutions.gpt", "transformers, GPT2LMHeadModel"
TORCH = "torch.nn.TransformerEncoder"


@dataclass(frozen=True)
class Shape:
    """What is measured.

    Args:
        vocab, window, width, layers, heads: of the models.
        batch, length: of a step of training.
        prompt, written: tokens that are read, and then written, in a batch of 1; both together fit
            into the window, for `transformers` does not crop.
    """

    vocab: int
    window: int
    width: int
    layers: int
    heads: int
    batch: int
    length: int
    prompt: int
    written: int


SHAPES = {
    "small": Shape(1_000, 128, 128, 4, 4, 8, 128, 8, 120),
    "middle": Shape(8_000, 256, 384, 6, 6, 2, 256, 32, 96),
}
ROUNDS = 9


# ------------------------------------------------------------------------- the contenders


class TorchGPT(nn.Module):
    """The same model around PyTorch's own stack of layers.

    Args:
        model: whose weights it copies.
    """

    def __init__(self, model: GPT):
        super().__init__()
        sizes = model.config
        self.embedding = nn.Embedding(sizes.vocab_size, sizes.d_model)
        self.positions = nn.Embedding(sizes.n_positions, sizes.d_model)
        layer = nn.TransformerEncoderLayer(
            sizes.d_model, sizes.n_heads, 4 * sizes.d_model, dropout=0.0, activation="gelu",
            batch_first=True, norm_first=True,
        )  # fmt: skip
        norm = nn.LayerNorm(sizes.d_model)
        self.blocks = nn.TransformerEncoder(
            layer, sizes.n_layers, norm=norm, enable_nested_tensor=False
        )
        mask = nn.Transformer.generate_square_subsequent_mask(sizes.n_positions)
        self.register_buffer("mask", mask, persistent=False)
        with torch.no_grad():
            self.embedding.weight.copy_(model.embedding.weight)
            self.positions.weight.copy_(model.positions.weight)
            norm.load_state_dict(model.norm.state_dict())
            for theirs, ours in zip(self.blocks.layers, model.blocks):
                maps = ours.attention.query, ours.attention.key, ours.attention.value
                theirs.self_attn.in_proj_weight.copy_(torch.cat([m.weight for m in maps]))
                theirs.self_attn.in_proj_bias.copy_(torch.cat([m.bias for m in maps]))
                for one, other in (
                    (theirs.self_attn.out_proj, ours.attention.output),
                    (theirs.linear1, ours.feed_forward.w_in),
                    (theirs.linear2, ours.feed_forward.w_out),
                    (theirs.norm1, ours.norm_1),
                    (theirs.norm2, ours.norm_2),
                ):
                    one.load_state_dict(other.state_dict())

    def stream(self, ids: Tensor) -> Tensor:
        t = ids.shape[1]
        x = self.embedding(ids) + self.positions.weight[:t]
        return self.blocks(x, mask=self.mask[:t, :t], is_causal=True)

    def forward(self, ids: Tensor) -> Tensor:
        return self.stream(ids) @ self.embedding.weight.T


class _WrittenOutAttention(MultiHeadAttention):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, mask=causal_mask(x.shape[1]))[0]


def written_out(model: GPT, activation: Callable) -> GPT:
    """The same model with the lessons' own norms, GELU and attention."""
    copy = GPT(model.config)
    for block in copy.blocks:
        attention = _WrittenOutAttention(model.config.d_model, model.config.n_heads)
        attention.load_state_dict(block.attention.state_dict())
        block.attention, block.feed_forward.activation = attention, activation
        block.norm_1, block.norm_2 = (LayerNorm(model.config.d_model) for _ in range(2))
    copy.norm = LayerNorm(model.config.d_model)
    copy.load_state_dict(model.state_dict())
    return copy


def hugging_face(shape: Shape, activation: str) -> GPT2LMHeadModel:
    """Theirs, with random weights and without dropout."""
    config = GPT2Config(
        vocab_size=shape.vocab, n_positions=shape.window, n_embd=shape.width,
        n_layer=shape.layers, n_head=shape.heads, activation_function=activation,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def contenders(shape: Shape) -> tuple[dict[str, nn.Module], dict[str, Callable]]:
    """The models by name, and for each way of writing a function from a prompt to the whole text.

    Raises:
        RuntimeError: two of them do not say the same.
    """
    torch.manual_seed(0)
    theirs, new = hugging_face(shape, "gelu"), hugging_face(shape, "gelu_new")
    new.load_state_dict(theirs.state_dict())
    ours = from_hf_gpt2(theirs.state_dict(), theirs.config.to_dict())
    torchs = TorchGPT(ours)
    lessons = written_out(ours, gelu)
    models = {
        OURS: ours,
        THEIRS: theirs,
        TORCH: torchs,
        f"{THEIRS}, gelu_new": new,
        f"{OURS}, written out": lessons,
    }

    @torch.no_grad()
    def torch_writes(ids: Tensor) -> Tensor:
        for _ in range(shape.written):
            last = torchs.stream(ids[:, -shape.window :])[:, -1]
            ids = torch.cat([ids, (last @ torchs.embedding.weight.T).argmax(-1)[:, None]], 1)
        return ids

    def theirs_writes(ids: Tensor, cache: bool) -> Tensor:
        return theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=shape.written,
            do_sample=False, use_cache=cache, pad_token_id=0,
        )  # fmt: skip

    writers = {
        OURS: partial(generate, ours, n=shape.written),
        f"{THEIRS}, generate without cache": partial(theirs_writes, cache=False),
        TORCH: torch_writes,
        f"{THEIRS}, generate with cache": partial(theirs_writes, cache=True),
        f"{OURS}, written out": partial(generate, lessons, n=shape.written),
    }
    ids = torch.randint(shape.vocab, (2, shape.length))
    for name, model in models.items():
        same = torch.allclose(logits_of(model.eval(), ids), ours(ids), atol=2e-3)
        if not same:
            raise RuntimeError(f"{name} gives other logits than {OURS}")
    return models, writers


def logits_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Logits of any of them."""
    if isinstance(model, GPT2LMHeadModel):
        return model(ids, use_cache=False).logits
    return model(ids)


# ----------------------------------------------------------------------------- the clock


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor) -> None:
    loss = F.cross_entropy(logits_of(model, ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(shape: Shape, rounds: int = ROUNDS) -> list[dict]:
    """Let them take turns, and give a row for each and each task: all its times, in seconds."""
    models, writers = contenders(shape)
    ids = torch.randint(shape.vocab, (shape.batch, shape.length + 1))
    prompt = torch.randint(shape.vocab, (1, shape.prompt))
    training = {
        name: partial(train_step, m, torch.optim.AdamW(m.parameters(), lr=1e-4), ids)
        for name, m in models.items()
    }
    writing = {name: partial(write, prompt) for name, write in writers.items()}
    tasks = {
        ("training", shape.batch * shape.length): training,
        ("writing", shape.written): writing,
    }
    rows = []
    # Writing first, and in evaluation mode: training would change the weights.
    for (task, tokens), runs in reversed(tasks.items()):
        for model in models.values():
            model.train(task == "training")
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(rounds + 1):
            for name, run in runs.items():
                spent = seconds(run)
                if turn:  # the first one warms up
                    times[name].append(spent)
        rows += [{"task": task, "who": w, "tokens": tokens, "seconds": s} for w, s in times.items()]
    return rows


def report(title: str, rows: list[dict]) -> None:
    """Tokens a second, and how they compare with ours, round by round."""
    ours = {row["task"]: row["seconds"] for row in rows if row["who"] == OURS}
    for row in rows:
        rate = row["tokens"] / statistics.median(row["seconds"])
        ratio = statistics.median(a / b for a, b in zip(ours[row["task"]], row["seconds"]))
        print(f"{title:8}{row['task']:10}{row['who']:58}{rate:9,.0f} tokens/s  {ratio:5.2f} × ours")


def main() -> None:
    warnings.simplefilter("ignore")
    results = {}
    for title, shape in SHAPES.items():
        results[title] = measure(shape)
        report(title, results[title])
    record(
        __file__,
        seeds=[0],
        packages=("torch", "transformers"),
        settings={
            "shapes": {title: vars(shape) for title, shape in SHAPES.items()},
            "rounds": ROUNDS, "threads": torch.get_num_threads(), "dtype": "float32",
            "optimizer": "torch.optim.AdamW", "activation": "gelu, unless a row says otherwise",
        },
        results=results,
    )  # fmt: skip


if __name__ == "__main__":
    main()
