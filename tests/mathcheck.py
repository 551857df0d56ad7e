"""Helpers that the tests of the mathematics share: comparison with a diagnosis, and random small batches."""

import torch


def close(actual, expected, mistake, atol=1e-12):
    """Assert equality to ``atol``; a failure first says which mistake makes it, then the numbers."""
    actual, expected = torch.as_tensor(actual), torch.as_tensor(expected)
    torch.testing.assert_close(
        actual, expected.to(actual.dtype), rtol=0, atol=atol, msg=lambda numbers: f"{mistake}\n{numbers}"
    )


def random_batch(seed, rows=6, tokens=5, spread=0.3):
    """Log-probs, old and reference log-probs, advantages and a mask of mixed lengths, in fp64."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    logprobs = (-draw(rows, tokens).abs() - 0.1).requires_grad_()
    old = logprobs.detach() + spread * draw(rows, tokens)
    ref = logprobs.detach() + spread * draw(rows, tokens)
    lengths = torch.randint(1, tokens + 1, (rows, 1), generator=g)
    return logprobs, old, ref, draw(rows), torch.arange(tokens) < lengths


def gradient(loss, leaf):
    """Gradient of a scalar with respect to one leaf."""
    return torch.autograd.grad(loss, leaf)[0]
