"""Features of sets of measurements."""

import pickle

import pytest
import torch

from sbi_boed_plugin import MeasurementSetEmbedding, tasks, transformed_posterior_nn
from sbi_boed_plugin.experiment import find_design, make_trainer


def test_the_order_of_measurements_does_not_matter_but_their_places_do():
    embedding = MeasurementSetEmbedding(5, dim_x=2, dim_design=3).double()
    x, design = torch.randn(7, 5, 2).double(), torch.randn(7, 5, 3).double()
    rows = torch.cat([x.flatten(1), design.flatten(1)], dim=1)
    order = torch.randperm(5)
    moved = torch.cat([x[:, order].flatten(1), design[:, order].flatten(1)], dim=1)
    swapped = torch.cat([x.roll(1, 1).flatten(1), design.flatten(1)], dim=1)
    torch.testing.assert_close(embedding(moved), embedding(rows))
    assert not torch.allclose(embedding(swapped), embedding(rows))


def test_features_are_the_mean_over_single_measurements():
    many = MeasurementSetEmbedding(4, output_dim=6)
    one = MeasurementSetEmbedding(1, output_dim=6)
    one.load_state_dict(many.state_dict())
    x, design = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    features = many(torch.cat([x, design], dim=-1))
    assert features.shape == (2, 3, 6)
    single = one(torch.stack([x, design], dim=-1))
    torch.testing.assert_close(features, single.mean(dim=-2))


def rows_and_pairs(unit=1.0):
    x, design = unit * (5.0 + 2.0 * torch.randn(400, 3)), 100.0 * torch.rand(400, 3)
    pairs = torch.stack([x.flatten(), design.flatten()], dim=1)
    return torch.cat([x, design], dim=1), pairs


@pytest.mark.parametrize("unit", [1.0, 1e-12])
def test_all_places_are_standardized_alike_where_they_vary(unit):
    embedding = MeasurementSetEmbedding(3)
    rows, pairs = rows_and_pairs(unit)
    embedding.standardize(rows)
    torch.testing.assert_close(embedding.mean, pairs.mean(dim=0))
    torch.testing.assert_close(embedding.scale, pairs.std(dim=0))
    rows[:, 3:] = 7.0
    embedding.standardize(rows)
    assert embedding.mean[1] == 7.0 and embedding.scale[1] == 1.0


def test_each_network_standardizes_and_trains_a_copy():
    embedding = MeasurementSetEmbedding(3)
    build = transformed_posterior_nn("mdn", dim_design=3, embedding_net=embedding)
    rows, pairs = rows_and_pairs()
    theta = torch.randn(400, 2)
    networks = [build(theta, rows), build(theta, 10.0 * rows)]
    used = [
        next(m for m in n.modules() if isinstance(m, MeasurementSetEmbedding))
        for n in networks
    ]
    assert used[0] is not used[1] and (embedding.scale == 1.0).all()
    torch.testing.assert_close(used[0].scale, pairs.std(dim=0))
    torch.testing.assert_close(used[1].scale, 10.0 * pairs.std(dim=0))
    # sbi standardizes nothing in front of it.
    assert not any("Standardize" in type(m).__name__ for m in networks[0].modules())
    copy = pickle.loads(pickle.dumps(build))(theta, rows)
    assert copy.condition_shape == networks[0].condition_shape


def test_wrong_sizes_are_refused_and_devices_followed():
    with pytest.raises(ValueError, match="num_measurements=0"):
        MeasurementSetEmbedding(0)
    with pytest.raises(ValueError, match="have 10 values, but 6 measurements"):
        MeasurementSetEmbedding(6)(torch.zeros(2, 10))
    embedding = MeasurementSetEmbedding(3).to("meta")
    assert embedding(torch.zeros(2, 6, device="meta")).device.type == "meta"


def test_a_search_can_see_its_data_through_it():
    task = tasks.get_task("bmp", dim_design=3)
    embedding = MeasurementSetEmbedding(3, hidden_features=8, output_dim=4)
    quiet = {"show_progress_bars": False}
    trainer = make_trainer(task, posterior_embedding=embedding, **quiet)
    result = find_design(trainer, task, num_steps=3, num_eig_samples=20)
    x, design = torch.rand(5, 3), result.design.expand(5, -1)
    data = torch.cat([x, design], dim=1)
    posterior = result.posterior_estimator
    samples = posterior.sample(torch.Size((200,)), data)
    # Within the prior's support, the unit square, as with the default network.
    assert task.prior.log_prob(samples.reshape(-1, 2)).isfinite().all()
    reordered = torch.cat([x.flip(1), design.flip(1)], dim=1)
    log_probs = [posterior.log_prob(samples, rows) for rows in (data, reordered)]
    torch.testing.assert_close(*log_probs, rtol=1e-4, atol=1e-4)
