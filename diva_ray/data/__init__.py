"""Tables to shards and back: Parquet and Arrow columns, labels, ids, standardised bands."""
