"""How the tables of likelihoods, hybrids and speed follow from their files."""

import math

import pandas as pd

from benchmarks.cells import Table, as_text, in_brackets, number, percent, text

__all__ = ["TABLES_OF_INFERENCE"]


def _gain_and_time(row: pd.Series) -> str:
    gains = f"{row['gain']:+.2f} ({row['median_gain']:+.2f})".replace("-", "−")
    return f"{gains}, {row['time']:.1f}×"


def _draws(table: pd.DataFrame) -> pd.DataFrame:
    table = table.sort_values(["num_partition_samples", "latent_features"])
    shown = {0: "θ and x", 1: "θ, x and noise"}
    return table.assign(shown=table["latent_features"].map(shown))


def _dimensions(table: pd.DataFrame) -> pd.DataFrame:
    table = table.sort_values(["num_simulations", "dim_theta", "dim_x"], kind="stable")
    dims = [
        f"{row.dim_theta}, {row.dim_x}{' embedded' * row.embedded}"
        for row in table.itertuples()
    ]
    return table.assign(dims=dims)


def _growth(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each thing that grows, with all of its sizes in a cell."""

    def sizes(group: pd.DataFrame) -> str:
        ordered = group.sort_values("size")
        time = "wall_s" if (group["grows"] == "workers").all() else "cpu_s"
        return "; ".join(
            f"{as_text(row['size'])}: {row[time]:.3g} s, {row['memory_mb']:.0f} MB"
            for _, row in ordered.iterrows()
        )

    parts = table.groupby(["path", "grows"], sort=False)
    rows = [{"path": p, "grows": g, "sizes": sizes(group)} for (p, g), group in parts]
    return pd.DataFrame(rows)


TABLES_OF_INFERENCE = {
    "two-moons-contrastive": Table(
        "two-moons_summary",
        {"num_contrastive": "L, at λ = 0.1"},
        {
            "bound reported": number("reported_eig"),
            "cap": number("cap"),
            "the same networks with 4,095 samples": number("eig_many", 1),
        },
        prepare=lambda table: table[table["regularization_strength"] == 0.1].assign(
            cap=lambda t: (t["num_contrastive"] + 1).map(math.log)
        ),
    ),
    "two-moons-strength": Table(
        "two-moons_summary",
        {"regularization_strength": "λ, at L = 15"},
        {"held-out log-likelihood": number("log_likelihood")},
        prepare=lambda table: table[table["num_contrastive"] == 15],
    ),
    "hybrid-tasks": Table(
        "hybrid-tasks_summary",
        {"task": "task"},
        {
            "{}: base": lambda row: f"{row['c2st_forest_base']:.3f}",
            "{}: hybrid": lambda row: f"{row['c2st_forest']:.3f}",
            "{}: gain [nats]": number("gain"),
            "{}: accepts": percent("acceptance_rate"),
        },
        ["num_simulations"],
    ),
    "hybrid-two-moons": Table(
        "hybrid-two-moons_summary",
        {"method": "method"},
        {
            "forest: base alone": number("c2st_forest_base", 3),
            "forest: method": number("c2st_forest", 3),
            "perceptron: base alone": number("c2st_mlp_base", 3),
            "perceptron: method": number("c2st_mlp", 3),
        },
    ),
    "sbibm": Table(
        "sbibm/summary",
        {"task": "task", "num_simulations": "simulations"},
        {
            "`{}`": lambda row: f"{number('c2st', 3)(row)} ({int(row['num_done'])})",
        },
        ["method"],
    ),
    "gkl-dimension": Table(
        "gkl-dimension_summary",
        {"dim": "parameters"},
        {
            "{}: base": number("kl_base"),
            "{}: hybrid": number("kl_hybrid"),
            "{}: accepts": percent("acceptance_rate", 1),
        },
        ["base"],
    ),
    "gkl-acceptance": Table(
        "gkl-acceptance_summary",
        {"task": "posterior"},
        {"{}: gain": number("gain"), "{}: accepts": percent("acceptance_rate")},
        ["base"],
        lambda table: table[table["num_simulations"] == 10_000],
    ),
    "gkl-variance": Table(
        "gkl-variance_summary",
        {"num_partition_samples": "draws K (0: the base)"},
        {"shown {}: gain [nats]": number("gain"), "shown {}: C2ST": number("c2st", 3)},
        ["shown"],
        _draws,
    ),
    "speed-training": Table(
        "speed_training",
        {"flow": "flow"},
        {"L = {} ({} evaluations)": number("ratio", 1)},
        ["L", "evaluations"],
    ),
    "training": Table(
        "training_summary",
        {"task": "task", "method": "method"},
        {"{}, {}": _gain_and_time},
        ["model", "num_simulations"],
        lambda table: table[table["task"] != "all"].sort_values(
            ["num_simulations", "model"], kind="stable"
        ),
    ),
    "hybrid-calibration": Table(
        "hybrid-calibration_summary",
        {"task": "likelihood of", "sampler": "sampled by"},
        {
            "smallest p of ranks": number("ks_p"),
            "C2ST to the prior": number("c2st_dap"),
            "L-C2ST": number("lc2st", 4),
            "its p": number("lc2st_p"),
            "CPU seconds": number("cpu_seconds", 0),
        },
    ),
    "training-c2st": Table(
        "training-c2st_summary",
        {"task": "task", "num_simulations": "simulations"},
        {
            "`npe`, sbi": number("c2st_npe, sbi", 3),
            "`npe`": number("c2st_npe, averaged", 3),
            "`npe_gkl`": number("c2st_npe_gkl, averaged", 3),
            "`nle`, sbi": number("c2st_nle, sbi", 3),
            "`nle`": number("c2st_nle, averaged", 3),
            "`nle_hybrid`": number("c2st_nle_hybrid, averaged", 3),
            "best": number("c2st_best", 3),
        },
    ),
    "training-rule": Table(
        "training-rule_summary",
        {"model": "network", "num_simulations": "simulations", "dims": "θ, x"},
        {
            "steps": lambda row: as_text(int(row["num_steps"])),
            "CPU seconds": number("cpu_seconds", 0),
            **{
                name: number(name)
                for name in (
                    "rate / 3",
                    "rate × 3",
                    "batch 50",
                    "batch 200",
                    "batch 800",
                    "decay 0.1",
                    "dropout 0.1",
                    "three networks",
                )
            },
        },
        prepare=_dimensions,
    ),
    "training-growth": Table(
        "training-growth",
        {"num_simulations": "simulations"},
        {
            "{}: µs per row": number("us_per_row", 0),
            "{}: memory [MB]": number("memory_mb", 0),
        },
        ["loop"],
    ),
    "speed-epochs": Table(
        "speed_epochs",
        {"training": "training", "network": "network"},
        {"ratio": number("ratio", 1)},
    ),
    "speed-searches": Table(
        "speed_searches",
        {"objective": "objective"},
        {
            "{}": in_brackets(
                number("seconds_to_97_percent", 1), percent("share_at_the_end", 1)
            )
        },
        ["gradient"],
    ),
    "speed-growth": Table(
        "speed_growth",
        {"dim_design": "measurements"},
        {
            "L = {}": lambda row: (
                f"{row['ms_per_step']:,.0f} ms, {row['peak_memory_MB']:,.0f} MB"
            )
        },
        ["L"],
    ),
    "growth": Table(
        "growth",
        {"path": "what", "grows": "against the number of"},
        {"size: processor time, further memory": text("sizes")},
        prepare=_growth,
    ),
    "speed-hybrid": Table(
        "speed_hybrid",
        {"what": "what", "peer": "peer"},
        {"{}, {}": number("ratio")},
        ["base", "simulations"],
    ),
}
