"""Raw pictures and texts to features: python jobs/embed.py data.path=PICTURES encoder=NAME output=FOLDER."""

from diva_ray.jobs import job

if __name__ == "__main__":
    job("diva_ray.tasks.embed")
