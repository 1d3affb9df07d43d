"""What runs compute of a table: which passes, in which order, and what the driver makes of their sums."""
