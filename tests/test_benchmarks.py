"""The benchmarks run, at a size at which they say nothing about speed."""

import torch

from benchmarks import models

TINY = models.Shape(
    vocab=20, window=12, width=8, layers=2, heads=2, batch=2, length=6, prompt=3, written=9
)


def test_the_models_benchmark_compares_equal_models_in_every_task(capsys):
    rows = models.measure(TINY, rounds=2)
    tasks = {task: [r for r in rows if r["task"] == task] for task in ("training", "writing")}
    for task, found in tasks.items():
        assert found[0]["who"] == models.OURS and len(found) == 5, task
        assert all(len(r["seconds"]) == 2 and min(r["seconds"]) > 0 for r in found)
    models.report("tiny", rows)
    printed = capsys.readouterr().out
    assert printed.count("tokens/s") == 10 and "1.00 × ours" in printed


def test_the_models_benchmark_writes_the_same_text_with_every_model():
    _, writers = models.contenders(TINY)
    prompt = torch.tensor([[3, 1, 4]])
    texts = [write(prompt).tolist() for write in writers.values()]
    assert len(texts) == 5 and all(text == texts[0] for text in texts)
