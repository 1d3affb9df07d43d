"""What a run tells of itself: metrics on the Prometheus endpoint, a log line for every pass, workers in the summary."""

import json
import os
import re
import signal
import time
import urllib.request
from collections import defaultdict
from pathlib import Path

import pytest

from diva_ray.engine.kernels import passes
from diva_ray.engine.meter import MOST_WORKERS, Meter, Work
from diva_ray.engine.progress import key_values
from tests.engine.runs import opened, small_task

ROOT = Path(__file__).resolve().parent.parent.parent
LINE = re.compile(r"^(ray_diva_ray_\w+)\{(.*)\} (\S+)$")
ROWS, WIDTH = 3000, 12


def scrape(port):
    """Return every metric of diva_ray on the endpoint: {name: [(tags, value)]}."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = defaultdict(list)
    for line in text.splitlines():
        if match := LINE.match(line):
            name, tags, value = match.groups()
            found[name].append((dict(re.findall(r'(\w+)="([^"]*)"', tags)), float(value)))
    return found


def total(found, name, **tags):
    return sum(value for have, value in found[name] if tags.items() <= have.items())


def until(port, holds, seconds=20.0):
    """Return what the endpoint serves once it is so, or at the end: workers report every few seconds."""
    end = time.monotonic() + seconds
    while not holds(found := scrape(port)) and time.monotonic() < end:
        time.sleep(0.5)
    return found


def prometheus_name(name, kind, *_):
    """Return the name of a metric on the endpoint."""
    return f"ray_{name}" + ("_total" if kind == "counter" else "")


@pytest.mark.ray
def test_prometheus_sees_rows_bytes_seconds_memory_steps_and_restarts(ray_cluster):
    import ray

    from diva_ray.engine.metrics import METRICS

    runner, setup = opened(small_task(ROWS, WIDTH), "ray", workers=2)
    runner.engine.tell(setup=setup)
    before = scrape(ray_cluster)
    start = time.perf_counter()
    for _ in range(2):
        runner.run(passes.fit, "metered")
    taken = time.perf_counter() - start
    os.kill(ray.get(runner.engine.actors[0].process.remote()), signal.SIGKILL)
    for _ in range(2):
        runner.run(passes.fit, "metered again")
    runner.engine.close()

    restarted = prometheus_name("diva_ray_restarts", *METRICS["diva_ray_restarts"])
    found = until(
        ray_cluster,
        lambda found: (
            total(found, restarted, worker="0") > total(before, restarted, worker="0")
            and total(found, "ray_diva_ray_rows_total", **{"pass": "metered again"}) == 2 * ROWS
            and total(found, "ray_diva_ray_rows_per_second", **{"pass": "metered again"}) > 0
        ),
    )
    assert found.keys() == {prometheus_name(name, *METRICS[name]) for name in METRICS}
    job = {"JobId": ray.get_runtime_context().get_job_id()}
    mine, again = ({**job, "pass": name} for name in ("metered", "metered again"))
    owned = sum(e.stop - e.start for e in runner.engine.extents if runner.engine.owner[e.index] == 1)
    # The worker that was killed took along what it had not yet reported.
    assert total(found, "ray_diva_ray_rows_total", **mine, worker="1") == 2 * owned
    assert total(found, "ray_diva_ray_rows_total", **again) == 2 * ROWS
    assert total(found, "ray_diva_ray_feature_bytes_total", **again) == 2 * ROWS * WIDTH * 4
    assert 0 < total(found, "ray_diva_ray_kernel_seconds_total", **mine, worker="1") < taken
    assert total(found, "ray_diva_ray_pass_step", **again) == 1
    assert total(found, "ray_diva_ray_pass_running", **again) == 0
    assert total(found, "ray_diva_ray_pass_progress", **again) == 1
    assert 0 < total(found, "ray_diva_ray_pass_seconds_total", **mine) <= taken
    assert total(found, restarted, worker="0") == total(before, restarted, worker="0") + 1
    memory = [value for tags, value in found["ray_diva_ray_memory_bytes"] if tags["worker"] == "1"]
    assert memory and min(memory) > 50e6

    # What came back with the results was lost with nobody.
    known = runner.engine.meter.summary()
    assert known["count"] == 2 and known["restarts"] == 1
    first, second = known["each"]
    assert (first["worker"], first["restarts"], second["worker"], second["restarts"]) == (0, 1, 1, 0)
    assert first["rows"] + second["rows"] == 5 * ROWS, "scan, and two passes twice: a row counts once in each"
    assert first["bytes"] + second["bytes"] == 5 * ROWS * WIDTH * 4
    assert first["seconds_by_pass"].keys() == {"scan", "metered", "metered again"}
    assert min(first["peak_memory_bytes"], second["peak_memory_bytes"]) > 50e6
    assert first["host"] == os.uname().nodename
    assert known["seconds"]["most"] == max(first["seconds"], second["seconds"])


def test_inline_there_is_one_worker_that_did_everything():
    runner, setup = opened(small_task(ROWS, WIDTH))
    runner.engine.tell(setup=setup)
    runner.run(passes.fit, "fit")
    found = runner.engine.meter.summary()
    (only,) = found["each"]
    assert found["count"] == 1 and found["restarts"] == 0 and only["rows"] == 2 * ROWS
    assert only["seconds_by_pass"]["fit"] <= runner.seconds["fit"]
    assert 0 < only["cpu_seconds"] <= only["seconds"] * os.cpu_count() * 1.1


def test_a_summary_lists_the_busiest_of_a_thousand_workers():
    meter = Meter()
    meter.begin("fit", 1000)
    for k in range(1000):
        meter.add(k, Work(rows=1, seconds=float(k == 500) + k / 1e4, host="h"))
    found = meter.summary()
    assert found["count"] == 1000 and len(found["each"]) == MOST_WORKERS
    assert (
        found["slowest"] == 500
        and {"worker": 500}.items() <= next(e for e in found["each"] if e["worker"] == 500).items()
    )
    assert found["each"][-1]["worker"] == 999, "in the order of workers"
    assert meter.figures()["slowest_worker"] == 500 and meter.figures()["workers"] == 1000


def test_one_line_a_pass_that_machines_read(caplog):
    caplog.set_level("INFO", logger="diva_ray")
    runner, setup = opened(small_task(ROWS, WIDTH))
    runner.quiet = False
    runner.engine.tell(setup=setup)
    for _ in range(2):
        runner.run(passes.fit, "fit twice")
    lines = [record.message for record in caplog.records if record.message.startswith('pass="fit twice" ')]
    assert len(lines) == 2
    told = [dict(pair.split("=") for pair in line.removeprefix('pass="fit twice" ').split()) for line in lines]
    assert [line["step"] for line in told] == ["0", "1"]
    assert all(line["rows"] == str(ROWS) and line["bytes"] == str(ROWS * WIDTH * 4) for line in told)
    assert all(float(line["slowest_seconds"]) <= float(line["seconds"]) for line in told)


@pytest.mark.parametrize("text", ["a\nlevel=error", 'a" b="c', "", "\x1b[31m", "a b", "a=b"])
def test_a_value_never_ends_its_line_nor_begins_another_key(text):
    line = key_values({"pass": text, "rows": 3})
    shown = line.removeprefix("pass=").removesuffix(" rows=3")
    assert "\n" not in line and "\x1b" not in line and json.loads(shown) == text


def test_the_dashboard_asks_only_for_metrics_that_there_are():
    from diva_ray.engine.metrics import METRICS

    board = json.loads((ROOT / "configs" / "grafana" / "diva_ray.json").read_text())
    assert board["uid"] and board["title"] and board["schemaVersion"] >= 36
    assert {"job", "datasource"} <= {one["name"] for one in board["templating"]["list"]}
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["type"] in ("timeseries", "stat", "bargauge") and panel["title"] and panel["targets"]
        assert {"x", "y", "w", "h"} == panel["gridPos"].keys() and panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all('JobId=~"$job"' in target["expr"] for target in panel["targets"])
    text = json.dumps(board)
    asked = set(re.findall(r"ray_diva_ray_\w+", text))
    assert asked == {prometheus_name(name, *METRICS[name]) for name in METRICS}, (
        "each is shown, and nothing else is asked for"
    )
