"""Chapter 14's library: what it promises, and what Hugging Face's GPT-2 says."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from solutions import gpt
from solutions.embeddings import count_parameters, gpt2_parameters
from solutions.gpt import (
    GPT,
    Block,
    CausalSelfAttention,
    GPTConfig,
    config_from_hf,
    from_hf_gpt2,
    generate,
    load_hf_gpt2,
    next_logits,
    positions_computed,
    sliding_windows,
    trained,
)
from solutions.masking import causal_mask
from solutions.multi_head_attention import MultiHeadAttention
from solutions.residuals_and_norms import LayerNorm
from solutions.training import cross_entropy

TINY = GPTConfig(vocab_size=23, n_positions=12, d_model=24, n_layers=3, n_heads=4)


def shaken(module, scale=0.3, seed=1):
    """The module, with weights of which none is 0, 1 or equal to another."""
    draw = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data = scale * torch.randn(p.shape, generator=draw, dtype=p.dtype)
    return module


def tokens(*shape, vocab=23, seed=0):
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------ the model


def test_the_fused_attention_is_chapter_06s_under_a_causal_mask_outputs_and_gradients():
    fused = shaken(CausalSelfAttention(12, 3, dtype=torch.float64))
    plain = MultiHeadAttention(12, 3, dtype=torch.float64)
    plain.load_state_dict(fused.state_dict())
    x = torch.randn(2, 7, 12, dtype=torch.float64, requires_grad=True)
    expected, _ = plain(x, mask=causal_mask(7))
    found = fused(x)
    assert torch.allclose(found, expected)
    cotangent = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, [x, *fused.parameters()], cotangent),
        torch.autograd.grad(expected, [x, *plain.parameters()], cotangent),
    ):
        assert torch.allclose(one, other)


def test_the_norm_is_chapter_10s_names_numbers_and_gradients():
    theirs, ours = gpt.LayerNorm(10, eps=0.1), LayerNorm(10, eps=0.1)
    ours.load_state_dict(shaken(theirs).state_dict())
    x = torch.randn(3, 4, 10, requires_grad=True)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    for one, other in zip(
        torch.autograd.grad(ours(x).square().sum(), [x, *ours.parameters()]),
        torch.autograd.grad(theirs(x).square().sum(), [x, *theirs.parameters()]),
    ):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_block_is_torchs_pre_norm_encoder_layer_with_a_causal_mask():
    block = shaken(Block(replace(TINY, activation="gelu"), dtype=torch.float64))
    theirs = nn.TransformerEncoderLayer(
        24, 4, 96, dropout=0.0, activation="gelu", batch_first=True, norm_first=True,
        dtype=torch.float64,
    )  # fmt: skip
    attention, ff = block.attention, block.feed_forward
    maps = attention.query, attention.key, attention.value
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": torch.cat([m.weight for m in maps]),
            "self_attn.in_proj_bias": torch.cat([m.bias for m in maps]),
            "self_attn.out_proj.weight": attention.output.weight,
            "self_attn.out_proj.bias": attention.output.bias,
            "linear1.weight": ff.w_in.weight, "linear1.bias": ff.w_in.bias,
            "linear2.weight": ff.w_out.weight, "linear2.bias": ff.w_out.bias,
            "norm1.weight": block.norm_1.weight, "norm1.bias": block.norm_1.bias,
            "norm2.weight": block.norm_2.weight, "norm2.bias": block.norm_2.bias,
        }
    )  # fmt: skip
    x = torch.randn(2, 9, 24, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(9, dtype=torch.float64)
    assert torch.allclose(block(x), theirs(x, src_mask=mask, is_causal=True))


def test_the_sizes_are_those_that_chapter_03_counted():
    for n_layers, d_model, n_heads in [(12, 768, 12), (24, 1024, 16), (48, 1600, 25)]:
        for tied in (True, False):
            config = GPTConfig(50_257, 1024, d_model, n_layers, n_heads, tied=tied)
            found = count_parameters(GPT(config, device="meta"))
            assert found == gpt2_parameters(n_layers, d_model, tied=tied)


def test_logits_depend_on_the_past_alone_and_on_all_of_it():
    model = shaken(GPT(TINY))
    ids = tokens(2, 12)
    before = model(ids)
    for s in range(12):
        changed = ids.clone()
        changed[:, s] = (changed[:, s] + 1) % 23
        moved = (model(changed) - before).abs().amax(-1) > 1e-6
        assert not moved[:, :s].any() and moved[:, s:].all()


def test_stream_and_read_are_the_two_halves_of_forward_at_every_depth():
    model = shaken(GPT(TINY))
    ids = tokens(2, 5)
    x = model.embedding(ids) + model.positions.weight[:5]
    assert torch.equal(model.stream(ids, 0), x)
    for depth, block in enumerate(model.blocks, start=1):
        x = block(x)
        assert torch.equal(model.stream(ids, depth), x)
    assert torch.equal(model.stream(ids), x)
    assert torch.equal(model.read(x), model(ids))
    assert torch.allclose(model.read(x[:, 2]), model(ids)[:, 2], atol=1e-6)


def test_the_context_window_ends_with_its_last_position():
    model = GPT(TINY)
    assert model(tokens(2, 12)).shape == (2, 12, 23)
    with pytest.raises(ValueError, match=r"13 tokens, more than n_positions=12"):
        model(tokens(2, 13))


def test_what_cannot_be_built_is_refused_by_name():
    with pytest.raises(ValueError, match="n_heads=5"):
        GPT(replace(TINY, n_heads=5))
    with pytest.raises(ValueError, match="swish"):
        GPT(replace(TINY, activation="swish"))


@pytest.mark.parametrize("tied, std", [(True, 0.02), (False, 0.02), (True, 0.05)])
def test_weights_start_as_gpt_2s_do(tied, std):
    torch.manual_seed(0)
    sizes = GPTConfig(900, 300, 128, 8, 4, tied=tied)
    assert sizes.std == 0.02
    model = GPT(replace(sizes, std=std))
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert (p == 0).all(), name
        elif "norm" in name:
            assert (p == 1).all(), name
        else:
            writes = name.endswith(("output.weight", "w_out.weight"))
            expected = std / 4 if writes else std  # 1 / sqrt(2 * 8)
            assert abs(p.std() / expected - 1) < 0.03 and abs(p.mean()) < expected / 20, name
    if std > 0.02:
        return
    ids = tokens(4, 100, vocab=900)
    first = cross_entropy(model(ids), tokens(4, 100, vocab=900, seed=1))
    assert abs(first - torch.tensor(900.0).log()) < 0.1  # it starts out knowing nothing


def test_a_tied_head_is_the_table_and_another_is_not():
    tied, own = GPT(TINY), GPT(replace(TINY, tied=False))
    assert count_parameters(own) - count_parameters(tied) == 23 * 24
    assert tied.head.embedding is tied.embedding
    loss = cross_entropy(tied(tokens(2, 5)), tokens(2, 5, seed=1))
    loss.backward()
    assert (tied.embedding.weight.grad.abs().sum(1) > 0).all()  # the head moves all rows


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_device_and_dtype_go_to_every_part(dtype):
    model = GPT(TINY, dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model(tokens(1, 3)).dtype == dtype
    assert {p.device.type for p in GPT(TINY, device="meta").parameters()} == {"meta"}


# ------------------------------------------------------------------------------- writing


def test_next_logits_are_the_last_of_a_pass_over_what_the_window_holds():
    model = shaken(GPT(TINY))
    for n in (1, 7, 12, 13, 30):
        ids = tokens(3, n)
        found = next_logits(model, ids)
        assert torch.allclose(found, model(ids[:, -12:])[:, -1], atol=1e-6)
        assert found.shape == (3, 23) and not found.requires_grad


def test_writing_token_by_token_is_what_one_pass_over_the_result_would_choose():
    model = shaken(GPT(TINY))
    written = generate(model, tokens(3, 2), 10)
    assert written.shape == (3, 12)
    assert torch.equal(model(written).argmax(-1)[:, 1:-1], written[:, 2:])


def test_generate_goes_on_past_the_window_and_leaves_the_prompt_alone():
    model = shaken(GPT(TINY))
    prompt = tokens(2, 4)
    kept = prompt.clone()
    written = generate(model, prompt, 20)
    assert torch.equal(prompt, kept) and torch.equal(written[:, :4], kept)
    for t in range(12, 24):
        step = model(written[:, t - 12 : t])[:, -1].argmax(-1)
        assert torch.equal(written[:, t], step)
    assert torch.equal(generate(model, prompt, 0), prompt)


def test_generate_chooses_as_it_is_told():
    model = shaken(GPT(TINY))
    seen = []

    def least(logits):
        seen.append(logits.shape)
        return logits.argmin(-1)

    written = generate(model, tokens(2, 3), 5, least)
    assert seen == [(2, 23)] * 5
    assert torch.equal(model(written).argmin(-1)[:, 2:-1], written[:, 3:])


def test_generate_is_hugging_faces_greedy_generate():
    theirs = hugging_face(eos_token_id=None, pad_token_id=0)
    ours = from_hf_gpt2(theirs.state_dict(), theirs.config.to_dict())
    prompt = tokens(3, 4, vocab=31)
    expected = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=9, do_sample=False
    )
    assert torch.equal(generate(ours, prompt, 9), expected)


@given(st.integers(1, 40), st.integers(0, 60), st.integers(1, 30))
def test_positions_computed_counts_what_the_model_really_reads(prompt, n, window):
    class Counting:
        config = GPTConfig(3, window, 1, 1, 1)
        read = staticmethod(lambda x: torch.zeros(1, 3))
        count = 0

        def stream(self, ids):
            self.count += ids.shape[1]
            return torch.zeros(*ids.shape, 1)

    model = Counting()
    generate(model, torch.zeros(1, prompt, dtype=torch.long), n)
    assert model.count == positions_computed(prompt, n, window)


@given(st.data())
@settings(max_examples=300)
def test_sliding_windows_grade_every_token_once_with_context_before_it(data):
    n, window = data.draw(st.integers(2, 80)), data.draw(st.integers(2, 20))
    stride = data.draw(st.integers(1, window - 1))
    found = sliding_windows(n, window, stride)
    assert [t for _, graded, end in found for t in range(graded, end)] == list(range(1, n))
    for i, (start, graded, end) in enumerate(found):
        assert start == i * stride and start < graded < end <= min(n, start + window)
        if i:
            assert graded - start >= min(window - stride, n - start - 1) >= 1
    assert found[-1][2] == n


# ------------------------------------------------------------------ Hugging Face's weights


def hugging_face(model=GPT2LMHeadModel, **options):
    """A GPT-2 of theirs with random weights, all of them clearly not 0, in evaluation mode."""
    sizes = {
        "vocab_size": 31, "n_positions": 17, "n_embd": 24, "n_layer": 3, "n_head": 4,
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = model(GPT2Config(**(sizes | options)))
    return shaken(made, 0.3).eval()


CONFIGS = {
    "as it is": {},
    "one layer, one head": {"n_layer": 1, "n_head": 1},
    "many layers": {"n_layer": 12, "n_embd": 12, "n_head": 2},
    "head of width 1": {"n_head": 24},
    "n_inner": {"n_inner": 17},
    "gelu": {"activation_function": "gelu"},
    "relu": {"activation_function": "relu"},
    "gelu_pytorch_tanh": {"activation_function": "gelu_pytorch_tanh"},
    "gelu_fast": {"activation_function": "gelu_fast"},
    "epsilon": {"layer_norm_epsilon": 0.05},
    "scores not scaled": {"scale_attn_weights": False},
    "scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
    "only by layer": {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    "upcast": {"reorder_and_upcast_attn": True},
    "not tied": {"tie_word_embeddings": False},
    "small vocabulary, long window": {"vocab_size": 5, "n_positions": 70},
}


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_weights_of_hugging_faces_gpt2_give_its_logits_and_gradients(options):
    theirs = hugging_face(**options).double()
    ours = from_hf_gpt2(theirs.state_dict(), theirs.config.to_dict())
    assert ours.embedding.weight.dtype == torch.float64
    ids = tokens(2, theirs.config.n_positions, vocab=theirs.config.vocab_size)
    found, expected = ours(ids), theirs(ids).logits
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)
    for logits in (found, expected):
        cross_entropy(logits[:, :-1], ids[:, 1:]).backward()
    found = [ours.embedding.weight.grad, ours.positions.weight.grad, ours.norm.bias.grad]
    parts = (
        theirs.transformer.wte.weight,
        theirs.transformer.wpe.weight,
        theirs.transformer.ln_f.bias,
    )
    for mine, their in zip(found, parts):
        assert torch.allclose(mine, their.grad, rtol=1e-6, atol=1e-9)


def test_the_logits_agree_in_float32_too():
    theirs = hugging_face()
    ours = from_hf_gpt2(theirs.state_dict(), theirs.config.to_dict())
    ids = tokens(3, 17, vocab=31)
    assert torch.allclose(ours(ids), theirs(ids).logits, atol=2e-5)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_configuration_agrees(data):
    heads, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 7))
    options = {
        "vocab_size": data.draw(st.integers(2, 40)),
        "n_positions": data.draw(st.integers(1, 20)),
        "n_embd": heads * width,
        "n_head": heads,
        "n_layer": data.draw(st.integers(1, 4)),
        "n_inner": data.draw(st.none() | st.integers(1, 30)),
        "activation_function": data.draw(st.sampled_from(["gelu_new", "gelu", "relu"])),
        "layer_norm_epsilon": data.draw(st.floats(1e-6, 1.0)),
        "scale_attn_weights": data.draw(st.booleans()),
        "scale_attn_by_inverse_layer_idx": data.draw(st.booleans()),
        "tie_word_embeddings": data.draw(st.booleans()),
    }
    theirs = hugging_face(**options).double()
    ours = from_hf_gpt2(theirs.state_dict(), theirs.config.to_dict())
    ids = tokens(2, options["n_positions"], vocab=options["vocab_size"])
    assert torch.allclose(ours(ids), theirs(ids).logits, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_loads_from_its_folder_whole_or_in_parts(tmp_path, tied):
    theirs = hugging_face(tie_word_embeddings=tied)
    ids = tokens(2, 9, vocab=31)
    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    for folder in ("whole", "parts"):
        found = load_hf_gpt2(tmp_path / folder)(ids)
        assert torch.allclose(found, theirs(ids).logits, atol=2e-5)


def test_a_file_without_prefix_and_with_old_masks_loads(tmp_path):
    """So do the files of 2019: no prefix, and each block with its mask."""
    theirs = hugging_face()
    theirs.transformer.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert not any(name.startswith("transformer.") for name in state)
    for i in range(3):
        state[f"h.{i}.attn.bias"] = torch.ones(1, 1, 17, 17).tril()
        state[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(state, tmp_path / "model.safetensors")
    ids = tokens(2, 9, vocab=31)
    assert torch.allclose(load_hf_gpt2(tmp_path)(ids), theirs(ids).logits, atol=2e-5)


def test_a_folder_that_lacks_something_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        load_hf_gpt2(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(hugging_face().config.to_dict()))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="model.safetensors is missing.*safetensors only"):
        load_hf_gpt2(tmp_path)


REFUSED = {
    "model_type": ({"model_type": "gpt_neo"}, "gpt_neo"),
    "activation": ({"activation_function": "silu"}, "silu"),
    "cross-attention": ({"add_cross_attention": True}, "add_cross_attention"),
    "quantized": ({"quantization_config": {"bits": 4}}, "quantization_config"),
}


@pytest.mark.parametrize("change, naming", REFUSED.values(), ids=REFUSED)
def test_what_a_gpt_is_not_is_refused_by_name(change, naming):
    theirs = hugging_face()
    with pytest.raises(ValueError, match=naming):
        from_hf_gpt2(theirs.state_dict(), theirs.config.to_dict() | change)


@pytest.mark.parametrize("name", ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head"])
def test_a_config_without_a_size_is_refused_by_name(name):
    config = hugging_face().config.to_dict()
    del config[name]
    with pytest.raises(ValueError, match=name):
        config_from_hf(config)


def test_weights_that_do_not_fit_are_refused_by_name():
    theirs = hugging_face()
    state, config = theirs.state_dict(), theirs.config.to_dict()
    for name in state:
        if name != "lm_head.weight":
            less = {k: w for k, w in state.items() if k != name}
            with pytest.raises(ValueError, match=name.removeprefix("transformer.")):
                from_hf_gpt2(less, config)
    with pytest.raises(ValueError, match="score.weight"):
        from_hf_gpt2(state | {"score.weight": torch.zeros(2, 24)}, config)
    with pytest.raises(ValueError, match="h.2.ln_1.bias"):
        from_hf_gpt2(state, config | {"n_layer": 2})
    with pytest.raises(ValueError, match="h.3.ln_1.bias"):
        from_hf_gpt2(state, config | {"n_layer": 4})
    with pytest.raises(ValueError, match="lm_head.weight"):
        from_hf_gpt2(state | {"lm_head.weight": torch.zeros(31, 24)}, config)
    untied = {k: w for k, w in state.items() if k != "lm_head.weight"}
    with pytest.raises(ValueError, match="lm_head.weight"):
        from_hf_gpt2(untied, config | {"tie_word_embeddings": False})
    with pytest.raises(RuntimeError, match="w_in"):
        from_hf_gpt2(state, config | {"n_inner": 50})


def test_the_weights_that_are_loaded_stay_as_they_are():
    theirs = hugging_face(scale_attn_weights=False)
    state = {k: w.clone() for k, w in theirs.state_dict().items()}
    ours = from_hf_gpt2(state, theirs.config.to_dict())
    ours.embedding.weight.data.zero_()
    assert all(torch.equal(w, state[k]) for k, w in theirs.state_dict().items())


# ------------------------------------------------------------------------- the checkpoint


def test_a_model_comes_back_from_its_file_as_it_was(tmp_path):
    for tied in (True, False):
        model = shaken(GPT(replace(TINY, tied=tied)))
        language = {"names": 4, "things": 3, "places": 3, "colours": 2, "seed": 5}
        gpt.save(model, tmp_path / "some" / "gpt.safetensors", language=language)
        found, stories = trained(tmp_path / "some" / "gpt.safetensors")
        assert found.config == model.config and not found.training
        assert torch.equal(found(tokens(2, 6)), model(tokens(2, 6)))
        assert len(stories.names) == 4
        assert not tied or found.head.embedding is found.embedding


def test_the_checkpoint_is_small_and_within_five_percent_of_the_floor():
    assert gpt.CHECKPOINT.stat().st_size < 10_000_000
    model, language = trained()
    length = model.config.n_positions
    assert model.config.vocab_size == len(language)
    text = language.stream(60_000, torch.Generator().manual_seed(77))
    starts = (text == 0).nonzero().flatten()[:400]
    windows = text[starts[:, None] + torch.arange(length + 1)]
    perfect = language.surprises(text)[starts[:, None] + 1 + torch.arange(length)].mean()
    with torch.no_grad():
        loss = F.cross_entropy(model(windows[:, :-1]).mT, windows[:, 1:]).double()
    assert 0 < loss - perfect < 0.05 * language.floor_of_windows(length).mean()
    assert abs(perfect / language.floor_of_windows(length).mean() - 1) < 0.03
