"""Speed and quality against peers, side by side in one run: python jobs/benchmark.py output=FOLDER."""

from diva_ray.jobs import job

if __name__ == "__main__":
    job("diva_ray.bench.benchmark")
