"""What the README says works as it stands there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import diva_ray

ROOT = Path(__file__).resolve().parent.parent


def test_rows_without_a_label_are_left_out_of_what_embed_wrote(tmp_path):
    pictures = list(np.random.default_rng(0).integers(0, 255, (12, 16, 16, 3), dtype=np.uint8))
    label = [None if k == 3 else "ab"[k % 2] for k in range(12)]
    options = {"encoder": "edges", "quiet": True, "cluster": {"kind": "inline", "threads": 1}}
    diva_ray.embed({"image": pictures, "label": label}, **options, output=str(tmp_path / "embedded"))
    (tmp_path / "embedded/features").rename(tmp_path / "table")  # the folder inside, as the README says
    (command,) = re.findall(
        r"^\.venv/bin/python (-c .*write_dataset.*)$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    subprocess.run([sys.executable, *shlex.split(command)], cwd=tmp_path, check=True)
    assert pq.read_table(tmp_path / "labelled").num_rows == 11


def chosen_rows(folder, **more):
    """Extend a table from a pool mostly of one class, in files; return the ids of the core, and the chosen rows' weight
    by id."""
    draw = np.random.default_rng(0)
    options = {"cluster": {"kind": "inline", "threads": 1}, "quiet": True, "budget": 40}
    for name, start, n in (("core", 0, 60), ("crawl", 1000, 200)):
        (folder / name).mkdir()
        y = draw.integers(0, 3, n) if name == "core" else draw.choice(3, n, p=[0.9, 0.05, 0.05])
        rows = pa.table({"id": start + np.arange(n), "features": list(2 * np.eye(5)[y] + draw.normal(size=(n, 5))),
                         "label": y, "of the core" if name == "core" else "of the pool": np.ones(n)})  # fmt: skip
        for k in range(2):
            pq.write_table(rows.slice(k * n // 2, n // 2), folder / name / f"{k}.parquet")
    result = diva_ray.extend(
        str(folder / "core"), str(folder / "crawl"), output=str(folder / "more"), **options, **more
    )
    weights = dict(zip(*(result.samples[name].to_pylist() for name in ("id", "weight")), strict=True))
    assert len(set(weights.values())) > 1
    return list(range(60)), weights


def recipes():
    """Return the blocks of Python in docs/extend.md."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/extend.md").read_text(), re.MULTILINE | re.DOTALL)


def test_core_and_chosen_rows_become_one_table_as_the_documentation_says(tmp_path, monkeypatch):
    core, chosen = chosen_rows(tmp_path)
    assert len(chosen) == 40
    monkeypatch.chdir(tmp_path)
    exec(recipes()[0], {})
    both = pq.read_table("both")
    assert sorted(both["id"].to_pylist()) == core + sorted(chosen)
    assert both.column_names == ["id", "features", "label", "weight"]
    assert all(row["weight"] == chosen.get(row["id"], 1.0) for row in both.to_pylist())
    pool = dict(zip(*(pq.read_table("crawl")[name].to_pylist() for name in ("id", "features")), strict=True))
    for row in both.to_pylist():
        assert row["id"] < 1000 or row["features"] == pool[row["id"]]
    again = diva_ray.score("both", cluster={"kind": "inline", "threads": 1}, quiet=True)
    assert again.summary["n_samples"] == 100


def test_rows_without_an_id_are_taken_by_their_place_as_the_documentation_says(tmp_path, monkeypatch):
    chosen_rows(tmp_path, id="none")
    monkeypatch.chdir(tmp_path)
    code, found = re.subn(
        r"^more = .*$",
        'more = pool.take(ids, columns=both).append_column("weight", weights)',
        recipes()[0],
        flags=re.MULTILINE,
    )
    assert found == 1
    exec(code, {})
    selected, both = pq.read_table("more/selected"), pq.read_table("both")
    assert both.num_rows == 100
    expected = [1000 + k for k in selected["id"].to_pylist()]
    assert [one for one in both["id"].to_pylist() if one >= 1000] == expected
    taken = both.filter(pa.compute.greater_equal(both["id"], 1000))
    assert all(taken[name].equals(selected[name]) for name in ("label", "weight"))


@pytest.mark.ray
def test_ray_data_joins_core_and_chosen_rows_as_the_documentation_says(ray_cluster, tmp_path):
    core, chosen = chosen_rows(tmp_path)
    places = {"s3://bucket/core": "core", "s3://bucket/crawl": "crawl", "s3://bucket/more/selected": "more/selected",
              "s3://bucket/both": "both"}  # fmt: skip
    code = re.sub(r'"(s3://[^"]*)"', lambda found: repr(str(tmp_path / places[found[1]])), recipes()[1])
    exec(code, {"__name__": "recipe"})
    both = diva_ray.score(str(tmp_path / "both"), cluster={"kind": "inline", "threads": 1}, quiet=True)
    assert sorted(both.samples["id"].to_pylist()) == core + sorted(chosen)
    rows = pq.read_table(tmp_path / "both").to_pylist()
    assert all(row["weight"] == chosen.get(row["id"], 1.0) for row in rows)
