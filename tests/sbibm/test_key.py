"""Keys of trainings: the same only where a training would be the same."""

import collections
import functools
import importlib
import logging
import math
import operator
import random
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import weakref
from pathlib import Path
from types import MappingProxyType

import joblib
import numpy as np
import pytest
import torch
from torch.distributions import (
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    Uniform,
)
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
)

from sbi_boed_plugin import _versions
from sbi_boed_plugin._versions import code_digest
from sbi_boed_plugin.sbibm import TASKS, _fingerprint, _key, get_task
from sbi_boed_plugin.sbibm.settings import PosteriorSettings

X_O = torch.zeros(1, 2)


def key(task, method="npe", x_o=X_O, **hyper):
    settings = PosteriorSettings(seed=0, **hyper)
    return _key.training_key(method, settings, task, 100, x_o)


class MyTask:
    """A task of a user's, who gives it whatever it needs."""

    def __init__(self, **held):
        self.__dict__.update(held)


def scaled(scale):
    def simulate(theta):
        return scale * theta

    return simulate


def mixture(weight):
    weights = torch.distributions.Categorical(torch.tensor([weight, 1.0 - weight]))
    return MixtureSameFamily(weights, Normal(torch.zeros(2), torch.ones(2)))


def transformed(scale):
    base = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
    return TransformedDistribution(base, [AffineTransform(0.0, scale), ExpTransform()])


class Box:
    def __init__(self, size):
        self.size = size
        self.parts = [self]  # refers to itself.

    def grow(self):
        return self.size


@pytest.mark.parametrize(
    "make",
    [
        lambda value: value,
        lambda value: {"inside": [1, (value,)]},
        lambda value: torch.tensor(value),
        lambda value: Uniform(0.0, torch.tensor(value)),
        lambda value: Independent(Normal(torch.zeros(2), torch.tensor(value)), 1),
        lambda value: MultivariateNormal(torch.zeros(2), value * torch.eye(2)),
        lambda value: transformed(value),
        lambda value: mixture(value / 10.0),
        lambda value: scaled(value),
        lambda value: lambda theta, scale=value: scale * theta,
        lambda value: Box(value),
        lambda value: Box(value).grow,
    ],
)
def test_what_a_task_holds_tells_it_apart(make):
    assert key(MyTask(held=make(2.0))) == key(MyTask(held=make(2.0)))
    assert key(MyTask(held=make(2.0))) != key(MyTask(held=make(3.0)))


def test_functions_and_classes_are_told_apart_by_their_code():
    one, other = (lambda theta: theta + 1), (lambda theta: theta * 1)
    assert key(MyTask(held=one)) != key(MyTask(held=other))
    assert key(MyTask(held=Normal)) != key(MyTask(held=Uniform))


def run_source(code):
    """Run code that is in no file, as in a session, and return what it defines."""
    defined = {"__name__": "session"}
    exec(textwrap.dedent(code), defined)
    return defined


@pytest.mark.parametrize(
    "code",
    [
        "held = lambda theta: VALUE * theta",
        "NOISE = VALUE\nheld = lambda theta: NOISE * theta",
        """
        def held(theta):
            def inner():
                return VALUE * theta
            return inner()
        """,
        """
        class Simulator:
            def __call__(self, theta):
                return VALUE * theta
        held = Simulator()
        """,
    ],
)
def test_code_without_a_file_is_told_apart(code):
    def make(value):
        return MyTask(held=run_source(code.replace("VALUE", value))["held"])

    assert key(make("2.0")) == key(make("2.0"))
    assert key(make("2.0")) != key(make("3.0"))


def test_unusual_objects_have_keys():
    def unfinished():
        return later

    assert unfinished.__closure__[0] is not None  # Its cell is empty now.
    first = key(MyTask(held=unfinished))
    later = 1.0
    assert key(MyTask(held=unfinished)) != first

    class Plain(torch.distributions.Distribution):
        """A prior without `arg_constraints`, as users write them."""

        def __init__(self, scale):
            super().__init__(validate_args=False)
            self.scale = scale

    assert key(MyTask(held=Plain(1.0))) != key(MyTask(held=Plain(2.0)))


class Slotted:
    __slots__ = ("__private", "size")

    def __init__(self, size):
        self.size = 1.0
        self.__private = size


class Counts(dict):
    """A dictionary of a type of its own."""


def drawn(seed):
    return random.Random(int(seed))


@pytest.mark.parametrize(
    "make",
    [
        lambda value: functools.partial(scaled, value),
        lambda value: functools.partial(scaled, scale=value),
        lambda value: functools.partial(functools.partial(scaled, value)),
        lambda value: Slotted(value),
        lambda value: collections.deque([torch.tensor(value)]),
        lambda value: Counts(scale=value),
        lambda value: {"a", "b", str(value)},
        lambda value: drawn(value),
        lambda value: np.random.RandomState(int(value)),
        lambda value: np.random.RandomState(int(value)).normal,
        lambda value: operator.itemgetter(int(value)),
        lambda value: torch.nn.Linear(2, 2).requires_grad_(False).weight.fill_(value),
        lambda value: torch.Generator().manual_seed(int(value)),
        lambda value: range(int(value)),
    ],
)
def test_state_beyond_attributes_tells_apart(make):
    assert key(MyTask(held=make(2.0))) == key(MyTask(held=make(2.0)))
    assert key(MyTask(held=make(2.0))) != key(MyTask(held=make(3.0)))


@pytest.mark.parametrize("make", [lambda: (i for i in ()), threading.local])
def test_what_cannot_be_compared_is_trained_again(make):
    one, other = make(), make()
    assert key(MyTask(held=one)) != key(MyTask(held=other))
    # ... but once: the observations of a task share what was trained for it.
    assert key(MyTask(held=one)) == key(MyTask(held=one))


@pytest.mark.parametrize("cache_size", [0, 1])
def test_what_transforms_remember_makes_no_difference(cache_size):
    def make(scale):
        transform = AffineTransform(0.0, scale, cache_size=cache_size)
        return ComposeTransform([transform, ExpTransform()], cache_size=cache_size)

    used = make(2.0)
    before = key(MyTask(held=used))
    inverse = used.inv
    assert inverse(used(torch.ones(2))).allclose(torch.ones(2))
    assert key(MyTask(held=used)) == before
    assert key(MyTask(held=inverse)) != before
    assert key(MyTask(held=inverse)) == key(MyTask(held=make(2.0).inv))
    assert key(MyTask(held=inverse)) != key(MyTask(held=make(3.0).inv))


def test_functions_that_wrap_one_of_a_package_are_told_apart():
    from sbibm.tasks.two_moons.task import TwoMoons

    def noisy(scale):
        @functools.wraps(TwoMoons.get_simulator)
        def get_simulator(self, max_calls=None):
            return TwoMoons.get_simulator(self, max_calls) * scale

        return get_simulator

    wrapper = noisy(1.0)
    assert wrapper.__module__.startswith("sbibm"), "it seems to be of that package"
    assert key(MyTask(held=wrapper)) == key(MyTask(held=noisy(1.0)))
    assert key(MyTask(held=wrapper)) != key(MyTask(held=noisy(2.0)))
    assert key(MyTask(held=wrapper)) != key(MyTask(held=TwoMoons.get_simulator))


def test_functions_of_a_package_are_told_apart_by_what_they_hold():
    def closing(value):
        # As of a package whose functions are known by their names.
        made = {"__name__": "sbibm.made"}
        exec("def outer(v):\n def inner(x): return v * x\n return inner", made)
        return made["outer"](value)

    assert key(MyTask(held=closing(1.0))) == key(MyTask(held=closing(1.0)))
    assert key(MyTask(held=closing(1.0))) != key(MyTask(held=closing(2.0)))


@pytest.mark.parametrize(
    "code",
    [
        "import helper\ndef simulate(theta): return helper.go(theta)",
        "from helper import go\ndef simulate(theta): return go(theta)",
        "import helper as h\nclass Simulate:\n    def __call__(self, theta):\n        "
        "return h.go(theta)\nsimulate = Simulate()",
        "def simulate(theta):\n    from helper import go\n    return go(theta)",
        "def simulate(theta):\n    import helper\n    return helper.go(theta)",
    ],
)
@pytest.mark.parametrize("edited", ["helper", "deeper"])
def test_modules_that_a_task_imports_tell_it_apart(tmp_path, monkeypatch, code, edited):
    sources = {
        "mine": code,
        "helper": "import deeper\ndef go(theta): return deeper.go(theta)",
        "deeper": "import helper\nSCALE = [2.0]\ndef go(theta): return theta",
    }

    def made(folder, **changed):
        folder.mkdir()
        for name, source in {**sources, **changed}.items():
            (folder / f"{name}.py").write_text(source)
            monkeypatch.delitem(sys.modules, name, raising=False)
        with monkeypatch.context() as context:
            context.syspath_prepend(folder)
            return key(MyTask(held=importlib.import_module("mine").simulate))

    first = made(tmp_path / "first")
    assert made(tmp_path / "same") == first
    changed = {edited: sources[edited] + "\nNOISE = 1.0"}
    assert made(tmp_path / "edited", **changed) != first


def test_what_was_computed_on_demand_makes_no_difference():
    prior = MultivariateNormal(torch.zeros(2), precision_matrix=2.0 * torch.eye(2))
    before = key(MyTask(prior_dist=prior))
    assert prior.covariance_matrix.shape == (2, 2)
    assert key(MyTask(prior_dist=prior)) == before


def test_code_counts_as_it_is_loaded(tmp_path, monkeypatch):
    """An edit since is not what trains, and values may have been set since."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "helper", raising=False)
    path = tmp_path / "helper.py"
    path.write_text("SCALE = 1.0\ndef go(theta): return SCALE * theta")
    helper = importlib.import_module("helper")
    simulate = run_source("import helper\ndef held(theta): return helper.go(theta)")
    task = MyTask(held=simulate["held"])
    before = key(task)
    path.write_text("SCALE = 1.0\ndef go(theta): return 30.0 * SCALE * theta")
    assert key(task) == before
    monkeypatch.setattr(helper, "SCALE", 5.0)
    assert key(task) != before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "def held(g, y):\n try:\n  y = g(y)\n  y = g(y)\n except ValueError: y = 0",
            "def held(g, y):\n try: y = g(y)\n except ValueError: y = 0\n"
            " else: y = g(y)",
        ),
        ("def held(x): return x", "def held(*x): return x"),
        ("def held(a, b): return a - b", "def held(b, a): return b - a"),
        (
            "import functools\nclass held:\n"
            " __call__ = functools.lru_cache(lambda self, x: 2 * x)",
            "import functools\nclass held:\n"
            " __call__ = functools.lru_cache(lambda self, x: 3 * x)",
        ),
    ],
)
def test_code_is_told_apart_by_all_that_it_does(one, other):
    keys = [key(MyTask(held=run_source(code)["held"])) for code in (one, one, other)]
    assert keys[0] == keys[1] != keys[2]


def test_attributes_of_priors_are_told_apart_from_those_of_their_class():
    class Plain(torch.distributions.Distribution):
        arg_constraints = {}
        scale = 1.0

        def __init__(self, scale):
            super().__init__(validate_args=False)
            self.scale = scale

    assert key(MyTask(held=Plain(2.0))) != key(MyTask(held=Plain(3.0)))


class Cached:
    @functools.cached_property
    def twice(self):
        return 2


@pytest.mark.parametrize(
    "held",
    [
        np.exp,
        re.compile("a+"),
        MappingProxyType({"a": 1}),
        Cached(),
        logging.getLogger("simulator"),
        threading.Lock(),
        threading.RLock(),
        torch.float32,
        torch.device("cpu"),
        torch.Size([2]),
        slice(1, 2),
        weakref.ref(Cached),
        math.sin,
        torch.relu,
        len,
        TASKS,
    ],
)
def test_usual_values_are_no_secrets(held, monkeypatch):
    """They have keys that other processes have, too."""
    monkeypatch.setattr(_fingerprint, "_unknown", {})
    _fingerprint.fingerprint([held])
    assert not _fingerprint._unknown


def test_installed_packages_are_not_looked_into():
    sklearn = pytest.importorskip("sklearn.preprocessing")

    def simulate(theta):
        return joblib.Parallel(1)(joblib.delayed(abs)(t) for t in theta)

    for held in (sklearn.StandardScaler(), simulate):
        assert len(str(_fingerprint.fingerprint(held))) < 10_000


def test_what_a_function_may_import_is_not_imported_for_its_key(monkeypatch):
    """It may take long, and `antlr4` belongs to a package of another name."""
    for name in [name for name in sys.modules if name.startswith("antlr4")]:
        monkeypatch.delitem(sys.modules, name)
    code = "def held(theta):\n    import antlr4, nowhere\n    return antlr4.run(theta)"
    assert key(MyTask(held=run_source(code)["held"]))
    assert "antlr4" not in sys.modules
    assert "antlr4-python3-runtime" in str(_versions.module_version("antlr4"))


def test_functions_that_several_call_are_looked_at_once():
    layers = "def f0(x): return x\ndef g0(x): return x\n"
    for n in range(1, 16):
        for name in "fg":
            layers += f"def {name}{n}(x): return f{n - 1}(x) + g{n - 1}(x)\n"
    found = _fingerprint.fingerprint(run_source(layers)["f15"])
    # Each of the 32 functions once, and not once per path, of which there are 2**15.
    assert len(str(found)) < 100_000


def test_classes_of_a_name_in_other_modules_are_others():
    """Also where the class itself is the same, and a value that it uses is not."""

    def make(module, noise):
        defined = {"__name__": module}
        code = f"NOISE = {noise}\nclass Mine:\n    def noise(self): return NOISE"
        exec(code, defined)
        return MyTask(held=defined["Mine"]())

    assert key(make("mine", "0.1")) == key(make("mine", "0.1"))
    assert key(make("mine", "0.1")) != key(make("mine", "0.2"))
    assert key(make("mine", "0.1")) != key(make("other", "0.1"))


@pytest.mark.parametrize("name", TASKS)
def test_keys_of_the_tasks_of_sbibm_do_not_depend_on_their_use(name):
    task = get_task(name)
    first = key(task)
    task.get_simulator()(task.get_prior()(num_samples=2))
    assert key(task) == first == key(get_task(name))


def test_keys_are_the_same_in_another_process():
    code = """
        import torch
        from sbi_boed_plugin.sbibm import _key, get_task
        from sbi_boed_plugin.sbibm.settings import PosteriorSettings
        settings = PosteriorSettings(seed=0)
        for name in ("bernoulli_glm", "sir"):
            task = get_task(name)
            print(_key.training_key("npe", settings, task, 100, torch.zeros(1, 2)))
    """
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
    )
    assert run.stdout.split() == [key(get_task("bernoulli_glm")), key(get_task("sir"))]


def test_what_only_later_rounds_depend_on(two_moons):
    other = torch.ones(1, 2)
    assert key(two_moons, x_o=other) == key(two_moons)
    assert key(two_moons, max_sampling_time=5.0) == key(two_moons)
    assert key(two_moons, cache="here") == key(two_moons)
    two = {"num_rounds": 2}
    assert key(two_moons, x_o=other, **two) != key(two_moons, **two)
    assert key(two_moons, max_sampling_time=5.0, **two) != key(two_moons, **two)


def test_other_versions_and_other_code_train_again(two_moons, monkeypatch):
    first = key(two_moons)
    for name in ("python", "sbi", "torch", "zuko", "sbibm", "sbi_boed_plugin"):
        with monkeypatch.context() as context:
            assert _key._VERSIONS[name]
            context.setitem(_key._VERSIONS, name, "9")
            assert key(two_moons) != first
    assert key(two_moons) == first
    monkeypatch.setattr(_key, "_CODE", "another")
    assert key(two_moons) != first


@pytest.mark.parametrize(
    "name", ["trainers/nre_gkl.py", "_rng.py", "design/new.py", "benchmark/metrics.py"]
)
def test_code_is_known_by_what_trains(tmp_path, monkeypatch, name):
    included = ("benchmark/metrics.py",)
    first = code_digest(*included)
    assert code_digest() == _key._CODE != first
    copied = tmp_path / "package"
    shutil.copytree(Path(_versions.__file__).parent, copied)
    monkeypatch.setattr(_versions, "__file__", str(copied / "_versions.py"))
    assert code_digest(*included) == first
    for other in ("cli/command.py", "benchmark/html.py"):
        with (copied / other).open("a") as file:
            file.write("# changed\n")
    assert code_digest(*included) == first, "no result comes through these"
    with (copied / name).open("a") as file:
        file.write("# changed\n")
    assert code_digest(*included) != first
    assert (code_digest() == _key._CODE) is (name == "benchmark/metrics.py")
