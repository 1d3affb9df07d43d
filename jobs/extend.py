"""Which rows of a pool to add: python jobs/extend.py data.path=TABLE pool.path=POOL output=FOLDER."""

from diva_ray.jobs import job
from diva_ray.tasks.extend import run

if __name__ == "__main__":
    job("extend", run)
