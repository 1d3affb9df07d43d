"""Test error of models trained under weights: python jobs/train.py data.path=TABLE test.path=TABLE weights=FOLDER."""

from diva_ray.jobs import job

if __name__ == "__main__":
    job("diva_ray.tasks.train")
