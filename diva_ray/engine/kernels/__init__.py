"""What a pass does with a shard: functions (shard, known) -> partial sums, the same on every engine."""
