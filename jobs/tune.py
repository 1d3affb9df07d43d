"""Search over options with Ray Tune: python jobs/tune.py data.path=TABLE space.ridge.loguniform=[1e-3,10]."""

from diva_ray.jobs import job

if __name__ == "__main__":
    job("diva_ray.tasks.tune")
