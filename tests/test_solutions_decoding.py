"""The reference of chapter 15 against Hugging Face, brute force and Python's own JSON."""

import itertools
import json
import math
import random

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from solutions.decoding import (
    JsonConstraint,
    beam_search,
    constrained,
    frequency_penalty,
    greedy,
    logit_bias,
    min_p,
    repetition_penalty,
    sample,
    stream_text,
    temperature,
    top_k,
    top_p,
    write,
)
from solutions.json_grammar import JSON, literal, schema_rules, shortest
from solutions.tokens import BPETokenizer


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


# --------------------------------------------------------- what changes logits, and Hugging Face


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    vocab=st.integers(2, 200),
    scale=st.floats(0.1, 30),
    p=st.floats(0.01, 0.999),
    k=st.integers(1, 250),
)
def test_every_strategy_is_hugging_faces(seed, vocab, scale, p, k):
    logits = scale * draw(3, vocab, seed=seed)
    ids = torch.randint(vocab, (3, 7), generator=generator(seed + 1))
    pairs = [
        (temperature(logits, p), TemperatureLogitsWarper(p)),
        (top_k(logits, k), TopKLogitsWarper(k)),
        (top_p(logits, p), TopPLogitsWarper(p)),
        (repetition_penalty(logits, ids, 1 + p), RepetitionPenaltyLogitsProcessor(1 + p)),
    ]
    for found, theirs in pairs:
        torch.testing.assert_close(found, theirs(ids, logits.clone()), rtol=1e-6, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), p=st.floats(0.01, 0.99))
def test_min_p_is_hugging_faces(seed, p):
    logits = 3 * draw(3, 50, seed=seed, dtype=torch.float64)
    found, theirs = min_p(logits, p), MinPLogitsWarper(p)(None, logits.clone())
    torch.testing.assert_close(found, theirs)


def test_they_follow_each_other_as_in_hugging_face():
    logits = 4 * draw(5, 80)
    found = top_p(top_k(temperature(logits, 1.3), 20), 0.8)
    theirs = logits.clone()
    for warper in (TemperatureLogitsWarper(1.3), TopKLogitsWarper(20), TopPLogitsWarper(0.8)):
        theirs = warper(None, theirs)
    torch.testing.assert_close(found, theirs)


def test_ties_at_the_kth_place_all_stay_as_in_hugging_face():
    logits = torch.tensor([[1.0, 3.0, 1.0, 2.0, 1.0]])
    assert top_k(logits, 3).isfinite().sum() == 5
    assert torch.equal(top_k(logits, 3), TopKLogitsWarper(3)(None, logits.clone()))
    assert top_k(logits, 2).isfinite().sum() == 2


def test_the_token_that_crosses_p_is_kept():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = [top_p(logits, p).isfinite().sum().item() for p in (0.4, 0.6, 0.79, 0.81, 0.94, 0.96, 1)]
    assert kept == [1, 2, 2, 3, 3, 4, 4]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), p=st.floats(0.02, 0.98))
def test_top_p_keeps_the_smallest_set_that_has_p(seed, p):
    logits = 2 * draw(7, seed=seed, dtype=torch.float64)
    probabilities = logits.softmax(-1).tolist()
    kept = top_p(logits, p).isfinite()
    sizes = {
        len(chosen): sum(probabilities[i] for i in chosen) >= p
        for n in range(1, 8)
        for chosen in itertools.combinations(sorted(range(7), key=lambda i: -probabilities[i]), n)
        if sum(probabilities[i] for i in chosen) >= p
    }
    assert kept.sum() == min(sizes)
    assert sum(q for q, k in zip(probabilities, kept) if k) >= p
    assert logits[kept].min() > logits[~kept].max() if (~kept).any() else True


@pytest.mark.parametrize("shape", [(7,), (2, 7), (2, 3, 7)])
def test_any_number_of_leading_axes_and_inputs_left_alone(shape):
    logits = draw(*shape)
    before = logits.clone()
    for change in (
        lambda x: temperature(x, 0.7),
        lambda x: top_k(x, 3),
        lambda x: top_p(x, 0.6),
        lambda x: min_p(x, 0.2),
        lambda x: logit_bias(x, {2: 1.5, 6: -math.inf}),
    ):
        found = change(logits)
        rows = torch.stack([change(row) for row in logits.reshape(-1, 7)]).reshape(shape)
        assert found.shape == logits.shape and torch.equal(found, rows)
    assert torch.equal(logits, before)
    assert greedy(logits).shape == sample(logits, generator()).shape == shape[:-1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_stays(dtype):
    logits, ids = draw(2, 9, dtype=dtype), torch.tensor([[1, 1], [2, 5]])
    found = [
        temperature(logits, 2.0), top_k(logits, 3), top_p(logits, 0.5), min_p(logits, 0.5),
        repetition_penalty(logits, ids, 1.5), frequency_penalty(logits, ids, 0.5),
        logit_bias(logits, {1: 2.0}),
    ]  # fmt: skip
    assert {x.dtype for x in found} == {dtype}


def test_limits_lead_back_to_greedy_and_to_plain_sampling():
    logits = draw(4, 30)
    best = torch.nn.functional.one_hot(greedy(logits), 30).bool()
    for only in (top_k(logits, 1), top_p(logits, 1e-9), min_p(logits, 1.0)):
        assert torch.equal(only.isfinite(), best)
    assert torch.allclose(temperature(logits, 1e-6).softmax(-1), best.float())
    for same in (temperature(logits, 1), top_k(logits, 30), top_k(logits, 99), top_p(logits, 1)):
        assert torch.equal(same, logits)
    ids = torch.randint(30, (4, 5), generator=generator())
    assert torch.equal(repetition_penalty(logits, ids, 1.0), logits)
    assert torch.equal(frequency_penalty(logits, ids, 0.0), logits)


@pytest.mark.parametrize("call", [
    lambda x: temperature(x, 0), lambda x: temperature(x, -1.0), lambda x: top_k(x, 0),
    lambda x: top_p(x, 0), lambda x: top_p(x, 1.1), lambda x: min_p(x, 0), lambda x: min_p(x, 2),
])  # fmt: skip
def test_what_makes_no_sense_is_refused_by_name(call):
    with pytest.raises(ValueError, match="expected"):
        call(draw(2, 5))


def test_the_repetition_penalty_depends_on_where_zero_is_and_the_frequency_penalty_does_not():
    logits, ids = torch.tensor([[2.0, 1.0, 0.5]]), torch.tensor([[0, 0]])
    for change, moves in ((repetition_penalty, True), (frequency_penalty, False)):
        here = change(logits, ids, 1.2).softmax(-1)
        there = change(logits + 10, ids, 1.2).softmax(-1)
        assert torch.allclose(here, there, atol=1e-6) != moves


def test_the_repetition_penalty_lowers_whatever_the_sign_and_counts_each_token_once():
    logits = torch.tensor([[2.0, -2.0, 0.0, 1.0]])
    once, twice = torch.tensor([[0, 1]]), torch.tensor([[0, 1, 1, 0, 0]])
    found = repetition_penalty(logits, once, 2.0)
    assert found.tolist() == [[1.0, -4.0, 0.0, 1.0]]
    assert torch.equal(repetition_penalty(logits, twice, 2.0), found)
    assert torch.equal(repetition_penalty(logits, once[:, :0], 2.0), logits)
    assert frequency_penalty(logits, twice, 0.5).tolist() == [[0.5, -3.0, 0.0, 1.0]]


def test_a_bias_multiplies_the_odds():
    logits = draw(3, 6, dtype=torch.float64)
    before, after = logits.softmax(-1), logit_bias(logits, {4: 1.5}).softmax(-1)
    odds = lambda p: p[:, 4] / (1 - p[:, 4])  # noqa: E731
    torch.testing.assert_close(odds(after), odds(before) * math.exp(1.5))


# ----------------------------------------------------------------------------------- sampling


def chi_square(counts, probabilities):
    """How far counts are from what they should be, in standard deviations of that statistic."""
    expected = counts.sum() * probabilities
    kept = expected > 0
    assert (counts[~kept] == 0).all(), "a token of probability 0 was drawn"
    statistic = ((counts - expected)[kept].square() / expected[kept]).sum()
    freedom = kept.sum() - 1
    return ((statistic - freedom) / (2 * freedom).double().sqrt()).item()


@pytest.mark.parametrize("seed", range(5))
def test_tokens_are_drawn_with_their_probabilities(seed):
    logits = top_k(2 * draw(12, seed=seed), 9)
    drawn = sample(logits.expand(200_000, 12), generator(seed))
    counts = torch.bincount(drawn, minlength=12).double()
    assert abs(chi_square(counts, logits.double().softmax(-1))) < 5


def test_rows_are_drawn_independently():
    drawn = sample(torch.zeros(100_000, 2, 3), generator(3))
    pairs = torch.bincount(drawn[:, 0] * 3 + drawn[:, 1], minlength=9).double()
    assert abs(chi_square(pairs, torch.full((9,), 1 / 9, dtype=torch.float64))) < 5


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_no_dart_however_extreme_hits_a_token_that_is_ruled_out(uniform, monkeypatch):
    logits = torch.full((4, 1000), -math.inf)
    logits[:, 300:700] = draw(4, 400)
    monkeypatch.setattr(
        torch, "rand", lambda size, generator, dtype: torch.full(size, uniform, dtype=dtype)
    )
    drawn = sample(logits, generator())
    assert ((drawn >= 300) & (drawn < 700)).all()


def test_only_the_generator_counts():
    logits = draw(50, 20)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, two = generator(4), generator(4)
    for _ in range(3):
        assert torch.equal(sample(logits, one), sample(logits, two))
    assert torch.equal(before, torch.get_rng_state())


# -------------------------------------------------------------------------------- beam search

VOCAB, DEPTH, END = 4, 4, 2


def tree(seed, forbid=False):
    """A model whose next distribution depends on the whole text."""
    table = 2 * draw(DEPTH + 2, VOCAB, VOCAB, seed=seed, dtype=torch.float64)

    def next_log_probs(ids):
        logits = sum(table[t, ids[:, t]] for t in range(ids.shape[1])) + 0.1 * ids.shape[1]
        if forbid:
            logits = logits.clone()
            logits[:, 1] = -math.inf
        return logits.log_softmax(-1)

    return next_log_probs


def every_text(next_log_probs, start, n):
    """Log-probability of each text of n tokens, or shorter with the end token."""
    found, todo = {}, [((), 0.0)]
    while todo:
        ids, total = todo.pop()
        if len(ids) == n or ids and ids[-1] == END:
            found[ids] = total
            continue
        log_p = next_log_probs(torch.cat([start, start.new_tensor(ids)])[None])[0]
        todo += [((*ids, i), total + value) for i, value in enumerate(log_p.tolist())]
    return found


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_a_beam_that_is_wide_enough_is_brute_force(seed, alpha):
    model, start = tree(seed), torch.tensor([3, 0])
    texts = every_text(model, start, DEPTH)
    best = sorted(((v / len(k) ** alpha, list(k)) for k, v in texts.items()), reverse=True)
    found = beam_search(model, start, VOCAB**DEPTH, DEPTH, END, alpha)
    assert len(found) == len(best)
    assert [ids for _, ids in found] == [ids for _, ids in best]
    assert [s for s, _ in found] == pytest.approx([s for s, _ in best])


@pytest.mark.parametrize("seed", range(6))
def test_a_narrow_beam_is_a_loop_over_a_list(seed):
    model, start, width = tree(seed), torch.tensor([1]), 3
    beams = [((), 0.0)]
    for _ in range(DEPTH):
        more = []
        for ids, total in beams:
            if ids and ids[-1] == END:
                more.append((ids, total))
                continue
            log_p = model(torch.tensor([[1, *ids]]))[0].tolist()
            more += [((*ids, i), total + log_p[i]) for i in range(VOCAB)]
        beams = sorted(more, key=lambda b: -b[1])[:width]
    found = beam_search(model, start, width, DEPTH, END)
    assert [tuple(ids) for _, ids in found] == [ids for ids, _ in beams]


@pytest.mark.parametrize("seed", range(6))
def test_a_beam_of_one_is_greedy_and_a_wider_one_finds_no_less_in_the_end(seed):
    model, start = tree(seed), torch.tensor([0])
    greedily = []
    while len(greedily) < DEPTH and END not in greedily:
        log_p = model(torch.tensor([[0, *greedily]]))
        greedily.append(greedy(log_p)[0].item())
    ((_, found),) = beam_search(model, start, 1, DEPTH, END)
    assert found == greedily
    best = beam_search(model, start, VOCAB**DEPTH, DEPTH, END)[0][0]
    assert all(beam_search(model, start, w, DEPTH, END)[0][0] <= best + 1e-12 for w in range(1, 9))


def test_what_has_no_probability_is_never_kept():
    found = beam_search(tree(0, forbid=True), torch.tensor([0]), 1000, DEPTH, END)
    assert found and not any(1 in ids for _, ids in found)
    assert all(math.isfinite(score) for score, _ in found)


# ---------------------------------------------------------------------------------- streaming


def test_tokens_are_handed_over_one_by_one_and_the_end_is_not():
    asked = []

    def next_logits(ids):
        asked.append(ids[0].tolist())
        return torch.nn.functional.one_hot(ids[:, -1] + 1, 9).float()

    found = write(next_logits, torch.tensor([0, 1]), 20, lambda logits, ids: greedy(logits), end=6)
    assert next(found) == 2 and asked == [[0, 1]]
    assert list(found) == [3, 4, 5] and asked[-1] == [0, 1, 2, 3, 4, 5]
    three = write(next_logits, torch.tensor([0]), 3, lambda logits, ids: ids[:, 0] + 5)
    assert list(three) == [5, 5, 5]


def cut(data, generator):
    """Bytes cut into tokens at random."""
    while data:
        n = generator.randint(1, 4)
        yield data[:n]
        data = data[n:]


def until_stop(text, stops):
    """The specification: character by character."""
    for n in range(len(text) + 1):
        ended = [stop for stop in stops if text[:n].endswith(stop)]
        if ended:
            return text[: n - max(map(len, ended))]
    return text


@settings(max_examples=300, deadline=None)
@given(
    text=st.text("ab\né€🙂", max_size=30),
    stops=st.lists(st.text("ab\né🙂", min_size=1, max_size=4), max_size=3),
    seed=st.integers(0, 9999),
)
def test_pieces_joined_do_not_depend_on_the_cuts(text, stops, seed):
    tokens = list(cut(text.encode(), random.Random(seed)))
    pieces = list(stream_text(tokens, stops))
    assert all(pieces) and len(pieces) <= len(tokens) + 1  # one more, of what waited at the end
    assert "".join(pieces) == until_stop(text, stops)


@settings(max_examples=200, deadline=None)
@given(
    text=st.text("abé🙂", max_size=20),
    stops=st.lists(st.text("abé", min_size=1, max_size=4), max_size=3),
    seed=st.integers(0, 9999),
)
def test_nothing_waits_that_could_go_and_nothing_goes_that_must_wait(text, stops, seed):
    tokens = list(cut(text.encode(), random.Random(seed)))
    taken = 0

    def source():
        nonlocal taken
        for token in tokens:
            taken += 1
            yield token

    out, stream = {}, stream_text(source(), stops)
    for piece in stream:
        out[taken] = out.get(taken, "") + piece
    end = until_stop(text, stops)
    read, sent = b"", ""
    for n, token in enumerate(tokens[:taken], start=1):
        read += token
        whole = read.decode(errors="ignore")  # an unfinished character is at the end only
        sent += out.get(n, "")
        if whole.startswith(end) and end != text and until_stop(whole, stops) != whole:
            assert sent == end and n == taken
            break
        longest = max(
            (k for s in stops for k in range(1, len(s)) if whole.endswith(s[:k])), default=0
        )  # noqa: E501
        assert sent == whole[: len(whole) - longest] or n == taken and sent == end


def test_a_character_that_never_ends_and_bytes_that_are_none():
    assert "".join(stream_text([b"a", b"\xe2\x82"])) == "a\ufffd"
    assert list(stream_text([b"a\xff", b"b"])) == ["a\ufffd", "b"]
    assert list(stream_text([])) == list(stream_text([b""])) == []


# ----------------------------------------------------------------------------- JSON's grammar


def follow(text, rules=JSON):
    constraint = JsonConstraint(BYTES, 256, rules)
    state = constraint.read(constraint.start, text)
    return state is not None and constraint.needs(state) == 0


BYTES = {bytes([b]): b for b in range(256)}


def is_json(data):
    def refuse(name):
        raise ValueError(name)

    try:
        text = data.decode()
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return text == text.rstrip(" \t\n\r")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(VALUES, st.booleans(), st.sampled_from([None, 0, 2]))
def test_what_python_writes_is_in_the_grammar(value, ascii_only, indent):
    try:
        text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8
        return
    assert follow(text)
    assert not any(follow(text[:n]) and not is_json(text[:n]) for n in range(len(text)))


@settings(max_examples=1500, deadline=None)
@given(VALUES, st.integers(0, 10**9))
def test_the_grammar_accepts_what_python_reads_and_nothing_else(value, seed):
    changes = random.Random(seed)
    try:
        data = bytearray(json.dumps(value, ensure_ascii=changes.random() < 0.5).encode())
    except UnicodeEncodeError:
        return
    for _ in range(changes.randint(0, 3)):
        at = changes.randrange(len(data) + 1)
        new = changes.choice(b'{}[]",:0123456789.eE+-\\ \ntfnu\x00\x1f\x7f\x80\xbf\xc2\xed\xf4')
        changes.choice([data.insert, lambda i, b: data.__setitem__(slice(i, i + 1), bytes([b])),
                        lambda i, b: data.__delitem__(slice(i, i + 1))])(at, new)  # fmt: skip
    assert follow(bytes(data)) == is_json(bytes(data)), bytes(data)


@pytest.mark.parametrize("text", [
    "", " ", "01", "-", "1.", ".5", "1e", "+1", "[1,]", "[,1]", '{"a"}', '{"a":}', '{"a":1,}',
    "{1:2}", "'a'", "nul", "NaN", "Infinity", '"\t"', '"\\x"', '"\\u12g4"', '"', "[", "[1 2]",
    "1 ", "{}{}",
])  # fmt: skip
def test_what_is_no_json_is_not_accepted(text):
    assert not is_json(text.encode()) and not follow(text.encode())


@pytest.mark.parametrize("bad", [
    b'"\x80"', b'"\xc0\x80"', b'"\xc1\xbf"', b'"\xe0\x80\x80"', b'"\xed\xa0\x80"',
    b'"\xf0\x80\x80\x80"',
    b'"\xf4\x90\x80\x80"', b'"\xf5\x80\x80\x80"', b'"\xe2\x82"', b'"\xff"',
])  # fmt: skip
def test_strings_hold_nothing_but_utf8(bad):
    assert not follow(bad)


def test_every_character_may_stand_in_a_string():
    for code in [*range(0x20, 0x3000, 7), 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF]:
        if chr(code) not in '"\\':
            assert follow(f'"{chr(code)}"'.encode()), hex(code)


@pytest.mark.parametrize("rules", [JSON, schema_rules({"enum": [1, 12, "a", "ab", None]})])
def test_no_rule_leaves_a_choice(rules):
    """A symbol that may be left out never shares a byte with what may stand behind it."""
    behind = {symbol: set() for symbol in rules}
    for _ in range(3):
        for symbol, rule in rules.items():
            for then in rule.values():
                for i, part in enumerate(then):
                    for after in then[i + 1 :]:
                        behind[part] |= rules[after].keys()
                        if not after.endswith("?"):
                            break
                    else:
                        behind[part] |= behind[symbol]
    for symbol, rule in rules.items():
        assert not symbol.endswith("?") or not rule.keys() & behind[symbol], symbol
        assert {part for then in rule.values() for part in then} <= rules.keys()


def test_the_shortest_completions_are_those_that_a_search_finds():
    constraint = JsonConstraint(BYTES, 256)
    for text in [
        "",
        "[",
        '{"a',
        '{"a":',
        "-",
        "1",
        "1e",
        '["\\u0',
        "[[{",
        "tr",
        '"\\',
        '"\u20ac'[:2],
    ]:
        state = constraint.read(("value",), text.encode())
        reached, length = {state}, 0
        while not any(constraint.needs(s) == 0 for s in reached):
            reached = {constraint.read(s, bytes([b])) for s in reached for b in range(256)} - {None}
            length += 1
        assert length == constraint.needs(state)


def test_a_symbol_that_never_ends_is_refused():
    with pytest.raises(ValueError, match="'round'"):
        shortest({"value": {97: ()}, "round": {97: ("round",)}})


# ------------------------------------------------------------------------------- constraint

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "kind": {"enum": ["cat", "cart", "dog", 1, 12, None]},
        "age": {"type": "integer"},
        "weight": {"type": "number"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "owner": {
            "anyOf": [
                {"type": "null"},
                {"type": "object", "properties": {"well": {"type": "boolean"}}},
            ]
        },
    },
}
TEXT = json.dumps([{"name": "Mia", "tags": ["red", "kite"], "at": {"x": 1.5}}] * 3) * 40


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer.train(TEXT, 400, specials=["<end>"])


@settings(max_examples=60, deadline=None)
@given(VALUES.filter(lambda v: isinstance(v, dict)), st.integers(0, 10**6))
def test_a_schema_allows_what_json_dumps_writes(value, seed):
    draws = random.Random(seed)
    made = {
        "name": str(draws.random()), "kind": draws.choice(SCHEMA["properties"]["kind"]["enum"]),
        "age": draws.randint(-99, 999), "weight": draws.choice([0, -1.5, 1e-9, 12]),
        "tags": ["x"] * draws.randint(0, 3), "owner": draws.choice([None, {"well": True}]),
    }  # fmt: skip
    rules = schema_rules(SCHEMA)
    assert follow(json.dumps(made).encode(), rules)
    assert not follow(json.dumps(value).encode(), rules)
    del made["age"]
    assert not follow(json.dumps(made).encode(), rules)


def test_a_schema_that_is_not_known_is_refused():
    for schema in ({"type": "date"}, {}, {"anyOf": [{"type": "number"}, {"type": "integer"}]}):
        with pytest.raises(ValueError):
            schema_rules(schema)


@pytest.mark.parametrize("schema", [None, SCHEMA])
@pytest.mark.parametrize("seed", range(3))
def test_whatever_the_model_says_the_text_is_whole_and_in_time(tokenizer, schema, seed):
    constraint = JsonConstraint(
        tokenizer.ranks, tokenizer.specials["<end>"], schema_rules(schema) if schema else JSON
    )
    least, source = constraint.needs(constraint.start), generator(seed)
    for budget in [least, least + 1, least + 7, least + 60]:
        choose = constrained(constraint, budget, lambda logits: sample(logits, source))
        logits = 5 * torch.randn(budget + 1, 16, len(tokenizer), generator=source)
        ids = torch.stack([choose(row) for row in logits], dim=1)  # (16, budget + 1)
        for row in ids.tolist():
            at = row.index(constraint.end)
            assert set(row[at:]) == {constraint.end}
            data = b"".join(tokenizer.tokens[i] for i in row[:at])
            assert is_json(data), data
            if schema:
                jsonschema.validate(json.loads(data), schema)


def test_a_mask_is_what_trying_each_token_says(tokenizer):
    end = tokenizer.specials["<end>"]
    constraint = JsonConstraint(tokenizer.ranks, end)
    for text in [b"", b"[", b'{"na', b'{"name": "Mia"', b"12", b"[[[1", b'["\xc3']:
        state = constraint.read(constraint.start, text)
        least = constraint.needs(state)
        for budget in (least, least + 1, least + 5):
            mask = constraint.mask(state, budget)
            assert mask.shape == (len(tokenizer),) and mask.any()
            assert mask[end] == is_json(text)
            for data, i in tokenizer.ranks.items():
                after = constraint.read(state, data)
                fits = after is not None and constraint.needs(after) <= budget - 1
                assert mask[i] == fits
    assert len(constraint.costs) == 7


def test_a_constraint_needs_every_byte():
    with pytest.raises(ValueError, match=r"\[65\]"):
        JsonConstraint({k: v for k, v in BYTES.items() if v != 65}, 256)


def test_literals_are_read_as_they_are():
    constraint = JsonConstraint(BYTES, 256)
    assert constraint.read(literal("né".encode()), "né".encode()) == ()
    assert constraint.read(literal(b"ab"), b"ac") is None
