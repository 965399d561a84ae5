"""The records of chapter 15, and the model that has learned to write them."""

import contextlib
import copy
import json

import jsonschema
import pytest
import torch

from solutions.decoding import JsonConstraint, constrained, sample, temperature
from solutions.gpt import generate
from solutions.json_grammar import JSON, schema_rules
from solutions.records import END, SCHEMA, corpus, is_record, trained


@pytest.fixture(scope="module")
def texts():
    return corpus(300, seed=7).split(END)[:-1]


def test_every_record_is_one_of_the_form_of_the_schema(texts):
    rules = JsonConstraint({bytes([b]): b for b in range(256)}, 256, schema_rules(SCHEMA))
    for text in texts:
        found = json.loads(text)
        assert is_record(found)
        jsonschema.validate(found, SCHEMA)
        state = rules.read(rules.start, text.encode())
        assert state is not None and rules.needs(state) == 0
    assert len({*texts}) > 290 and any("\\" in text for text in texts)


def test_what_no_record_can_be_is_told_apart(texts):
    record = next(r for r in map(json.loads, texts) if r["friend"] and r["things"])
    changes = {
        "name": "Nobody", "age": 7.0, "place": "moon", "said": "where?", "friend": record,
        "things": 3 * record["things"],
    }  # fmt: skip
    for key, value in changes.items():
        assert not is_record({**record, key: value}), key
    for key in record:
        for odd in ([], [[]], {}, {"a": []}, 1.5, True, "x"):
            assert is_record({**record, key: odd}) == (key == "things" and odd == []), (key, odd)
        assert not is_record({k: v for k, v in record.items() if k != key}), key
    twice = copy.deepcopy(record)
    twice["things"][0]["colours"] *= 3
    assert not is_record(twice)
    assert not any(map(is_record, [None, [], "name", 1, {}]))


def test_the_tokenizer_loses_nothing(texts):
    _, tokenizer = trained()
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.specials == {END: len(tokenizer) - 1}


@pytest.mark.slow
@pytest.mark.parametrize("rules", [JSON, schema_rules(SCHEMA)], ids=["json", "schema"])
def test_the_model_writes_json_every_time_if_it_is_kept_to_it(rules):
    model, tokenizer = trained()
    end = len(tokenizer) - 1
    constraint = JsonConstraint(tokenizer.ranks, end, rules)
    draw = torch.Generator().manual_seed(99)
    for t in (1.0, 2.0):
        choose = constrained(constraint, 80, lambda x, t=t: sample(temperature(x, t), draw))
        written = generate(model, torch.full((100, 1), end), 81, choose)[:, 1:]
        for row in written.tolist():
            found = json.loads(tokenizer.decode(row[: row.index(end)]))
            if rules is not JSON:
                jsonschema.validate(found, SCHEMA)


@pytest.mark.slow
def test_the_model_has_learned_its_records():
    model, tokenizer = trained()
    end = len(tokenizer) - 1
    draw = torch.Generator().manual_seed(3)
    written = generate(model, torch.full((60, 1), end), 140, lambda x: sample(x, draw))[:, 1:]
    good = 0
    for row in written.tolist():
        with contextlib.suppress(ValueError):
            good += is_record(json.loads(tokenizer.decode(row[: row.index(end)])))
    assert good > 40
