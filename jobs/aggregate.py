"""Find ridge and shares of modalities: python jobs/aggregate.py data.path=TABLE data.features=[image,text]."""

from diva_ray.jobs import job
from diva_ray.tasks.aggregate import run

if __name__ == "__main__":
    job("aggregate", run)
