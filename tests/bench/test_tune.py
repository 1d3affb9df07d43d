"""The meter of processor seconds, and the sixteen trials it is read around."""

import subprocess
import sys
import time

from diva_ray.bench.tune import BANDS, ProcessorSeconds, space
from diva_ray.config import TuneConfig
from diva_ray.tasks.space import parse_space

BURN = "import time\nwhile time.process_time() < 1.2: pass\ntime.sleep(0.6)"


def test_the_meter_counts_this_process_and_its_children_and_no_sleep():
    with ProcessorSeconds() as meter:
        child = subprocess.Popen([sys.executable, "-c", BURN])
        start = time.process_time()
        while time.process_time() < start + 0.5:
            pass
        child.wait()
    assert 1.6 < meter.spent < 2.4 and meter.seconds > 1.7


def test_sixteen_trials():
    config = TuneConfig(space=space(128), search="grid")
    config.data.features = BANDS
    assert parse_space(config).size() == 16
