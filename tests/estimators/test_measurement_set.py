import pytest
import torch

from sbi_boed_plugin import MeasurementSetEmbedding


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
    single = [one(torch.stack([x[..., j], design[..., j]], dim=-1)) for j in range(4)]
    features = many(torch.cat([x, design], dim=-1))
    assert features.shape == (2, 3, 6)
    torch.testing.assert_close(features, torch.stack(single).mean(dim=0))


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="num_measurements=0"):
        MeasurementSetEmbedding(0)
    with pytest.raises(ValueError, match="have 10 values, but 6 measurements"):
        MeasurementSetEmbedding(6)(torch.zeros(2, 10))


def test_it_runs_on_the_device_of_its_rows():
    embedding = MeasurementSetEmbedding(3).to("meta")
    assert embedding(torch.zeros(2, 6, device="meta")).device.type == "meta"
