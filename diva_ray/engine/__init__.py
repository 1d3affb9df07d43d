"""How a pass over the shards runs: in this process, or on resident Ray actors. No formula here."""
