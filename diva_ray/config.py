"""Every option, its type, unit and default: the Python calls and the jobs' configs share them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The package's own, which in the repository is a link to configs/; where there can be no links, configs/ itself.
SHIPPED = Path(__file__).parent / "shipped-configs"
CONFIGS = (SHIPPED if SHIPPED.is_dir() else SHIPPED.parents[1] / "configs").resolve()


@dataclass
class DataConfig:
    """Which table, and which columns are what."""

    path: str | None = None  # Parquet file, folder, glob or URI; None: the built-in table named by `builtin`
    builtin: str | None = None  # digits (a share of labels flipped) | digits_core | digits_bands | digits_augmented
    noise: float = 0.2  # share of the built-in table's labels that are flipped, 0..1
    # a column or a list of columns: each is a band (modality); a pattern ('*', 'x_*') is all columns of numbers that
    # match it and that no other option names (of true and false only by name)
    features: Any = "features"
    label: str = "label"  # not with task=pairs
    id: str | None = None  # unique key; None: the column `id` if there, else row positions; none: row positions
    weight: str | None = None  # starting sample weight, >= 0
    validation_weight: str | None = None  # how much a sample counts in validation, >= 0
    group: str | None = None  # rows that leave together
    source: str | None = None  # where a row comes from; derivatives are also summed per source
    offset: str | None = None  # the pretrained model's own output
    # picture and text columns for the report, one or a list; none; auto: image, picture, text, caption...
    show: Any = "auto"
    # true label (pairs: whether they belong together), for experiments: the report compares what was found with it
    truth: str | None = None


@dataclass
class ValidationConfig:
    """A separate validation table with the same columns; then there is no leave-one-out.

    `rows` are those that a Python call gives in place of a path; no option of a job.
    """

    path: str | None = None  # Parquet file, folder, glob or URI; its classes must be among those of the table

    def __post_init__(self) -> None:
        """No field: what is written of a config holds no rows."""
        self.rows: Any = None

    @property
    def given(self) -> bool:
        """Whether there is such a table."""
        return bool(self.path) or self.rows is not None


@dataclass
class ClusterConfig:
    """Where the passes run."""

    kind: str = "auto"  # auto | inline (this process) | local (Ray on this machine) | ray (the cluster in reach)
    # Ray actors, but no more than shards; an autoscaling cluster adds nodes until they run. None: one for every
    # `threads` CPUs that are there; an autoscaling cluster is asked for one for every minute of passes if that is more
    workers: int | None = None
    # BLAS threads of a worker; None: 1 on Ray; inline 1 for a small or narrow table, else every core, or
    # OMP_NUM_THREADS
    threads: int | None = None
    # GPUs of a worker, 0..1, of the process inline 0 or 1: passes and encoders run there; a fraction shares one GPU
    gpus_per_worker: float = 0.0
    memory: str | None = None  # budget per worker, or for the process inline, such as 2GiB; None: what the machine has
    # rows that do not fit the memory are read once in each pass from: a file in this folder on each worker's own disk |
    # auto: in its temporary folder | none: the table itself
    cache: str = "auto"
    start_timeout: float = 600.0  # seconds in which another worker must have started, or loaded a shard
    pass_timeout: float = 3600.0  # seconds in which at least one shard of a pass must be finished


@dataclass
class FitConfig:
    """What every task needs that fits a table."""

    data: DataConfig = field(default_factory=DataConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    task: str = "auto"  # auto | classification | regression | multilabel | vector | pairs (score: two bands, no label)
    loss: str = "auto"  # auto | cross_entropy | squared | logistic | cosine | module:function (needs trust_code)
    intercept: bool = True  # an unpenalised column of 1
    standardize: str = "auto"  # auto: every band centred, unit mean squared norm | none: features exactly as given
    projection: int | None = None  # columns that a wider band is randomly projected to, by `seed`; None: as it is
    ridge: Any = "auto"  # auto: chosen by leave-one-out | a number >= 0
    shares: Any = None  # {band: share > 0}: its penalty is ridge / share | folder of an aggregate run; None: alike
    # auto: float32 products where the condition number allows | float32 (same) | float64 | tf32, bf16: products of
    # whitened rows on a GPU's tensor cores (score, method=plain): faster, an error of about 1e-3, checked on some rows
    precision: str = "auto"
    block_rows: int | None = None  # rows worked on at a time; None: 1,024, up to 4,096 where features are few
    standard_errors: str = "auto"  # auto: exact up to 10,000 validation rows (of many rows fewer) | exact | estimate
    seed: int = 0  # of every draw: sign vectors, folds, projections, samples
    output: str = ""  # a new or empty folder or URI; a job's default ends in the time of the run
    resume: bool = False  # go on with the unfinished run in `output`, which must have the same data and options
    plan: bool = False  # print rows, bytes, memory, passes and estimated time, then stop
    trust_code: bool = False  # let options name code of yours to import and run, such as `loss=module:function`


@dataclass
class ScoreConfig(FitConfig):
    """Schema of `configs/score.yaml`."""

    method: str = "plain"  # plain | trusted: a few trusted rows (data.validation_weight) or a table validate alone
    curate: str = (
        "none"  # none | drop | weight | relabel: also write a copy of the table, changed where labels look wrong
    )
    # auto: of 128 columns and more, as encoders have them, part of what the model misses and neighbours do not share is
    # taken for wrong labels | on: of any | off: never
    labeller_doubt: str = "auto"
    outputs: bool = False  # also write loo_output, the out-of-sample prediction of every row
    export: str = "none"  # none | datacomp: also write subset.npy, the sorted uids of the rows that are no label issue
    # folder of an earlier score run: the fit takes its sums of rows that are as they were, wherever they lie now
    update: str | None = None
    keep_sums: bool = True  # keep what a later `update` takes, in `sums/`: an eighth of the features, 256 MiB at most
    output: str = "outputs/score"


@dataclass
class ReweightConfig(FitConfig):
    """Schema of `configs/reweight.yaml`."""

    method: str = "safe"  # safe: accepted on outer folds | paper: plain steps (eq. 14) | trusted: safe, few validate
    level: str = "sample"  # sample: a weight for every row | source: one for every value of `data.source`
    steps: int = 2  # weight steps at most, 1..10 (paper: exactly)
    eta: float = 0.1  # size of a plain step (method=paper): alpha - eta dL/dalpha
    folds: int = 5  # outer folds on which steps are judged
    outputs: bool = False  # also write loo_output, the out-of-sample prediction of every row
    output: str = "outputs/reweight"


@dataclass
class PoolConfig:
    """Rows from which to choose, with the columns of the table; features are read from storage in every round."""

    path: str | None = None  # Parquet file, folder, glob or URI, with the columns of the table
    new_classes: str = "error"  # error | allow: labels that the table does not have


@dataclass
class ExtendConfig(FitConfig):
    """Schema of `configs/extend.yaml`."""

    pool: PoolConfig = field(default_factory=PoolConfig)
    budget: int | None = None  # rows to choose; None: while labels seem right and the left-out error does not rise
    rounds: int = 10  # in how many rounds, 1..1000
    method: str = "balanced"  # balanced: likely right labels, by class, unsure classes more often | paper: top-k
    class_weights: str = "auto"  # auto: where the pool has other shares of classes, chosen rows weigh by class | none
    output: str = "outputs/extend"


@dataclass
class AugmentConfig(FitConfig):
    """Schema of `configs/augment.yaml`: `data.source` names a row's transform, `data.group` its original."""

    identity: str = "identity"  # the transform that changes nothing; its rows alone validate, or a validation table's
    steps: int = 3  # weight steps at most, 1..10
    eta: float = 0.1  # size of a plain step, for the paper's answer beside
    folds: int = 5  # outer folds of originals on which steps are judged
    output: str = "outputs/augment"


@dataclass
class AggregateConfig(FitConfig):
    """Schema of `configs/aggregate.yaml`: every column of `data.features` is a band with a penalty of its own."""

    starts: int = 3  # descents, each from another start, 1..20
    evaluations: int = 20  # of a descent, each a solve and a pass, 1..1000
    weights: str = "given"  # given | joint: sample weights too, accepted on outer folds as by jobs/reweight.py
    steps: int = 2  # weight steps at most (weights=joint), 1..10
    folds: int = 5  # outer folds on which weight steps are judged (weights=joint)
    outputs: bool = False  # also write loo_output, the out-of-sample prediction of every row
    output: str = "outputs/aggregate"


@dataclass
class TestConfig:
    """Rows on which trained models are compared; the columns of the table, but weights, groups and sources."""

    path: str | None = None  # None: for the built-in digits, a seeded fifth of the rows, with their true labels


@dataclass
class TrainConfig(FitConfig):
    """Schema of `configs/train.yaml`."""

    test: TestConfig = field(default_factory=TestConfig)
    # output of a reweight or score run on the same rows | auto, as `jobs/train.py` does: reweight them first | None,
    # the default from Python: `data.weight` alone, so that there are no weights to compare with uniform ones
    weights: str | None = None
    flag: str = "is_label_issue"  # rows that `without_flagged` deletes: is_label_issue | is_detrimental | either
    epochs: int = 30  # passes over the table
    batch_size: int = 128  # rows of a step, of all workers together
    # at the start; it falls to 0 along half a cosine. A number > 0 | auto: stable by the curvature of the linear head's
    # loss, at most 1 for classes; for a `module`, of which nothing is known, 0.1 or the linear head's if that is less
    learning_rate: Any = "auto"
    momentum: float = 0.9  # of SGD
    weight_decay: float = 0.0  # of SGD, on all parameters
    seeds: int = 3  # models of every arm: initial weights and order of rows differ
    module: str | None = (
        None  # module:function (n_features, n_outputs) -> a new torch.nn.Module (needs trust_code); None: linear
    )
    window: int = 262_144  # rows that a worker holds and shuffles at a time; all it owns, if they are fewer
    output: str = "outputs/train"


@dataclass
class TuneConfig(FitConfig):
    """Schema of `configs/tune.yaml`: what a key of `space` does not vary is as the option of its name says."""

    test: TestConfig = field(default_factory=TestConfig)  # on its rows the best trial alone is judged
    # NAME: {choice: [...]} | {loguniform: [low, high]} | {uniform: [low, high]} | one value. Names: bands (lists of
    # data.features, or choice: subsets), shares, ridge, loss, intercept, standardize, projection, rule, steps, eta
    space: dict[str, Any] = field(default_factory=dict)
    search: str = "random"  # random | grid: every combination of the choices | optuna: TPE (diva_ray[optuna])
    scheduler: str = "none"  # none | asha: trials that are behind after some folds are stopped
    trials: int = 16  # points to try, no two alike in effect where the space has that many; of a grid all
    reduction: int = 2  # asha: of the trials that reach fold 1, r, r^2, ..., the best 1 / r go on
    folds: int = 5  # outer folds on whose rows a trial is judged
    # none | shrink: harm beyond a standard error removed | paper: plain steps | drop_label_issues | drop_detrimental
    # | weigh_doubtful: labels likelier wrong than right weighed by twice their score | weigh_uncertain: that, and half
    # of the weight given to rows by how unsure their class is
    rule: str = "none"  # what is done to the sample weights before the last fit
    steps: int = 1  # times that the rule is applied, 1..10
    eta: float = 0.1  # size of a plain step (rule=paper)
    output: str = "outputs/tune"


@dataclass
class BenchmarkConfig:
    """Schema of `configs/benchmark.yaml`."""

    task: str = "speed"  # speed | quality: detect, reweight, extend, augment, aggregate, multimodal, pairs
    size: str = "full"  # full: the sizes of the goals | small: every entry in seconds
    n: int | None = None  # rows of the main entries; None: as `size` says
    p: int | None = None  # features
    c: int | None = None  # classes
    only: list[str] = field(default_factory=list)  # entries to run, such as [machine,derivative]; empty: all
    peers: str = "sample"  # sample: cleanlab on a sixth of the rows, extrapolated | full: on every row
    data_folder: str | None = None  # folder of flowers/, caltech101/, dtd/, agnews/, ... with train and test.parquet
    seeds: int = 3  # not speed: plantings, splits and draws of which mean and spread are told
    first_seed: int = 0  # not speed: the seeds are first_seed to first_seed + seeds - 1
    sets: list[str] = field(default_factory=list)  # not speed: such as [digits,dtd]; empty: all that are found
    noise: list[float] = field(default_factory=list)  # not speed: shares of labels planted wrong; empty: the task's own
    output: str = "outputs/benchmark"  # a new or empty folder; the job's default ends in the time of the run


@dataclass
class RawConfig:
    """Raw samples to encode, and which columns are what."""

    path: str | None = None  # file, folder, glob or URI; None: the built-in pictures named by `builtin`
    builtin: str | None = None  # digits (a share of labels flipped)
    noise: float = 0.2  # share of the built-in labels that are flipped, 0..1
    kind: str = "auto"  # auto: by what lies there | parquet | folder | webdataset | jsonl | csv | huggingface
    id: str | None = None  # unique key; None: `id` if there, else position, file name, or key in a tar
    label: str = "label"  # name of the column that a folder's classes or a tar's .cls members become
    peek: int | None = None  # first JSON lines or tar samples, which tell the columns; None: 1,000 lines, 64 samples
    keep: Any = "all"  # columns written beside the features: all (but pictures), or a list of names
    root: str | None = None  # folder or URI to which paths in a picture column are relative; None: the table's folder


@dataclass
class EncoderConfig:
    """One encoder; `configs/encoder/NAME.yaml` holds ready ones."""

    name: str = "auto"  # auto: `edges` for pictures and `words` for texts, whichever columns are there
    kind: str = "auto"  # edges | words | timm | torchvision | open_clip | transformers | ... | module (configs/encoder)
    model: str = ""  # the library's name of it, a hub id, a local folder, or module:function for kind=module
    weights: str = "auto"  # auto: the library's own | none: untrained | a tag of the library | a local file
    tower: str = "image"  # image | text: what a two-tower model or a module reads
    layer: str | None = None  # layer whose output (or input) is taken, by its name; None: the model's own features
    tap: str = "output"  # output | input of that layer
    pool: str = "mean"  # mean | first | last | max | flatten: how places or tokens become one vector
    # columns of features of the whole network: gradients of the sum of its outputs by its parameters (in float32),
    # sketched to so many; 0: activations
    jacobian: int = 0
    parameters: str = "*"  # jacobian: pattern of the names of the parameters by which it is taken, such as *.layer4.*
    size: int | None = None  # side of the picture in pixels; None: the model's own
    # crop: shorter side to `size`, centre taken | squash: whole picture | pad: whole, on white; None: the model's own,
    # else crop
    fit: str | None = None
    crop: float | None = None  # share of the resized side that the centre keeps, 0..1; None: the model's own, else 1
    mean: list[Any] = field(default_factory=list)  # of R, G, B in 0..1; empty: the model's own, else 0.5
    std: list[Any] = field(default_factory=list)  # likewise
    tokens: int | None = None  # longest text in tokens; None: the model's own
    normalize: bool = False  # scale features to unit length
    batch: int | None = None  # samples at a time; None: from memory
    column: str | None = None  # raw column it reads; None: the only one of its kind
    band: str | None = None  # column it writes; None: `features`, or the raw column's name where there are several


@dataclass
class EmbedConfig:
    """Schema of `configs/embed.yaml`."""

    data: RawConfig = field(default_factory=RawConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    encoders: list[Any] = field(default_factory=list)  # several: names, or fields of EncoderConfig; replace `encoder`
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    device: str = "auto"  # auto: a GPU if there is one | cpu | cuda
    precision: str = "auto"  # auto: mixed on a GPU, float32 on a CPU | float32
    dtype: str = "float16"  # float16 | float32: of the features as written
    thumbnail: int = 64  # side in pixels of the pictures kept for reports, in column `picture`; 0: none
    unit_rows: int = 2048  # rows of a unit of work and its output file, where the input does not say
    most_pixels: int = 50_000_000  # pictures with more are quarantined before they are decoded
    most_failed: float = 0.01  # share of samples that may end in quarantine, 0..1
    seed: int = 0  # of every draw
    output: str = "outputs/embed"  # a new or empty folder or URI; a job's default ends in the time of the run
    resume: bool = False  # go on with the unfinished run in `output`, which must have the same data and options
    plan: bool = False  # print units, rows, bytes, memory, batch size and measured time, then stop
    trust_code: bool = False  # let `encoder.model=module:function` import and run code of yours


SCHEMAS = {
    "embed": EmbedConfig,
    "score": ScoreConfig,
    "reweight": ReweightConfig,
    "extend": ExtendConfig,
    "augment": AugmentConfig,
    "aggregate": AggregateConfig,
    "train": TrainConfig,
    "tune": TuneConfig,
    "benchmark": BenchmarkConfig,
}  # configs/NAME.yaml builds on NAME_schema
