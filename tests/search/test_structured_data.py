"""Data of any shape: images and sets, kept as rows of numbers."""

import math
import re
from types import SimpleNamespace

import pytest
import torch
from sbi.inference.posteriors import DirectPosterior
from sbi.neural_nets.embedding_nets import (
    CNNEmbedding,
    FCEmbedding,
    PermutationInvariantEmbedding,
)
from sbi.utils import BoxUniform

from sbi_boed_plugin import (
    NLE_INCE,
    NPE_GKL,
    DataEmbedding,
    HybridPosterior,
    TruncatedNormalPolicy,
    run_experiments,
    simulate_for_boed,
    transformed_posterior_nn,
    vectorize,
)
from sbi_boed_plugin._campaign import Rounds
from sbi_boed_plugin.search.config import MultiStartConfig
from sbi_boed_plugin.search.multi_start import climb_designs
from sbi_boed_plugin.search.regressed_model import RegressedModel, regress
from sbi_boed_plugin.search.store import SimulationStore
from sbi_boed_plugin.search.utility import Utility
from tests.conftest import NoOpTracker

pytestmark = pytest.mark.filterwarnings("ignore:The networks", "ignore:Designs")

PRIOR = BoxUniform(-torch.ones(2), torch.ones(2))
QUIET = {"show_progress_bars": False, "tracker": NoOpTracker()}
SHAPE = (1, 8, 8)


def policy():
    return TruncatedNormalPolicy(torch.tensor([0.1]), torch.tensor([2.0]))


def photograph(theta, design, size=8):
    """A spot of light, whose brightness is the time of exposure."""
    axis = torch.linspace(-1.0, 1.0, size)
    rows, columns = (theta[:, j, None, None] for j in (0, 1))
    squared = (axis[:, None] - rows).square() + (axis - columns).square()
    rate = 10.0 * design[:, :, None] * torch.exp(-squared / 0.2) + 0.1
    return torch.poisson(rate).unsqueeze(1)


def repeat(theta, design):
    """Three noisy measurements of both parameters, whose order tells nothing."""
    noise = torch.randn(len(theta), 3, 2)
    return theta.unsqueeze(1) * design.unsqueeze(1) + 0.3 * noise


def cnn():
    sizes = {"num_conv_layers": 1, "out_channels_per_layer": [4], "kernel_size": 3}
    return DataEmbedding(CNNEmbedding((8, 8), output_dim=8, **sizes), SHAPE, 1)


def searched(simulator=photograph, embedding=None, **settings):
    network = transformed_posterior_nn("mdn", embedding_net=embedding or cnn())
    given = {"design_policy": policy(), "posterior_estimator": network}
    inference = NLE_INCE(PRIOR, None, **given, **QUIET)
    settings = {"num_steps": 60, "training_batch_size": 64, **settings}
    return inference, inference.optimize_design(
        simulator, num_eig_samples=300, **settings
    )


def test_simulations_have_the_shape_of_the_data():
    *_, x = simulate_for_boed(photograph, PRIOR, policy(), 20, show_progress_bar=False)
    assert x.shape == (20, *SHAPE)


def test_a_function_of_one_vector_may_return_an_array():
    one = vectorize(lambda theta, design: photograph(theta[None], design[None])[0])
    assert one(torch.zeros(3, 2), torch.ones(3, 1)).shape == (3, *SHAPE)
    matrix = vectorize(lambda theta, design: theta.unsqueeze(0))
    assert matrix(torch.zeros(3, 2), torch.ones(3, 1)).shape == (3, 2)


def test_data_have_one_shape():
    def grows(theta, design):
        return torch.zeros(len(theta), 2, len(theta))

    with pytest.raises(ValueError, match=re.escape("shape (2, 1) for some rows")):
        simulate_for_boed(grows, PRIOR, policy(), 20, show_progress_bar=False)


@pytest.mark.parametrize(
    "simulator, embedding",
    [
        (photograph, cnn()),
        (
            repeat,
            DataEmbedding(
                PermutationInvariantEmbedding(FCEmbedding(2, output_dim=8), 8),
                (3, 2),
                1,
            ),
        ),
    ],
    ids=["image", "set"],
)
def test_a_search_without_a_likelihood(simulator, embedding):
    inference, result = searched(simulator, embedding)
    # Light, and a larger slope, tell more.
    assert float(result.design) > 1.2
    assert result.likelihood_estimator is None
    assert set(result.bounds) <= {"barber_agakov", "linear"}
    assert result.eig.value > 0.5
    theta, design, x = inference.simulations
    assert x.shape[1:] == embedding.x_shape
    posterior = inference.build_posterior(design=result.design)
    assert isinstance(posterior, DirectPosterior)
    true = torch.tensor([[0.5, -0.5]])
    samples = posterior.sample((300,), simulator(true, result.design[None]), **BAR)
    prior_error = (PRIOR.sample((300,)) - true).square().mean()
    assert (samples - true).square().mean() < 0.5 * prior_error


BAR = {"show_progress_bars": False}


def test_what_needs_a_likelihood_is_refused():
    network = transformed_posterior_nn("mdn", embedding_net=cnn())
    given = {"design_policy": policy(), "posterior_estimator": network}
    inference = NLE_INCE(PRIOR, None, **given, **QUIET)
    for settings in (
        {"method": "multi_start"},
        {"objective": "info_nce"},
        {"gradient": "surrogate"},
    ):
        ((name, value), *_) = settings.items()
        with pytest.raises(ValueError, match=f"{name}='{value}' with density_est"):
            inference.optimize_design(photograph, **settings)
    with pytest.raises(ValueError, match="density_estimator=None: experiments"):
        run_experiments(inference, photograph, photograph, 1)
    with pytest.raises(ValueError, match="density_estimator=None: policies"):
        inference.optimize_policy(photograph, 2)
    with pytest.raises(RuntimeError, match="density_estimator=None: a belief"):
        inference.observe(torch.ones(1), torch.zeros(SHAPE))
    with pytest.raises(RuntimeError, match="density_estimator=None: there is no"):
        inference.train()
    with pytest.raises(ValueError, match="objective='info_nce' with density_est"):
        inference.estimate_eig(photograph, torch.ones(1), objective="info_nce")


@pytest.mark.slow
def test_rounds_without_a_likelihood(tmp_path):
    torch.manual_seed(0)
    network = transformed_posterior_nn("mdn", embedding_net=cnn())
    given = {"design_policy": policy(), "posterior_estimator": network}
    inference, other = (NLE_INCE(PRIOR, None, **given, **QUIET) for _ in range(2))
    file = tmp_path / "rows.csv"
    settings = {"num_rounds": 2, "num_networks": 2, "simulations_file": file}
    result = inference.optimize_design(photograph, max_num_simulations=400, **settings)
    assert result.config.method == "rounds"
    assert result.config.objective == "barber_agakov"
    assert float(result.design) > 1.2
    assert len(file.read_text().splitlines()) > 300
    theta, design, x = inference.simulations
    other.append_simulations(theta, x, design=design)
    of_stored = other.optimize_design(None)
    assert float(of_stored.design) > 1.2
    assert of_stored.num_simulations == 0
    assert of_stored.eig.value == pytest.approx(result.eig.value, abs=0.6)


@pytest.mark.slow
def test_designs_at_which_images_fail_tell_nothing():
    def fragile(theta, design):
        x = photograph(theta, design)
        x[design[:, 0] > 1.1] = math.nan
        return x

    torch.manual_seed(0)
    network = transformed_posterior_nn("mdn", embedding_net=cnn())
    given = {"design_policy": policy(), "posterior_estimator": network}
    inference = NLE_INCE(PRIOR, None, **given, **QUIET)
    settings = {"num_rounds": 2, "num_networks": 2, "max_num_simulations": 600}
    result = inference.optimize_design(fragile, **settings)
    assert 0.5 < float(result.design) <= 1.2
    assert result.num_invalid_simulations > 100


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 5.0])
def test_a_value_of_the_design_that_never_varies_does_not_matter(value):
    torch.manual_seed(0)
    design = torch.rand(600, 2)
    design[:, 1] = value
    regression = regress(4.0 * design[:, 0], design, torch.ones(600), 5.0)
    design[:, 1] += torch.rand(600)  # Of later designs it does.
    found = torch.corrcoef(torch.stack([regression(design), design[:, 0]]))[0, 1]
    assert found > 0.8


@pytest.mark.parametrize("lowest", [-1e3, -1e4, -math.inf, math.nan])
def test_impossible_parameters_do_not_turn_a_regression(lowest):
    torch.manual_seed(0)
    design = torch.rand(130, 1)
    mean = 2.0 - 8.0 * (design[:, 0] - 0.6).square()
    terms = mean + 0.5 * torch.randn(130)
    terms[(design[:, 0] - 0.6).abs().argmin()] = lowest
    regression = regress(terms, design, torch.ones(130), 5.0)
    grid = torch.linspace(0.0, 1.0, 51).unsqueeze(1)
    assert 0.4 < float(grid[regression(grid).argmax()]) < 0.8


@pytest.mark.parametrize("outlier", [0.0, -1e4])
def test_terms_are_regressed_on_designs(outlier):
    torch.manual_seed(0)
    design = 100.0 * torch.rand(2_000, 2)
    mean = 2.0 - ((design - 60.0) / 40.0).square().sum(dim=1)
    terms = mean + torch.randn(2_000)
    terms[7] += outlier
    regression = regress(terms, design, torch.ones(2_000), 5.0)
    model = RegressedModel([regression], "barber_agakov", Utility())
    assert (model.information(design) - mean).abs().mean() < 0.25
    space = TruncatedNormalPolicy(torch.zeros(2), torch.full((2,), 100.0))
    config = MultiStartConfig(num_starts=16, num_climb_steps=30, num_candidates=1)
    (best,) = climb_designs(model, space, config)
    assert torch.allclose(best, torch.full((2,), 60.0), atol=15.0)


def test_a_design_without_a_finite_gradient_stays():
    class Cusp(torch.nn.Module):
        def forward(self, design):
            assert design.isfinite().all()
            # Below 50 the gradient of what is not chosen is no number.
            root = (design[:, 0] - 50.0).sqrt()
            steeper = torch.where(design[:, 0] < 50.0, 0.0, 0.01 * root)
            return steeper - (design[:, 0] / 100.0 - 0.7).square()

    space = TruncatedNormalPolicy(torch.zeros(1), torch.full((1,), 100.0))
    config = MultiStartConfig(num_starts=8, num_climb_steps=90, num_candidates=2)
    model = RegressedModel([Cusp()], "barber_agakov", Utility())
    designs = torch.stack(climb_designs(model, space, config))
    assert designs.isfinite().all()
    assert 60.0 < float(designs[0]) < 90.0


def test_a_search_without_a_likelihood_is_saved():
    inference, result = searched(num_steps=3)
    state = inference.search.state_dict()
    other, _ = searched(num_steps=3)
    other.search.load_state_dict(state)
    x = photograph(torch.zeros(1, 2), torch.ones(1, 1))
    values = []
    for one in (inference, other):
        posterior = one.build_posterior(design=result.design).posterior_estimator
        values.append(posterior.log_prob(torch.zeros(1, 1, 2), x))
    assert torch.equal(*values)
    assert other.simulations[2].shape[1:] == SHAPE


@pytest.mark.slow
def test_with_a_likelihood_of_their_values_nothing_changes():
    def small(theta, design):
        return photograph(theta, design, size=2)

    inference = NLE_INCE(PRIOR, "mdn", design_policy=policy(), **QUIET)
    settings = {"num_steps": 40, "training_batch_size": 64, "num_eig_samples": 100}
    design = inference.optimize_design(small, **settings).design
    x = small(torch.tensor([[0.8, -0.8]]), design.unsqueeze(0))
    posterior = inference.build_posterior(design=design)
    assert isinstance(posterior, HybridPosterior)
    means = [posterior.sample((200,), x, **BAR).mean(dim=0)]
    chains = inference.build_posterior(design=design, sample_with="mcmc")
    assert chains.potential_fn.set_x(x) is None
    assert chains.potential(torch.zeros(3, 2), x).shape == (3,)
    inference.observe(design, x[0])
    assert inference.observations[0].x.shape == (1, 4)
    means += [
        inference.belief.particles.mean(dim=0),
        inference.build_posterior().sample((200,), **BAR).mean(dim=0),
    ]
    for mean in means[1:]:
        torch.testing.assert_close(mean, means[0], atol=0.15, rtol=0.0)
    stored = inference.simulations
    other = NLE_INCE(PRIOR, "mdn", design_policy=policy(), **QUIET)
    other.append_simulations(stored[0], stored[2], design=stored[1])
    assert other.simulations[2].shape == stored[2].shape == (2560, 1, 2, 2)


def test_a_correction_of_images_with_designs():
    network = transformed_posterior_nn("mdn", embedding_net=cnn())
    inference = NPE_GKL(PRIOR, network, **QUIET)
    theta, design = PRIOR.sample((400,)), policy().spread(400)
    inference.append_simulations(theta, photograph(theta, design), design=design)
    inference.train(max_num_epochs=5)
    x = photograph(torch.zeros(1, 2), torch.full((1, 1), 2.0))
    posterior = inference.build_posterior(design=torch.tensor([2.0]))
    samples = posterior.sample((50,), x, **BAR)
    assert samples.shape == (50, 2)
    assert posterior.log_prob(samples, x).isfinite().all()


def test_an_embedding_sees_data_alone_in_one_unit():
    seen = []

    class Keep(torch.nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.flatten(1)

    embedding = DataEmbedding(Keep(), (2, 3), 1)
    x, design = 100.0 + 5.0 * torch.randn(1_000, 6), torch.rand(1_000, 1)
    failed = torch.full((1, 7), torch.nan)
    rows = torch.cat([x, design], dim=1)
    embedding.standardize(torch.cat([rows, failed]))
    features = embedding(rows)
    assert seen[0].shape == (1_000, 2, 3) and features.shape == (1_000, 7)
    torch.testing.assert_close(features.std(dim=0), torch.ones(7), atol=0.1, rtol=0.0)
    with pytest.raises(ValueError, match=re.escape("x_shape=(2, 3) has 6 values")):
        embedding(rows[:, :6])


def test_data_of_another_shape_are_refused():
    def of_shape(*shape):
        return lambda theta, design: torch.rand(len(theta), *shape)

    settings = {"num_steps": 2, "training_batch_size": 64, "num_eig_samples": 50}
    theta, design = PRIOR.sample((100,)), policy().spread(100)
    inference = NLE_INCE(PRIOR, "mdn", design_policy=policy(), **QUIET)
    inference.append_simulations(theta, torch.rand(100, 4), design=design)
    # Rows may be of any shape with as many numbers.
    inference.append_simulations(theta, torch.rand(100, 2, 2), design=design)
    assert inference.simulations[2].shape == (200, 2, 2)
    message = re.escape("shape (1, 4), but that of earlier ones (2, 2)")
    with pytest.raises(ValueError, match=message):
        inference.append_simulations(theta, torch.rand(100, 1, 4), design=design)
    assert len(inference.simulations[2]) == 200
    with pytest.raises(ValueError, match=message):
        inference.optimize_design(of_shape(1, 4), **settings)
    with pytest.warns(UserWarning):
        result = inference.optimize_design(of_shape(2, 2), **settings)
    with pytest.raises(ValueError, match="yield"):
        inference.observe(result.design, torch.rand(4, 1))


def test_a_correction_of_images_without_designs():
    sizes = {"num_conv_layers": 1, "out_channels_per_layer": [4], "kernel_size": 3}
    embedding = DataEmbedding(CNNEmbedding((8, 8), output_dim=8, **sizes), SHAPE)
    network = transformed_posterior_nn("mdn", embedding_net=embedding)
    inference = NPE_GKL(PRIOR, network, **QUIET)
    theta = PRIOR.sample((200,))
    x = photograph(theta, torch.ones(200, 1))
    inference.append_simulations(theta, x).train(max_num_epochs=3)
    assert inference.build_posterior().sample((20,), x[:1], **BAR).shape == (20, 2)


@pytest.mark.parametrize(
    "x, x_shape, taken",
    [
        (1.1, (1,), True),
        ([[1.0, 2.0]], (2,), True),
        (torch.zeros(2, 3), (2, 3), True),
        (torch.zeros(1, 2, 3), (2, 3), True),
        (torch.zeros(6), (2, 3), True),
        (torch.zeros(3, 2), (2, 3), False),
    ],
)
def test_what_was_measured_has_the_shape_of_the_data(x, x_shape, taken):
    stored = SimulationStore("cpu")
    stored.x_shape = torch.Size(x_shape)
    likelihood = SimpleNamespace(input_shape=torch.Size((math.prod(x_shape),)))
    search = SimpleNamespace(simulations=stored, likelihood=likelihood)
    rounds = SimpleNamespace(inference=SimpleNamespace(search=search))
    if taken:
        assert Rounds.check_data(rounds, x, "").shape == likelihood.input_shape
        return
    with pytest.raises(ValueError, match="6 finite value"):
        Rounds.check_data(rounds, x, "")
