"""What every job does around its task: compose the config, run, and turn a user's mistake into one line and code 2."""

from __future__ import annotations

import atexit
import logging
import os
import re
import sys
from importlib import import_module
from typing import Any, NoReturn

import hydra
from omegaconf import OmegaConf

from diva_ray.command_line import checked, is_override, quoted, register
from diva_ray.config import CONFIGS, SCHEMAS
from diva_ray.errors import InputError
from diva_ray.help import job_help
from diva_ray.signals import hear_term, interrupt_behind, was_terminated
from diva_ray.threads import blas_environment

# Hydra keeps no folder and no log of its own, whatever config is named: files go to `output`, nowhere else.
QUIET = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none"]
UNPACKED = "/runtime_resources/working_dir_files/"  # where Ray puts `--working-dir` of a submitted job
INTERRUPTED, TERMINATED = 130, 143  # the exit codes of what Ctrl-C and SIGTERM ended, as shells know them


class ConsoleHandler(logging.StreamHandler):
    """Says how a run goes on standard output, and warnings and mistakes on standard error."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as one line: names of columns are data too; tracebacks of a crash stay as they are."""
        return super().format(record) if record.exc_info else plain(super().format(record))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record where it belongs."""
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        if stream is not None:  # as Python has it where it is closed
            self.setStream(stream)
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Go on where nobody listens any more (`| head`), or the disk is full: the run's files are what it is for."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def job(task: str) -> None:
    """Compose the config of a task with the command line and run it; exit code 2 with one line for a user's mistake.

    `--help` explains every option; Hydra's own flags (--cfg job, --multirun, --config-name) work as usual. The task is
    a module with `run`, such as `diva_ray.tasks.score`, imported only when options are right: torch takes seconds, a
    misspelt option none.
    """
    try:
        _compose(task)
    except (KeyboardInterrupt, Exception) as error:  # before the run began
        interrupt = interrupt_behind(error)
        if interrupt is None:
            raise
        _interrupted(task.rpartition(".")[2], interrupt)


def _compose(task: str) -> None:
    name = task.rpartition(".")[2]
    hear_term()
    _use_every_instruction()
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # one line is told; Ray would add a second worker's trace
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[ConsoleHandler()])
    register()
    sys.argv[1:] = words = [quoted(word) for word in sys.argv[1:]]
    if {"--help", "-h"} & set(words):
        try:
            print(job_help(name), flush=True)
        except OSError as error:
            _hear_no_more(error)
        return
    try:
        chosen, folder, rest, own = checked(name, words)
    except InputError as error:
        _leave(error)
    # Before the user's overrides, which win; argparse wants them side by side, wherever the flags are.
    flags = [f"--config-name={chosen}", *([] if folder is None else [f"--config-dir={folder}"])]
    flags += [word for word in rest if not is_override(word)]
    sys.argv[1:] = [*flags, *QUIET, *own, *(word for word in rest if is_override(word))]
    hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(lambda cfg: _run(task, cfg))()


def _use_every_instruction() -> None:
    """Start again under OPENBLAS_CORETYPE where OpenBLAS takes this processor for an older one, at half its speed.

    OpenBLAS reads it once, when numpy is imported, which is why a running process cannot change its mind.
    """
    missing = blas_environment()
    if missing:
        os.environ.update(missing)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _run(task: str, cfg: Any) -> None:
    name = task.rpartition(".")[2]
    try:
        config: Any = OmegaConf.to_object(cfg)
        if type(config) is not SCHEMAS[name]:  # another job's, such as the winner of a search
            other = next((job for job, schema in SCHEMAS.items() if type(config) is schema), None)
            raise InputError(
                f"--config-name: a config of jobs/{name}.py must be named, got "
                + (f"one of jobs/{other}.py. Run that." if other else f"one without `{name}_schema` in its `defaults`.")
            )
        _tell_own_folder(config)
        from diva_ray.tasks.told.next_steps import next_steps  # after the signals are heard, as all that takes long

        result = import_module(task).run(config)
    except InputError as error:
        _leave(error)
    except (KeyboardInterrupt, Exception) as error:
        interrupt = interrupt_behind(error)
        if interrupt is None:
            raise
        begun = name != "benchmark" and not config.plan and ("://" in config.output or _has_files(config.output))
        resumed = f" `output={config.output} resume=true` goes on from what is there." if begun else ""
        _interrupted(name, interrupt, resumed)
    try:
        print("\n".join(plain(line) for line in [*result.lines(), *next_steps(config, result)]), flush=True)
    except OSError as error:
        _hear_no_more(error)


def _has_files(output: str) -> bool:
    folder = os.path.expanduser(output)
    return os.path.isdir(folder) and bool(os.listdir(folder))


def _tell_own_folder(config: Any) -> None:
    """Warn where a submitted job writes into its own copy of the working directory, of which every node has one."""
    here, output = os.getcwd(), os.path.abspath(os.path.expanduser(config.output or ""))
    if "://" not in (config.output or "") and UNPACKED in here and output.startswith(here + os.sep):
        logging.getLogger("diva_ray").warning(
            "output: `%s` lies in the folder that Ray made for this job, on the head alone and only for a while. Name "
            "a folder or URI that every node reaches and that stays.", config.output
        )  # fmt: skip


def _hear_no_more(error: OSError) -> None:
    """Let output go nowhere, or Python says when it ends that nobody listens; exit with 1 where nobody chose that, as
    `| head` does, but the disk is full."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not isinstance(error, BrokenPipeError):
        print(f"standard output could not be written ({error}); the files of a run are whole", file=sys.stderr)
        sys.exit(1)


def plain(text: str) -> str:
    """Return text on one line without control characters: ids and labels must not steer a terminal."""
    line = re.sub(r"\s*[^\S ]\s*", " ", text.strip())  # spaces that align columns stay
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)


def _interrupted(name: str, error: KeyboardInterrupt, resumed: str = "") -> NoReturn:
    """End as what Ctrl-C or SIGTERM has ended."""
    _leave(f"{name}: interrupted.{resumed}", TERMINATED if was_terminated(error) else INTERRUPTED)


def _leave(error: InputError | str, code: int = 2) -> NoReturn:
    """End with one line on standard error, and with exit code 2 for a mistake."""
    print(plain(str(error)), file=sys.stderr, flush=True)
    atexit._run_exitfuncs()  # such as Ray's, which ends what it has started
    sys.stdout.flush()
    # Not sys.exit: so soon after a CSV was read, a thread of Arrow's pool may run into C++'s clean-up at the end of the
    # process, which then aborts with code 134, whether or not the reader is closed and its file read to the end.
    os._exit(code)
