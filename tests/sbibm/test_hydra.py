"""The runner of sbibm finds our methods by name, calls them, and takes their answers.

The runner is no package. What it relies on is written down here: it composes a
configuration with hydra, looks the function up in `sbibm.algorithms`, calls it, and
checks the type and shape of what it gets.
"""

import importlib
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from sbi_boed_plugin.sbibm import check_hyper

pytest.importorskip("sbibm")

NAMES = ("nle_ince", "npe_gkl", "nre_gkl")
FAST = ["+algorithm.params.max_num_epochs=2", "algorithm.params.hidden_features=8"]
CHAINS = "+algorithm.params.mcmc_parameters={num_chains: 5, warmup_steps: 2, thin: 1}"


@pytest.fixture
def application(tmp_path):
    """The configuration folder of an application that knows nothing of us."""
    for folder in ("algorithm", "task"):
        (tmp_path / folder).mkdir()
    (tmp_path / "config.yaml").write_text(
        "defaults:\n  - algorithm: prior\n  - task: two_moons\n  - _self_\n"
        "device: ${algorithm.device}\nseed: null\n"
    )
    (tmp_path / "algorithm" / "prior.yaml").write_text(
        "name: Prior\nrun: pytorch.baseline_prior.run\ndevice: cpu\n"
    )
    (tmp_path / "task" / "two_moons.yaml").write_text(
        "name: two_moons\nnum_simulations: 60\nnum_observation: 1\n"
    )
    GlobalHydra.instance().clear()
    yield tmp_path
    GlobalHydra.instance().clear()


def configure(folder, *overrides):
    with initialize_config_dir(str(folder), version_base="1.3"):
        return compose("config", overrides=list(overrides))


@pytest.mark.slow
def test_a_process_of_a_launcher_finds_our_methods(application):
    """It gets the search path, and composes the configuration of its job anew."""
    import sbibm  # noqa: F401

    with initialize_config_dir(str(application), version_base="1.3"):
        loader = pickle.dumps(GlobalHydra.instance().config_loader())
    (application / "loader.pkl").write_bytes(loader)
    code = """
        import pickle, sys, sbibm
        from hydra.types import RunMode
        with open(sys.argv[1], "rb") as file:
            loader = pickle.load(file)
        loader.load_configuration("config", ["algorithm=npe_gkl"], RunMode.RUN)
        import sbibm.algorithms
        print(sbibm.algorithms.npe_gkl.__name__)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), application / "loader.pkl"],
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip() == "npe_gkl", run.stderr


@pytest.mark.parametrize("name", NAMES)
def test_the_runner_runs_a_method(application, monkeypatch, name):
    import sbibm  # as the runner does, before it composes.

    overrides = [f"algorithm={name}", *FAST]
    if name != "npe_gkl":
        overrides.append(CHAINS)
    if name != "nre_gkl":
        overrides.append("algorithm.params.neural_net=mdn")
    assert configure(application).algorithm.name == "Prior"
    with monkeypatch.context() as patch:
        # An application without sbibm is left alone.
        patch.delitem(sys.modules, "sbibm")
        with pytest.raises(MissingConfigException, match=name):
            configure(application, f"algorithm={name}")
    cfg = configure(application, *overrides)
    assert cfg.device == "cpu"
    assert OmegaConf.to_container(cfg, resolve=True)["algorithm"]["run"] == name

    torch.manual_seed(0)
    task = sbibm.get_task(cfg.task.name)
    *package, function = cfg.algorithm.run.split(".")
    module = importlib.import_module(".".join(["sbibm", "algorithms", *package]))
    outputs = getattr(module, function)(
        task,
        num_observation=cfg.task.num_observation,
        num_samples=40,
        num_simulations=cfg.task.num_simulations,
        **cfg.algorithm.params,
    )
    assert type(outputs) is tuple
    samples, num_simulations, log_prob = outputs
    assert samples.shape == (40, task.dim_parameters)
    assert float(num_simulations) == 60
    assert log_prob is None or float(log_prob) < 1e3


@pytest.mark.parametrize("name", NAMES)
def test_configurations_say_what_the_defaults_are(application, name):
    import sbibm  # noqa: F401

    config = OmegaConf.to_container(configure(application, f"algorithm={name}"))
    params = config["algorithm"]["params"]
    defaults = check_hyper(name)
    assert params == {key: defaults[key] for key in params}
    assert {"num_rounds", "neural_net", "hidden_features"} <= set(params)
