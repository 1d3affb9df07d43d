"""ClassLabels of Hugging Face's `datasets`: -1 is no class, in its datasets and in the Parquet files it writes."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import diva_ray
from diva_ray.data.sources import open_data
from diva_ray.data.table import open_parquet
from diva_ray.errors import InputError

from .tables import INLINE, problem, vectors
from .test_sources import Split

X, Y = problem()
FEATURES = {"label": {"_type": "ClassLabel", "names": ["a", "b", "c"]}, "sign": {"_type": "Value", "dtype": "int64"}}
NAMES = {b"huggingface": json.dumps({"info": {"features": FEATURES | {"kind": FEATURES["label"]}}}).encode()}


def rows(labels, X=X, **columns):
    """A table as `datasets` has it and writes it."""
    table = {"id": range(len(X)), "features": vectors(X), "label": pa.array(labels, pa.int64()), **columns}
    return pa.table(table).replace_schema_metadata(NAMES)


UNKNOWN = rows([*Y[:70], -1, *Y[71:]], sign=[-1] * len(X))
TOLD = r"data\.label: column `label` must hold no null, got one at {} \(-1 of a ClassLabel is none\)\. .*README"


@pytest.fixture
def two_files(tmp_path):
    """The rows in two files, of which the first alone knows every label."""
    for name, part in {"a": UNKNOWN.slice(0, 40), "b": UNKNOWN.slice(40)}.items():
        pq.write_table(part, tmp_path / f"{name}.parquet", row_group_size=25)
    return str(tmp_path)


@pytest.mark.parametrize("form", ["dataset", "arrow", "files"])
def test_a_class_label_below_0_is_none(form, two_files):
    """The library has no other word for a row without a label; plain numbers may be below 0."""
    data = {"dataset": Split(UNKNOWN), "arrow": UNKNOWN, "files": two_files}[form]
    read = open_data(data, None, 0.2, 0).reader().read(0, len(X), ["label", "sign"])
    assert read["label"].to_pylist() == [*Y[:70], None, *Y[71:]] and read["sign"].to_pylist() == [-1] * len(X)
    with pytest.raises(InputError, match=TOLD.format("b.parquet row 30" if form == "files" else "row 70")):
        diva_ray.score(data, cluster=INLINE, quiet=True)


@pytest.mark.ray
def test_workers_see_the_same(two_files, ray_cluster):
    with pytest.raises(InputError, match=TOLD.format("b.parquet row 30")):
        diva_ray.score(two_files, cluster={"kind": "ray", "workers": 2}, quiet=True)


def test_tables_beside_the_table_are_read_the_same_way(two_files):
    known = rows(Y)
    for option, call in {
        "validation": lambda: diva_ray.score(known, validation=two_files, cluster=INLINE, quiet=True),
        "pool": lambda: diva_ray.extend(known, two_files, cluster=INLINE, quiet=True),
        "test": lambda: diva_ray.train(known, two_files, cluster=INLINE, quiet=True),
    }.items():
        with pytest.raises(InputError, match=TOLD.format(f"{option}.path b.parquet row 30")):
            call()


def test_a_copy_keeps_what_another_column_holds(tmp_path):
    """A ClassLabel that no option names may lack values: a copy of the table has them as they were."""
    pq.write_table(rows(Y, kind=[-1] * len(X)), tmp_path / "a.parquet")
    copy = diva_ray.curate(str(tmp_path / "a.parquet"), "weight", output=tmp_path / "out", cluster=INLINE, quiet=True)
    assert copy.samples["kind"].to_pylist() == [-1] * len(X)
    read = open_parquet(str(tmp_path / "out/curated"))
    assert read.reader().read(0, len(X), ["kind"])["kind"].null_count == len(X)


@pytest.mark.parametrize(
    ("task", "form"),
    [
        ("score", "dataset"), ("score", "files"), ("reweight", "files"), ("aggregate", "dataset"), ("extend", "files"),
    ],
)  # fmt: skip
def test_pages_show_the_names_beside_the_numbers(task, form, tmp_path):
    """Rows of the output hold the numbers, which is what the table has; people read names."""
    X, Y = problem(600)
    table = rows([*(Y[:150] + 1) % 3, *Y[150:]], X, other=vectors(X[:, :2]))
    bands = {"features": ["features", "other"]} if task == "aggregate" else {}
    pq.write_table(table, tmp_path / "table.parquet")
    data = Split(table) if form == "dataset" else str(tmp_path / "table.parquet")
    more = [rows(Y, X, id=range(1000, 1000 + len(X)))] if task == "extend" else []
    done = getattr(diva_ray, task)(data, *more, **bands, output=str(tmp_path / "out"), cluster=INLINE, quiet=True)
    page = (tmp_path / "out" / "report.html").read_text()
    assert {name for name in ("a (0)", "b (1)", "c (2)") if f">{name}<" in page} >= {"a (0)", "b (1)"}
    label = done.folder.read_table("selected" if task == "extend" else "samples").column("label")
    assert pa.types.is_int64(label.type)
