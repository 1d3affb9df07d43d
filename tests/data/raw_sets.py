"""The same few pictures with texts and labels in every form in which people have them."""

import csv
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

N = 50


def pictures(n=N, size=(20, 24), seed=0):
    """Return n colour pictures as arrays."""
    return list(np.random.default_rng(seed).integers(0, 256, (n, *size, 3)).astype(np.uint8))


def png(pixels):
    """Return an array as PNG bytes."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def labels(n=N):
    """Return three classes by turns."""
    return [f"class {k % 3}" for k in range(n)]


def texts(n=N):
    """Return a text for each."""
    return [f'picture number {k}, "quoted",\nin two lines' for k in range(n)]


def table(n=N):
    """Return pictures, texts and labels as an Arrow table."""
    return pa.table({"image": [png(p) for p in pictures(n)], "caption": texts(n), "label": labels(n)})


def write_parquet(folder, n=N):
    pq.write_table(table(n).slice(0, 30), folder / "a.parquet", row_group_size=8)
    pq.write_table(table(n).slice(30), folder / "b.parquet", row_group_size=100)


def write_folder(folder, n=N):
    for k, (picture, label) in enumerate(zip(pictures(n), labels(n), strict=True)):
        (folder / label).mkdir(exist_ok=True)
        (folder / label / f"{k:03d}.png").write_bytes(png(picture))
    (folder / "README.md").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"no picture")


def add(tar, name, content):
    """Add one member."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def write_tars(folder, n=N):
    for k in range(2):
        with tarfile.open(folder / f"shard-{k}.tar", "w") as tar:
            for i in range(k * n // 2, (k + 1) * n // 2):
                add(tar, f"deep/{i:03d}.png", png(pictures(n)[i]))
                add(tar, f"deep/{i:03d}.txt", texts(n)[i].encode())
                add(tar, f"deep/{i:03d}.cls", str(i % 3).encode())
                add(tar, f"deep/{i:03d}.json", json.dumps({"number": i, "by": "me"}).encode())


def write_paths(folder, n=N):
    """Write pictures, and return rows that name them."""
    (folder / "pictures").mkdir()
    for k, picture in enumerate(pictures(n)):
        (folder / "pictures" / f"{k}.png").write_bytes(png(picture))
    return [
        {"image": f"pictures/{k}.png", "caption": text, "label": label}
        for k, (text, label) in enumerate(zip(texts(n), labels(n), strict=True))
    ]


def write_jsonl(folder, n=N):
    rows = write_paths(folder, n)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_csv(folder, n=N):
    rows = write_paths(folder, n)
    with open(folder / "rows.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_saved(folder, n=N):
    """Write what `datasets.save_to_disk` writes: Arrow streams, pictures as {bytes, path}, state.json."""
    images = [{"bytes": png(p), "path": f"{k}.png"} for k, p in enumerate(pictures(n))]
    rows = table(n).set_column(0, "image", pa.array(images))
    names = ["data-00001-of-00002.arrow", "data-00000-of-00002.arrow"]  # their order is state.json's, not the names'
    for name, part in zip(names, (rows.slice(0, 30), rows.slice(30)), strict=True):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as stream:
            for batch in part.to_batches(max_chunksize=7):
                stream.write_batch(batch)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


FORMS = {
    "parquet": write_parquet,
    "folder": write_folder,
    "webdataset": write_tars,
    "jsonl": write_jsonl,
    "csv": write_csv,
    "huggingface": write_saved,
}
