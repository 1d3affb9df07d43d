"""Opened engines for tests: a small task, inline or on Ray."""

import os
import signal

import numpy as np

from diva_ray.config import ClusterConfig, ScoreConfig
from diva_ray.core.reweight import Step
from diva_ray.data.folder import Folder
from diva_ray.tasks.fit.walk import Walk
from diva_ray.tasks.setup.make_plan import make_plan
from diva_ray.tasks.setup.session import open_session
from diva_ray.tasks.setup.step_paths import Path


def small_task(n=3000, d=12, seed=0):
    """Return features and integer labels of three classes."""
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((n, d)).astype(np.float32)
    y = (X[:, :3] + generator.standard_normal((n, 3))).argmax(1)
    return {"features": X, "label": y}


def opened(data, kind="inline", *, folder=None, block_rows=2048, precision="auto", weight=None, **cluster):
    """Return a runner with loaded shards, and the setup of the passes."""
    import tempfile

    config = ScoreConfig(cluster=ClusterConfig(kind=kind, **cluster), block_rows=block_rows, precision=precision)
    config.data.weight = weight
    config.output = str(folder or tempfile.mkdtemp(prefix="diva_ray-tests-"))
    plan, found = make_plan(config, data, None)
    session = open_session(config, plan, found, Folder(config.output), quiet=True)
    return session.runner, session.setup


def begun(runner, setup, eta, store=None):
    """Return a walk of plain weight steps at ridge 1 and its first fit sums."""
    walk = Walk(runner, setup, 1.0, Path(Step("plain", eta)), runner.engine.extents, store)
    return walk, walk.begin(None)


def killing(monkeypatch):
    """Kill a worker in the middle of every pass from now on, in turns; return the list of passes and victims."""
    import ray

    from diva_ray.engine.cluster import Cluster

    whole, killed = Cluster.each, []

    def each_with_a_death(self, kernel, extents, done=int, features=True):
        pids = ray.get([actor.process.remote() for actor in self.actors])
        for k, partial in enumerate(whole(self, kernel, extents, done, features)):
            told = getattr(kernel, "keywords", {})
            name = told["kernel"].__name__ if "direction" in told else kernel.__name__
            if k == 0:
                victim = pids[len(killed) % len(pids)]
                os.kill(victim, signal.SIGKILL)
                killed.append((f"{name} {told['direction']}" if "direction" in told else name, victim))
            yield partial

    monkeypatch.setattr(Cluster, "each", each_with_a_death)
    return killed
