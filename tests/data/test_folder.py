"""The folder of a run behind a URI: where its names lie, and storage that is gone."""

import numpy as np
import pytest

import diva_ray
from diva_ray.data.folder import Folder
from diva_ray.data.store import place_of


@pytest.mark.parametrize(
    ("given", "place", "inside"),
    [
        ("s3://bucket/out/run/", "s3://bucket/out/run", "s3://bucket/out/run/samples"),
        ("s3://bucket", "s3://bucket", "s3://bucket/samples"),
        ("s3://b/run//?scheme=http&endpoint_override=h:1", "s3://b/run?scheme=http&endpoint_override=h:1",
         "s3://b/run/samples?scheme=http&endpoint_override=h:1"),
        ("file:///", "file:///", None),
        ("/data/which?/run/", "/data/which?/run", "/data/which?/run/samples"),
    ],
)  # fmt: skip
def test_names_lie_inside_a_uri_whatever_its_end(given, place, inside):
    assert place_of(given) == place
    if inside is not None:
        folder = object.__new__(Folder)  # whose storage is not reached
        folder.path = place
        assert folder.location("samples") == inside


def test_storage_that_is_gone_is_told_in_a_line(tmp_path, monkeypatch):
    """A stand-in for a store whose network fails, which Arrow tells by an OSError of any text."""
    table = {"features": np.eye(6), "label": [0, 1] * 3}
    options = {"cluster": {"kind": "inline", "threads": 1}, "quiet": True}

    def gone(self, name):
        raise OSError("AWS Error NETWORK_CONNECTION during HeadObject operation\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "read_json", gone)
        told = (
            r"^output: storage must stay within reach, got AWS Error NETWORK_CONNECTION during HeadObject operation at "
        )
        with pytest.raises(diva_ray.InputError, match=told):
            diva_ray.score(table, output=f"file://{tmp_path}/run/", **options)
        with pytest.raises(OSError, match="NETWORK"):  # a folder of this machine says more in its own words
            diva_ray.score(table, output=str(tmp_path / "local"), **options)
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "read_json", lambda self, name: (_ for _ in ()).throw(TimeoutError("of a worker")))
        with pytest.raises(TimeoutError, match="of a worker"):
            diva_ray.score(table, output=f"file://{tmp_path}/late", **options)
    result = diva_ray.score(table, output=f"file://{tmp_path}/again/", **options)
    assert not any("again//" in line for line in result.lines())
