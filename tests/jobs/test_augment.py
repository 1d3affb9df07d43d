"""Augmentation, on digits under transforms that help and hurt."""

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import diva_ray
from diva_ray.data.transforms import TRANSFORMS
from diva_ray.errors import InputError
from tests.pages import Page

INLINE = {"kind": "inline", "threads": 1}


def copies(n=240, transforms=("identity", "hflip", "vflip", "tilt"), seed=0):
    from sklearn.datasets import load_digits

    pixels, label = load_digits(return_X_y=True)
    return diva_ray.augmented(
        [np.uint8(row.reshape(8, 8) * 15) for row in pixels[:n]], label[:n], transforms, seed=seed
    )


def run(table, **options):
    named = {"source": "transform", "group": "original", "cluster": INLINE, "quiet": True}
    return diva_ray.augment(table, **{**named, **options})


def test_flips_of_digits_get_less_weight_than_the_identity_and_probabilities_add_up():
    result = run(copies())
    found = result.summary["augmentations"]
    assert result.summary["accepted"]
    assert found["vflip"]["probability"] < found["identity"]["probability"]
    assert found["hflip"]["probability"] < found["identity"]["probability"]
    assert found["hflip"]["z"] > 2 > -2 > found["tilt"]["z"]
    for kind in ("probability", "probability_paper"):
        assert sum(row[kind] for row in found.values()) == pytest.approx(1)
    assert result.folder.read_json("augmentations.json") == found
    page, s = Page(result.folder.read("report.html").decode()), result.summary
    assert s["chosen"].startswith("transforms moved by") and "sources" not in page.text
    assert "Transforms moved by" in page.text and "z = derivative / standard error" in page.text
    told = "at the weights as given, before any step"
    assert told in result.told[1] and told in s["rule"] and told in page.text.lower()
    assert not page.all("aside") if "No leak" in page.text else "copies leak" in page.text, "a warning warns"
    if s["ridge"] != s["ridge_uniform"]:
        assert "taken on outer folds)" in page.text and "(chosen by leave-one-out)" not in page.text


@pytest.mark.ray
@pytest.mark.long  # `test_curate` has groups on workers, `test_nodes` weight steps
def test_workers_find_what_this_process_finds(ray_cluster):
    table, options = copies(120), {"folds": 2, "steps": 1}
    found = run(table, cluster={"kind": "ray", "workers": 2}, **options).summary
    assert found["augmentations"] == run(table, **options).summary["augmentations"]


def test_where_no_copy_leaks_nothing_warns():
    generator = np.random.default_rng(0)
    X, label = generator.standard_normal((400, 8)), np.arange(200).repeat(2) % 2
    X[:, 0] += 2 * label
    table = {"features": X, "label": label, "transform": ["identity", "noise"] * 200, "original": np.arange(400) // 2}
    page = Page(run(table, steps=1, folds=2).folder.read("report.html").decode())
    assert "No leak shows here" in page.text and not page.all("aside")


def test_a_validation_table_validates_and_the_page_says_so():
    table = copies(200, ("identity", "vflip"))
    rows = np.asarray(table["transform"]) == "identity"
    apart = np.flatnonzero(rows)[100:]
    validation = {
        "features": np.stack(table["features"].to_numpy()[apart]),
        "label": table["label"].to_numpy()[apart],
        "original": apart,
    }
    result = run(table.slice(0, 200), validation=validation, steps=1, folds=2)
    page, s = Page(result.folder.read("report.html").decode()), result.summary
    assert s["validation"] == "separate table" and "loss on the validation table" in s["rule"]
    assert "rows of the validation table that took no part" in page.text
    assert "A table of its own validates" in page.text and "left-out loss" not in page.text + s["rule"]


def test_leaving_copies_in_is_no_validation():
    table = copies(300, ("identity", "blur"))
    summary = run(table, steps=1).summary
    assert summary["error_leave_one_out"] < summary["error_leave_group_out"], "a blurred twin gives the answer away"
    assert "leak" in run(table, steps=1).folder.read("report.html").decode()


def test_rows_that_lie_scattered_give_the_same_answer():
    table = copies(80, ("identity", "hflip", "tilt"))
    order = np.random.default_rng(0).permutation(table.num_rows)
    one, other = (run(rows, ridge=0.5, steps=1, folds=2).summary for rows in (table, table.take(order)))
    for name, row in one["augmentations"].items():
        assert other["augmentations"][name]["derivative"] == pytest.approx(row["derivative"], rel=1e-4)


def test_copies_do_not_depend_on_order_or_batches_and_every_transform_runs():
    pixels = np.random.default_rng(0).integers(0, 255, (5, 12, 12, 3)).astype(np.uint8)
    names = tuple(TRANSFORMS)
    one = diva_ray.augmented(list(pixels), range(5), names, seed=3)
    other = diva_ray.augmented([Image.fromarray(p) for p in pixels], range(5), names, seed=3, batch=2)
    assert one.equals(other)
    assert one["transform"].to_pylist()[: len(names)] == list(names)
    assert one["original"].to_pylist() == [k for k in range(5) for _ in names]
    encoded = diva_ray.augmented(list(pixels), range(5), names, lambda batch: np.ones((len(batch), 7)))
    assert encoded.schema.field("features").type.list_size == 7


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"pictures": [np.zeros((8, 8), np.uint8), np.zeros((9, 8), np.uint8)]}, "8 x 9 L at picture 1, 8 x 8 L at"),
        ({"pictures": [np.zeros((8, 6), np.uint8)] * 2, "transforms": ("identity", "rotate90")}, "square where they"),
        ({"pictures": [np.zeros((8, 8), np.uint8), b"no picture"]}, "every picture must open, got .* at picture 1"),
        ({"labels": [1, "one"]}, "labels must be of one kind"),
        ({"labels": [object(), object()]}, "labels must be of one kind"),
        ({"seed": -1}, "seed: must be a whole number of at least 0, got -1"),
        ({"batch": 0}, "batch: must be a whole number of at least 1, got 0"),
        ({"encoder": "edges"}, r"encoder: must be a function from a list of pictures .*, got 'edges'"),
        ({"encoder": lambda batch: np.ones(3)}, r"encoder: must return a row of numbers for each of 4 pictures"),
        ({"encoder": lambda batch: [["a"]] * len(batch)}, "encoder: must return a row of numbers"),
        ({"encoder": lambda batch: np.full((len(batch), 2), np.nan)}, "finite numbers, got others in 4 of 4 rows"),
        (
            {"encoder": lambda batch: np.ones((len(batch), batch[0].getpixel((0, 0)))), "batch": 1},
            "a row of 3 numbers for each of 2",
        ),
    ],
)
def test_copies_that_cannot_be_made_end_in_one_line(given, told):
    whole = {
        "pictures": [np.full((8, 8), k, np.uint8) for k in (3, 4)],
        "labels": [0, 1],
        "transforms": ("identity", "hflip"),
    }
    with pytest.raises(InputError, match=told):
        diva_ray.augmented(**(whole | given))


def test_a_transform_without_an_identity_and_other_mistakes_end_in_one_line():
    table = copies(100)
    with pytest.raises(InputError, match=r"identity: some row's transform must be `none`, got hflip, identity"):
        run(table, identity="none")
    unheard = table.append_column("v", pa.array((np.asarray(table["transform"]) != "identity").astype(float)))
    with pytest.raises(InputError, match="data.validation_weight: some validation weight must be > 0, got all zero"):
        run(unheard, validation_weight="v")
    bare = table.filter(~np.isin(np.arange(table.num_rows), [4]))  # original 1 loses its identity
    with pytest.raises(InputError, match=r"data.group: every original must be there under `identity`, got 1 without"):
        run(bare)
    alone = table.filter(np.asarray(table["transform"]) == "identity")
    with pytest.raises(InputError, match=r"data.source: at least two transforms must be there .*, got 1 \(identity\)"):
        run(alone)
    unnamed = [None if name == "tilt" else name for name in table["transform"].to_pylist()]
    at = table.schema.get_field_index("transform")
    with pytest.raises(InputError, match="data.source: every row must name its transform, got null in column `transf"):
        run(table.set_column(at, "transform", pa.array(unnamed)))
    with pytest.raises(InputError, match="data.source: must name the column of transforms, got none"):
        run(table, source=None)
    with pytest.raises(InputError, match="transforms: must be among identity, .* got 'swirl'"):
        copies(10, ("identity", "swirl"))
    with pytest.raises(InputError, match="transforms: `identity` must be among them, got hflip"):
        copies(10, ("hflip",))
