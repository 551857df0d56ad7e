"""What a text that is decoded and encoded again does to log-probs and updates, with code of its own."""

from collections import defaultdict

import pytest
import torch
from chaptercode import chapter

SLOW = ("STARTS", "RUNS", "MISMATCH", "CAUGHT", "DRIFT")
LETTERS = {0: "c", 2: "a", 3: "b", 4: "ab"}
END = 1


@pytest.fixture(scope="module")
def code():
    threads = torch.get_num_threads()
    yield chapter("scored", without=SLOW)
    torch.set_num_threads(threads)


def merged(ids):
    """The tokenizer's spelling: each a that b follows becomes one piece with it."""
    out = []
    for i in ids:
        out = [*out[:-1], 4] if i == 3 and out and out[-1] == 2 else [*out, i]
    return out


def completions():
    """All of at most three tokens: ended by the first end, or cut off."""
    open_, found = [[]], []
    for _ in range(3):
        longer = [[*head, i] for head in open_ for i in range(5)]
        found += [row for row in longer if row[-1] == END]
        open_ = [row for row in longer if row[-1] != END]
    return found + open_


def chance(model, ids):
    """Log-probability of these tokens after the prompt, one after the other, with gradient."""
    prompt, total = [2], 0.0  # the letter a
    for i in ids:
        total = total + model(torch.tensor([prompt]))[0, -1].log_softmax(-1)[i]
        prompt = [*prompt, i]
    return total


def slope(model, scalar):
    return torch.cat([g.flatten() for g in torch.autograd.grad(scalar, list(model.parameters()))])


def test_the_cell_encodes_as_a_tokenizer_does_and_keeps_the_text(code):
    for ids in completions():
        text, ended = code.spelled(torch.tensor(ids))
        assert text == "".join(LETTERS[i] for i in ids if i != END) and ended == (END in ids)
        again = code.encoded(text, ended)
        assert again == merged(ids) and code.spelled(again) == (text, ended)
        assert code.encoded(*code.spelled(again)) == again, "the second time nothing changes"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 3])
def test_with_all_rewards_1_the_update_is_imitation_of_the_spelling_and_with_the_ids_kept_it_is_zero(
    code, seed
):
    model = code.tiny(seed)
    scope = code.Microscope(model, code.PROMPT, 3)
    ids, mask = code.again(scope)
    logits = code.completion_logits(model, *code.pad(code.PROMPT), ids)
    new = torch.where(mask, code.logprobs_of(logits, ids), 0.0)
    q = scope.probabilities[0].detach()
    pushed = code.ascent(scope, q, new, torch.ones_like(q), mask)
    of_text = defaultdict(float)
    for row in completions():
        of_text[tuple(merged(row))] += chance(model, row).exp().item()
    assert sum(of_text.values()) == pytest.approx(1, abs=1e-12)
    expected = slope(model, sum(p * chance(model, list(row)) for row, p in of_text.items()))
    assert (pushed - expected).abs().max() < 1e-10 and expected.norm() > 0.1
    kept = code.ascent(scope, q, scope.logprobs[0], torch.ones_like(q), scope.mask)
    assert kept.abs().max() < 1e-10
    changed = sum(chance(model, row).exp().item() for row in completions() if merged(row) != row)
    assert code.drift(seed)["other tokens"] == pytest.approx(changed, abs=1e-12)


def test_what_the_chapter_says_of_ten_models(code):
    found = [code.drift(seed) for seed in code.MODELS]
    assert 0.15 < max(row["other tokens"] for row in found) < 0.2, "up to a sixth"
    assert sum(row["all rewards 1: to merged"] > 0 for row in found) == 9
    assert max(row["all rewards 1: length"] for row in found) > 3, "several times as long as the gradient"
    assert min(row["one b: to the truth"] for row in found) > 0.9
    by_share = sorted(found, key=lambda row: row["other tokens"])
    assert min(row["one b: to the truth"] for row in by_share[:3]) > 0.9999
    assert min(row["gap (nats)"] for row in found) > 0.3
