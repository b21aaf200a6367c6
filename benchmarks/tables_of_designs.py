"""How the tables of designs follow from the files of their studies."""

from collections.abc import Callable

import pandas as pd

from benchmarks.cells import Table, in_brackets, number, percent, text

__all__ = ["TABLES_OF_DESIGNS"]


def _shortfalls(table: pd.DataFrame) -> pd.DataFrame:
    groups = table.groupby(["policy", "gradient", "objective"], sort=False)["shortfall"]
    found = groups.agg(shortfall="mean", shortfall_se="sem", worst="max")
    return found.reset_index()


def _each_bound(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for _, row in table.iterrows():
        for name in table.columns:
            if f"{name}_cap" in table:
                columns = {
                    f"value{end}": row[name + end] for end in ("", "_se", "_cap")
                }
                rows.append({"bound": name.replace("_", " "), **row, **columns})
    return pd.DataFrame(rows)


def _part(name: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Return what keeps the rows of one part of a study."""
    return lambda table: table[table["part"] == name]


TABLES_OF_DESIGNS = {
    "design-recovery": Table(
        "design-recovery_summary",
        {"task": "task", "dim_design": "values of a design", "seeds": "seeds"},
        {
            "exact information of the design found [nats]": number("exact_eig", 3),
            "optimum": lambda row: f"{row['optimum']:.3f}",
            "reported": number("reported_lower_bound", 3),
        },
    ),
    "honest-bounds": Table(
        "honest-bounds_summary",
        {"task": "task", "dim_design": "values of a design"},
        {
            "reported [nats]": number("reported"),
            "exact [nats]": number("exact"),
            "said to be far too low": lambda row: (
                f"{round(row['told'] * row['seeds'])} of {row['seeds']}"
            ),
        },
        prepare=lambda table: table.sort_values(["task", "dim_design"]),
    ),
    "lace-objective": Table(
        "lace-objective_summary",
        {"task": "task"},
        {
            "{}: exact information of the design [nats]": number("exact"),
            "{}: CPU seconds": number("cpu_seconds", 1),
        },
        ["objective"],
    ),
    "sir-check": Table(
        "sir-check",
        {"seed": "seed"},
        {
            "time found": number("design", 1),
            "reported [nats]": lambda row: (
                f"{row['reported_eig']:.3f} ± {row['reported_standard_error']:.3f}"
            ),
            "brute force there": lambda row: (
                f"{row['brute_force_eig']:.3f} ± "
                f"{row['brute_force_standard_error']:.3f}"
            ),
            "best of 16 times": number("best_eig_on_grid", 3),
            "SBC, p of β": number("sbc_ks_p_beta"),
            "SBC, p of γ": number("sbc_ks_p_gamma"),
            "SBC, C2ST of ranks": number("sbc_c2st_ranks"),
            "L-C2ST at the truth's data (p)": in_brackets(
                number("lc2st_statistic", 4), number("lc2st_p")
            ),
        },
    ),
    "objective-defaults": Table(
        "objective-defaults_summary",
        {"setting": "objective"},
        {
            "{}: C2ST": number("c2st", 3),
            "{}: held-out log q": lambda row: (
                f"{row['held_out_log_likelihood']:.2f}".replace("-", "−")
            ),
        },
        ["task"],
    ),
    "gradients": Table(
        "gradients",
        {"gradient": "gradient"},
        {
            "{}, ξ = {}": lambda row: (
                f"{row['value']:.3f} ± {row['standard_error']:.3f} "
                f"({row['variance_of_a_batch']:.0e})"
            ).replace("-", "−"),
        },
        ["objective", "location"],
    ),
    "bounds": Table(
        "bounds",
        {"bound": "bound, densities, L"},
        {
            "{} measurements": number("value", 3),
            "{}: cap": number("value_cap", 3),
        },
        ["dim_design"],
        _each_bound,
    ),
    "location": Table(
        "location_summary",
        {"method": "designs", "experiments": "experiments"},
        {"lower bound": text("spce"), "upper bound": text("snmc")},
    ),
    "pharmacokinetic": Table(
        "pharmacokinetic_summary",
        {"method": "times", "experiments": "experiments"},
        {
            "lower bound": text("spce"),
            "upper bound": text("snmc"),
            "more than random": text("beyond_random"),
        },
    ),
    "sir-ablation": Table(
        "sir-ablation",
        {"policy": "policy", "gradient": "gradient"},
        {"{}": number("shortfall", 3), "{}: worst": number("worst", 3)},
        ["objective"],
        _shortfalls,
    ),
    "table-sir": Table(
        "table-sir_summary",
        {"method": "designs and training"},
        {
            "median distance [people]": text("median_distance"),
            "published": text("published_distance"),
            "at ten common times": text("common_distance"),
            "L-C2ST": text("lc2st"),
            "L-C2ST of an update": text("lc2st_update"),
            "L-C2ST, published": text("published_lc2st"),
            "information reported [nats]": text("information"),
        },
    ),
    "table-bmp": Table(
        "table-bmp_summary",
        {"method": "designs and training"},
        {
            "noise {}: distance": text("distance_percent"),
            "noise {}: L-C2ST": text("lc2st"),
            "noise {}: L-C2ST of an update": text("lc2st_update"),
            "noise {}: exact information of the three [nats]": text("exact_all"),
            "noise {}: CPU seconds": text("cpu_seconds"),
        },
        ["noise"],
    ),
    "linear-scaling": Table(
        "linear-scaling_summary",
        {"dim_design": "measurements"},
        {"{}, λ = {}": in_brackets(percent("share", 1), number("log_likelihood", 1))},
        ["objective", "regularization_strength"],
    ),
    "people": Table(
        "people_summary",
        {"problem": "problem"},
        {
            "{}: share of the best (worst seed)": in_brackets(
                number("share", 3), number("worst", 3)
            ),
            "{}: reported below exact [nats]": number("below"),
            "{}: CPU seconds": number("cpu_seconds", 0),
        },
        ["budget"],
    ),
    "adaptive": Table(
        "adaptive_summary",
        {"task": "task", "experiments": "experiments", "method": "method"},
        {
            "seeds": text("seeds"),
            "sPCE [nats]": number("lower", error_name="error"),
            "sNMC [nats]": number("upper"),
            "LACE [nats]": number("lace_lower"),
            "reported [nats]": number("reported", error_name="reported_error"),
            "rank error": number("rank_error"),
            "calls": text("calls"),
            "CPU seconds": number("cpu_seconds", 0),
            "ms a design": number("milliseconds", 1),
        },
    ),
    "few-simulations": Table(
        "few-simulations_summary",
        {"task": "task", "size": "measurements", "budget": "calls"},
        {"{}": in_brackets(number("share", 2), number("worst", 2))},
        ["method"],
        lambda table: table.drop(columns=["share_se", "seeds"]).assign(
            # Where it is free.
            size=table["size"].map(lambda size: size or "–")
        ),
    ),
    "models-design": Table(
        "generative-models_summary",
        {"task": "task", "model": "networks of the search"},
        {
            "seeds": text("seeds"),
            "share of the best": number("share", 3),
            "exact [nats]": number("exact"),
            "reported [nats]": number("reported"),
            "CPU seconds": number("cpu_seconds", 0),
        },
        prepare=_part("design"),
    ),
    "models-posterior": Table(
        "generative-models_summary",
        {"task": "task", "model": "posterior"},
        {
            "seeds": text("seeds"),
            "information [nats]": number("information"),
            "rank error": number("rank_error", 3),
            "CPU seconds": number("cpu_seconds", 0),
        },
        prepare=_part("posterior"),
    ),
    "models-likelihood": Table(
        "generative-models_summary",
        {"task": "task", "model": "likelihood"},
        {
            "seeds": text("seeds"),
            "log-density less the true one [nats]": number("log_density", 1),
            "C2ST": number("c2st", 3),
            "CPU seconds": number("cpu_seconds", 0),
        },
        prepare=_part("likelihood"),
    ),
    "lambda-map": Table(
        "lambda-map_summary",
        {"task": "task", "strength": "λ"},
        {
            "share of the best": number("share", 3),
            "largest drop [nats]": number("drop"),
            "log-likelihood": number("log_likelihood"),
            "true": number("true"),
            "L-C2ST": number("lc2st", 4),
            "its p": number("lc2st_p"),
        },
    ),
    "pretraining": Table(
        "pretraining_summary",
        {"posterior": "posterior learns by", "pretrained": "pretrained"},
        {
            "seeds": text("seeds"),
            "smaller mode": number("smaller_mode"),
            "worst of 20 data": number("smallest_mode"),
            "C2ST": number("c2st", 3),
            "C2ST, corrected": number("corrected", 3),
            "bound [nats]": number("bound"),
            "log-likelihood": number("log_likelihood"),
        },
    ),
    "unnormalized": Table(
        "unnormalized_summary",
        {"task": "task", "model": "network", "loss": "loss"},
        {
            "share of the best": number("share", 3),
            "exact": number("exact"),
            "reported": number("reported"),
            "log normalizer": number("log_normalizer"),
            "its drift": number("drift"),
            "distance": number("distance"),
            "as it is": number("distance_as_is"),
            "L-C2ST": number("lc2st", 3),
        },
    ),
}
