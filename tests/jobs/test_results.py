"""The result of one call goes into another: as the run that it names, or as the table that its rows are."""

import json
import shutil

import numpy as np
import pytest

import diva_ray
from diva_ray.config import ClusterConfig
from diva_ray.errors import InputError
from tests.data import raw_sets
from tests.data.tables import INLINE

generator = np.random.default_rng(5)
X = generator.standard_normal((120, 6)).astype(np.float32)
TABLE = {"features": X, "label": (X[:, 0] + 0.5 * generator.standard_normal(120) > 0).astype(int)}


def call(verb, data, *more, **options):
    return verb(data, *more, **{"quiet": True, "cluster": INLINE, **options})


def test_a_result_is_the_run_that_an_option_names():
    first = call(diva_ray.score, TABLE)
    again = call(diva_ray.score, TABLE, update=first)
    assert again.summary["update"]["rows_unchanged"] == 120 and again.summary["update"]["run"] == first.path
    bands = {"a": X[:, :3], "b": X[:, 3:], "label": TABLE["label"]}
    found = call(diva_ray.aggregate, bands, features=["a", "b"], starts=1, evaluations=3)
    shared = [
        call(diva_ray.score, bands, features=["a", "b"], ridge=1.0, shares=shares)
        for shares in (found, found.path, f"{found.path}/bands.json")
    ]
    plain = call(diva_ray.score, bands, features=["a", "b"], ridge=1.0)
    assert len({one.summary["loss"] for one in shared}) == 1 != len({plain.summary["loss"], shared[0].summary["loss"]})
    with pytest.raises(InputError, match="shares: must be an aggregate run's folder or its bands.json, got"):
        call(diva_ray.score, bands, features=["a", "b"], shares=plain)


def test_a_result_is_the_table_of_its_rows(tmp_path):
    pictures = [generator.integers(0, 255, (16, 16), dtype=np.uint8) for _ in range(40)]
    features = call(diva_ray.embed, {"image": pictures, "label": [0, 1] * 20}, output=str(tmp_path / "features"))
    found = call(diva_ray.score, features, validation=features, ridge=1.0)
    by_path = call(diva_ray.score, f"{features.path}/features", validation=f"{features.path}/features", ridge=1.0)
    assert found.samples.equals(by_path.samples) and found.summary["n_validation"] == 40
    cleaned = call(diva_ray.curate, TABLE, "weight")
    assert call(diva_ray.score, cleaned).summary["n_samples"] == 120, "all columns of the table, not those of samples/"
    more = call(diva_ray.extend, features, features, id="none", budget=3, rounds=1)
    assert more.summary["n_selected"] <= 3


def test_the_folder_of_an_embed_run_is_its_features(tmp_path):
    pictures = [raw_sets.png(picture) for picture in raw_sets.pictures(40)]
    data = {"image": [*pictures, b"no picture"], "label": [0, 1] * 20 + [0]}
    features = call(diva_ray.embed, data, output=str(tmp_path / "features"), most_failed=1.0)
    assert features.summary["n_failed"] == 1, "there is a quarantine"
    wanted = call(diva_ray.score, f"{features.path}/features", ridge=1.0)
    for path in (features.path, f"{features.path}/", f"file://{features.path}"):
        assert call(diva_ray.score, path, ridge=1.0).samples.equals(wanted.samples)
    for told in ("{", json.dumps({"start": ""}), "[]"):
        other = tmp_path / "other"
        shutil.copytree(f"{features.path}/features", other, dirs_exist_ok=True)
        (other / "manifest.json").write_text(told)
        assert call(diva_ray.score, other, ridge=1.0).samples.equals(wanted.samples), "a manifest of somebody else's"


def test_what_is_no_run_is_refused_by_its_option():
    with pytest.raises(InputError, match=r"^update: must be str or None, got .* \(ClusterConfig\)\. Change `update`"):
        call(diva_ray.score, TABLE, update=ClusterConfig())
