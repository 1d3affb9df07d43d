"""Pairs that cannot be: one line each, and what to change."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import diva_ray
from diva_ray.errors import InputError
from tests.tasks.test_pairs import INLINE, made

DATA = made(40, (4, 6))
UIDS = [f"{k:032x}" for k in range(40)]


def lists(x, width=None):
    return pa.array([list(map(float, row)) for row in x], pa.list_(pa.float32(), width) if width else None)


def refuses(told, data=DATA, **options):
    wanted = {"task": "pairs", "features": ["image", "text"], "quiet": True, "cluster": INLINE, "ridge": 0.1}
    with pytest.raises(InputError, match=told) as caught:
        diva_ray.score(data, **{**wanted, **options})
    line = str(caught.value)
    assert "\n" not in line and ", got " in line and line.rstrip().endswith("."), line


@pytest.mark.parametrize(
    "options,told",
    [
        ({"features": "image"}, r"data.features: a pair must have two bands, got 1 \(image\)\. Name two"),
        ({"features": ["image", "text", "extra"]}, r"a pair must have two bands, got 3 \(image, text, extra\)"),
        ({"features": ["image", "image"]}, r"a pair must have two bands, got 1"),
        ({"features": ["image", "words"]}, r"data.features: column `words` must be in the table"),
        ({"loss": "cross_entropy"}, r"loss: must fit pairs \(squared, cosine, module:function\), got cross_entropy"),
        ({"method": "trusted"}, r"method: must be plain for pairs, got trusted"),
        ({"curate": "relabel"}, r"curate: relabel is for classes, got task=pairs"),
        ({"export": "webdataset"}, r"export: must be none or datacomp, got webdataset"),
        ({"export": "datacomp"}, r"data.id: ids must be strings of 32 hexadecimal digits .*, got row positions"),
        ({"export": "datacomp", "id": "group"}, r"data.id: ids must be strings of 32 .*, got int64 in `group`"),
        ({"offset": "extra"}, r"data.offset: pairs must have none, got `extra`"),
        ({"truth": "group"}, r"data.truth: .* must hold true or false, got int64"),
        ({"show": ["nothing"]}, r"data.show: column `nothing` must be in the table"),
        ({"task": "auto"}, r"data.label: column `label` must be in the table, .* or use `task=pairs`"),
    ],
)
def test_options(options, told):
    refuses(told, {**DATA, "extra": DATA["image"]}, **options)


def test_a_missing_side_names_the_row():
    text = [None if k == 17 else list(row) for k, row in enumerate(DATA["text"])]
    table = pa.table({"id": UIDS, "image": lists(DATA["image"]), "text": pa.array(text, pa.list_(pa.float64()))})
    refuses(rf"data.features: every pair must have both sides, got null in `text` at id {UIDS[17]} \(row 17", table)
    empty = pa.array([None] * 40, pa.list_(pa.float64()))
    refuses(r"every pair must have both sides, got null in `image` at row 0", pa.table({"image": empty, "text": text}))


@pytest.mark.parametrize("side", ["image", "text"])
def test_a_side_that_is_the_same_in_every_pair_has_no_ridge_of_its_own(side):
    data = {**DATA, side: np.ones_like(DATA[side])}
    refuses(rf"every band must vary from row to row, got one value in all 40 rows of `{side}`", data, ridge="auto")


def test_a_truth_that_is_null_somewhere():
    truth = pa.array([True] * 3 + [None] + [False] * 36)
    table = pa.table({"image": lists(DATA["image"]), "text": lists(DATA["text"]), "truth": truth})
    refuses(r"data.truth: column `truth` must hold no null, got one at row 3", table, truth="truth")


def test_a_band_of_another_width_in_one_file(tmp_path):
    for name, width in (("a", 6), ("b", 5)):
        columns = {"image": lists(DATA["image"]), "text": lists(DATA["text"][:, :width])}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    refuses(
        r"data.features: vectors of (a band|column `text`) must have equal length, got .*6.* and .*5", str(tmp_path)
    )


def test_numbers_that_are_none():
    text = DATA["text"].copy()
    text[3, 2] = np.nan
    refuses(r"data.features: column `text` must be finite, got nan at row 3", {**DATA, "text": text})


@pytest.mark.parametrize("wrong", ["img_5", "00ff", "g" * 32, "0x" + "1" * 30, UIDS[5] + "0"])
def test_ids_that_are_no_uids(wrong):
    ids = [*UIDS[:5], wrong, *UIDS[6:]]
    refuses(rf"data.id: ids must be 32 hexadecimal digits for export=datacomp, got '{wrong}' at row 5",
            {**DATA, "id": ids}, export="datacomp")  # fmt: skip


def test_other_jobs_refuse_pairs():
    wanted = {"task": "pairs", "features": ["image", "text"], "quiet": True, "cluster": INLINE}
    with pytest.raises(
        InputError, match=r"task: pairs must be scored, got another job\. Use `jobs/score.py task=pairs`"
    ):
        diva_ray.reweight(DATA, **wanted)
    with pytest.raises(InputError, match=r"task: pairs must be scored"):
        diva_ray.extend(DATA, DATA, **wanted)


def test_labels_of_pairs_are_no_option():
    refuses("data.label: pairs must have none, got caption. Leave `data.label` out.", label="caption")
