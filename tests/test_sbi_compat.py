"""Which sbi is accepted, and what of its private parts is changed."""

import copy
import pickle

import pytest
import torch
from sbi import neural_nets
from sbi.inference import NPE
from sbi.inference.posteriors import DirectPosterior
from sbi.utils import BoxUniform

from sbi_boed_plugin import (
    NLE_INCE,
    NPE_GKL,
    NRE_GKL,
    EnergyConfig,
    HybridPosterior,
    TargetPosterior,
    TruncatedNormalPolicy,
    transformed_likelihood_nn,
    transformed_posterior_nn,
)
from sbi_boed_plugin._sbi_compat import check_sbi_version
from tests.conftest import NoOpTracker


def test_only_the_minor_versions_that_we_know_are_accepted():
    for version in ("0.27.0", "0.27.3", "0.27.1.dev4", "0.28.0", "0.28.0a1"):
        check_sbi_version(version)
    for version in ("0.26.1", "0.29.0", "0.29.0a1", "0.2.7", "1.27.0"):
        with pytest.raises(ImportError, match=rf"{version} is.*pip install"):
            check_sbi_version(version)


class DoesNotPickle(NoOpTracker):
    def __reduce__(self):
        raise TypeError("a connection cannot be pickled")


@pytest.mark.filterwarnings("ignore:When the inference object is pickled")
@pytest.mark.parametrize("trainer", [NLE_INCE, NPE_GKL, NRE_GKL])
def test_a_tracker_that_pickles_is_kept_and_no_folder_written(
    trainer, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for again in (copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))):
        assert type(again(trainer(tracker=NoOpTracker()))._tracker) is NoOpTracker
        assert not any(tmp_path.iterdir())
    loaded = pickle.loads(pickle.dumps(trainer(tracker=DoesNotPickle())))
    assert type(loaded._tracker) is not DoesNotPickle
    assert not any(tmp_path.iterdir())


@pytest.fixture
def double_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("trainer", [NLE_INCE, NPE_GKL, NRE_GKL])
def test_training_in_another_default_precision_is_refused(trainer, double_by_default):
    """sbi builds networks in it, and keeps data in single precision."""
    inference = trainer(tracker=NoOpTracker(), show_progress_bars=False)
    theta = torch.randn(100, 2).float()
    inference.append_simulations(theta, theta + torch.randn(100, 2).float())
    with pytest.raises(RuntimeError, match=r"float64.*Call torch.set_default_dtype"):
        inference.train(max_num_epochs=1)
    torch.set_default_dtype(torch.float32)
    inference.train(max_num_epochs=1)


def test_a_search_in_another_default_precision_is_refused(double_by_default):
    policy = TruncatedNormalPolicy(torch.zeros(1), torch.ones(1))
    prior = BoxUniform(torch.zeros(1), torch.ones(1))
    inference = NLE_INCE(prior, "mdn", design_policy=policy, tracker=NoOpTracker())
    with pytest.raises(RuntimeError, match=r"float64.*Call torch.set_default_dtype"):
        inference.optimize_design(lambda theta, design: 1 / 0)


@pytest.mark.filterwarnings("ignore:The energy does not improve")
def test_a_trained_hybrid_answers_in_any_default_precision(request):
    inference = NPE_GKL(tracker=NoOpTracker(), show_progress_bars=False)
    theta = torch.randn(100, 2)
    x = theta + torch.randn(100, 2)
    inference.append_simulations(theta, x).train(max_num_epochs=1)
    prior = BoxUniform(-5 * torch.ones(2), 5 * torch.ones(2))
    posterior = inference.build_posterior(prior=prior)
    request.getfixturevalue("double_by_default")
    samples = posterior.sample((10,), x=x[:1], show_progress_bars=False)
    log_prob = posterior.log_prob(samples, x=x[:1])
    assert samples.dtype == torch.float32 and torch.isfinite(log_prob).all()


# sbi 0.27 has neither configs of networks nor posteriors that take data of any value.
has_configs = pytest.mark.skipif(
    not hasattr(neural_nets, "DensityConfigBase"), reason="sbi 0.27"
)
QUIET = {"show_progress_bars": False, "tracker": NoOpTracker()}
BRIEF = EnergyConfig(max_num_epochs=1)


def config(name, **settings):
    """A config of sbi by its name, which sbi 0.27 does not have."""
    return getattr(neural_nets, f"{name}Config")(**settings)


def pair(num=200):
    theta = torch.randn(num, 2)
    return theta, theta.sum(dim=1, keepdim=True) + 0.1 * torch.randn(num, 3)


@has_configs
@pytest.mark.parametrize("with_design", [False, True])
@pytest.mark.parametrize(
    "trainer, network, kind, train_kwargs",
    [
        (NLE_INCE, neural_nets.likelihood_nn("mdn"), "MDN", {}),
        (NPE_GKL, neural_nets.posterior_nn("mdn"), "MDN", {"energy": BRIEF}),
        (NRE_GKL, neural_nets.classifier_nn("mlp"), "MLPClassifier", {}),
    ],
)
@pytest.mark.filterwarnings("ignore:The energy does not improve")
def test_a_config_takes_the_place_of_a_builder(
    trainer, network, kind, train_kwargs, with_design
):
    states, (theta, x) = [], pair()
    design = torch.rand(200, 1) if with_design else None
    for build in (network, pickle.loads(pickle.dumps(config(kind)))):
        torch.manual_seed(1)
        inference = trainer(None, build, **QUIET)
        inference.append_simulations(theta, x, design=design)
        inference._prior = BoxUniform(-5 * torch.ones(2), 5 * torch.ones(2))
        states.append(inference.train(max_num_epochs=2, **train_kwargs).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@has_configs
def test_searches_and_coordinates_take_configs():
    theta, x = pair()
    for build in (transformed_likelihood_nn, transformed_posterior_nn):
        network = build(config("MDN", hidden_features=7))
        is_likelihood = build is transformed_likelihood_nn
        given = (x, theta) if is_likelihood else (theta, x)
        network = pickle.loads(pickle.dumps(network))(theta, x)
        assert network.log_prob(given[0].unsqueeze(0), given[1]).shape == (1, 200)
    policy = TruncatedNormalPolicy(torch.zeros(1), torch.ones(1))
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    models = {f"{name}_estimator": config("MDN") for name in ("posterior", "marginal")}
    inference = NLE_INCE(prior, config("MDN"), design_policy=policy, **models, **QUIET)
    inference.optimize_design(
        lambda theta, design: theta * design + torch.randn_like(theta),
        objective="barber_agakov",
        num_steps=3,
        num_eig_samples=20,
    )
    copied = copy.deepcopy(inference)  # What it was given can be pickled.
    assert copied.search.models.likelihood is not None


@has_configs
def test_configs_of_another_kind_are_refused_and_scales_are_told():
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    for trainer in (NLE_INCE, NPE_GKL):
        with pytest.raises(TypeError, match="DensityConfigBase.*MLPClassifierConfig"):
            trainer(prior, config("MLPClassifier"), **QUIET)
    with pytest.raises(TypeError, match="ClassifierConfigBase.*MDNConfig"):
        NRE_GKL(prior, config("MDN"), **QUIET)
    theta, x = pair()
    inference = NPE_GKL(prior, config("MDN"), **QUIET)
    with pytest.warns(UserWarning, match="standard deviation"):
        inference.append_simulations(theta, 1e-9 * x)


@has_configs
def test_posteriors_take_data_of_any_value_where_sbi_does():
    theta, x = pair()
    prior = BoxUniform(-5 * torch.ones(2), 5 * torch.ones(2))
    embedding = Zeros(3, 3)
    build = neural_nets.posterior_nn("mdn", embedding_net=embedding, z_score_x="none")
    npe = NPE(prior, build, **QUIET).append_simulations(theta, x)
    network = npe.train(max_num_epochs=1)
    observed = torch.tensor([[1.0, torch.nan, 0.0]])
    likelihood = neural_nets.likelihood_nn("mdn")(theta, x)
    for checks in (True, False):
        direct = DirectPosterior(network, prior, check_finite_x=checks)
        hybrid = HybridPosterior.from_estimators(
            network, likelihood, prior, check_finite_x=checks
        )
        target = TargetPosterior(direct, 0, prior)
        for posterior in (direct, hybrid, target):
            if checks:
                with pytest.raises(ValueError, match="x_o"):
                    posterior.set_default_x(observed)
            else:
                posterior.set_default_x(observed)
        if not checks:
            assert target.sample((5,), show_progress_bars=False).shape == (5, 1)


class Zeros(torch.nn.Linear):
    """Sees zero in the place of what was not measured."""

    def forward(self, x):
        return super().forward(x.nan_to_num(0.0))
