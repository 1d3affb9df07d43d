"""Speed and quality against peers, side by side in one run: python jobs/benchmark.py output=FOLDER."""

from diva_ray.jobs import job
from diva_ray.tasks.benchmark import run

if __name__ == "__main__":
    job("benchmark", run)
