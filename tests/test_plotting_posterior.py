"""Figures of the posterior after one experiment, or several."""

import numpy as np
import pytest
import torch

from sbi_boed_plugin import plotting
from tests.test_plotting import legend_texts

# sbi passes torch tensors to numpy functions.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)


def test_a_sequence_shows_each_experiment_with_the_last_on_top():
    prior = torch.randn(400, 2)
    sets = [0.5 * prior + 1.0, 0.1 * prior + 1.5, 0.01 * prior + 2.0]
    truth = torch.tensor([2.0, 1.9])
    figure = plotting.plot_posterior_sequence(sets, prior, truth, ["a", "b"])
    assert legend_texts(figure.axes[1]) == [
        "prior",
        *(f"after experiment {k}" for k in (1, 2, 3)),
        "truth",
    ]
    pair = figure.axes[2]
    assert len(pair.collections) == 4
    centres = [points.get_offsets().mean(axis=0) for points in pair.collections]
    expected = [0.0, 1.0, 1.5, 2.0]
    assert np.abs(np.array(centres) - np.array(expected)[:, None]).max() < 0.2
    colors = [tuple(points.get_facecolor()[0, :3]) for points in pair.collections]
    assert len(set(colors)) == 4
    luminance = [np.dot(color, [0.3, 0.6, 0.1]) for color in colors[1:]]
    assert luminance == sorted(luminance, reverse=True)
    (marker,) = pair.get_lines()
    assert marker.get_xydata()[0].tolist() == pytest.approx([2.0, 1.9])


def test_a_sequence_of_one_parameter_has_a_histogram_per_experiment():
    prior = torch.randn(400, 1)
    figure = plotting.plot_posterior_sequence(
        [0.5 * prior, 0.1 * prior], prior, labels=["first", "second"]
    )
    assert legend_texts(figure.axes[0]) == ["prior", "first", "second"]


def test_parameters_over_decades_are_drawn_as_logarithms():
    prior = 10.0 ** torch.randn(300, 2)
    truth = torch.tensor([10.0, 1.0])
    figure = plotting.plot_posterior(
        prior, prior, truth, ["slope u", "offset"], log=[True, False]
    )
    labels = [figure.axes[2].get_xlabel(), figure.axes[3].get_xlabel()]
    assert labels == ["log₁₀ of slope u", "offset"]
    (marker,) = figure.axes[2].get_lines()
    assert marker.get_xydata()[0].tolist() == pytest.approx([1.0, 1.0])


def test_wrong_sequences_are_refused():
    prior = torch.randn(10, 1)
    with pytest.raises(ValueError, match="samples is empty"):
        plotting.plot_posterior_sequence([], prior)
    with pytest.raises(ValueError, match="one label for each of the 1"):
        plotting.plot_posterior_sequence([prior], prior, labels=["a", "b"])
    with pytest.raises(ValueError, match="must hold 1 names"):
        plotting.plot_posterior(prior, prior, names=["a", "b"])
