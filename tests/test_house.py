"""The house itself: what loads what, configs that compose."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from diva_ray.command_line import checked, register
from diva_ray.config import SCHEMAS
from diva_ray.data.folder import Folder
from diva_ray.tasks.setup.saved_config import write_config
from diva_ray.threads import better_coretype

ROOT = Path(__file__).resolve().parent.parent
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))
BESIDE = {"config", "errors", "pictures", "threads", "signals"}  # modules that are in no room
ROOMS = {  # and what each may import
    "core": {"errors"},
    "report": {"pictures"},
    "data": {"core"} | BESIDE,
    "engine": {"core", "data"} | BESIDE,
    "tasks": {"core", "data", "engine", "report"} | BESIDE,
}
ROOMS["bench"] = {*ROOMS, *BESIDE, "diva_ray"}  # the calls, as users import them
FLOORS = ("setup", "fit", "told")  # of the tasks; the verbs stand on all of them
ON_CLUSTERS = [job for job in JOBS if "cluster:" in (ROOT / "configs" / f"{job}.yaml").read_text()]


def test_ray_is_loaded_only_by_the_cluster_engine():
    modules = ["core.derivative", "tasks.score", "tasks.train", "tasks.tune", "tasks.embed", "report"]
    code = f"import sys, diva_ray, {', '.join(f'diva_ray.{name}' for name in modules)}; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def imported(path):
    """Return the modules that a file imports, wherever in it, by their full names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: an import without the package's name"
            found |= {f"{node.module}.{one.name}" for one in node.names}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(room):
    every = [path.name for path in (ROOT / "diva_ray").iterdir() if (path / "__init__.py").is_file()]
    assert sorted(every) == sorted(ROOMS), "a room without a rule"
    files = sorted((ROOT / "diva_ray" / room).rglob("*.py"))
    assert files
    for path in files:
        own = {name.removeprefix("diva_ray.").split(".")[0] for name in imported(path) if name.startswith("diva_ray")}
        assert own - {room} <= ROOMS[room], path


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_of_the_tasks_imports_none_above_it(floor):
    below = FLOORS[: FLOORS.index(floor) + 1]
    files = sorted((ROOT / "diva_ray" / "tasks" / floor).glob("*.py"))
    assert files
    for path in files:
        own = {name.removeprefix("diva_ray.tasks.").split(".")[0] for name in imported(path) if ".tasks." in name}
        assert own <= {*below}, path


def test_a_task_takes_nothing_from_another_but_whole_runs():
    """`train` reweights first, and pairs are what `score` makes of them."""
    files = sorted((ROOT / "diva_ray" / "tasks").glob("*.py"))
    assert files
    verbs, allowed = {path.stem for path in files}, {("train", "reweight"), ("score", "pairs")}
    for path in files:
        own = {name.removeprefix("diva_ray.tasks.").split(".")[0] for name in imported(path) if ".tasks." in name}
        assert {(path.stem, name) for name in own & verbs} <= allowed, path


def test_what_runs_passes_knows_no_kernel():
    files = sorted((ROOT / "diva_ray" / "engine").glob("*.py"))
    assert files
    for path in files:
        assert not any(name.startswith("diva_ray.engine.kernels") for name in imported(path)), path


def test_core_imports_no_files_configs_or_ray():
    for path in (ROOT / "diva_ray" / "core").glob("*.py"):
        tops = {name.split(".")[0] for name in imported(path)}
        assert not tops & {"ray", "pyarrow", "pandas", "hydra", "omegaconf", "yaml"}, path


@pytest.mark.parametrize("job", ON_CLUSTERS)
@pytest.mark.parametrize("cluster", ["auto", "inline", "local", "ray"])
def test_every_config_composes_into_its_dataclass(job, cluster):
    register()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = OmegaConf.to_object(compose(job, overrides=[f"cluster={cluster}"]))
    assert config.cluster.kind == cluster


@pytest.mark.parametrize("job", JOBS)
def test_every_job_has_a_config_of_its_name(job):
    assert (ROOT / "configs" / f"{job}.yaml").is_file()
    assert len((ROOT / "jobs" / f"{job}.py").read_text().splitlines()) <= 60


@pytest.mark.parametrize("job", JOBS)
def test_the_config_that_a_run_writes_composes_into_the_same(job, tmp_path):
    register()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = OmegaConf.to_object(compose(job, overrides=[f"output={tmp_path}"]))
    assert type(config) is SCHEMAS[job]
    write_config(Folder(str(tmp_path)), config)
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert OmegaConf.to_object(compose("config")) == config


def test_configs_that_comments_and_the_readme_name_are_there():
    texts = [
        path.read_text()
        for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "configs").rglob("*.yaml")]
    ]
    named = {found for text in texts for found in re.findall(r"[ +](experiment|encoder|space)=([a-z]\w*)", text)}
    named.discard(("encoder", "encode"))  # an argument of a Python call
    assert len(named) > 6
    assert [one for one in sorted(named) if not (ROOT / "configs" / one[0] / f"{one[1]}.yaml").is_file()] == []


def test_a_processor_taken_for_an_older_one_gets_its_own_kernels():
    assert better_coretype({"Haswell"}, "flags: avx2 avx512f avx512vl") == {"OPENBLAS_CORETYPE": "SkylakeX"}
    assert better_coretype({"Haswell"}, "flags: avx2") == {}
    assert better_coretype({"SkylakeX"}, "flags: avx2 avx512f avx512vl") == {}


@pytest.mark.parametrize("entry", ["import diva_ray.jobs, diva_ray.tasks.score", "import diva_ray; diva_ray.score"])
def test_threads_do_not_wait_actively_for_long(entry, tmp_path):
    """OpenMP reads the environment when torch is imported: a job or a call must have set it by then."""
    (tmp_path / "seen.py").write_text(
        "import os, sys\n"
        "class Seen:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch':\n"
        "            print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'), flush=True)\n"
        "            os._exit(0)\n"
        "sys.meta_path.insert(0, Seen())\n"
        f"{entry}\n"
    )
    for given, expected in (
        ({}, "300 None"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None"),
        ({"OMP_WAIT_POLICY": "active"}, "None active"),
    ):
        environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | given
        found = subprocess.run(
            [sys.executable, tmp_path / "seen.py"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        assert found.stdout.splitlines()[0] == expected


PAGES = [*(ROOT / name for name in ("README.md", "RESULTS.md", "SECURITY.md")), *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_inside_the_project_leads_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _, heading = target.partition("#")
        led = (page.parent / name).resolve() if name else page
        assert led.exists(), target
        titles = re.findall(r"^#+ (.*)$", led.read_text(), re.MULTILINE) if heading else []
        slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
        assert not heading or heading in slugs, f"{target}: {slugs}"


@pytest.mark.parametrize("job", JOBS)
def test_every_job_takes_no_option_at_all(job):
    register()
    assert checked(job, []) == (job, None, [], [])


def test_an_installed_package_has_the_configs(tmp_path):
    """As a wheel has them: the files that links lead to, and nothing that lies beside the package."""
    shutil.copytree(ROOT / "diva_ray", tmp_path / "diva_ray", ignore=shutil.ignore_patterns("__pycache__"))
    code = "from diva_ray import config, help, data; from diva_ray.data.encoders.build import encoder_config as of; "
    code += "print(config.CONFIGS, of('edges').kind, len(help.job_help('score')) > 1000)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.stdout.split() == [str(tmp_path / "diva_ray" / "shipped-configs"), "edges", "True"]
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "shipped-configs/**/*.yaml" in found["diva_ray"] and not any(
        path.suffix not in (".yaml", ".json") for path in (ROOT / "configs").rglob("*.*")
    )
