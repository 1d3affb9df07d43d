"""How an embedding run ends: what was refused is counted and judged; summary, manifest and page are written."""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections import Counter
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from diva_ray.config import EmbedConfig
from diva_ray.data.raw.units import Source
from diva_ray.data.store import TOKEN
from diva_ray.engine.embedding import QUARANTINE
from diva_ray.engine.meter import Meter, Work, peak_memory
from diva_ray.errors import InputError
from diva_ray.report.sheet import Gallery, Sheet, Table, Tile, render_sheet
from diva_ray.report.words import counted
from diva_ray.tasks.setup.finish import now
from diva_ray.tasks.setup.manifest import described
from diva_ray.tasks.setup.saved_config import write_config

if TYPE_CHECKING:
    from diva_ray.tasks.setup.embed_prepare import Prepared

log = logging.getLogger("diva_ray")
SHOWN_FILES, SHOWN = 8, 24  # of features on the page; samples
WHOLE = "-whole"  # ends the name of a copy without nulls
ALIKE = 20  # characters by which reasons are one
TOLD = 5  # columns that were left out, in a warning
LISTED = 100  # refused samples on the page
READ_FILES = 50  # of quarantine, for the page


def conclude(
    config: EmbedConfig, prepared: Prepared, done: list[dict[str, Any]], seconds: dict[str, float], started: str
) -> dict[str, Any]:
    """Write what describes the run and return its summary; raise if too many samples were refused.

    What was written stays, so that the run can be resumed.
    """
    job, folder = prepared.job, prepared.job.folder
    for inside in ("features", "quarantine"):
        prepared.job.folder.sweep(inside)
    rows, failed = (sum(one[key] for one in done) for key in ("rows", "failed"))
    cut = len(job.source.units) - len(done)  # units that were not read any more, since too many had been refused
    if failed > config.most_failed * (rows + failed) or cut or not rows:
        noted = _commonest([said for one in done for said in one.get("noted", ())])
        before = f" before the last {counted(cut, 'unit was', 'units were')} read" if cut else ""
        raise InputError(
            f"embed: at most a share of {config.most_failed:.4g} of the samples may be refused, got {failed:,} of "
            f"{rows + failed:,}{before}"
            f"{noted}; all of them with reasons are in "
            f"{folder.location('quarantine')}. Mend the data and use a new `output`, or raise `most_failed` with "
            "`resume=true`, which also reads files again that could not be read."
        )
    dropped = _dropped(done) if config.data.keep == "all" else []
    fresh = [one for one in done if not one.get("reused")]
    summary = {
        "n_samples": rows, "n_failed": failed, "n_units": len(done), "n_reused": len(done) - len(fresh),
        "bands": [
            {
                "band": band.name, "column": band.column, "encoder": band.config.name, "kind": band.config.kind,
                "model": band.config.model, "width": band.width, "batch": band.batch,
            }
            for band in job.bands
        ],
        "missing": _missing(prepared, done),
        **_pace(fresh, seconds),
        "dropped_columns": dropped, "bytes": sum(one["bytes"] for one in done),
        "peak_memory_bytes": max([peak_memory(), *(one["memory"] for one in fresh)]),
        "driver_memory_bytes": peak_memory(), "workers": _workers(fresh),
    }  # fmt: skip
    folder.write("report.html", render_sheet(_page(config, prepared, summary)).encode())
    folder.write_json("summary.json", summary)
    write_config(folder, config)
    folder.write_json("manifest.json", _manifest(prepared, done, started))
    folder.remove(TOKEN)
    if job.source.more.get("temporary"):  # rows that were in memory
        folder.drop("raw")
    if dropped:
        log.warning("%s", told_dropped(job.source, dropped))
    return summary


def _missing(prepared: Prepared, done: list[dict[str, Any]]) -> dict[str, int]:
    """Return how many samples are null in a column, for those columns but the thumbnail that are null in some."""
    found: Counter[str] = Counter()
    for one in done:
        found.update(one["nulls"])
    return {name: found[name] for name in prepared.job.schema.names if found[name] and name != "picture"}


def _dropped(done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the columns that the data's head did not have: in how many rows they are, where the first of them is, and
    its number among all samples, from 1."""
    found: dict[str, dict[str, Any]] = {}
    before = 0
    for one in done:
        for name, here in one["dropped"].items():
            first = {"column": name, "rows": 0, "first": here["where"], "sample": before + here["row"] + 1}
            found.setdefault(name, first)["rows"] += here["rows"]
        before += one["rows"] + one["failed"]
    return list(found.values())


def _commonest(noted: list[str]) -> str:
    """Return the first of the samples that are refused for the commonest reason, of those noted."""
    if not noted:
        return ""
    reasons = [said.partition(" at ")[2].partition(": ")[2][:ALIKE] for said in noted]
    (reason, count), *others = Counter(reasons).most_common()
    first = noted[reasons.index(reason)]
    like = f"{count:,} of the {len(noted):,} noted like this" if others and count > 1 else "the first"
    return f" ({like}: {first})"


def told_dropped(source: Source, dropped: list[dict[str, Any]]) -> str:
    """Return which columns were left out and how to get them, in one line."""
    some = [f"`{one['column']}` ({one['rows']:,} row(s), first at {one['first']})" for one in dropped[:TOLD]]
    more = f" and {len(dropped) - TOLD:,} more (summary.json)" if len(dropped) > TOLD else ""
    return (
        f"data.peek: columns are those of the first {source.more['head']}; left out were {', '.join(some)}{more}. "
        f"`data.peek={max(one['sample'] for one in dropped)}` with a new `output` keeps them, `data.keep` names those "
        "that are wanted."
    )


def _workers(fresh: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what every worker did: one that was started anew is a process, and a worker, of its own."""
    meter, numbers = Meter(label="encode"), {}
    for one in fresh:
        number = numbers.setdefault((one["host"], one["process"]), len(numbers))
        facts = (one[name] for name in ("rows", "bytes", "seconds", "memory"))
        meter.add(number, Work(*facts, host=one["host"], cpu_seconds=one["cpu_seconds"]))
    return meter.summary()


def _pace(fresh: list[dict[str, Any]], seconds: dict[str, float]) -> dict[str, Any]:
    """Return rates, and the shares of the workers' time in which the encoder ran, or waited for decoded samples."""
    rows, busy = (sum(one[key] for one in fresh) for key in ("rows", "seconds"))
    share = {
        key: round(sum(one[key] for one in fresh) / busy, 4) if busy else None for key in ("encode", "wait", "write")
    }
    rate = rows / seconds["encode"] if fresh and seconds["encode"] > 0 else None
    return {
        "rows_per_second": rate and round(rate, 2),  # whole run, start of workers included
        "rows_per_worker_second": round(rows / busy, 2) if busy else None,  # while a worker worked on units
        "encoder_share": share["encode"], "wait_share": share["wait"], "write_share": share["write"],
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
    }  # fmt: skip


def _manifest(prepared: Prepared, done: list[dict[str, Any]], started: str) -> dict[str, Any]:
    """Return versions, and every file with the input it was made of."""
    job, units = prepared.job, prepared.job.source.units
    keys = ("file", "rows", "failed", "bytes", "sha256")
    data = {"raw": {"name": job.source.name, "fingerprint": prepared.state["units"]}}
    cluster = {"kind": prepared.kind, "why": prepared.why, "workers": prepared.workers, "gpus": prepared.gpus}
    return {
        **described(data, cluster, started, now()), "encoders": prepared.state["bands"],
        "units": [
            {**{key: one[key] for key in keys}, "input": units[one["unit"]].path, "part": job.stamp(units[one["unit"]])}
            for one in done
        ],
    }  # fmt: skip


def told(config: EmbedConfig, prepared: Prepared, summary: dict[str, Any]) -> list[str]:
    """Return what came out, and the next command, for a terminal."""
    folder = prepared.job.folder
    rate = summary["rows_per_second"]
    bands = ", ".join(f"`{one['band']}` ({one['width']:,} by {one['encoder']})" for one in summary["bands"])
    reused = f", {summary['n_reused']:,} of {summary['n_units']:,} files were there" if summary["n_reused"] else ""
    pace = f"; {rate:,.0f} samples/s, the encoder ran {summary['encoder_share']:.0%} of the time" if rate else ""
    lines = [f"{counted(summary['n_samples'], 'sample', 'samples')}: {bands}{pace}{reused}"]
    if summary["n_failed"]:
        lines.append(f"{summary['n_failed']:,} refused, with reasons: {folder.location('quarantine')}")
    lines += _next(config, prepared, summary)
    return lines


def _next(config: EmbedConfig, prepared: Prepared, summary: dict[str, Any]) -> list[str]:
    """Return the command that scores what came out, to be pasted; or what stands in its way."""
    job, missing = prepared.job, summary["missing"]
    bands = [band.name for band in job.bands]
    label = config.data.label if config.data.label in job.schema.names else None
    pairs = not label and len({band.column for band in job.bands}) == len(bands) == 2
    told = [f"`{name}` in {missing[name]:,}" for name in (*bands, label) if name in missing]
    lines = [f"null of {counted(summary['n_samples'], 'sample', 'samples')}: {', '.join(told)}"] if told else []
    needed = [name for name in (bands if pairs else [label]) if name in missing]
    path = f"{job.folder.location('features')}"
    if needed:  # no run scores a row without a label, or a pair without a side
        lines.append(f"first: {_command_without_nulls(path, path + WHOLE, [str(name) for name in needed])}")
        path += WHOLE
    texts = {band.column for band in job.bands}
    others = [name for column, name in job.kept.items() if column not in texts]
    if not (label or pairs or others):
        return lines
    words = [f"data.path={path}"]
    words += ["task=pairs"] if pairs else []
    listed = ",".join(map(_value, bands))
    words += [f"data.features=[{listed}]"] if len(bands) > 1 else []
    words += [f"data.features={listed}"] if len(bands) == 1 and bands != ["features"] else []
    words += [f"data.label={_value(label)}"] if label and label != "label" else []
    words += [f"data.label={_value(others[0])}"] if not (label or pairs) else []
    words += ["data.truth=true_label"] if config.data.builtin and "true_label" in job.schema.names else []
    lines.append(f"next: python jobs/score.py {' '.join(map(shlex.quote, words))}")
    if not (label or pairs) and len(others) > 1:
        lines.append(f"data.label may also be {', '.join(others[1:TOLD])}")
    return lines


def _value(name: str) -> str:
    """Return a column's name as an override takes it, also inside a list."""
    plain = re.fullmatch(r"[A-Za-z_][\w.-]*", name, re.ASCII)
    plain = plain and name.lower() not in ("true", "false", "null", "nan", "inf")
    return name if plain else json.dumps(name, ensure_ascii=False)


def _command_without_nulls(path: str, copy: str, columns: list[str]) -> str:
    """Return a command that copies the rows of a table in which none of the columns is null, of any number."""
    whole = " & ".join(f"d.field({name!r}).is_valid()" for name in columns)
    code = f"d.write_dataset(d.dataset({path!r}).filter({whole}), {copy!r}, format='parquet')"
    return f"python -c {shlex.quote(f'import pyarrow.dataset as d; {code}')}"


def _page(config: EmbedConfig, prepared: Prepared, summary: dict[str, Any]) -> Sheet:
    """Return the page: some samples as they were encoded, and what was refused."""
    job, failed = prepared.job, summary["n_failed"]
    refused = _refused(prepared)
    by_reason = Counter(one["reason"].split(":")[0] for one in refused).most_common()
    intro = "By reason" + (f", of the first {len(refused):,}" if len(refused) < failed else "") + "."
    bands = [
        f"{one['band']}: {one['width']:,} features of {one['column']} by {one['encoder']}." for one in summary["bands"]
    ]
    listed = [
        ("id", "id", "text"),
        ("where", "where", "text"),
        ("column", "column", "text"),
        ("reason", "reason", "text"),
    ]
    share = failed / max(1, failed + summary["n_samples"])
    rate = summary["rows_per_second"]
    return Sheet(
        "Raw samples to features",
        [
            f"{counted(summary['n_samples'], 'sample was', 'samples were')} encoded; "
            f"{counted(failed, 'was', 'were')} put aside.",
            *bands,
        ],
        [
            Tile("samples", f"{summary['n_samples']:,}", f"in {summary['n_units']:,} file(s)"),
            Tile("put aside", f"{failed:,}", f"{share:.2%}; at most {config.most_failed:.2%}", "hurts" * (failed > 0)),
            Tile("samples a second", f"{rate:,.0f}" if rate else "-", f"{prepared.workers} worker(s)"),
            Tile("encoder's share", f"{summary['encoder_share']:.0%}" if rate else "-", "of the workers' time"),
        ],
        [
            Gallery("Samples", _samples(prepared, config.data.label), "A few, as they went in."),
            *([Table("Put aside", [("reason", "reason", "text"), ("n", "samples", "count")],
                     [{"reason": reason, "n": n} for reason, n in by_reason], intro),
               Table("Which", listed, refused[:LISTED], "The first ones; all are in quarantine/.")] if refused else []),
        ],
        [("Raw data", f"{job.source.name} ({job.source.kind})"),
         ("Where", f"{prepared.kind}, {prepared.workers} worker(s)"),
         ("Versions", f"diva_ray {version('diva_ray')}, ray {version('ray')}, torch {version('torch')}")],
        seconds={**summary["seconds"], "total": sum(summary["seconds"].values())},
        memory=summary["peak_memory_bytes"],
        notes=[told_dropped(job.source, summary["dropped_columns"])] if summary["dropped_columns"] else [],
        downloads=["features/*.parquet: the features",
                   *(["quarantine/*.parquet: what was refused, and why"] if summary["n_failed"] else [])],
    )  # fmt: skip


def _refused(prepared: Prepared) -> list[dict[str, Any]]:
    folder = prepared.job.folder
    files = sorted(name for name in folder.names("quarantine") if name.endswith(".parquet"))[:READ_FILES]
    found = [pq.read_table(f"{folder.base}/quarantine/{name}", filesystem=folder.filesystem) for name in files]
    return pa.concat_tables([QUARANTINE.empty_table(), *found]).to_pylist()


def _samples(prepared: Prepared, label: str) -> list[dict[str, Any]]:
    """Return a few samples of a few files: id, label, picture, text."""
    job, folder = prepared.job, prepared.job.folder
    texts = [job.kept[band.column] for band in job.bands if band.tower == "text" and band.column in job.kept]
    names = {"id": "id", **({"picture": "picture"} if job.picture else {})}
    names |= {"label": label} if label in job.schema.names else {}
    names |= {"text": texts[0]} if texts else {}
    files = sorted(name for name in folder.names("features") if name.endswith(".parquet"))
    some = [files[k * len(files) // SHOWN_FILES] for k in range(SHOWN_FILES)] if len(files) > SHOWN_FILES else files
    found = []
    for name in some:
        with pq.ParquetFile(f"{folder.base}/features/{name}", filesystem=folder.filesystem) as file:
            each = -(-SHOWN // len(some))
            for batch in file.iter_batches(4096, columns=list(names.values())):
                rows = pa.Table.from_batches([batch])
                at = [k * rows.num_rows // each for k in range(min(each, rows.num_rows))]
                found += [{key: row[name] for key, name in names.items()} for row in rows.take(at).to_pylist()]
                break
    return found[:SHOWN]
