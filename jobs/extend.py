"""Which rows of a pool to add: python jobs/extend.py data.path=TABLE pool.path=POOL output=FOLDER."""

from diva_ray.jobs import job

if __name__ == "__main__":
    job("diva_ray.tasks.extend")
