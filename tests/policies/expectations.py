"""Gradients of expectations under a policy, by simulation and by quadrature."""

import torch


def smooth(design):
    """A function of designs of two values that is neither additive nor symmetric."""
    first, second = design[..., 0], design[..., 1]
    return torch.sin(3.0 * first + second) + first * second**2 - 0.5 * second


def grid_over(low, high, num_points):
    """Middles of cells of a rectangle, of shape `(n, n, 2)`, and the area of a cell."""
    shares = (torch.arange(num_points).double() + 0.5) / num_points
    axes = [a + (b - a) * shares for a, b in zip(low, high, strict=True)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    return grid, (high[0] - low[0]) * (high[1] - low[1]) / num_points**2


@torch.no_grad()
def finite_differences(policy, function, step=1e-4):
    """Derivative of a number in every parameter of a policy, by central differences."""
    derivatives = []
    for parameter in policy.parameters():
        flat = parameter.data.view(-1)
        for i in range(flat.numel()):
            values = []
            for change in (step, -2 * step):
                flat[i] += change
                values.append(float(function()))
            flat[i] += step
            derivatives.append((values[0] - values[1]) / (2 * step))
    return torch.tensor(derivatives, dtype=torch.float64)


def simulated(policy, surrogate, num_repeats=25, num_samples=2_000):
    """Mean and standard error of the gradients of a surrogate of E[smooth]."""
    gradients = []
    for _ in range(num_repeats):
        loss = surrogate(policy, torch.Size((num_samples,)))
        parts = torch.autograd.grad(loss, list(policy.parameters()))
        gradients.append(torch.cat([part.flatten() for part in parts]))
    stacked = torch.stack(gradients)
    return stacked.mean(dim=0), stacked.std(dim=0) / num_repeats**0.5


def by_score(policy, shape):
    design = policy.sample(shape)
    value = smooth(design)
    return ((value - value.mean()) * policy.log_prob(design)).mean()


def by_rsample(policy, shape):
    return smooth(policy.rsample(shape)).mean()


def assert_unbiased(policy, surrogate, low, high, *, precision):
    """Simulation and quadrature agree, with error bars that mean something."""
    grid, area = grid_over(low, high, 200)
    values = smooth(grid) * area
    exact = finite_differences(
        policy, lambda: (policy.log_prob(grid).exp() * values).sum()
    )
    mean, error = simulated(policy, surrogate)
    assert error.max() < precision
    # 4.5 standard errors of 25 repeats, for up to nine parameters at once.
    assert ((mean - exact).abs() <= 4.5 * error + 1e-6).all(), (mean, error, exact)
    return exact
