"""What an embedding run finds before it starts: raw data, encoders, columns, where it will run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import psutil
import pyarrow as pa

from diva_ray.config import EmbedConfig, EncoderConfig, RawConfig
from diva_ray.data.columns import is_list, is_picture, is_text, storage_type
from diva_ray.data.encoders.build import build, encoder_config, tower_of, width_of
from diva_ray.data.encoders.encoder import IMAGE, TEXT, Encoder, choose_device
from diva_ray.data.raw.units import Source, Unit
from diva_ray.engine.batch_size import find_batch
from diva_ray.engine.embedding import Band
from diva_ray.errors import InputError
from diva_ray.tasks.setup.calls import path_of
from diva_ray.tasks.setup.memory import parse_bytes
from diva_ray.tasks.setup.option_checks import CLUSTER, check_choices, check_least
from diva_ray.tasks.setup.options import check_types, cluster_options, import_code
from diva_ray.tasks.setup.plan import choose_kind

COLUMNS = tuple(field.name for field in fields(RawConfig) if field.name not in ("path", "builtin", "noise"))
PATHS = ("image", "picture", "photo", "image_path", "path", "file", "file_name", "filename", "filepath", "uri", "url")
ADDRESSES = ("uri", "url")
TEXTS = ("text", "caption", "sentence", "title", "description", "content", "prompt", "question")
TOLD = 12  # columns that a message names
BATCH_SHARE = 0.25  # of a worker's memory, for one batch's activations on a CPU


def configure(data: Any, options: Mapping[str, Any]) -> tuple[EmbedConfig, Any, list[Any]]:
    """Return (config, data, modules by encoder) of a Python call; `data` is None when it is a path."""
    known = {field.name for field in fields(EmbedConfig)} - {"data"}
    values: dict[str, Any] = {"data": RawConfig(**{k: v for k, v in options.items() if k in COLUMNS}), "output": ""}
    modules: list[Any] = []
    for name, value in options.items():
        if name in COLUMNS:
            continue
        if name not in known:
            raise InputError(
                f"embed: options must be columns or fields of EmbedConfig, got {name!r}. Choose from "
                f"{', '.join(sorted({*COLUMNS, *known}))}."
            )
        if name == "cluster":
            values[name] = cluster_options(value)
        elif name in ("encoder", "encoders"):
            several = list(value) if name == "encoders" and isinstance(value, (list, tuple)) else [value]
            split = [_split(one) for one in several]
            modules = [module for _, module in split]
            values[name] = [asdict(config) for config, _ in split] if name == "encoders" else split[0][0]
        else:
            values[name] = value
    config = EmbedConfig(**values)
    path = path_of(data)
    if path is not None:
        config.data.path, data = path, None
    elif data is None and config.data.path is None:
        config.data.builtin = "digits"
    return config, data, modules


def _split(given: Any) -> tuple[EncoderConfig, Any]:
    """Return (config, module) of an encoder: a name, fields, a torch module, or fields with `module`."""
    if isinstance(given, (str, EncoderConfig)):
        return encoder_config(given), None
    if isinstance(given, Mapping):
        rest = {key: value for key, value in given.items() if key != "module"}
        module = given.get("module")
        start = {"name": "module", "kind": "module"} if module is not None else {}
        return encoder_config({**start, **rest}), module
    if callable(given):
        return encoder_config({"name": "module", "kind": "module"}), given
    raise InputError(
        f"encoder: must be a name, fields of EncoderConfig or a torch module, got {type(given).__name__}. Change "
        "`encoder`."
    )


def check(config: EmbedConfig) -> None:
    """Raise for options that no data could make right."""
    check_types(config)
    check_choices(config, {"precision": ("auto", "float32"), "dtype": ("float16", "float32")})
    least = {"thumbnail": 0, "unit_rows": 1, "most_pixels": 1, "most_failed": 0, "data.peek": 1}
    check_least(config, least | CLUSTER)
    if config.most_failed > 1:
        raise InputError(f"most_failed: must be a share from 0 to 1, got {config.most_failed}. Change `most_failed`.")
    choose_device(config.device if config.device != "cuda" else "auto")
    parse_bytes(config.cluster.memory)


def resolve(config: EmbedConfig, modules: list[Any], source: Source) -> list[tuple[EncoderConfig, Any]]:
    """Return the encoders of a run with their columns, and the modules of those that are the user's own."""
    configs = [encoder_config(one) for one in config.encoders] or [replace(config.encoder)]
    found: list[tuple[EncoderConfig, Any]] = []
    for given, module in zip(configs, modules or [None] * len(configs), strict=True):
        check_types(given, "encoder.")
        one = given
        if given.kind == "auto" and given.name not in ("auto", ""):
            one = encoder_config({k: v for k, v in asdict(given).items() if v != getattr(EncoderConfig(), k)})
        if one.kind == "auto":
            found += [(plain, None) for plain in _plain(one, source.schema)]
            continue
        code = module
        if one.kind == "module" and module is None and one.model not in ("", "???"):
            code = import_code("encoder.model", one.model, trusted=config.trust_code)
        found.append((replace(one, column=column_for(source.schema, one)), code))
    if not found:
        raise InputError(
            f"encoder.column: a picture column, or one called {', '.join(TEXTS)}, must be there, got "
            f"{_told(source.schema)}. Set `encoder.column`."
        )
    return found


def _plain(given: EncoderConfig, schema: pa.Schema) -> list[EncoderConfig]:
    """Return the encoders that need nothing, for the pictures (every column of them, where no name tells
    which) and texts that are there or the column that is named."""
    usual = EncoderConfig()
    same = {k: v for k, v in asdict(given).items() if k not in ("name", "kind", "column") and v != getattr(usual, k)}
    found = []
    for name, tower in (("edges", IMAGE), ("words", TEXT)):
        guessed = _guess(schema, tower)
        several = _pictures(schema) if guessed is None and tower == IMAGE else []
        columns = [given.column] if given.column else several if guessed is None else [guessed]
        for column in columns:
            if given.column is None or _fits(schema, column, tower, strict=True):
                found.append(replace(encoder_config(name), column=column, **same))
    return found


def column_for(schema: pa.Schema, config: EncoderConfig) -> str:
    """Return the raw column that an encoder reads; raise unless it is there and can be what the encoder takes."""
    tower = tower_of(config)
    column = config.column or _guess(schema, tower)
    if column is None:
        what = "pictures (bytes or paths)" if tower == IMAGE else "texts"
        several = len(_pictures(schema)) > 1 and tower == IMAGE
        raise InputError(
            f"encoder.column: a column of {what} must be {'named' if several else 'there'} for {config.name}, got "
            f"{_told(schema)}. Set `encoder.column`."
        )
    if column not in schema.names:
        raise InputError(
            f"encoder.column: column `{column}` must be there, got {_told(schema)}. Change `encoder.column`."
        )
    if not _fits(schema, column, tower):
        what = "bytes, paths or {bytes, path}" if tower == IMAGE else "strings"
        raise InputError(
            f"encoder.column: column `{column}` must hold {what} for {config.name}, got {schema.field(column).type}. "
            "Change `encoder.column`."
        )
    return column


def _told(schema: pa.Schema) -> str:
    texts = [field for field in schema if is_text(field.type) or is_picture(field.type)]  # what may be meant
    some = [*texts, *(field for field in schema if field not in texts)][:TOLD]
    more = len(schema) - len(some)
    return "columns " + ", ".join(f"{one.name} ({one.type})" for one in some) + (f" and {more} more" if more else "")


def _fits(schema: pa.Schema, column: str, tower: str, *, strict: bool = False) -> bool:
    """Return whether a column can be what a tower takes; `strict`: a string is a text, unless its name says path."""
    if column not in schema.names:
        return False
    kind = schema.field(column).type
    if strict and is_text(kind):
        return (tower == IMAGE) == (column in PATHS)
    return is_text(kind) or (tower == IMAGE and is_picture(kind))


def _guess(schema: pa.Schema, tower: str) -> str | None:
    """Return the column that an encoder reads unasked: the only one of its kind, or the one with a telling name."""
    texts = [field.name for field in schema if is_text(field.type) and field.name != "id"]
    if tower == TEXT:
        return _named(texts, TEXTS)
    pictures = _pictures(schema)
    # Beside texts to embed, an address is where they come from.
    paths = PATHS if _named(texts, TEXTS) is None else tuple(name for name in PATHS if name not in ADDRESSES)
    return _named(pictures, PATHS) or (pictures[0] if len(pictures) == 1 else _named(texts, paths))


def _pictures(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if is_picture(field.type) and field.name != "id"]


def _named(columns: list[str], usual: tuple[str, ...]) -> str | None:
    """Return the column with the first of the usual names, in letters of either case."""
    return next((column for name in usual for column in columns if column.lower() == name), None)


def name_bands(found: list[tuple[EncoderConfig, Any]]) -> list[str]:
    """Return the columns that are written: `features` of a single encoder, else the raw columns' names."""
    names = []
    for config, _ in found:
        name = config.band or ("features" if len(found) == 1 else str(config.column))
        if config.band is None and name in names:
            name = f"{name}_{config.name}"
        names.append(name)
    twice = [name for name in names if names.count(name) > 1 or name in ("id", "picture")]
    if twice:
        raise InputError(
            f"encoder.band: every encoder must write a column of its own (not id or picture), got {', '.join(names)}. "
            "Change `encoder.band`."
        )
    return names


@dataclass
class Built:
    """Encoders as this process has them, and what their bands are."""

    encoders: list[Encoder]
    bands: tuple[Band, ...]
    given: dict[str, Any]  # modules of the user's by band


def build_all(config: EmbedConfig, found: list[tuple[EncoderConfig, Any]], device: str) -> Built:
    """Return encoders, tried once, and their bands; batch sizes come later."""
    encoders, bands, given = [], [], {}
    for (one, module), name in zip(found, name_bands(found), strict=True):
        encoder = build(one, device, config.precision, module)
        encoders.append(encoder)
        bands.append(Band(one, encoder.tower, str(one.column), name, width_of(encoder, one), 0))
        if module is not None:
            given[name] = module
    return Built(encoders, tuple(bands), given)


def batches(config: EmbedConfig, built: Built, workers: int) -> list[int]:
    """Return the batch size of every encoder in this process, or in one like it."""
    memory = parse_bytes(config.cluster.memory) or psutil.virtual_memory().available // max(1, workers)
    share = config.cluster.gpus_per_worker or 1.0
    return [find_batch(encoder, int(BATCH_SHARE * memory), share) for encoder in built.encoders]


def kept_columns(config: EmbedConfig, source: Source, bands: tuple[Band, ...], picture: bool) -> dict[str, str]:
    """Return raw column -> name under which it is written: all but pictures, or those that `data.keep` names."""
    keep, schema, label = config.data.keep, source.schema, config.data.label
    if label not in (RawConfig().label, *schema.names) and source.kind not in ("folder", "webdataset"):
        raise InputError(f"data.label: column `{label}` must be there, got {_told(schema)}. Change `data.label`.")
    if keep == "all":
        encoded = {band.column for band in bands if band.tower == IMAGE} if source.kind == "folder" else set()
        names = [f.name for f in schema if f.name != "id" and not is_picture(f.type) and f.name not in encoded]
    else:
        names = [keep] if isinstance(keep, str) else list(keep) if isinstance(keep, (list, tuple)) else [keep]
        unknown = [name for name in names if name not in schema.names]
        if unknown:
            raise InputError(
                f"data.keep: columns must be there, got {unknown[0]!r}, not among {_told(schema)}. Change `data.keep`."
            )
        names = [name for name in dict.fromkeys(names) if name != "id"]
    own = {band.name for band in bands} | ({"picture"} if picture else set()) | {"id"}
    taken, kept = own | {name for name in names if name not in own}, {}
    for name in names:
        kept[name] = name
        while name in own and kept[name] in taken:
            kept[name] = f"raw_{kept[name]}"
        taken.add(kept[name])
    return kept


def schema_of(source: Source, bands: tuple[Band, ...], kept: dict[str, str], dtype: str, picture: bool) -> pa.Schema:
    """Return the schema of the files of features."""
    number = {"float16": pa.float16(), "float32": pa.float32()}[dtype]
    schema = source.schema
    return pa.schema(
        [
            pa.field("id", schema.field("id").type),
            *(pa.field(name, storage_of(schema.field(column).type)) for column, name in kept.items()),
            *(pa.field(band.name, pa.fixed_shape_tensor(number, [band.width])) for band in bands),
            *([pa.field("picture", pa.binary())] if picture else []),
        ]
    )


def storage_of(kind: pa.DataType) -> pa.DataType:
    """Return a type that every reader of Parquet knows."""
    return kind if is_list(kind) else storage_type(kind)


def hash_of(value: Any) -> str:
    """Return a short hash of what JSON can say of a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def units_mark(units: tuple[Unit, ...]) -> str:
    """Return what tells this input from others."""
    return hash_of([[os.path.basename(u.path), u.start, u.stop, u.skip, u.rows, u.mark] for u in units])


def where_to_run(config: EmbedConfig) -> tuple[str, str]:
    """Return (inline, local or ray) and why: without a cluster this process does, with all its cores."""
    kind, why = choose_kind(config.cluster, 0)
    if kind == "inline" and config.cluster.kind == "auto":
        why = "no Ray cluster is in reach, and this process can use every core"
    return kind, why
