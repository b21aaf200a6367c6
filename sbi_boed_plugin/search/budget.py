"""What a search spends its simulations on: shares of its budget."""

from dataclasses import dataclass, replace

from sbi_boed_plugin.search.multi_start import MultiStartConfig

__all__ = ["Spending", "plan_spending"]

# Share of a budget that scores the design found, and, after a multi-start search, of
# what is left that ranks its candidates.
_SCORING_SHARE, _RANKING_SHARE = 0.2, 0.2
_BATCH_SIZES = (16, 256)
_STEPS_WANTED = 200
_MAX_STEPS, _MAX_SCORING = 1_000, 4_000


@dataclass(frozen=True)
class Spending:
    """Numbers of simulations of the parts of a search.

    Attributes:
        num_steps: Number of training steps.
        training_batch_size: Number of simulations of each.
        num_eig_samples: Number of simulations that score the design found.
        multi_start: Settings of a multi-start search.
    """

    num_steps: int
    training_batch_size: int
    num_eig_samples: int
    multi_start: MultiStartConfig

    def num_scoring(self, method: str) -> int:
        """Return the number of simulations after the last step."""
        if method == "joint":
            return self.num_eig_samples
        search = self.multi_start
        ranking = search.num_candidates * search.num_candidate_samples
        return self.num_eig_samples + ranking


def plan_spending(
    max_num_simulations: int | None,
    *,
    method: str,
    has_networks: bool,
    num_check_calls: int,
    num_simulations_per_design: int,
    num_steps: int | None,
    num_refinement_steps: int,
    training_batch_size: int | None,
    num_eig_samples: int | None,
    multi_start: MultiStartConfig | None,
) -> Spending:
    """Divide a number of simulations among the parts of a search.

    Without a budget there are 1,000 steps of 256 simulations and 4,000 that score the
    design. With one, a fifth of it scores the design, another fifth of the rest ranks
    the candidates of a multi-start search, and what is left is for about 200 steps
    or, if batches of 256 allow for more, up to 1,000. Numbers that are given stay.

    Args:
        max_num_simulations: The budget, `None` for any.
        method: `"joint"` or `"multi_start"`.
        has_networks: Whether a multi-start search needs no training.
        num_check_calls: Number that the check of the simulator takes.
        num_simulations_per_design: Number that divides the batch.
        num_steps: Number of steps, if it is given.
        num_refinement_steps: Number of steps after them.
        training_batch_size: Number of simulations of a step, if it is given.
        num_eig_samples: Number that scores the design, if it is given.
        multi_start: Settings of a multi-start search, if they are given.

    Returns:
        The numbers.

    Raises:
        ValueError: If the budget does not allow for one step and the score.
    """
    default_steps = 0 if has_networks else _MAX_STEPS
    if max_num_simulations is None:
        if training_batch_size is None:
            training_batch_size = _divisible(256, num_simulations_per_design)
        return Spending(
            default_steps if num_steps is None else num_steps,
            training_batch_size,
            _MAX_SCORING if num_eig_samples is None else num_eig_samples,
            multi_start or MultiStartConfig(),
        )
    idle = num_steps == 0 or (num_steps is None and has_networks)
    left = max_num_simulations - num_check_calls
    if num_eig_samples is None:
        share = 0.5 if idle else _SCORING_SHARE
        num_eig_samples = max(2, min(_MAX_SCORING, int(share * left)))
    left -= num_eig_samples
    search = multi_start or MultiStartConfig()
    if method == "multi_start":
        if multi_start is None:
            share = 1.0 if idle else _RANKING_SHARE
            each = int(share * left) // search.num_candidates
            each = max(2, min(search.num_candidate_samples, each))
            search = replace(search, num_candidate_samples=each)
        left -= search.num_candidates * search.num_candidate_samples
    if training_batch_size is None:
        steps = _STEPS_WANTED if num_steps is None else max(1, num_steps)
        steps += num_refinement_steps
        low, high = _BATCH_SIZES
        size = min(max(low, left // steps), high)
        training_batch_size = _divisible(size, num_simulations_per_design)
    least = 0 if idle else training_batch_size
    if num_steps is None:
        least *= 1 + num_refinement_steps
        num_steps = max(0, left) // max(1, training_batch_size) - num_refinement_steps
        num_steps = min(default_steps, num_steps)
    if left < least:
        other = max_num_simulations - left
        raise ValueError(
            f"max_num_simulations={max_num_simulations} is too few: {least} "
            f"simulations of training and {other} that check the simulator and score "
            f"designs need {least + other}. Raise it, or lower training_batch_size, "
            "num_refinement_steps, num_eig_samples or the candidates of multi_start."
        )
    return Spending(num_steps, training_batch_size, num_eig_samples, search)


def _divisible(size: int, divisor: int) -> int:
    """Return the batch size nearest to a number that has two designs at least."""
    return max(2, round(size / divisor)) * divisor
