"""Every key of a config: its wrong values are refused, and something reads it."""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from svda_jax import UserError, main
from svda_jax.config import check, flatten, load, to_json
from svda_jax.run import runs
from svda_jax.run.session import Session
from svda_jax.train import loop as train

ROOT = pathlib.Path(__file__).parent.parent
DIGITS = load(ROOT / "configs/digits.py")
DEFAULTS = flatten(DIGITS)
# Any folder may hold data sets, and a note may say anything.
KEYS = sorted(DEFAULTS.keys() - {"dataset.data_dir", "note"})

WORDS = st.from_regex(r"zz[a-z]{1,9}", fullmatch=True)
NUMBERS = st.one_of(
    WORDS,
    st.integers(max_value=-1).map(str),
    st.floats(max_value=-1e-3, allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["nan", "inf", "-inf"]),
)


def wrong_values(value):
    """Texts for the command line that no key with a default like value can take."""
    if isinstance(value, (bool, str)):
        return WORDS
    if isinstance(value, (int, float)):
        return NUMBERS
    numbers = st.floats(0.1, 1).map(lambda number: f"({number},{number})")  # two
    others = ["(nan,)", "(inf,)", *(["()"] if value else [])]
    return st.one_of(WORDS, numbers, st.sampled_from(others))


@pytest.mark.parametrize("key", KEYS)
@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_wrong_value_ends_in_one_line_that_names_its_key(
    key, data, data_dir, tmp_path, monkeypatch, capsys
):
    value = data.draw(wrong_values(DEFAULTS[key]))
    monkeypatch.chdir(ROOT)

    def compiles(*args, **kwargs):
        raise AssertionError(f"{key}={value} reached training")

    monkeypatch.setattr(train, "create_training", compiles)
    with pytest.raises(SystemExit) as exit_:
        main.main(
            [
                "main",
                "--config=configs/digits.py",
                f"--workdir={tmp_path / 'run'}",
                f"--config.dataset.data_dir={data_dir}",
                f"--config.{key}={value}",
            ]
        )
    code = exit_.value.code  # a text is said at the end, for 1
    said = capsys.readouterr().err if code == 2 else f"{code}\n"
    assert said.startswith("error: ")
    assert key in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def wrong_objects(value):
    """Values for a config file that no key with a default like value can take."""
    of_other_types = {
        bool: [WORDS, st.integers(), st.floats()],
        str: [st.booleans(), st.integers(), st.floats()],
        int: [st.booleans(), WORDS, st.floats(), st.integers(max_value=-1)],
        float: [st.booleans(), WORDS, st.floats(max_value=-1e-3), st.just(np.nan)],
        tuple: [st.booleans(), WORDS, st.floats(), st.lists(WORDS, min_size=1)],
    }
    return st.one_of(st.none(), *of_other_types[type(value)])


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
@pytest.mark.parametrize("kind", ["py", "json"])
def test_a_wrong_value_in_a_file_ends_in_one_line_that_names_its_key(
    kind, data, tmp_path, monkeypatch
):
    key = data.draw(st.sampled_from(KEYS))
    value = data.draw(wrong_objects(DEFAULTS[key]))
    file = tmp_path / f"mine.{kind}"
    if kind == "json":
        values = json.loads(to_json(DIGITS))
        section, _, name = key.rpartition(".")
        (values[section] if section else values)[name] = value
        file.write_text(json.dumps(values))
    else:
        file.write_text(
            "import json\nfrom svda_jax.config import recipe\n\n"
            "def get_config():\n    config = recipe('digits')\n"
            f"    config.{key} = json.loads({json.dumps(value)!r})\n"
            "    return config\n"
        )

    def trains(*args):
        raise AssertionError(f"{key}={value} reached training")

    monkeypatch.setattr(train, "train_and_evaluate", trains)
    with pytest.raises(SystemExit) as exit_:
        main.main(["main", f"--config={file}", f"--workdir={tmp_path / 'run'}"])
    said = str(exit_.value)
    assert said.startswith(f"error: {key}=")
    assert " must " in said
    assert "\n" not in said
    assert not (tmp_path / "run").exists()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(key=st.sampled_from(KEYS), letter=st.sampled_from("qxz"), data=st.data())
def test_a_misspelt_key_is_refused_with_the_right_one(key, letter, data):
    place = data.draw(st.integers(key.rfind(".") + 1, len(key)))
    wrong = key[:place] + letter + key[place:]
    for values in (DEFAULTS | {wrong: 1}, {**DIGITS.to_dict(), wrong: 1}):
        with pytest.raises(UserError, match=f"no key {wrong}; did you mean {key}?"):
            check(values)


@pytest.fixture
def keys_read(monkeypatch):
    """The keys that were read, but for those reads that go through all keys."""
    read = set()
    sections = {}
    alive = []  # so that no other config gets the identity of one that is gone
    real = ConfigDict.__getitem__

    def getitem(self, key):
        value = real(self, key)
        caller = sys._getframe(1)
        if caller.f_code.co_name == "__getattr__":
            caller = caller.f_back
        if caller.f_code.co_filename.startswith(str(ROOT)):
            prefix = sections.get(id(self), "")
            if isinstance(value, ConfigDict):
                sections[id(value)] = f"{prefix}{key}."
                alive.append(value)
            elif caller.f_code.co_name != "flatten":
                read.add(f"{prefix}{key}")
        return value

    monkeypatch.setattr(ConfigDict, "__getitem__", getitem)
    return read


def test_every_key_is_read_by_a_run(keys_read, make_config, tmp_path, monkeypatch):
    """Two runs of two steps, which compile nothing, with all that can be on."""
    create_training = train.create_training

    def create_idle_training(*args, **kwargs):
        init, step = create_training(*args, **kwargs)

        def idle(*args):
            _, report = jax.eval_shape(step, *args)
            return args[0], jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), report)

        return init, idle

    monkeypatch.setattr(train, "create_training", create_idle_training)
    monkeypatch.setattr(train, "compile_step", lambda *args, **kwargs: None)
    monkeypatch.setattr(train, "create_evaluate", lambda *args, **kwargs: None)
    monkeypatch.setattr(Session, "save", lambda *args: None)
    monkeypatch.setattr(train.parallel, "create_mesh", one_device(train.parallel))
    stop = iter([False, True, False, True])
    monkeypatch.setattr(
        train.processes.StopSignal, "reached", lambda self, step: next(stop)
    )
    for streaming in (False, True):
        config = make_config(
            augment__rand_augment=1,
            checkpoint__every_minutes=60.0,
            checkpoint__every_steps=100,
            dataset__streaming=streaming,
        )
        train.train_and_evaluate(config, tmp_path / str(streaming))
    expected = set(flatten(runs.load_config(tmp_path / "True")))
    # The model's keys are the fields of ViTConfig, all of them and no others.
    expected = {key for key in expected if not key.startswith("model.")}
    assert expected - keys_read == set()


def one_device(parallel):
    create_mesh = parallel.create_mesh
    return lambda: create_mesh(jax.devices()[:1])
