"""Jobs in processes of their own that begin where the imports end: torch takes each a few seconds of processor time.

Another process, this module's `main`, imports what jobs do and forks for every run. A run has its own arguments,
environment, files and exit code, and ends as any Python process ends.
"""

import atexit
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
AHEAD = ("torch", "pandas", "sklearn.datasets", "hydra", "diva_ray.jobs", "diva_ray.tasks.score",
         "diva_ray.tasks.extend", "diva_ray.tasks.reweight", "diva_ray.tasks.aggregate")  # fmt: skip
_mother: list[subprocess.Popen] = []


def run_job(script: str, *words: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess:
    """Return what `python SCRIPT WORDS` in the project's folder says, and its exit code."""
    if not _mother or _mother[0].poll() is not None:
        command = [sys.executable, "-m", "tests.forks"]
        started = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        atexit.register(started.kill)
        _mother[:] = [started]
    mother = _mother[0]
    assert mother.stdin and mother.stdout
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, name) for name in ("stdout", "stderr")]
        asked = {"words": [script, *words], "environment": {**os.environ, **environment}, "files": files}
        print(json.dumps(asked), file=mother.stdin, flush=True)
        pid = int(mother.stdout.readline())
        late = not select.select([mother.stdout], [], [], timeout)[0]
        if late:
            os.kill(pid, signal.SIGKILL)
        code = int(mother.stdout.readline())
        said = [Path(file).read_text() for file in files]
    if late:
        raise subprocess.TimeoutExpired([script, *words], timeout, *said)
    return subprocess.CompletedProcess([script, *words], code, *said)


def main() -> None:
    """Fork for every line on standard input; tell the process, and its exit code as `subprocess` does."""
    for name in AHEAD:
        importlib.import_module(name)
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become(**asked)
            return
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def become(words: list[str], environment: dict[str, str], files: list[str]) -> None:
    """Run a script as if Python had been started with it."""
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, name in enumerate([os.devnull, *files]):
        file = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(file, descriptor)
        os.close(file)
    sys.argv[:] = words
    sys.path[0] = str((ROOT / words[0]).parent)
    runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()
