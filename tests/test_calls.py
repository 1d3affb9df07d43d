"""The Python calls as a reader of their help meets them."""

import re
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import version
from inspect import cleandoc
from itertools import pairwise

import pytest

import diva_ray
from diva_ray.config import SCHEMAS, DataConfig, FitConfig, RawConfig
from diva_ray.data.folder import Folder
from diva_ray.tasks.setup.result import Result

OWN = {"score", "reweight", "extend", "augment", "aggregate", "train", "tune", "embed"}


def names(schema):
    return {one.name for one in fields(schema)}


@pytest.mark.parametrize("call", sorted(OWN))
def test_the_docstring_of_a_call_names_its_own_options_and_where_all_are(call):
    text = cleandoc(getattr(diva_ray, call).__doc__)
    part = re.search(r"\*\*options:(.*?)\n\n", text, re.DOTALL)[1]
    told = set(re.findall(r"`(\w+)`", part)) - {"data", "Result", "reweight", "score"}
    columns = names(RawConfig if call == "embed" else DataConfig)
    assert told <= names(SCHEMAS[call]) | columns
    beside = {"pool", "test", "space", "data", "output"}  # arguments of their own
    assert names(SCHEMAS[call]) - names(FitConfig) - beside <= told
    assert f"`python jobs/{call}.py --help`" in part and "Config" not in part
    lines = text.split("Args:")[0].splitlines()[2:]
    broken = [one for one, word in pairwise(lines) if word.strip() and one.strip() and one[-1] not in ".:"
              and len(f"{one} {word.split()[0]}") <= 106]  # fmt: skip
    assert broken == []


def test_the_version_is_there_and_importing_stays_quick():
    assert diva_ray.__version__ == version("diva_ray") and "__version__" in dir(diva_ray)
    code = "import sys, diva_ray; sys.exit('torch' in sys.modules or 'importlib.metadata' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_notebook_shows_a_result_with_a_link_to_its_report(tmp_path):
    shown = Result({}, Folder(str(tmp_path / "a&b")), False, ["30 samples, <b>bold</b>"])._repr_html_()
    assert "<li>30 samples, &lt;b&gt;bold&lt;/b&gt;</li>" in shown
    assert f'href="{tmp_path.as_uri()}/a%26b/report.html"' in shown and "a&amp;b/report.html</a>" in shown
    there = Result({}, Folder("s3://bucket/out?region=eu-west-1"), False, [])
    assert 'href="s3://bucket' in there._repr_html_()
