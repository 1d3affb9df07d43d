"""What `jobs/benchmark.py` measures: speed beside peers and the machine's peak, and quality on real sets."""
