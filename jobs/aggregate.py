"""Find ridge and shares of modalities: python jobs/aggregate.py data.path=TABLE data.features=[image,text]."""

from diva_ray.jobs import job

if __name__ == "__main__":
    job("diva_ray.tasks.aggregate")
