"""The GPT: causality, the cache, and the edge of the block."""

import pytest
import torch

from nanogrpo.errors import BlockSizeError
from nanogrpo.model import GPT, GPTConfig, KVCache

CONFIG = GPTConfig(vocab_size=11, block_size=16, n_layer=2, n_head=2, n_embd=16)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def lively(config=CONFIG, dtype=torch.float64, seed=0):
    """A model whose weights are far from their small start, so that a mistake shows."""
    torch.manual_seed(seed)
    model = GPT(config).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def test_logits_have_the_documented_shape_and_parameters_are_counted():
    model = GPT(CONFIG)
    assert model(torch.zeros(3, 5, dtype=torch.long)).shape == (3, 5, 11)
    C, V, T = 16, 11, 16
    layer = 4 * C + (C * 3 * C + 3 * C) + (C * C + C) + (C * 4 * C + 4 * C) + (4 * C * C + C)
    assert model.num_parameters == V * C + T * C + 2 * layer + 2 * C + C * V


@pytest.mark.parametrize("edited", range(16))
def test_editing_a_token_leaves_all_earlier_logits_as_they_were(edited):
    model = lively()
    idx = torch.randint(11, (2, 16), generator=torch.Generator().manual_seed(1))
    other = idx.clone()
    other[:, edited] = (other[:, edited] + 1) % 11
    before, after = model(idx), model(other)
    assert torch.equal(before[:, :edited], after[:, :edited]), "a position sees tokens to its right"
    assert not torch.equal(before[:, edited], after[:, edited])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("cuts", [(1,) * 16, (5, 1, 1, 9), (15, 1), (16,), (1, 15)])
def test_cached_logits_equal_uncached_ones_up_to_the_edge_of_the_block(dtype, cuts):
    model = lively(dtype=dtype)
    idx = torch.randint(11, (3, 16), generator=torch.Generator().manual_seed(2))
    cache = KVCache(CONFIG, rows=3, max_len=16, like=model.head.weight)
    pieces = [model(piece, cache) for piece in idx.split(cuts, dim=1)]
    error = (torch.cat(pieces, 1) - model(idx)).abs().max()
    assert error < TOLERANCE[dtype], f"cached and full logits differ by {error:.1e}"
    assert cache.length == 16


def test_a_repeated_cache_serves_each_row_of_the_group():
    model = lively()
    prompts = torch.tensor([[1, 2, 3], [4, 5, 6]])
    cache = KVCache(CONFIG, rows=2, max_len=4, like=model.head.weight)
    model(prompts, cache)
    new = torch.tensor([[7], [8], [9], [10]])
    rows = torch.cat([prompts.repeat_interleave(2, 0), new], 1)
    torch.testing.assert_close(model(new, cache.repeat(2))[:, 0], model(rows)[:, -1], rtol=0, atol=1e-10)


def test_too_many_tokens_are_refused_and_not_cropped():
    with pytest.raises(BlockSizeError, match="17 tokens do not fit block_size=16"):
        GPT(CONFIG)(torch.zeros(1, 17, dtype=torch.long))


@pytest.mark.parametrize("options", [{"n_layer": 0}, {"vocab_size": 0}, {"n_embd": 18, "n_head": 4}])
def test_an_impossible_shape_is_refused(options):
    with pytest.raises(ValueError, match="must be at least 1|does not divide"):
        GPTConfig(**({"vocab_size": 5, "block_size": 8} | options))
