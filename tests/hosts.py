"""`cluster.yaml` started on three hosts that are reached by SSH alone: sudo .venv/bin/python -m tests.hosts

Ray's provider `local` stands in for AWS; everything else is what the file says: copies, token, set-up, start commands.
A job is submitted twice, the second time with the cable of a worker's host pulled among the steps: the worker must
start again on the host that is left, and both runs must leave the same bits. About seven minutes on two cores. (What
the provider does not do is to set up a spare host in place of a lost one: it says so, every five seconds, in vain.)

The hosts are namespaces of this machine (network, processes, mounts, name), each with users, a home, a /tmp and an sshd
of its own. Needs root on Linux, the registry of packages in reach, and Debian's iproute2, iptables, openssh-server,
rsync and sudo. Leaves nothing behind but its log. Exits with 1 and says why where something does not hold.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).resolve().parent.parent
HEAD, *WORKERS = ADDRESSES = [f"10.77.0.{10 + k}" for k in range(3)]
SPARE = "10.77.0.99"  # is never there: the provider counts the head among the nodes, but must know as many workers
ENTER = """
mount -t overlay overlay -o lowerdir=/etc,upperdir={place}/etc,workdir={place}/etc.work /etc
mount --bind {place}/home /home
mount --bind {place}/tmp /tmp
mount -t tmpfs -o size=2g tmpfs /dev/shm
hostname diva-{index}
echo 127.0.0.1 localhost diva-{index} > /etc/hosts
useradd --create-home --shell /bin/bash ubuntu
echo 'ubuntu ALL=(ALL) NOPASSWD:ALL' > /etc/sudoers.d/ubuntu
install -d -o ubuntu -m 700 /home/ubuntu/.ssh
install -o ubuntu -m 600 {key}.pub /home/ubuntu/.ssh/authorized_keys
ssh-keygen -A
mkdir -p /run/sshd
exec /usr/sbin/sshd -D -e -o PidFile=none
"""


def sh(command: str, **options) -> str:
    """Run a line of shell; return what it said."""
    return subprocess.run(command, shell=True, check=True, text=True, stdout=subprocess.PIPE, **options).stdout


def wire(leave: ExitStack) -> None:
    """Connect the hosts, with a way out."""
    forward = Path("/proc/sys/net/ipv4/ip_forward")
    leave.callback(forward.write_text, forward.read_text())
    forward.write_text("1")
    sh("ip link add diva type bridge && ip addr add 10.77.0.1/24 dev diva && ip link set diva up")
    leave.callback(sh, "ip link del diva")
    rule = "POSTROUTING -s 10.77.0.0/24 ! -d 10.77.0.0/24 -j MASQUERADE"
    sh(f"iptables -t nat -A {rule}")
    leave.callback(sh, f"iptables -t nat -D {rule}")
    for k, address in enumerate(ADDRESSES):
        sh(f"ip netns add diva{k} && ip link add cable{k} type veth peer name e0 netns diva{k}")
        leave.callback(sh, f"ip netns del diva{k}")
        leave.callback(sh, f"ip link del cable{k}")
        sh(f"ip link set cable{k} master diva up && ip -n diva{k} addr add {address}/24 dev e0")
        sh(f"ip -n diva{k} link set lo up && ip -n diva{k} link set e0 up")
        sh(f"ip -n diva{k} route add default via 10.77.0.1")


def boot(work: Path, key: Path, leave: ExitStack) -> None:
    """Start the hosts; each ends with all of its processes when this script does."""
    for k in range(len(ADDRESSES)):
        place = work / f"host{k}"
        for name in ("etc", "etc.work", "home", "tmp"):
            (place / name).mkdir(parents=True)
        (place / "tmp").chmod(0o1777)
        (place / "boot.sh").write_text("set -e" + ENTER.format(place=place, index=k, key=key))
        spaces = ["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]
        with open(work / f"host{k}.log", "w") as said:
            command = ["ip", "netns", "exec", f"diva{k}", *spaces, "bash", place / "boot.sh"]
            host = subprocess.Popen(command, stdout=said, stderr=said)
        leave.callback(host.wait)
        leave.callback(host.kill)


def on_these_hosts(key: Path) -> dict:
    """Return what cluster.yaml says, with the hosts of this script in place of instances of AWS."""
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    del config["available_node_types"], config["head_node_type"]
    config["provider"] = {"type": "local", "head_ip": HEAD, "worker_ips": [*WORKERS, SPARE]}
    config["auth"]["ssh_private_key"] = str(key)
    config["min_workers"] = config["max_workers"] = 3  # the head is counted
    for kind, cpus in ("head", 0), ("worker", 2):  # on AWS the types of nodes say so
        start = config[f"{kind}_start_ray_commands"]
        start[-1] = start[-1].replace("ray start", f"ray start --num-cpus={cpus}")
    return config


def write_table(folder: Path, n: int = 200_000) -> None:
    """Write n rows of ten classes, one label in ten drawn at random."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    X = draw.normal(size=(n, 64)).astype(np.float32)
    y = (X[:, :10] + draw.normal(size=(n, 10))).argmax(1)
    y = np.where(draw.random(n) < 0.1, draw.integers(0, 10, n), y)
    rows = pa.FixedSizeListArray.from_arrays(X.ravel(), 64)
    pq.write_table(pa.table({"id": np.arange(n), "features": rows, "label": y}), folder / "part.parquet")


def submit(address: str, output: Path, log: Path) -> subprocess.Popen:
    """Submit the job of cluster.yaml's first lines to two workers."""
    job = f"jobs/reweight.py cluster=ray cluster.workers=2 data.path={output.parent / 'table'} output={output}"
    command = f"ray job submit --address {address} --working-dir . -- python {job}"
    with open(log, "w") as said:
        return subprocess.Popen(command.split(), cwd=ROOT, stdout=said, stderr=said)


def runs_a_worker(ssh: str, k: int) -> bool:
    """Return whether host k does."""
    return int(sh(f"{ssh} ubuntu@{ADDRESSES[k]} \"ps ax | grep -c '[r]ay::Worker' || true\"")) > 0


def reached(what: str, holds, seconds: float) -> None:
    """Wait until it holds; a TimeoutError names what did not."""
    begun = time.monotonic()
    while not holds():
        if time.monotonic() - begun > seconds:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(1.0)
    print(f"{what}: {time.monotonic() - begun:.0f} s", flush=True)


def main(work: Path) -> int:
    """Return 0 if everything held."""
    home, shared, key = work / "home", work / "shared", work / "key"
    for folder in (home, shared):
        folder.mkdir(parents=True)
    shared.chmod(0o777)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    os.environ.update(HOME=str(home), PATH=path, RAY_AUTH_MODE="token")
    os.environ.pop("RAY_ADDRESS", None)
    sh(f"ssh-keygen -q -t ed25519 -N '' -f {key}")
    sh("ray get-auth-token --generate && chmod 600 ~/.ray/auth_token")
    write_table(shared / "table")
    config = work / "cluster.yaml"
    config.write_text(yaml.safe_dump(on_these_hosts(key)))
    quiet = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    ssh, address = f"ssh {quiet} -i {key}", "http://localhost:18265"
    ran = {name: work / f"{name}.log" for name in ("undisturbed", "disturbed")}

    def passes(name: str) -> int:
        return ran[name].read_text().count("\npass=")

    def answers() -> bool:
        there = f"ray job list --address {address}"
        return not subprocess.run(there.split(), capture_output=True, check=False).returncode

    with ExitStack() as leave:
        wire(leave)
        boot(work, key, leave)
        up = ["ray", "up", "--yes", str(config)]
        with open(work / "up.log", "w") as said:
            begun = time.monotonic()
            subprocess.run(up, cwd=ROOT, stdout=said, stderr=said, check=True)
            print(f"ray up, with the head set up: {time.monotonic() - begun:.0f} s", flush=True)
            tunnel = ["ray", "dashboard", "--port", "18265", str(config)]
            dashboard = subprocess.Popen(tunnel, cwd=ROOT, stdout=said, stderr=said, start_new_session=True)
        leave.callback(dashboard.wait)
        leave.callback(os.killpg, dashboard.pid, 15)
        reached("the job server answers through the tunnel", answers, 60)

        first = submit(address, shared / "undisturbed", ran["undisturbed"])
        reached("two hosts set up, job done", lambda: first.poll() is not None, 900)
        second = submit(address, shared / "disturbed", ran["disturbed"])
        reached("second job at its steps", lambda: passes("disturbed") > 20 or second.poll() is not None, 120)
        at, before = [k for k in range(3) if runs_a_worker(ssh, k)], passes("disturbed")
        print(f"workers on hosts {at}; the cable of host {at[-1]} is pulled after {before} passes", flush=True)
        sh(f"ip link set cable{at[-1]} down")
        reached("second job done", lambda: second.poll() is not None, 900)
        last = [one.read_text()[-500:] for one in ran.values()]
        sh(f"ray down --yes {config}", stderr=subprocess.STDOUT)

    assert at == [1, 2], f"workers must run on two hosts, none on the head; ran on {at}"
    assert first.returncode == second.returncode == 0, "\n".join(last)
    restarts = json.loads((shared / "disturbed" / "summary.json").read_text())["workers"]["restarts"]
    assert restarts >= 1, "the pulled cable cost no worker: it came too late"
    tables = [pq.read_table(shared / name / "samples") for name in ran]
    assert tables[0].equals(tables[1]), "the disturbed run must leave the bits of the undisturbed one"
    print(f"{restarts} worker(s) started again; {tables[0].num_rows:,} rows with the same bits")
    return 0


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--work", default="/var/tmp/diva_ray_hosts", type=Path, help="on a disk, outside /tmp and /home")
    folder = ask.parse_args().work.resolve()
    tools = ("ip", "iptables", "sshd", "rsync", "sudo", "unshare")
    lacking = [name for name in tools if not shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")]
    if os.geteuid() or lacking or folder.exists():
        sys.exit(f"needs root, {', '.join(lacking) or 'nothing more'}, and no folder at {folder}")
    code = main(folder)
    shutil.rmtree(folder)
    sys.exit(code)
