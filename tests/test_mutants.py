"""No check can be passed by a slightly wrong reference.

Each reference is changed in every small way that `tests.mutants` knows (an operator, a constant, a
dropped call or argument, a swapped pair, a negated condition, a deleted line); the check must
notice. A change that makes no difference in what the docstring promises is listed here.
"""

import pytest

from autograder.checking import chapters
from autograder.subjects import Local
from tests.mutants import mutants

CLOSE = "if not torch.allclose(attend(changed)[:, :t], before[:, :t], atol=1e-6):"
ROUNDS = "for i in range((x.shape[1] - 1).bit_length()):  # log2(T) rounds, rounded up"
SAME = "same = torch.allclose(parts, whole, atol=1e-6)"
END = "if not (same and torch.allclose(end, last, atol=1e-6)):"
REFUSE = 'raise IndexError(f"id {wrong[0].item()}, expected 0 to {rows - 1}")'
BEFORE, AFTER = "before[..., own]", "attend(changed)[..., own]"
APART = f"if not torch.allclose({AFTER}, {BEFORE}, atol=1e-6):"
OUTSIDE = 'f"position {positions[outside][0].item()} is not in the table: "'
DIAGONALS = "return torch.allclose(scores[1:, 1:], scores[:-1, :-1], rtol=0, atol=1e-6)"
RECTANGLE = "causal_mask(stop - start, end"
CHUNKED = "not torch.allclose(attend(q, k, v, chunk)"
ANY = f"return any(({CHUNKED}"
SIZES = "for chunk in range(1, q.shape[1]"
DX, DY, SQUARES = "((x - x.mean())", "(y - y.mean())", "(x - x.mean()).square().sum()"
MEDIANS = "[statistics.median(run) for run in runs]"
ALONE = "if not torch.allclose(alone, together[b : b + 1, t : t + 1], atol=1e-6):"
BOTH = "shifted, scaled = norm(x + 0.5 * amounts), norm(x * (1 + 0.5 * amounts))"
SHIFTED, SCALED = (f"torch.allclose({name}, before, atol=1e-6)," for name in ("shifted", "scaled"))
MOVED = "columns.append(((after - before).abs() > 1e-6).any(-1).any(0))  # (T)"
WRITTEN = "written = logits[:, -1].argmax(-1).masked_fill(finished, model.padding_idx)  # (B)"

DARTS = "darts = (1 - darts) * ends[..., -1:]  # above 0, and no further than the last end"
RAND = "darts = torch.rand(ends[..., :1].shape, generator=generator"
PAIRS = "for (total, ids), values, tokens in zip(live, best.values"
TOPK = "best = log_p.topk(min(width, log_p.shape[-1]))  # no more of any can be kept"
BEGUN = "begun = [k for stop in stops for k in range("

PREFIX = "if not torch.allclose(end, whole[:, t], rtol=0, atol=1e-6):"
BUILT = "model = GPT(sizes, device=table.device, dtype=table.dtype)"
DIFFERING = "if wrong := names.keys() ^ theirs.keys():"
OWN = 'if head is not None and not torch.equal(head, theirs.get("wte.weight", head)):'

#: Changes that leave the promised behaviour as it is, by exercise.
EQUIVALENT: dict[str, set[str]] = {
    # It sets a flag on the caller's tensor, whose numbers stay.
    "gradient_step": {
        "leaf = point.detach().requires_grad_()  # a start of its own for the graph"
        " -> leaf = point.requires_grad_()"
    },
    # Reverse alphabetical order, too, puts a longer name before its beginning.
    "encode": {
        "names = sorted(specials, key=len, reverse=True) -> names = sorted(specials, reverse=True)"
    },
    # The device shows only where there are two.
    "causal_mask": {"keys = torch.arange(s, device=device) -> keys = torch.arange(s)"},
    "padding_mask": {
        "keys = torch.arange(size, device=lengths.device) -> keys = torch.arange(size)"
    },
    # Any change will do that is large enough to be seen, and small rounding may or may not count.
    "leaks_future": {
        "for t in range(1, x.shape[1]): -> for t in range(0, x.shape[1]):",
        "changed[:, t:] += 1.0 -> changed[:, t:] += 2.0",
        "changed[:, t:] += 1.0 -> changed[:, t:] += -1.0",
        f"{CLOSE} -> if not torch.allclose(attend(changed)[:, :t], before[:, :t]):",
        f"{CLOSE} -> if not torch.allclose(before[:, :t], attend(changed)[:, :t], atol=1e-06):",
        f"{CLOSE} -> if not torch.allclose(attend(changed)[:, :t], before[:, :t], atol=2e-06):",
    },
    "visible_keys": {
        "return [min(i + 1, length) for i in range(t)]"
        " -> return [min(length, i + 1) for i in range(t)]"
    },
    # w_h is square.
    "rnn": {
        "h = x.new_zeros(x.shape[0], w_h.shape[0])  # (B, N)"
        f" -> h = x.new_zeros(x.shape[0], w_h.shape[{axis}])"
        for axis in (1, -1)
    },
    # Rounding is far below 1e-6, and what is wrong far above.
    "can_resume": {
        f"{SAME} -> same = torch.allclose(parts, whole)",
        f"{SAME} -> same = torch.allclose(whole, parts, atol=1e-06)",
        f"{SAME} -> same = torch.allclose(parts, whole, atol=2e-06)",
        f"{END} -> if not (same and torch.allclose(end, last)):",
        f"{END} -> if not (same and torch.allclose(last, end, atol=1e-06)):",
        f"{END} -> if not (same and torch.allclose(end, last, atol=2e-06)):",
    },
    # A round that reaches back further than there are tokens does nothing.
    "parallel_scan": {
        f"{ROUNDS} -> for i in range({rounds}):"
        for rounds in (
            "(x.shape[1] + 1).bit_length()",
            "(x.shape[1] - 0).bit_length()",
            "x.shape[1] - 1",
        )
    },
    "max_path_length": {
        "return max(1, -(-(n - 1) // (width - 1)))  # rounded up"
        " -> return max(-(-(n - 1) // (width - 1)), 1)"
    },
    # The device shows only where there are two; any wrong id may be named, and how many rows there
    # are is said for the reader's comfort. The id V is refused by torch's own indexing as well.
    "Embedding": {
        "table = torch.empty(vocab_size, d_model, device=device, dtype=dtype).normal_(std=std)"
        " -> table = torch.empty(vocab_size, d_model, dtype=dtype).normal_(std=std)",
        "wrong = ids[(ids < 0) | (ids >= rows)] -> wrong = ids[(ids < 0) | (ids > rows)]",
        f"{REFUSE} -> raise IndexError(f'id {{wrong[-1].item()}}, expected 0 to {{rows - 1}}')",
        f"{REFUSE} -> raise IndexError(f'id {{wrong[0].item()}}, expected 0 to {{rows + 1}}')",
        f"{REFUSE} -> raise IndexError(f'id {{wrong[0].item()}}, expected 0 to {{rows - 2}}')",
        f"{REFUSE} -> raise IndexError(f'id {{wrong[0].item()}}, expected 0 to {{rows - 0}}')",
        f"{REFUSE} -> raise IndexError(f'id {{wrong[0]}}, expected 0 to {{rows - 1}}')",
    },
    # A vector of zeros may be divided by any number.
    "cosine_similarity": {
        "units.append(x / length.masked_fill(length == 0, 1.0))"
        f" -> units.append(x / length.masked_fill(length == 0, {number}))"
        for number in ("2.0", "-1.0")
    },
    # Its weight is replaced; what is left of the sizes is what the layer prints about itself.
    "tied_model": {
        "head = nn.Linear(d_model, vocab_size, bias=False)"
        " -> head = nn.Linear(vocab_size, d_model, bias=False)"
    },
    # The device shows only where there are two.
    "GPT": {
        "x = self.embedding(ids) + self.positions(torch.arange(n_tokens, device=ids.device))"
        " -> x = self.embedding(ids) + self.positions(torch.arange(n_tokens))"
    },
    # Rounding is far below 1e-6, and what is wrong far above.
    "reads_as_it_writes": {
        f"{PREFIX} -> if not torch.allclose(end, whole[:, t], atol=1e-06):",
        f"{PREFIX} -> if not torch.allclose(end, whole[:, t], rtol=0):",
        f"{PREFIX} -> if not torch.allclose(whole[:, t], end, rtol=0, atol=1e-06):",
        f"{PREFIX} -> if not torch.allclose(end, whole[:, t], rtol=0, atol=2e-06):",
    },
    "positions_computed": {
        "return sum(min(prompt + i, window) for i in range(n))"
        " -> return sum((min(window, prompt + i) for i in range(n)))"
    },
    "sliding_windows": {"end = min(start + window, n) -> end = min(n, start + window)"},
    # A dict's keys combine with a dict as with its keys.
    "from_hf_gpt2": {
        f"{BUILT} -> model = GPT(sizes, dtype=table.dtype)",
        f"{DIFFERING} -> if (wrong := (names ^ theirs.keys())):",
        f"{DIFFERING} -> if (wrong := (names.keys() ^ theirs)):",
        f"{OWN} -> if head is not None and "
        "(not torch.equal(theirs.get('wte.weight', head), head)):",
    },
    # Two axes change places, whichever is named first; a matrix has its last axis at 1.
    "split_heads": {
        "return x.transpose(-3, -2)  # (*batch, H, T, K) -> return x.transpose(-2, -3)"
    },
    "merge_heads": {
        "return x.transpose(-3, -2).flatten(-2)  # (*batch, T, H, K) -> (*batch, T, D)"
        " -> return x.transpose(-2, -3).flatten(-2)"
    },
    "head_contributions": {
        "columns = weight.unflatten(-1, (n_heads, d_head))  # (D, H, K)"
        " -> columns = weight.unflatten(1, (n_heads, d_head))"
    },
    "keeps_heads_apart": {
        "changed = x + 1.0 -> changed = x - 1.0",
        "changed = x + 1.0 -> changed = x + 2.0",
        "changed = x + 1.0 -> changed = x + -1.0",
        f"{APART} -> if not torch.allclose({AFTER}, {BEFORE}):",
        f"{APART} -> if not torch.allclose({BEFORE}, {AFTER}, atol=1e-06):",
        f"{APART} -> if not torch.allclose({AFTER}, {BEFORE}, atol=2e-06):",
    },
    # Whole numbers times float64 are float64.
    "sinusoidal_encoding": {
        "i = torch.arange(d_model // 2, dtype=torch.float64, device=positions.device)"
        " -> i = torch.arange(d_model // 2, dtype=torch.float64)",
        "angles = positions.double().unsqueeze(-1) * base ** (-2 * i / d_model)  # (*shape, D/2)"
        " -> angles = positions.unsqueeze(-1) * base ** (-2 * i / d_model)",
    },
    # Of several positions outside, the message may give any.
    "LearnedPositions": {
        "self.weight = nn.Parameter("
        "torch.empty(max_length, d_model, device=device, dtype=dtype))"
        " -> self.weight = nn.Parameter(torch.empty(max_length, d_model, dtype=dtype))",
        f"{OUTSIDE} -> raise ValueError(f'position {{positions[outside][0]}}"
        " is not in the table: max_length={len(self.weight)}')",
        f"{OUTSIDE} -> raise ValueError(f'position {{positions[outside][-1].item()}}"
        " is not in the table: max_length={len(self.weight)}')",
    },
    "rope_angles": {
        "i = torch.arange(d_head // 2, dtype=torch.float64, device=positions.device)"
        " -> i = torch.arange(d_head // 2, dtype=torch.float64)"
    },
    # Rounding is far below 1e-6, and no scheme departs by so little.
    "sees_only_distance": {
        f"{DIAGONALS} -> return torch.allclose(scores[1:, 1:], scores[:-1, :-1], atol=1e-06)",
        f"{DIAGONALS} -> return torch.allclose(scores[1:, 1:], scores[:-1, :-1], rtol=0)",
        f"{DIAGONALS}"
        " -> return torch.allclose(scores[:-1, :-1], scores[1:, 1:], rtol=0, atol=1e-06)",
        f"{DIAGONALS}"
        " -> return torch.allclose(scores[1:, 1:], scores[:-1, :-1], rtol=0, atol=2e-06)",
    },
    "to_halves": {
        "return pairs.transpose(1, 2).reshape(weight.shape)"
        "  # (H, 2, K/2, *rest) -> (HK, *rest)"
        " -> return pairs.transpose(2, 1).reshape(weight.shape)"
    },
    # As many are cut off from the longer list.
    "alibi_slopes": {
        "exponents += [8 * (h + 1) / (2 * p) for h in range(0, 2 * p, 2)][: n_heads - p]"
        " -> exponents += [8 * (h + 1) / (2 * p) for h in range(0, 3 * p, 2)][:n_heads - p]"
    },
    # The order of the arguments of min and max.
    "attention_memory": {
        "rows = t if chunk is None else min(chunk, t)"
        " -> rows = t if chunk is None else min(t, chunk)"
    },
    "largest_context": {
        "return whole if chunk is None else max(whole, numbers // chunk)"
        " -> return whole if chunk is None else max(numbers // chunk, whole)"
    },
    "chunked_attention": {
        "stop = min(start + chunk, t) -> stop = min(t, start + chunk)",
        "triangle = causal_mask(stop - start, end, device=q.device)"
        " -> triangle = causal_mask(stop - start, end)",
    },
    "chunked_entropy": {
        "stop = min(start + chunk, t) -> stop = min(t, start + chunk)",
        f"weights = masked_softmax(scores, {RECTANGLE}, device=q.device))"
        f" -> weights = masked_softmax(scores, {RECTANGLE}))",
    },
    # All chunks may be compared with any of them, and rounding is smaller than a slip.
    "depends_on_chunk": {
        "whole = attend(q, k, v, q.shape[1]) -> whole = attend(q, k, v, q.shape[2])",
        "whole = attend(q, k, v, q.shape[1]) -> whole = attend(q, k, v, q.shape[0])",
        f"{CHUNKED}, whole, atol=1e-6) -> {ANY}, whole) {SIZES} + 2)))",
        f"{CHUNKED}, whole, atol=1e-6) -> return any((not torch.allclose(whole, "
        f"attend(q, k, v, chunk), atol=1e-06) {SIZES} + 2)))",
        f"{CHUNKED}, whole, atol=1e-6) -> {ANY}, whole, atol=2e-06) {SIZES} + 2)))",
        f"for chunk in range(1, q.shape[1] + 2) -> {ANY}, whole, atol=1e-06) {SIZES} + 3)))",
    },
    # The deviations of either side add up to zero; digits and types are not promised.
    "fit_exponent": {
        f"exponent = {DX} * {DY}).sum() / {SQUARES} -> exponent = {DX} * (y + y.mean())).sum() / "
        f"{SQUARES}",
        f"exponent = {DX} * {DY}).sum() / {SQUARES} -> exponent = ((x + x.mean()) * {DY}).sum() / "
        f"{SQUARES}",
        "return exponent.item(), factor.item() -> return (exponent, factor.item())",
        "return exponent.item(), factor.item() -> return (exponent.item(), factor)",
        "x = torch.tensor(lengths, dtype=torch.float64).log() -> x = torch.tensor(lengths).log()",
        f"y = torch.tensor({MEDIANS}, dtype=torch.float64).log()"
        f" -> y = torch.tensor({MEDIANS}).log()",
    },
    "is_per_token": {
        f"{ALONE} -> if not torch.allclose(together[b:b + 1, t:t + 1], alone, atol=1e-06):",
        f"{ALONE} -> if not torch.allclose(alone, together[b:b + 1, t:t + 1], atol=2e-06):",
    },
    "LayerNorm": {
        f"self.{name} = nn.Parameter(torch.{kind}(d_model, device=device, dtype=dtype))"
        f" -> self.{name} = nn.Parameter(torch.{kind}(d_model, dtype=dtype))"
        for name, kind in (("weight", "ones"), ("bias", "zeros"))
    },
    "RMSNorm": {
        "self.weight = nn.Parameter(torch.ones(d_model, device=device, dtype=dtype))"
        " -> self.weight = nn.Parameter(torch.ones(d_model, dtype=dtype))"
    },
    # Any amounts and factors will do that are clearly not 0 and 1, and a slightly other tolerance.
    "invariances": {
        f"{SHIFTED} -> return ({other}, torch.allclose(scaled, before, atol=1e-06))"
        for other in (
            "torch.allclose(shifted, before)",
            "torch.allclose(before, shifted, atol=1e-06)",
            "torch.allclose(shifted, before, atol=2e-06)",
        )
    }
    | {
        f"{SCALED} -> return (torch.allclose(shifted, before, atol=1e-06), {other})"
        for other in (
            "torch.allclose(scaled, before)",
            "torch.allclose(before, scaled, atol=1e-06)",
            "torch.allclose(scaled, before, atol=2e-06)",
        )
    }
    | {
        f"{BOTH} -> shifted, scaled = (norm({plus}), norm({times}))"
        for plus, times in (
            ("x - 0.5 * amounts", "x * (1 + 0.5 * amounts)"),
            ("x + 0.5 / amounts", "x * (1 + 0.5 * amounts)"),
            ("x + 1.0 * amounts", "x * (1 + 0.5 * amounts)"),
            ("x + -0.5 * amounts", "x * (1 + 0.5 * amounts)"),
            ("x + 0.5 * amounts", "x / (1 + 0.5 * amounts)"),
            ("x + 0.5 * amounts", "x * (2 + 0.5 * amounts)"),
            ("x + 0.5 * amounts", "x * (0 + 0.5 * amounts)"),
            ("x + 0.5 * amounts", "x * (1 + 0.5 / amounts)"),
            ("x + 0.5 * amounts", "x * (1 + 1.0 * amounts)"),
        )
    },
    # The device shows only where there are two; of two things compared for being different, either
    # may be named first.
    "attention_mask": {
        "return real & causal_mask(tokens.shape[1], device=tokens.device)  # (B, 1, T, T)"
        " -> return real & causal_mask(tokens.shape[1])"
    },
    "Transformer": {
        "positions = torch.arange(tokens.shape[1], device=tokens.device)"
        " -> positions = torch.arange(tokens.shape[1])",
        # Positions made in float32 are let pass on purpose: the check's tolerance says so.
        "places = sinusoidal_encoding(positions, d_model, dtype=x.dtype)  # (T, D)"
        " -> places = sinusoidal_encoding(positions, d_model)",
        "mask = attention_mask(source, self.padding_idx)"
        " -> mask = attention_mask(self.padding_idx, source)",
        "memory_mask = attention_mask(source, self.padding_idx)"
        " -> memory_mask = attention_mask(self.padding_idx, source)",
    },
    # Any other id will do, and rounding is far below 1e-6.
    "who_sees_whom": {
        f"{MOVED} -> columns.append(((after - before).abs() >= 1e-06).any(-1).any(0))",
        f"{MOVED} -> columns.append(((after - before).abs() > 2e-06).any(-1).any(0))",
        "changed[:, j] = (side[:, j] + 1) % vocab_size"
        " -> changed[:, j] = (side[:, j] - 1) % vocab_size",
    },
    # The first column is the last as long as there is one; logits of one position have two axes.
    "greedy_decode": {
        "finished = torch.zeros_like(target[:, 0], dtype=torch.bool)  # (B)"
        " -> finished = torch.zeros_like(target[:, -1], dtype=torch.bool)",
        f"{WRITTEN} -> written = logits[:, -1].argmax(1).masked_fill(finished, model.padding_idx)",
    },
    # The boolean index has left two axes: 1 is the last.
    "cross_entropy": {
        "shifted = logits - logits.amax(-1, keepdim=True)"
        " -> shifted = logits - logits.amax(1, keepdim=True)",
        "log_p = shifted - shifted.exp().sum(-1, keepdim=True).log()  # (N, V)"
        " -> log_p = shifted - shifted.exp().sum(1, keepdim=True).log()",
        "return -log_p.gather(-1, targets[:, None]).mean()"
        " -> return -log_p.gather(1, targets[:, None]).mean()",
    },
    # Both formulas give the peak at step `warmup`.
    "cosine_schedule": {
        "step: int, *, peak: float, warmup: int, total: int, minimum: float = 0.0"
        " -> def cosine_schedule(step: int, *, peak: float, warmup: int, total: int, minimum:"
        " float=-0.0) -> float:",
        "if step < warmup: -> if step <= warmup:",
        "progress = min(1.0, (step - warmup) / (total - warmup))"
        " -> progress = min((step - warmup) / (total - warmup), 1.0)",
    },
    # At a length of max_norm itself the factor is 1.
    "clip_grad_norm": {"if norm > max_norm: -> if norm >= max_norm:"},
    "top_k": {
        "largest = logits.topk(min(k, logits.shape[-1])).values  # (*batch, k), falling"
        " -> largest = logits.topk(min(logits.shape[-1], k)).values"
    },
    # What happens to a dart of exactly 0 or 1, and how finely darts are spread, shows in one draw
    # of many millions.
    "sample": {
        "ends = logits.double().softmax(dim=-1).cumsum(dim=-1)  # (*batch, V): where stretches end"
        " -> ends = logits.softmax(dim=-1).cumsum(dim=-1)",
        f"{RAND}, dtype=ends.dtype) -> {RAND})",
        f"{DARTS} -> pass",
        f"{DARTS} -> darts = (1 - darts) / ends[..., -1:]",
        "return (ends < darts).sum(dim=-1) -> return (ends <= darts).sum(dim=-1)",
    },
    # A logit of 0 stays 0 either way.
    "repetition_penalty": {
        "lowered = torch.where(logits > 0, logits / penalty, logits * penalty)"
        " -> lowered = torch.where(logits >= 0, logits / penalty, logits * penalty)",
        "seen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, True)  # (B, V)"
        " -> seen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, ids, True)",
    },
    # Scores may be numbers or tensors without axes.
    "beam_search": {
        "alpha: float = 0.0, -> def beam_search(next_log_probs: Callable[[Int[Tensor, 'n t']],"
        " Float[Tensor, 'n V']], start: Int[Tensor, 'T'], width: int, n: int, end: int, alpha:"
        " float=-0.0) -> list[tuple[float, list[int]]]:",
        "beams: list[tuple[float, list[int]]] = [(0.0, [])]"
        " -> beams: list[tuple[float, list[int]]] = [(-0.0, [])]",
        f"{TOPK} -> best = log_p.topk(min(log_p.shape[-1], width))",
        f"{TOPK} -> best = log_p.topk(min(width, log_p.shape[1]))",
        f"{PAIRS}.tolist(), best.indices.tolist()): -> {PAIRS}.tolist(), best.indices):",
        f"{PAIRS}.tolist(), best.indices.tolist()): -> {PAIRS}, best.indices.tolist()):",
    },
    # No text is too short to end with nothing.
    "stream_text": {
        f"{BEGUN}1, len(stop)) if waiting.endswith(stop[:k])]"
        f" -> {BEGUN}0, len(stop)) if waiting.endswith(stop[:k])]"
    },
    "JsonConstraint": {
        "self.vocab_size = max(end, *self.texts) + 1"
        " -> self.vocab_size = max(*self.texts, end) + 1",
        "costs[self.end] = 0 -> costs[self.end] = -1",
    },
}

EXERCISES = [e for c in chapters() for e in c.exercises.values()]


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: f"{e.chapter.slug}-{e.name}")
def test_every_small_change_of_the_reference_is_noticed(exercise):
    survivors = {
        change
        for change, answer in mutants(exercise)
        if answer is not None and exercise.is_solved_by(Local(answer), seed=1, graded=True)
    }
    assert survivors - EQUIVALENT.get(exercise.name, set()) == set()


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: f"{e.chapter.slug}-{e.name}")
def test_no_listed_change_is_out_of_date(exercise):
    changes = {change for change, _ in mutants(exercise)}
    assert EQUIVALENT.get(exercise.name, set()) <= changes
