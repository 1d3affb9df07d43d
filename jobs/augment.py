"""Probabilities of augmentations: python jobs/augment.py data.path=COPIES data.source=transform data.group=original."""

from diva_ray.jobs import job

if __name__ == "__main__":
    job("diva_ray.tasks.augment")
