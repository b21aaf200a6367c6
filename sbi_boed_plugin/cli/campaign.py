"""The command `sbi-boed campaign`: experiments over days, a step per call."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch

from sbi_boed_plugin.campaign import Campaign
from sbi_boed_plugin.cli.command import InputError, integer_from
from sbi_boed_plugin.cli.problems import load_problem
from sbi_boed_plugin.problem import Problem
from sbi_boed_plugin.search.config import METHODS

__all__ = ["add_campaign_options"]

SETTINGS = "campaign.json"
_NEGATIVE = re.compile(r"^-\d*\.?\d+(e[-+]?\d+)?$", re.IGNORECASE)
_DESCRIPTION = """\
A sequence of experiments whose data come by hand. Each call is a step: new makes the
folder of a campaign, propose prints the next design, record takes its data, undo takes
the last step back, and status tells what is known. Calls may be days apart.
"""


def add_campaign_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sbi-boed campaign`."""
    parser.description = _DESCRIPTION
    steps = parser.add_subparsers(title="steps", metavar="STEP", required=True)
    new = steps.add_parser("new", help="make the folder of a campaign")
    new.add_argument("folder", metavar="FOLDER", type=Path)
    text = "module:object of a Problem, or what returns one"
    new.add_argument("problem", metavar="PROBLEM", help=text)
    positive, natural = integer_from(1), integer_from(0)
    for name, kind, default, text in (
        ("seed", natural, 0, "random seed (default: 0)"),
        ("max-num-simulations", positive, None, "simulations of each search"),
        ("num-workers", positive, 1, "processes for slow simulators"),
        ("max-cost", float, None, "cost of all designs together"),
    ):
        new.add_argument(
            f"--{name}", type=kind, metavar="N", default=default, help=text
        )
    text = "method of each search (default: auto)"
    new.add_argument(
        "--method", choices=METHODS, metavar="NAME", default="auto", help=text
    )
    new.set_defaults(run=_new)
    for name, run, text in (
        ("propose", _propose, "print the next design"),
        ("undo", _undo, "take the last data or proposal back"),
        ("status", _status, "tell what is known"),
    ):
        step = steps.add_parser(name, help=text)
        step.add_argument("folder", metavar="FOLDER", type=Path)
        step.add_argument("--quiet", action="store_true", help="no progress")
        step.set_defaults(run=run)
    record = steps.add_parser("record", help="take the data of the proposed design")
    record.add_argument("folder", metavar="FOLDER", type=Path)
    # argparse takes -1e-5 for an option.
    record._negative_number_matcher = _NEGATIVE
    record.add_argument("x", metavar="X", type=float, nargs="+", help="data")
    text = "where they were really measured, if not quite at the proposed design"
    record.add_argument("--design", metavar="D", type=float, nargs="+", help=text)
    text = "take data that nothing known predicts"
    record.add_argument("--accept-surprise", action="store_true", help=text)
    record.set_defaults(run=_record, quiet=True)


def _new(options: argparse.Namespace) -> int:
    path = options.folder / SETTINGS
    if path.exists():
        raise InputError(f"{options.folder} has a campaign already: use another folder")
    _problem(options.problem)
    settings = {
        name: getattr(options, name)
        for name in ("method", "max_num_simulations", "num_workers", "max_cost")
    }
    kept = {"problem": options.problem, "seed": options.seed, "settings": settings}
    options.folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=2) + "\n")
    try:
        with _opened(options.folder, quiet=True) as campaign:
            print(campaign.status())
    except BaseException:
        path.unlink()
        raise
    return 0


def _propose(options: argparse.Namespace) -> int:
    with _opened(options.folder, options.quiet) as campaign:
        try:
            design = campaign.propose()
        except ValueError as error:
            raise InputError(error) from error
        names = _problem(_kept(options.folder)["problem"]).design_names or ()
        for name, value in zip(names, design.tolist(), strict=True):
            print(f"{name}: {value:.6g}")
    return 0


def _record(options: argparse.Namespace) -> int:
    design = None if options.design is None else torch.tensor(options.design)
    with _opened(options.folder, quiet=True) as campaign:
        try:
            campaign.record(
                torch.tensor(options.x),
                design=design,
                accept_surprise=options.accept_surprise,
            )
        except (ValueError, RuntimeError) as error:
            told = str(error).replace("accept_surprise=True", "--accept-surprise")
            raise InputError(told) from error
        print(campaign.status())
    return 0


def _undo(options: argparse.Namespace) -> int:
    with _opened(options.folder, quiet=True) as campaign:
        try:
            campaign.undo()
        except RuntimeError as error:
            raise InputError(error) from error
        print(campaign.status())
    return 0


def _status(options: argparse.Namespace) -> int:
    with _opened(options.folder, quiet=True) as campaign:
        print(campaign.status())
    return 0


def _kept(folder: Path) -> dict[str, Any]:
    """Return what `new` has written."""
    try:
        return json.loads((folder / SETTINGS).read_text())
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} has no campaign: make one with sbi-boed campaign new"
        ) from error


def _problem(name: str) -> Problem:
    try:
        return load_problem(name)
    except (ValueError, TypeError) as error:
        raise InputError(error) from error


def _opened(folder: Path, quiet: bool) -> Campaign:
    """Return the campaign of a folder."""
    kept = _kept(folder)
    problem = _problem(kept["problem"])
    try:
        return Campaign(
            folder,
            problem.make_trainer(show_progress_bars=not quiet),
            problem.simulator,
            seed=kept["seed"],
            **problem.settings,
            **kept["settings"],
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(error) from error
