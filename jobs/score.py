"""Score every training sample: python jobs/score.py data.path=TABLE output=FOLDER."""

from diva_ray.jobs import job

if __name__ == "__main__":
    job("diva_ray.tasks.score")
