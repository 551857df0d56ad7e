"""Helpers that the tests of the mathematics share: comparison with a diagnosis, and random small batches."""

import torch


def close(actual, expected, mistake, atol=1e-12):
    """Assert equality to ``atol``; a failure first says which mistake makes it, then the numbers."""
    actual, expected = (
        x.detach() if isinstance(x, torch.Tensor) else torch.tensor(x, dtype=torch.float64)
        for x in (actual, expected)
    )
    torch.testing.assert_close(
        actual.double(),
        expected.double().expand(actual.shape),
        rtol=0,
        atol=atol,
        msg=lambda numbers: f"{mistake}\n{numbers}",
    )


def random_batch(seed, rows=6, tokens=5, spread=0.3):
    """Log-probs, old and reference log-probs, advantages and a mask of mixed lengths, in fp64."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    logprobs = (-draw(rows, tokens).abs() - 0.1).requires_grad_()
    old = logprobs.detach() + spread * draw(rows, tokens)
    ref = logprobs.detach() + spread * draw(rows, tokens)
    lengths = torch.randint(1, tokens + 1, (rows, 1), generator=g)
    return logprobs, old, ref, draw(rows), torch.arange(tokens) < lengths


def gradient(loss, leaf):
    """Gradient of a scalar with respect to one leaf; the graph stays, so it may be asked again."""
    return torch.autograd.grad(loss, leaf, retain_graph=True)[0]


class Recorder:
    """Stands where an optimizer stands, keeps the gradient, and leaves the weights alone."""

    def __init__(self, module):
        self.params = list(module.parameters())

    def zero_grad(self):
        for p in self.params:
            p.grad = None

    def step(self, where="", grad_norm=0.0):
        zero = (torch.zeros_like(p) if p.grad is None else p.grad for p in self.params)
        self.gradient = torch.cat([g.flatten() for g in zero])
