"""Score every training sample: python jobs/score.py data.path=TABLE output=FOLDER."""

from diva_ray.jobs import job
from diva_ray.tasks.score import run

if __name__ == "__main__":
    job("score", run)
