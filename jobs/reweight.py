"""Sample weights that lower validation error: python jobs/reweight.py data.path=TABLE output=FOLDER."""

from diva_ray.jobs import job

if __name__ == "__main__":
    job("diva_ray.tasks.reweight")
