"""Search spaces and options that cannot be: one line each, before anything is started."""

import pickle
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import diva_ray
from diva_ray.command_line import register
from diva_ray.config import SCHEMAS, TuneConfig
from diva_ray.data.folder import Folder
from diva_ray.errors import InputError
from diva_ray.tasks import aggregate, reweight, score, tune
from diva_ray.tasks.setup.calls import configure
from diva_ray.tasks.setup.options import check_options, chosen_shares
from diva_ray.tasks.setup.saved_config import write_config
from diva_ray.tasks.setup.space import NAMES, parse_space
from diva_ray.tasks.told.tuned import best_options, best_yaml, lost_of, of_winner, target_of
from tests.jobs.mistakes import INLINE, base

ROOT = Path(__file__).resolve().parent.parent.parent
RIDGE = {"loguniform": [0.1, 10.0]}
HUGE = {name: {"choice": list(range(1, 1001))} for name in ("ridge", "eta")}


def refuses(told, space=None, **options):
    table = options.pop("table", base())
    with pytest.raises(InputError, match=told) as caught:
        diva_ray.tune(table, {"ridge": RIDGE} if space is None else space, quiet=True, cluster=INLINE, **options)
    line = str(caught.value)
    assert "\n" not in line and ", got " in line and line.rstrip().endswith("."), line


def test_a_plan_of_one_trial_is_of_one_trial():
    lines = diva_ray.tune(base(), {"ridge": {"choice": [1.0]}}, trials=1, plan=True, quiet=True, cluster=INLINE).lines()
    assert any("1 trial of 5 folds" in line for line in lines)


def test_an_unknown_name_is_told_with_its_place_and_all_that_are_known():
    refuses(f"^space: names must be among {', '.join(NAMES)}, got 'rigde' at space.rigde", {"rigde": RIDGE})


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({}, "^space: must name what varies"),
        ({"ridge": {"normal": [0, 1]}}, r"got normal at space\.ridge\. "),
        ({"ridge": {"choice": [1], "uniform": [1, 2]}}, r"got choice, uniform at space\.ridge"),
        ({"ridge": {"loguniform": [0, 1]}}, r"0 < low < high, got \[0, 1\] at space\.ridge\.loguniform"),
        ({"ridge": {"loguniform": [1]}}, "must be two numbers"),
        ({"ridge": {"choice": []}}, r"must be listed, got \[\] at space\.ridge\.choice"),
        ({"ridge": {"choice": [1.0, -1]}}, r"^ridge: must be auto or a number >= 0, got -1 at space\.ridge\.choice"),
        (
            {"ridge": {"choice": [10**400]}},
            r"^ridge: must be auto or a number >= 0, got 10{400} at space\.ridge\.choice",
        ),
        ({"ridge": {"choice": [1.0, 1.0]}}, r"must differ, got 1\.0 twice at space\.ridge\.choice"),
        ({"ridge": "much"}, r"got 'much' at space\.ridge\. "),
        ({"steps": {"uniform": [1, 3]}}, r"only ridge and eta may be drawn between two numbers, got uniform at"),
        ({"steps": {"choice": [0]}}, "a whole number, 1 to 10, got 0"),
        ({"steps": {"choice": [True]}}, "a whole number, 1 to 10, got True"),
        ({"eta": {"choice": [0]}}, "a number > 0, got 0"),
        ({"projection": {"choice": [0.5]}}, "none or a whole number >= 1, got 0.5"),
        ({"intercept": {"choice": ["yes"]}}, "true or false, got 'yes'"),
        ({"standardize": {"choice": ["z"]}}, "auto or none, got 'z'"),
        ({"rule": {"choice": ["none", "safe"]}}, "must be none, shrink, paper, .*, got 'safe' at space.rule.choice"),
        ({"loss": {"choice": ["huber"]}}, r"^loss: must fit classification \(.*\), got huber"),
        ({"bands": {"choice": [["features"], ["image"]]}}, r"among features \(`data.features`\), got \['image'\]"),
        ({"bands": {"choice": [["features", "features"]]}}, "list of different columns"),
        ({"shares": {"choice": ["some"]}}, "none, auto, or a number > 0 for each of features, got 'some'"),
        ({"shares": {"features": 0}}, "a number > 0 for each of features"),
        (
            {"shares": {"choice": [{"features": float("inf")}]}},
            r"a number > 0 for each of features, got \{'features': inf",
        ),
        ({"loss": {"choice": ["os:system"]}}, "^loss: code may run only with trust_code=true"),
    ],
)
def test_values_that_their_name_cannot_take(space, told):
    refuses(told, space)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"search": "bayes"}, "^search: must be random, grid, optuna, got bayes"),
        ({"search": "grid"}, r"a grid must have choices only, got loguniform at space\.ridge"),
        ({"search": "grid", "space": HUGE}, r"^space: a grid must have at most 100,000 combinations, got 1,000,000"),
        ({"scheduler": "median"}, "^scheduler: must be none or asha, got median"),
        ({"trials": 0}, "^trials: must be 1 to 100000, got 0"),
        ({"folds": 1}, "^folds: must be 2 to 50, got 1"),
        ({"reduction": 1}, "^reduction: must be 2 to 50"),
        ({"rule": "safe"}, "^rule: must be none, shrink"),
        ({"steps": 11}, "^steps: must be a whole number, 1 to 10, got 11 at steps"),
        ({"projection": 0}, "^projection: must be at least 1, got 0"),
        ({"space_": 1}, "^tune: options must be columns or fields of TuneConfig, got 'space_'"),
        ({"test": {"features": np.ones((5, 4))}}, "test.path: the table must have the same columns, got no `label`"),
        ({"test": base(label=np.arange(60) % 4)}, "labels must be among the table's 3 classes, got 1 new"),
    ],
)
def test_options_that_cannot_be(options, told):
    refuses(told, **options)


def test_a_rule_of_classes_needs_classes():
    told = "^rule: weigh_uncertain must have one class a row to be unsure of, got task=regression. Change `space.rule`"
    for space, more in (({"rule": {"choice": ["none", "weigh_uncertain"]}}, {}), (None, {"rule": "weigh_uncertain"})):
        refuses(told, space, task="regression", **more)


@pytest.mark.parametrize("call", ["tune", "aggregate"])
def test_folds_that_hear_nothing_are_refused_before_any_trial_and_leave_nothing_in_the_way(call, tmp_path):
    trusted = np.zeros(60)
    trusted[:2] = 1
    table, output = base(v=trusted, more=base()["features"] ** 2), tmp_path / "run"
    options = {"validation_weight": "v", "output": str(output), "quiet": True, "cluster": INLINE}
    given = ({"ridge": RIDGE},) if call == "tune" else ()
    options |= {} if call == "tune" else {"features": ["features", "more"], "weights": "joint"}
    with pytest.raises(InputError, match=r"folds: (every|most) outer folds? must have rows that validate"):
        getattr(diva_ray, call)(table, *given, **options)
    assert not output.exists(), "the same command with fewer folds may take the folder"


def ray_rows():
    import pyarrow as pa
    import ray

    return ray.data.from_arrow(pa.table({"features": list(base()["features"]), "label": base()["label"]}))


@pytest.mark.ray
@pytest.mark.parametrize("call", ["tune", "train", "train auto"])
def test_new_classes_of_a_test_table_are_told_where_a_ray_dataset_is_the_table(ray_cluster, call):
    test = base(label=np.arange(60) % 3 + 1)
    given = ({"ridge": RIDGE},) if call == "tune" else ()
    options = {} if call == "tune" else {"weights": "auto" if call == "train auto" else None}
    with pytest.raises(
        InputError, match=r"^test\.path: labels must be among the table's 3 classes, got 1 new .* as 3 "
    ):
        getattr(diva_ray, call.split()[0])(ray_rows(), *given, test=test, quiet=True, cluster=INLINE, **options)


@pytest.mark.ray
def test_a_loss_of_the_space_that_does_not_fit_is_told_where_a_ray_dataset_is_the_table(ray_cluster):
    refuses(r"^loss: must fit classification \(.*\), got cosine", {"loss": {"choice": ["cosine"]}}, table=ray_rows())


def test_a_module_takes_features_as_they_are():
    with pytest.raises(InputError, match="projection: must be none for a module"):
        diva_ray.train(base(), base(), projection=2, weights=None, cluster=INLINE, quiet=True)


SPACES = [f"space={path.stem}" for path in (ROOT / "configs" / "space").glob("*.yaml") if path.stem != "none"]
EXPERIMENTS = [f"+experiment={path.stem}" for path in (ROOT / "configs" / "experiment").glob("*.yaml")]


@pytest.mark.parametrize("chosen", [*SPACES, *EXPERIMENTS])
def test_every_space_and_experiment_is_one_that_can_be_searched(chosen):
    register()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = OmegaConf.to_object(compose("tune", overrides=[chosen]))
    space = parse_space(config)
    assert space.size() > 1 or any(one.kind != "choice" for one in space.dimensions.values())
    assert "ridge" in space.dimensions or config.ridge == "auto"
    assert tune.check(config) == space


TARGETS = {
    "score": {"projection": 8},
    "score, dropped": {"rule": "drop_label_issues", "loss": "squared", "intercept": False},
    "reweight": {"rule": "shrink", "steps": 2, "shares": {"image": 0.25, "text": 0.75}},
    "reweight, doubtful": {"rule": "weigh_doubtful"},
    "reweight, uncertain": {"rule": "weigh_uncertain"},
    "reweight, plain": {"rule": "paper", "eta": 0.3, "ridge": 2.0, "bands": ("text",)},
    "aggregate": {"shares": "auto"},
    "aggregate, joint": {"shares": "auto", "rule": "shrink", "steps": 2},
}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, None),
        ({"rule": "paper", "steps": 2}, None),
        ({"shares": "auto", "ridge": 0.01}, "ridge=0.01: jobs/aggregate.py finds the ridge itself"),
        ({"rule": "drop_detrimental"}, "drop the rows of samples/ in which `is_detrimental` is true"),
        ({"rule": "drop_detrimental", "steps": 2}, "and fit again, 2 times (steps=2)"),
        (
            {"rule": "drop_detrimental", "steps": 2},
            "steps: rows that one step dropped, with a weight of 0 in the fit, still",
        ),
        ({"rule": "drop_label_issues"}, "to the rows that are left takes it times their share of all rows"),
        ({"rule": "drop_label_issues", "steps": 2}, "steps=2: curate=drop drops what looks wrong once"),
        ({"rule": "shrink"}, "rule=shrink: method=safe tries other steps too"),
        ({"rule": "weigh_doubtful"}, "rule=weigh_doubtful: method=safe tries other steps too"),
        ({"shares": "auto", "rule": "weigh_uncertain"}, "rule=weigh_uncertain: jobs/aggregate.py takes the steps"),
        ({"shares": "auto", "rule": "paper"}, "rule=paper: jobs/aggregate.py takes the steps of method=safe"),
        ({"shares": "auto", "rule": "drop_label_issues"}, "rule=drop_label_issues: jobs/aggregate.py takes the steps"),
        ({"loss": "callable"}, "loss: a function is given from Python"),
    ],
)
def test_what_the_winners_config_cannot_say_is_said_beside_it(changed, told, tmp_path):
    config = TuneConfig(space={"ridge": RIDGE})
    config.data.features = ["image", "text"]
    choice = replace(parse_space(config).base, **changed)
    session = SimpleNamespace(folder=SimpleNamespace(path=str(tmp_path)), tables=[SimpleNamespace(memory=None)])
    lost, written = lost_of(choice), best_yaml(session, config, choice)
    assert (told is None) == (not lost) == ("not in it" not in written)
    assert told is None or any(told in one and f"# not in it: {one}\n" in written for one in lost)


def test_width_and_loss_of_a_winner_are_its_own():
    config = TuneConfig(space={"ridge": RIDGE})
    config.data.features = ["image", "text"]
    choice = replace(parse_space(config).base, bands=("text",), projection=3, loss="squared")
    session = SimpleNamespace(columns=SimpleNamespace(features=("image", "text")), scan=SimpleNamespace(widths=[8, 5]))
    assert of_winner(session, choice) == {"n_features": 3, "loss_function": "squared"}
    assert of_winner(session, replace(choice, projection=None))["n_features"] == 5


def test_numbers_of_numpy_in_a_space_are_written_as_plain_ones():
    space = {"ridge": {"choice": list(np.logspace(-1, 1, 3))}, "projection": {"choice": np.array([2, 3])}}
    config = TuneConfig(space=space)
    config.data.features = list(np.array(["a", "b"]))
    check_options(config)
    assert yaml.safe_load(yaml.safe_dump(asdict(config))) == asdict(config)
    assert [round(ridge, 9) for ridge in config.space["ridge"]["choice"]] == [0.1, 1.0, 10.0]
    assert parse_space(config).values("projection") == [2, 3]
    shares = {"features": np.float32(2)}
    found = diva_ray.score(base(), shares=shares, ridge=np.float64(1), cluster=INLINE, quiet=True)
    assert found.folder.read_config()["shares"] == {"features": 2.0}


@pytest.mark.parametrize("space", ["small", [1, 2]])
def test_a_space_is_a_mapping(space):
    refuses("space: must be a mapping of names to values, got", space)


@pytest.mark.parametrize("name", TARGETS)
def test_the_winners_config_is_one_of_its_job(name, tmp_path):
    config = TuneConfig(space={"ridge": RIDGE}, seed=5)
    config.data.features, config.data.path, config.data.group = ["image", "text"], "table/", "user"
    choice = replace(parse_space(config).base, **TARGETS[name])
    job, _ = target_of(choice)
    assert job == name.split(",")[0]
    session = SimpleNamespace(folder=SimpleNamespace(path=str(tmp_path)), tables=[SimpleNamespace(memory=None)])
    (tmp_path / "best.yaml").write_text(best_yaml(session, config, choice))
    register()
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        found = OmegaConf.to_object(compose("best"))
        place = [f"hydra.searchpath=['file://{ROOT}/configs']", "cluster=local"]  # it can run somewhere else
        assert OmegaConf.to_object(compose("best", overrides=place)).cluster.kind == "local"
    assert type(found) is SCHEMAS[job]
    check_options(found)
    {"score": score.check, "reweight": reweight.check, "aggregate": aggregate.check}[job](found)
    assert found.data.path == str(Path("table/").absolute()) and found.data.group == "user" and found.seed == 5
    assert tuple(found.data.features) == choice.bands
    for option in ("intercept", "standardize", "projection", "loss", "ridge"):
        assert getattr(found, option) == getattr(choice, option)
    if job != "aggregate" and choice.shares != "none":
        assert chosen_shares(found, choice.bands) == [0.25, 0.75]
    same, data, _ = configure(SCHEMAS[job], "table/", best_options(config, choice))
    assert data is None and same.projection == found.projection and same.shares == found.shares


def test_names_of_columns_and_folders_are_as_they_are_in_what_is_written(tmp_path):
    place = tmp_path / "a search's"
    place.mkdir()
    names = ["${oc.env:HOME}", "\\${x} ${", "plain"]
    config = TuneConfig(space={"ridge": RIDGE})
    config.data.features, config.data.path = names, "table/"
    folder = Folder(str(place))
    session = SimpleNamespace(folder=folder, tables=[SimpleNamespace(memory=None)])
    best = best_yaml(session, config, parse_space(config).base)
    (place / "best.yaml").write_text(best)
    assert f"--config-dir={place}" in shlex.split(best.splitlines()[0])
    write_config(folder, config)
    register()
    with initialize_config_dir(str(place), version_base="1.3"):
        for name in ("best", "config"):
            found = OmegaConf.to_object(compose(name))
            assert found.data.features == names and "${" not in found.output
    assert folder.read_config()["data"]["features"] == names


def test_bands_whose_names_have_a_plus_are_not_taken_for_two():
    config = TuneConfig(space={"bands": {"choice": [["a", "b"], ["a+b"]]}})
    config.data.features = ["a", "b", "a+b"]
    space = parse_space(config)
    assert [space.choice(point).bands for point in space.points("grid", 1, 0)] == [("a", "b"), ("a+b",)]


def test_all_subsets_of_bands_are_named_by_a_word():
    config = TuneConfig(space={"bands": {"choice": "subsets"}})
    config.data.features = ["a", "b", "c"]
    found = parse_space(config).values("bands")
    assert sorted(found, key=lambda bands: (len(bands), bands)) == [
        ("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c"),
    ]  # fmt: skip
    config.data.features = [f"layer {k}" for k in range(12)]
    with pytest.raises(InputError, match=r"at most 8 bands, got 12 at space\.bands\.choice"):
        parse_space(config)


def test_random_search_of_finitely_many_choices_draws_no_two_that_are_alike():
    rules, steps = ["none", "shrink"], [1, 2, 3]
    config = TuneConfig(space={"ridge": {"choice": [0.1, 1.0]}, "rule": {"choice": rules}, "steps": {"choice": steps}})
    space = parse_space(config)
    assert space.size() == 12
    drawn = space.points("random", 5, 0)
    assert drawn == space.points("random", 5, 0) and drawn != space.points("random", 5, 1)
    assert len({space.choice(point).key() for point in drawn}) == 5
    every = {(p["ridge"], p["rule"], p["steps"] * (p["rule"] != "none")) for p in space.points("random", 100, 0)}
    assert len(every) == len(space.points("random", 100, 0)) == 8  # without a rule the steps change nothing
    assert [tuple(point.values()) for point in space.points("grid", 1, 0)] == [
        (ridge, rule, step) for ridge in ("0.1", "1.0") for rule in rules for step in ("1", "2", "3")
        if rule != "none" or step == "1"
    ]  # fmt: skip


def test_numbers_between_two_ends_are_drawn_and_make_no_two_trials_where_nothing_reads_them():
    config = TuneConfig(space={"rule": {"choice": ["none", "shrink", "paper"]}, "eta": {"loguniform": [0.001, 10]}})
    space = parse_space(config)
    drawn = space.points("random", 40, 0)
    assert drawn == space.points("random", 40, 0) and drawn != space.points("random", 40, 1)
    assert sorted(point["rule"] for point in drawn) == ["none"] + 38 * ["paper"] + ["shrink"]
    eta = np.array([point["eta"] for point in drawn if point["rule"] == "paper"])
    assert (eta > 0.001).all() and (eta < 10).all() and 10 < (eta < 0.1).sum() < 28
    config.space = {"rule": {"choice": ["none", "shrink"]}, "eta": {"uniform": [0.1, 0.2]}}
    assert len(parse_space(config).points("random", 40, 0)) == 2
    assert parse_space(config).points("optuna", 40, 0) is None


def test_what_trials_run_is_light_and_needs_no_torch():
    """A trial's process imports what its function's module imports: no torch, which takes seconds and memory."""
    import subprocess
    import sys

    code = "import sys, diva_ray.engine.tuner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    from diva_ray.engine import tuner

    assert len(pickle.dumps(tuner.trial)) < 200
