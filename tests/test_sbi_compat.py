"""Which sbi is accepted, and what of its private parts is changed."""

import copy
import pickle

import pytest
import torch
from sbi.utils import BoxUniform

from sbi_boed_plugin import NLE_INCE, NPE_GKL, NRE_GKL, TruncatedNormalPolicy
from sbi_boed_plugin._sbi_compat import check_sbi_version
from tests.conftest import NoOpTracker


def test_only_the_minor_version_that_we_know_is_accepted():
    for version in ("0.27.0", "0.27.3", "0.27.1.dev4"):
        check_sbi_version(version)
    for version in ("0.26.1", "0.28.0", "0.28.0a1", "0.2.7", "1.27.0"):
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
