import pytest
import torch

from sbi_boed_plugin import NormalPolicy, PointPolicy
from tests.policies.expectations import finite_differences, smooth

LOC = torch.tensor([0.3, -0.2], dtype=torch.float64)


@pytest.mark.parametrize(
    ("scale", "start", "end"),
    [
        (0.5, [0.5, 0.5], [0.5, 0.5]),
        ((4.0, 1.0), [4.0, 4.0], [1.0, 1.0]),
        ((torch.tensor([4.0, 9.0]), 1.0), [4.0, 9.0], [1.0, 1.0]),
        (torch.tensor([4, 9]), [4.0, 9.0], [4.0, 9.0]),
    ],
)
def test_normal_scales_follow_a_geometric_schedule(scale, start, end):
    this = NormalPolicy(torch.zeros(2), scale)
    assert this.scale.tolist() == start
    this.anneal(0.5)
    middle = [(a * b) ** 0.5 for a, b in zip(start, end, strict=True)]
    assert this.scale.tolist() == pytest.approx(middle)
    this.anneal(1.5)
    assert this.describe()["scale"].tolist() == pytest.approx(end)


def test_normal_learns_in_units_of_its_first_scale():
    scale = torch.tensor([100.0, 0.01])
    this = NormalPolicy(torch.tensor([5.0, 5.0]), (scale, 0.1 * scale))
    with torch.no_grad():
        next(this.parameters()).add_(1.0)
    this.anneal(1.0)
    assert this.mode.tolist() == pytest.approx([105.0, 5.01])
    assert this.support.check(torch.tensor([[1e30, -1e30]])).all()


# --- Points ---------------------------------------------------------------------------


@pytest.mark.parametrize("bounded", [True, False])
def test_point_gradient_is_that_of_the_function(bounded):
    box = (-2 * torch.ones(2).double(), 2 * torch.ones(2).double()) if bounded else ()
    this = PointPolicy(*box, loc=LOC)
    (gradient,) = torch.autograd.grad(
        smooth(this.rsample((7,))).mean(), list(this.parameters())
    )
    finite = finite_differences(this, lambda: smooth(this.mode), 1e-6)
    torch.testing.assert_close(gradient, finite, rtol=1e-6, atol=0.0)


def test_point_draws_are_the_mode_and_separate():
    this = PointPolicy(torch.zeros(2), torch.ones(2))
    assert this.mode[0] != this.mode[1]
    samples = this.sample((3,))
    samples[0] = 7.0
    assert torch.equal(samples[1], this.mode)


def test_point_comes_back_into_its_box_and_can_leave_the_edge():
    # 0.3 + 0.3 is not what rounding makes of low + 1 * (high - low).
    low, high = torch.tensor([0.1]), torch.tensor([0.3 + 0.3])
    this = PointPolicy(low, high)
    (parameter,) = this.parameters()
    for value, edge in ((1.5, high), (-0.5, low)):
        with torch.no_grad():
            parameter.fill_(value)
        this.project()
        assert torch.equal(this.mode, edge)
        assert this.support.check(this.rsample()).all()
        (gradient,) = torch.autograd.grad(this.rsample((4,)).mean(), parameter)
        assert gradient.item() == pytest.approx(0.5)


def test_point_without_a_box_is_not_held_back():
    this = PointPolicy(loc=torch.tensor([1, 2]))
    with torch.no_grad():
        next(this.parameters()).fill_(1e6)
    this.project()
    assert this.mode.tolist() == [1e6 + 1, 1e6 + 2]
    assert this.support.check(this.mode)
