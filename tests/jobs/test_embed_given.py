"""Decoded pictures in every container, several columns of them, and files that a reader would pass by unseen."""

import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image

import diva_ray
from diva_ray.errors import InputError
from tests.data import raw_sets

INLINE = {"kind": "inline", "threads": 1}
PIXELS = np.stack(raw_sets.pictures(6))
FRAMES = {
    "tensor": lambda: {"image": torch.from_numpy(PIXELS)},
    "tensor, channels first": lambda: {"image": torch.from_numpy(PIXELS).permute(0, 3, 1, 2)},
    "frame of arrays": lambda: pd.DataFrame({"image": list(PIXELS)}),
    "frame of pictures": lambda: pd.DataFrame({"image": [Image.fromarray(one) for one in PIXELS]}),
    "table of tensors": lambda: pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(PIXELS)}),
}


def embed(data, **options):
    return diva_ray.embed(data, **{"quiet": True, "cluster": INLINE, **options})


def features(result, name="features"):
    return result.samples.sort_by("id")[name].combine_chunks().to_numpy_ndarray()


@pytest.mark.parametrize("kind", FRAMES)
def test_pixels_are_pictures_in_whatever_they_come(kind):
    np.testing.assert_array_equal(features(embed(FRAMES[kind]())), features(embed({"image": PIXELS})))


def test_a_missing_tensor_is_put_aside_as_a_missing_picture():
    storage = pa.array([None if k == 2 else one.ravel() for k, one in enumerate(PIXELS)], pa.list_(pa.uint8(), 1440))
    holed = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint8(), PIXELS.shape[1:]), storage)
    result = embed(pa.table({"image": holed}), most_failed=0.2)
    assert result.samples["id"].to_pylist() == [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(features(result), features(embed({"image": PIXELS}))[[0, 1, 3, 4, 5]])


@pytest.mark.ray
@pytest.mark.parametrize("size", [None, (20, 24)])
def test_pixels_of_a_ray_dataset_are_pictures_even_beside_their_paths(ray_cluster, tmp_path, size):
    import ray

    for k, one in enumerate(PIXELS):
        Image.fromarray(one[: 20 if size else 20 - k]).save(tmp_path / f"{k}.png")
    dataset = ray.data.read_images(str(tmp_path), size=size, include_paths=True)
    result = embed(dataset, cluster={"kind": "ray", "workers": 1})
    found = result.folder.read_table("features").sort_by("path")
    wanted = embed(str(tmp_path))  # as files
    assert [os.path.basename(path) for path in found["path"].to_pylist()] == wanted.samples["id"].to_pylist()
    np.testing.assert_array_equal(found["features"].combine_chunks().to_numpy_ndarray(), features(wanted))


def test_every_column_of_pictures_is_encoded_where_no_name_tells_which():
    front, back = ([raw_sets.png(one) for one in pixels] for pixels in (PIXELS, PIXELS[:, ::-1]))
    rows = pa.table({"front": front, "back": back, "title": raw_sets.texts(6)})
    result = embed(rows)
    assert len(result.summary["bands"]) == 3
    for name in ("front", "back"):
        alone = features(embed(rows, encoder={"name": "edges", "column": name}))
        np.testing.assert_array_equal(features(result, name), alone)
    with pytest.raises(InputError, match=r"a column of pictures .* must be named for edges, got columns front"):
        embed(rows, encoder="edges")


def test_links_to_nothing_are_put_aside_not_passed_by(tmp_path):
    raw_sets.write_folder(tmp_path)
    (tmp_path / "later" / "deep").mkdir(parents=True)
    for name in ("later/a.png", "later/deep/b.png", "top.png"):
        os.symlink(tmp_path / "store" / "none.png", tmp_path / name)
    result = embed(tmp_path, most_failed=0.5)
    assert result.summary["n_samples"] == raw_sets.N and result.summary["n_failed"] == 3
    refused = {row["id"]: row["reason"] for row in result.folder.read_table("quarantine").to_pylist()}
    assert set(refused) == {"later/a.png", "later/deep/b.png", "top.png"}
    assert set(refused.values()) == {f"no file at {tmp_path}/store/none.png, to which it links"}
    with pytest.raises(InputError, match=r"no file at .*, to which it links"):
        embed(tmp_path)


def test_pictures_beside_a_table_that_names_few_of_them_are_told(tmp_path, caplog):
    (tmp_path / "pictures").mkdir()
    raw_sets.write_folder(tmp_path / "pictures")
    names = sorted(str(one.relative_to(tmp_path)) for one in tmp_path.rglob("[!.]*.png"))
    (tmp_path / "rows.csv").write_text("file_name,text\n" + f"{names[0]},words\n")
    assert embed(tmp_path).summary["n_samples"] == 1
    told = f"{raw_sets.N} picture(s) lie beside it, which data.kind=folder reads"
    assert told in caplog.text
    caplog.clear()
    (tmp_path / "rows.csv").write_text("file_name,text\n" + "".join(f"{name},words\n" for name in names))
    assert embed(tmp_path).summary["n_samples"] == raw_sets.N and "beside" not in caplog.text
    (tmp_path / "rows.csv").write_text("file_name,text\n")
    with pytest.raises(InputError, match=r"must have rows, .*beside it, which data.kind=folder reads\.$"):
        embed(tmp_path)


@pytest.mark.parametrize("inside", ["", "/features"])
def test_features_of_which_a_file_is_gone_are_not_taken_for_all(tmp_path, inside):
    embed({"image": PIXELS, "label": np.arange(6) % 2}, output=str(tmp_path / "out"), unit_rows=2)
    options = {"quiet": True, "cluster": INLINE}
    assert diva_ray.score(f"{tmp_path}/out{inside}", **options).samples.num_rows == 6
    os.remove(tmp_path / "out" / "features" / "part-00001.parquet")
    told = r"data.path: all 3 files of features .* must be there, got none at .*part-00001.parquet\. Run jobs/embed"
    with pytest.raises(InputError, match=told):
        diva_ray.score(f"{tmp_path}/out{inside}", **options)


def test_pictures_of_a_generator_are_copied_as_those_of_a_list():
    given = diva_ray.augmented((one for one in PIXELS[:, :20, :20]), (k for k in range(6)))
    assert given.equals(diva_ray.augmented(list(PIXELS[:, :20, :20]), list(range(6))))
