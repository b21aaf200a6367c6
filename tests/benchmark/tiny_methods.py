"""Methods in sbibm's convention that take no time, for the command to find by name."""

from pathlib import Path

import torch


def prior(task, num_samples, num_simulations, num_observation=None, observation=None):
    """Return draws from the prior: what nobody needs simulations for."""
    return task.get_prior()(num_samples), num_simulations, None


def likely(task, num_samples, num_simulations, num_observation, scale=1.0):
    """Return draws around the true parameters, with a log probability."""
    truth = task.get_true_parameters(num_observation)
    samples = truth + 0.1 * scale * torch.randn(num_samples, truth.shape[1])
    return samples, num_simulations, torch.tensor([1.5])


def logged(task, num_samples, num_simulations, num_observation, log):
    """Append a line per call."""
    with open(log, "a") as file:
        file.write("called\n")
    return prior(task, num_samples, num_simulations)


def failing(task, num_samples, num_simulations, num_observation, mended):
    """Fail for the first observation until there is a file `mended`."""
    if num_observation == 1 and not Path(mended).exists():
        print("about to divide <by> zero")
        raise ZeroDivisionError("division by <zero> & more")
    return prior(task, num_samples, num_simulations)


def misshapen(task, num_samples, num_simulations, num_observation):
    return task.get_prior()(num_samples - 1), num_simulations, None


def infinite(task, num_samples, num_simulations, num_observation):
    samples = task.get_prior()(num_samples)
    samples[:3] = float("nan")
    return samples, num_simulations, None


def bare(task, num_samples, num_simulations, num_observation):
    return task.get_prior()(num_samples)


def several_rounds(task, num_samples, num_simulations, num_observation, num_rounds=10):
    return torch.full((num_samples, task.dim_parameters), num_rounds / 10), 1, None


constant = 3
