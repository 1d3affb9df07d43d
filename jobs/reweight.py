"""Sample weights that lower validation error: python jobs/reweight.py data.path=TABLE output=FOLDER."""

from diva_ray.jobs import job
from diva_ray.tasks.reweight import run

if __name__ == "__main__":
    job("reweight", run)
