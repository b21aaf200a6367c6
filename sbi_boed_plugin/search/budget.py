"""Numbers that a search chooses for itself: shares of its budget, and defaults."""

import math
from dataclasses import replace

from sbi_boed_plugin.search.config import DesignSearchConfig, MultiStartConfig

__all__ = ["num_ranking", "with_all_numbers"]

# Share of a budget that scores the design found, and, after a multi-start search, of
# what is left that ranks its candidates.
_SCORING_SHARE, _RANKING_SHARE = 0.2, 0.2
# The same share in rounds, whose networks each learn from most of the simulations.
_SCORING_OF_ROUNDS, _NUM_ROUNDS, _LEAST_OF_ROUND = 0.1, 4, 20
_BATCH_SIZES = (16, 256)
_STEPS_WANTED = 200
_MAX_STEPS, _MAX_SCORING = 1_000, 4_000
# Contrastive samples of the likelihood's loss, by whether they also drive the policy.
_NUM_CONTRASTIVE = {True: 31, False: 3}


def num_ranking(search: MultiStartConfig | None) -> int:
    """Return the number of simulations that rank the candidates of a search."""
    return 0 if search is None else search.num_candidates * search.num_candidate_samples


def with_all_numbers(
    config: DesignSearchConfig, *, has_networks: bool, num_check_calls: int
) -> DesignSearchConfig:
    """Return the settings with all numbers, those of the parts of a budget included.

    Without a budget there are 1,000 steps of 256 simulations and 4,000 that score the
    design. With one, a fifth of it scores the design, another fifth of the rest ranks
    the candidates of a multi-start search, and what is left is for about 200 steps
    or, if batches of 256 allow for more, up to 1,000. Numbers that are given stay. A
    search with `has_networks` needs no training, and the check of its simulator takes
    `num_check_calls`. A search in rounds has a tenth of its budget for scoring.
    """
    if config.method == "rounds":
        return _with_numbers_of_rounds(config)
    budget, num_steps = config.max_num_simulations, config.num_steps
    size, num_eig_samples = config.training_batch_size, config.num_eig_samples
    idle = num_steps == 0 or (num_steps is None and has_networks)
    left = (budget or math.inf) - num_check_calls
    if num_eig_samples is None:
        share = 0.5 if idle else _SCORING_SHARE
        num_eig_samples = max(2, int(min(_MAX_SCORING, share * left)))
    left -= num_eig_samples
    search = None
    if config.method == "multi_start":
        search = config.multi_start or MultiStartConfig()
        if config.multi_start is None:
            share = 1.0 if idle else _RANKING_SHARE
            each = share * left / search.num_candidates
            each = max(2, int(min(search.num_candidate_samples, each)))
            search = replace(search, num_candidate_samples=each)
    left -= num_ranking(search)
    refinement = config.num_refinement_steps
    if size is None:
        steps = _STEPS_WANTED if num_steps is None else max(1, num_steps)
        low, high = _BATCH_SIZES
        size = int(min(max(low, left / (steps + refinement)), high))
    least = 0 if idle else size
    if num_steps is None:
        least *= 1 + refinement
        most = 0 if has_networks else _MAX_STEPS
        num_steps = max(0, int(min(most, left / size - refinement)))
    if left < least:
        assert budget is not None
        other = int(budget - left)
        raise ValueError(
            f"max_num_simulations={budget} is too few: {least} "
            f"simulations of training and {other} that check the simulator and score "
            f"designs need {least + other}. Raise it, or lower training_batch_size, "
            "num_refinement_steps, num_eig_samples or the candidates of multi_start."
        )
    num_contrastive, num_warmup_steps = config.num_contrastive, config.num_warmup_steps
    if num_contrastive is None:
        usual = _NUM_CONTRASTIVE[config.objective == "info_nce"]
        num_contrastive = min(usual, size - 1)
    return replace(
        config,
        num_steps=num_steps,
        num_warmup_steps=num_steps // 20
        if num_warmup_steps is None
        else num_warmup_steps,
        training_batch_size=size,
        num_contrastive=num_contrastive,
        num_eig_samples=num_eig_samples,
        multi_start=search,
    )


def _with_numbers_of_rounds(config: DesignSearchConfig) -> DesignSearchConfig:
    """Return the settings of a search in rounds with all numbers."""
    budget, num_eig_samples = config.max_num_simulations, config.num_eig_samples
    if budget is None:
        raise ValueError(
            "max_num_simulations=None with method='rounds': say how many simulations "
            "there may be, or pass simulator=None to learn from stored ones alone."
        )
    if num_eig_samples is None:
        num_eig_samples = max(2, int(min(_MAX_SCORING, _SCORING_OF_ROUNDS * budget)))
    num_rounds = _NUM_ROUNDS if config.num_rounds is None else config.num_rounds
    least = _LEAST_OF_ROUND * num_rounds + num_eig_samples
    if budget < least:
        raise ValueError(
            f"max_num_simulations={budget} is too few: {num_rounds} rounds of at least "
            f"{_LEAST_OF_ROUND} simulations and {num_eig_samples} that score the "
            f"design need {least}. Raise it, or lower num_rounds or num_eig_samples."
        )
    return replace(config, num_rounds=num_rounds, num_eig_samples=num_eig_samples)
