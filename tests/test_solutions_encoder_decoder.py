"""The reference of chapter 11 against PyTorch's own, and what its docstrings promise."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from solutions.embeddings import count_parameters
from solutions.encoder_decoder import (
    CrossAttention,
    DecoderLayer,
    EncoderLayer,
    Transformer,
    attention_mask,
    greedy_decode,
    state_from_torch,
    translation_loss,
)
from solutions.masking import causal_mask, padding_mask
from solutions.multi_head_attention import MultiHeadAttention
from solutions.positional_encoding import sinusoidal_encoding

# Torch says when it cannot take its fast way, which is no matter here.
pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor")

START, END = 1, 2
SOURCE = torch.tensor([[5, 3, 8, 4, 9, 0, 0], [7, 7, 6, 3, 10, 4, 5], [3, 0, 0, 0, 0, 0, 0]])
TARGET = torch.tensor([[1, 9, 4, 2, 0], [1, 3, 3, 10, 2], [1, 5, 2, 0, 0]])


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def randomise(module, seed=1):
    """Give every parameter, norms and biases too, numbers that count."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return module


def pair(norm_first, n_encoder=2, n_decoder=3):
    """PyTorch's model and ours with its weights, with dropout off."""
    torch.manual_seed(0)
    theirs = randomise(
        nn.Transformer(
            d_model=12, nhead=3, num_encoder_layers=n_encoder, num_decoder_layers=n_decoder,
            dim_feedforward=20, dropout=0.0, batch_first=True, norm_first=norm_first,
            dtype=torch.float64,
        )
    )  # fmt: skip
    ours = Transformer(
        11, 12, 3, 20, n_encoder, n_decoder,
        dropout=0.0, norm_first=norm_first, final_norm=True, dtype=torch.float64,
    )  # fmt: skip
    table = {"embedding.weight": ours.embedding.weight.detach().clone()}
    ours.load_state_dict(state_from_torch(theirs.state_dict()) | table)
    return ours, theirs


def their_logits(theirs, ours, source, target):
    """What PyTorch's model says between our table at one end and at the other."""
    decoded = theirs(
        ours.embed(source), ours.embed(target),
        tgt_mask=~causal_mask(target.shape[1]),
        src_key_padding_mask=source == 0,
        tgt_key_padding_mask=target == 0,
        memory_key_padding_mask=source == 0,
    )  # fmt: skip
    return decoded @ ours.embedding.weight.T


# ---------------------------------------------------------------- agreement with torch


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_whole_model_agrees_with_torch_with_padding_and_causal_masks(norm_first):
    ours, theirs = pair(norm_first)
    found, expected = ours(SOURCE, TARGET), their_logits(theirs, ours, SOURCE, TARGET)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("norm_first", [False, True])
def test_every_gradient_agrees_with_torch(norm_first):
    ours, theirs = pair(norm_first)
    cotangent = draw(*TARGET.shape, 11)
    (ours(SOURCE, TARGET) * cotangent).sum().backward()
    of_table = ours.embedding.weight.grad.clone()
    ours.embedding.weight.grad = None
    (their_logits(theirs, ours, SOURCE, TARGET) * cotangent).sum().backward()
    torch.testing.assert_close(of_table, ours.embedding.weight.grad, rtol=1e-9, atol=1e-11)
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    assert all(g is not None for g in gradients.values())
    expected = state_from_torch(gradients)
    own = {n: p.grad for n, p in ours.named_parameters() if n != "embedding.weight"}
    assert own.keys() == expected.keys()
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("norm_first", [False, True])
def test_single_layers_agree_with_torchs(norm_first):
    options = {"norm_first": norm_first, "dtype": torch.float64}
    torch_options = {"dropout": 0.0, "batch_first": True, **options}
    x, memory = draw(2, 5, 12), draw(2, 7, 12, seed=1)
    mask, keys = causal_mask(5), padding_mask(torch.tensor([4, 7]), 7)
    theirs = randomise(nn.TransformerEncoderLayer(12, 3, 20, **torch_options))
    ours = EncoderLayer(12, 3, 20, 0.0, **options)
    ours.load_state_dict(state_from_torch(theirs.state_dict()))
    torch.testing.assert_close(ours(x, mask), theirs(x, src_mask=~mask))
    theirs = randomise(nn.TransformerDecoderLayer(12, 3, 20, **torch_options))
    ours = DecoderLayer(12, 3, 20, 0.0, **options)
    ours.load_state_dict(state_from_torch(theirs.state_dict()))
    found, weights = ours(x, memory, mask, keys[:, None])
    expected = theirs(x, memory, tgt_mask=~mask, memory_key_padding_mask=~keys[:, 0])
    torch.testing.assert_close(found, expected)
    assert weights.shape == (2, 3, 5, 7) and (weights[0, ..., 4:] == 0).all()


def test_cross_attention_to_a_memory_of_another_width_agrees_with_torch():
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(12, 3, kdim=10, vdim=10, batch_first=True, dtype=torch.float64)
    nn.init.normal_(theirs.in_proj_bias)
    ours = CrossAttention(12, 3, d_memory=10, dtype=torch.float64)
    state = {
        f"{n}.weight": getattr(theirs, f"{n[0]}_proj_weight") for n in ("query", "key", "value")
    }
    biases = theirs.in_proj_bias.chunk(3)
    state |= {f"{n}.bias": b for n, b in zip(("query", "key", "value"), biases)}
    state |= {"output.weight": theirs.out_proj.weight, "output.bias": theirs.out_proj.bias}
    ours.load_state_dict(state)
    x, memory = draw(2, 5, 12), draw(2, 7, 10, seed=1)
    expected, their_weights = theirs(x, memory, memory, average_attn_weights=False)
    found, weights = ours(x, memory)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(weights, their_weights)


def test_state_from_torch_renames_without_a_norm_behind_the_stacks_as_well():
    _, theirs = pair(False)
    state = {k: v for k, v in theirs.state_dict().items() if k.split(".")[1] != "norm"}
    ours = Transformer(11, 12, 3, 20, 2, 3, dtype=torch.float64)
    missing = ours.load_state_dict(state_from_torch(state), strict=False)
    assert missing.missing_keys == ["embedding.weight"] and not missing.unexpected_keys


# -------------------------------------------------------------------------- equivalences


def test_cross_attention_to_oneself_is_multi_head_attention():
    one, other = CrossAttention(12, 3, dtype=torch.float64), MultiHeadAttention(12, 3)
    other = other.double()
    other.load_state_dict(one.state_dict())
    x, memory = draw(2, 5, 12), draw(2, 7, 12, seed=1)
    torch.testing.assert_close(one(x, memory), other(x, memory))
    torch.testing.assert_close(one(x, x), other(x))


def test_a_decoder_layer_without_its_cross_attention_is_a_causal_encoder_layer():
    decoder = randomise(DecoderLayer(12, 3, 20, norm_first=True, dtype=torch.float64)).eval()
    nn.init.zeros_(decoder.cross_attention.output.weight)
    nn.init.zeros_(decoder.cross_attention.output.bias)
    encoder = EncoderLayer(12, 3, 20, norm_first=True, dtype=torch.float64).eval()
    state = {k.replace("norm3", "norm2"): v for k, v in decoder.state_dict().items()
             if not k.startswith(("cross_attention", "norm2"))}  # fmt: skip
    encoder.load_state_dict(state)
    x, mask = draw(2, 5, 12), causal_mask(5)
    torch.testing.assert_close(decoder(x, draw(2, 7, 12, seed=1), mask)[0], encoder(x, mask))


@pytest.mark.parametrize("norm_first", [False, True])
def test_dropout_of_everything_leaves_the_stream_alone(norm_first):
    x, memory = draw(2, 5, 12), draw(2, 7, 12, seed=1)
    encoder = EncoderLayer(12, 3, 20, 1.0, norm_first, dtype=torch.float64)
    decoder = DecoderLayer(12, 3, 20, 1.0, norm_first, dtype=torch.float64)
    expected = x if norm_first else nn.functional.layer_norm(x, (12,))
    torch.testing.assert_close(encoder(x), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(decoder(x, memory)[0], expected, rtol=0, atol=1e-4)


# -------------------------------------------------------------------- masks and positions


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_the_masks_are_those_of_chapter_05_with_an_axis_for_the_heads(size, lengths):
    lengths = torch.tensor(lengths).clamp(max=size)
    tokens = (torch.arange(size) < lengths[:, None]).long() * 4
    real = padding_mask(lengths, size)[:, None]
    assert torch.equal(attention_mask(tokens, 0), real)
    assert torch.equal(attention_mask(tokens, 0, causal=True), real & causal_mask(size))


def test_padding_may_stand_anywhere_and_have_any_id():
    mask = attention_mask(torch.tensor([[9, 4, 9, 5]]), 9)
    assert mask.tolist() == [[[[False, True, False, True]]]]


def test_tokens_are_scaled_by_the_root_of_the_width_before_positions_are_added():
    model = Transformer(11, 12, 3, 20, 1, 1, dropout=0.0, dtype=torch.float64)
    places = sinusoidal_encoding(torch.arange(5), 12, dtype=torch.float64)
    expected = math.sqrt(12) * model.embedding.weight[TARGET].masked_fill(
        (TARGET == 0)[..., None], 0
    )
    torch.testing.assert_close(model.embed(TARGET), expected + places)


def test_scaled_tokens_start_with_variance_1():
    torch.manual_seed(0)
    table = Transformer(4000, 64, 4, 64, 1, 1).embedding.weight
    assert abs((math.sqrt(64) * table[1:]).var().item() - 1) < 0.02


# --------------------------------------------------------------------------- the model


def model(norm_first=False, **more):
    torch.manual_seed(3)
    options = {"dropout": 0.0, "dtype": torch.float64, "norm_first": norm_first, **more}
    return randomise(Transformer(11, 12, 3, 20, 2, 2, **options))


@pytest.mark.parametrize("norm_first", [False, True])
def test_padding_changes_nothing(norm_first):
    m = model(norm_first)
    together = m(SOURCE, TARGET)
    for b, (s, t) in enumerate([(5, 4), (7, 5), (1, 3)]):
        alone = m(SOURCE[b : b + 1, :s], TARGET[b : b + 1, :t])[0]
        torch.testing.assert_close(together[b, :t], alone)


def test_logits_see_the_target_up_to_their_own_token_and_the_source_whole():
    m = model()
    before = m(SOURCE, TARGET)[1]
    for j in range(5):
        changed = TARGET.clone()
        changed[1, j] = 6
        moved = (m(SOURCE, changed)[1] - before).abs().amax(-1) > 1e-9
        assert moved.tolist() == [i >= j for i in range(5)]
    for j in range(7):
        changed = SOURCE.clone()
        changed[1, j] = 9
        assert ((m(changed, TARGET)[1] - before).abs().amax(-1) > 1e-9).all()


def test_one_table_serves_three_times():
    m = Transformer(11, 12, 3, 20, 2, 3)
    assert [n for n, _ in m.named_parameters() if "embedding" in n] == ["embedding.weight"]
    assert not any("norm.weight" in n for n, _ in m.named_parameters())
    assert isinstance(Transformer(11, 12, 3, 20, 1, 1, norm_first=True).encoder_norm, nn.Module)


def test_the_base_model_of_the_paper_has_its_65_million_parameters():
    with torch.device("meta"):
        base = Transformer(37_000, 512, 8, 2048, 6, 6)
        big = Transformer(37_000, 1024, 16, 4096, 6, 6)
    assert round(count_parameters(base) / 1e6) == 63
    assert round(count_parameters(big) / 1e6) == 214


def test_device_and_dtype_reach_every_parameter():
    m = Transformer(11, 12, 3, 20, 1, 1, norm_first=True, device="meta", dtype=torch.bfloat16)
    assert {p.device.type for p in m.parameters()} == {"meta"}
    assert {p.dtype for p in m.parameters()} == {torch.bfloat16}


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="d_model=10 .* n_heads=4"):
        CrossAttention(10, 4)
    layer = CrossAttention(12, 3, 10)
    with pytest.raises(ValueError, match="x has width 10, expected 12"):
        layer(torch.zeros(2, 5, 10), torch.zeros(2, 7, 10))
    with pytest.raises(ValueError, match="memory has width 12, expected 10"):
        layer(torch.zeros(2, 5, 12), torch.zeros(2, 7, 12))


# ---------------------------------------------------------------- the loss, and writing


def test_the_loss_is_the_mean_over_all_real_tokens_behind_the_first():
    m = model()
    total, count = 0.0, 0
    for b in range(3):
        for i in range(4):
            label = TARGET[b, i + 1].item()
            if label:
                logits = m(SOURCE[b : b + 1], TARGET[b : b + 1, : i + 1])[0, -1]
                total, count = total - logits.log_softmax(-1)[label].item(), count + 1
    assert abs(translation_loss(m, SOURCE, TARGET).item() - total / count) < 1e-9


def by_hand(m, source, n):
    """One sentence at a time, the whole model anew for each token."""
    rows = []
    for row in source:
        row, written = row[row != 0][None], [START]
        while len(written) <= n and written[-1] != END:
            written.append(m(row, torch.tensor([written]))[0, -1].argmax().item())
        rows.append(written[1:])
    size = max(map(len, rows))
    return torch.tensor([row + [0] * (size - len(row)) for row in rows])


@pytest.mark.parametrize("seed", range(4))
def test_greedy_decoding_in_a_batch_is_that_of_each_sentence_alone(seed):
    torch.manual_seed(seed)
    m = Transformer(11, 12, 3, 20, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        m.embedding.weight[END] *= 1.5  # so that some end
        m.embedding.weight[0] = 0
    m.eval()
    assert torch.equal(greedy_decode(m, SOURCE, START, END, 8), by_hand(m, SOURCE, 8))


def test_greedy_decoding_leaves_the_mode_as_it_was_and_carries_no_graph():
    m = model(dropout=0.5)
    for mode in (True, False):
        m.train(mode)
        assert not greedy_decode(m, SOURCE, START, END, 3).requires_grad
        assert m.training is mode


def test_a_translation_is_written_right_if_every_token_is_the_likeliest_behind_the_right_ones():
    """Exact match can be counted in one pass: the experiment of chapter 11 does."""
    m = model()
    m.eval()
    written = greedy_decode(m, SOURCE, START, END, 6)
    target = torch.cat([torch.full_like(written[:, :1], START), written], dim=1)
    found = m(SOURCE, target[:, :-1]).argmax(-1)
    real = written != 0
    assert torch.equal(found[real], written[real])
