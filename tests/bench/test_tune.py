"""The meter of processor seconds, and the sixteen trials it is read around."""

import os
import subprocess
import sys

from diva_ray.bench.tune import BANDS, ProcessorSeconds, space
from diva_ray.config import TuneConfig
from diva_ray.tasks.setup.space import parse_space

BURN = "import time\nwhile time.process_time() < 0.2: pass\ntime.sleep(0.4)"


def spent():
    """Return the processor seconds of this process and of the children that it has waited for."""
    return sum(os.times()[:4])


def test_the_meter_counts_this_process_and_its_children_and_no_sleep():
    outside = spent()
    with ProcessorSeconds() as meter:
        inside = start = spent()
        child = subprocess.Popen([sys.executable, "-c", BURN])
        while spent() < start + 0.1:
            pass
        child.wait()
        inside = spent() - inside
    assert inside > 0.28  # 0.3 in ticks of a hundredth, some of them not yet counted
    assert inside <= meter.spent + 0.05 and meter.spent <= spent() - outside + 0.05
    assert meter.seconds > 0.45


def test_sixteen_trials():
    config = TuneConfig(space=space(128), search="grid")
    config.data.features = BANDS
    assert parse_space(config).size() == 16
