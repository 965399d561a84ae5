"""The language of stories: what it writes, and that what is said of its probabilities is true."""

import math
import re
import time
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from solutions import stories
from solutions.stories import Sentence, Stories

SIZES = {
    "as it comes": {},
    "tiny": {"names": 2, "things": 1, "places": 2, "colours": 1},
    "large": {"names": 300, "things": 48, "places": 24, "colours": 12, "zipf": 1.3, "seed": 7},
    "even": {"zipf": 0.0, "seed": 3},
}
each_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
LANGUAGE = Stories()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mean_and_error(numbers):
    numbers = torch.as_tensor(numbers, dtype=torch.float64)
    return numbers.mean(0), numbers.std(0) / len(numbers) ** 0.5


# ------------------------------------------------------------------- a language that ends

FINITE = [
    Sentence("start", 3, "once , {+hero} was at the {+place} ."),
    Sentence("start", 2, "near the {+place} lived {+hero} , a {kind} ."),
    Sentence("move", 3, "then {he} went to the {+place} .", "none"),
    Sentence("find", 2, "{hero} saw a {+colour} {+thing} and picked it up .", "none", thing="held"),
    Sentence("find", 5, "{he} found a {+colour} {+thing} .", "none", thing="held"),
    Sentence("meet", 1, "{+friend} came to the {place} .", "held", False, friend=True),
    Sentence("give", 4, "{he} gave the {colour} {thing} to {friend} .", "held", True, "given"),
    Sentence("leave", 2, "{he} left the {thing} at the {place} .", "held", False, "left"),
    Sentence("end", 1, "{he} was {+mood} . <end>", "held"),
    Sentence("end", 2, "{he} thought of the {thing} at the {spot} . <end>", "left"),
    Sentence("end", 2, "{he} thought of the {thing} that {owner} had now . <end>", "given"),
]


@pytest.fixture
def finite(monkeypatch):
    monkeypatch.setattr(stories, "SENTENCES", FINITE)
    return Stories(names=3, things=2, places=2, colours=1, seed=5)


def every_story(language):
    """All stories, found by trying every token after every beginning, with their probabilities."""
    found, todo = {}, [()]
    while todo:
        beginning = todo.pop()
        chances = language.distribution(beginning)
        for token in chances.nonzero().flatten().tolist():
            text = (*beginning, token)
            if token == 0:
                found[text] = math.exp(language.log_probability(text))
            else:
                todo.append(text)
    return found


def test_over_all_stories_of_a_finite_language_the_statements_hold_exactly(finite):
    found = every_story(finite)
    p = torch.tensor(list(found.values()), dtype=torch.float64)
    lengths = torch.tensor([len(text) for text in found], dtype=torch.float64)
    signs = torch.tensor([len(finite.decode(text)) for text in found], dtype=torch.float64)
    assert len(found) > 500
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    assert finite.entropy == pytest.approx(-(p * p.log()).sum().item(), abs=1e-10)
    assert finite.tokens_per_story == pytest.approx((p * lengths).sum().item(), abs=1e-10)
    assert finite.characters_per_story == pytest.approx((p * signs).sum().item(), abs=1e-10)
    longest = int(lengths.max())
    surprise = torch.zeros(longest, dtype=torch.float64)
    alive = torch.zeros(longest, dtype=torch.float64)
    for text, chance in found.items():
        surprise[: len(text)] += chance * finite.surprises(text)
        alive[: len(text)] += chance
    first = int(lengths.min())  # until there every window is in its first story
    torch.testing.assert_close(finite.floor_of_windows(first), surprise[:first])


def test_stories_are_written_as_often_as_their_probabilities_say(finite):
    n = 20_000
    counts = Counter(map(tuple, finite.write(n, generator())))
    likely = [t for t in counts if math.exp(finite.log_probability(t)) > 1e-3]
    assert len(likely) > 30
    for text in likely:
        p = math.exp(finite.log_probability(text))
        assert abs(counts[text] / n - p) < 5 * math.sqrt(p * (1 - p) / n)


# ----------------------------------------------------------------------------- entropies


@each_size
def test_the_mean_surprise_of_stories_is_the_entropy_within_its_error(size):
    language = Stories(**size)
    written = language.write(1500, generator(1))
    for numbers, expected in [
        ([-language.log_probability(text) for text in written], language.entropy),
        ([float(len(text)) for text in written], language.tokens_per_story),
        ([float(len(language.decode(t))) for t in written], language.characters_per_story),
    ]:
        mean, error = mean_and_error(numbers)
        assert error < 0.03 * expected and abs(mean - expected) < 4 * error


def test_the_surprise_at_each_position_of_windows_is_the_one_computed():
    tokens = LANGUAGE.stream(150_000, generator(2))
    surprises = LANGUAGE.surprises(tokens)
    starts = (tokens == 0).nonzero().flatten().tolist()
    windows = torch.stack([surprises[i + 1 : i + 49] for i in starts if i + 49 < len(tokens)])
    mean, error = mean_and_error(windows)
    expected = LANGUAGE.floor_of_windows(48)
    assert (abs(mean - expected) <= 4.5 * error + 1e-12).all()
    whole, error = mean_and_error(windows.mean(1))
    assert abs(whole - expected.mean()) < 4 * error


def test_windows_of_stories_come_close_to_the_floor_as_they_get_longer():
    gaps = [LANGUAGE.floor_of_windows(t).mean().item() - LANGUAGE.floor for t in (32, 128, 512)]
    assert gaps[0] > gaps[1] > gaps[2] > 0 and gaps[2] < 0.01
    assert LANGUAGE.window_gap(100) == pytest.approx(2 * LANGUAGE.window_gap(200))
    assert torch.equal(LANGUAGE.floor_of_windows(9), LANGUAGE.floor_of_windows(20)[:9])


def test_a_long_stream_costs_the_floor_for_each_token():
    tokens = LANGUAGE.stream(100_001, generator(3))
    surprises = LANGUAGE.surprises(tokens)[1:]
    mean, error = mean_and_error(surprises.reshape(-1, 200).mean(1))
    assert abs(mean - LANGUAGE.floor) < 4 * error < 0.02


def test_more_words_make_more_entropy_and_zipf_makes_less():
    def entropy(**size):
        return Stories(**size).entropy

    assert entropy(names=4) < entropy(names=16) < entropy(names=64)
    assert entropy(things=4) < entropy() < entropy(zipf=0.5) < entropy(zipf=0)


# ------------------------------------------------------------------- one text, one reading


@each_size
def test_every_story_parses_and_its_token_probabilities_multiply(size):
    language = Stories(**size)
    for text in language.write(60, generator(4)):
        surprises = language.surprises(text)
        assert surprises.isfinite().all() and (surprises > -1e-12).all()
        assert language.log_probability(text) == pytest.approx(-surprises.sum().item())


def test_the_distribution_of_the_next_token_is_what_the_surprises_are_made_of():
    (text,) = LANGUAGE.write(1, generator(5))
    surprises = LANGUAGE.surprises(text)
    for i, token in enumerate(text):
        chances = LANGUAGE.distribution(text[:i])
        assert chances.sum().item() == pytest.approx(1) and (chances >= 0).all()
        assert -math.log(chances[token]) == pytest.approx(surprises[i].item(), abs=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        "Once, Mia was at the pond. He found a red kite.",
        "Once, Mia was at the pond. She found a red kite. She left the ball at the pond.",
        "Once, Mia was at the pond. She found a red kite. She left the kite at the mill.",
        "Once, Mia was at the pond. There she met Mia.",
        "Once, Mia was at the pond. Then she went to the pond.",
        "Once, Mia was at the pond. In the evening she went home without the kite.\n",
        "Mia found",
    ],
)
def test_what_the_language_does_not_allow_has_no_probability(wrong):
    language = Stories(things=4)
    tokens = language.encode(wrong)
    surprises = language.surprises(tokens)
    assert surprises.isinf().sum() == 1 and language.log_probability(tokens) == -math.inf
    first = int(surprises.isinf().nonzero())
    assert surprises[:first].isfinite().all() and surprises[first + 1 :].isnan().all()
    with pytest.raises(ValueError, match="cannot stand there"):
        language.distribution(tokens)


def test_an_end_token_in_front_is_free():
    (text,) = LANGUAGE.write(1, generator(6))
    assert LANGUAGE.log_probability([0, *text]) == LANGUAGE.log_probability(text)
    assert LANGUAGE.surprises([0, *text])[0] == 0


# -------------------------------------------------------------------------- what it tells


def test_what_was_said_at_the_start_holds_to_the_end():
    for story in LANGUAGE.write(300, generator(7)):
        text = LANGUAGE.decode(story)
        words = text.lower().split()
        hero = next(w for w in re.findall(r"\w+", text) if w in LANGUAGE.names)
        girl = LANGUAGE.names.index(hero) % 2 == 0
        assert ("he" in words, "she" in words) == (not girl, girl)
        held = None
        for sentence in text.split("."):
            found = re.search(r"(?:found|saw) a (\w+ \w+)", sentence)
            used = re.search(r"(?:gave|hid|carried|thought of) the (\w+ \w+)", sentence)
            held = found[1] if found else held
            assert not used or used[1] == held
        assert re.search(r"\b(home)\b", text) and text.endswith(".\n")


def test_a_text_starts_like_a_text():
    text = LANGUAGE.decode(LANGUAGE.stream(300, generator(8)))
    assert text[0] == "\n"
    for line in text[1:].splitlines():
        assert re.fullmatch(r"(?:[A-Z]\w*(?:,? \w+)*\. ?)+(?:[A-Z][\w ,]*)?", line)


# ------------------------------------------------------------------------ encode and decode


@each_size
def test_decoded_stories_are_encoded_to_the_same_tokens(size):
    language = Stories(**size)
    tokens = language.stream(5000, generator(9))
    assert language.encode(language.decode(tokens)) == tokens.tolist()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, len(LANGUAGE) - 1), max_size=20))
def test_any_tokens_survive_decoding(tokens):
    assert LANGUAGE.encode(LANGUAGE.decode(tokens)) == tokens


def test_any_tokens_survive_decoding_where_names_are_made_up():
    language = Stories(names=4000)
    ids = torch.randperm(len(language), generator=generator())
    assert language.encode(language.decode(ids)) == ids.tolist()
    assert len(set(language.names)) == 4000


def test_an_unknown_word_is_named():
    with pytest.raises(ValueError, match="'dragon' is not in the vocabulary"):
        LANGUAGE.encode("Once, a dragon")


def test_the_vocabulary_is_small_and_starts_with_the_end():
    assert LANGUAGE.vocabulary[0] == "<end>" and 80 < len(LANGUAGE) < 150
    assert len(set(LANGUAGE.vocabulary)) == len(LANGUAGE)


# ------------------------------------------------------------------------------ seeds, speed


def test_the_same_seed_writes_the_same_text_in_the_same_world():
    one, other = LANGUAGE.stream(400, generator(1)), Stories().stream(400, generator(1))
    assert torch.equal(one, other) and one.dtype == torch.int64
    assert not torch.equal(one, LANGUAGE.stream(400, generator(2)))
    elsewhere = Stories(seed=1)
    assert elsewhere.entropy == pytest.approx(LANGUAGE.entropy)  # other facts, as many of them
    text = LANGUAGE.write(1, generator(1))[0]
    assert elsewhere.log_probability(text) != LANGUAGE.log_probability(text)


def test_a_generator_goes_on_where_it_was():
    draw = generator(1)
    first, second = LANGUAGE.write(2, draw), LANGUAGE.write(2, draw)
    assert first != second


def test_a_hundred_thousand_tokens_take_less_than_a_second():
    start = time.process_time()
    assert len(LANGUAGE.stream(100_000, generator())) == 100_000
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "name, value", [("names", 1), ("names", 5000), ("things", 0), ("places", 25), ("colours", 13)]
)
def test_a_number_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}, expected"):
        Stories(**{name: value})


def test_sentences_that_could_be_confused_are_refused(monkeypatch):
    twin = Sentence("show", 1, "{friend} liked the {thing} .", "held", True)
    clash = Sentence("tell", 1, "{owner} liked the {colour} {thing} .", "held", True)
    for extra in (twin, clash):
        monkeypatch.setattr(stories, "SENTENCES", [*stories.SENTENCES, extra])
        with pytest.raises((AssertionError, StopIteration)):
            Stories()
        monkeypatch.undo()
