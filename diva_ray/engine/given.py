"""The pass that gives every row the weight of an earlier run."""

from __future__ import annotations

from diva_ray.data.given import Given
from diva_ray.data.shards import Shard
from diva_ray.engine.context import Known, keep_weights
from diva_ray.engine.reduce import Tally

STEP = "given"  # name of the weights, for `known["step"]`
SAME = 1e-6  # of a weight, by which a run's may differ from the table's own: samples/ holds float32


def adopt(shard: Shard, known: Known) -> Tally:
    """Check that the run's rows are the shard's and keep their weights; return what they add up to."""
    given: Given = known["given"]
    rows, reader = shard.positions(), given.table.reader()
    given.check(reader, rows, shard.id, shard.where)
    low = int(rows.min())
    alpha = given.weights(reader, low, int(rows.max()) + 1)[rows - low]
    flagged = given.flagged(reader, low, int(rows.max()) + 1)[rows - low] if given.flags else alpha < 0
    keep_weights(shard, known, alpha, STEP)
    changed = (alpha - shard.weight).abs() > SAME * shard.weight.abs()
    return Tally(
        n=len(alpha), weight=float(alpha.sum()), n_zero=int((alpha == 0).sum()), n_flagged=int(flagged.sum()),
        n_changed=int(changed.sum()), max_weight=float(alpha.max()), max_minus=float(-alpha.min()),
    )  # fmt: skip
