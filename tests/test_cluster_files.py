"""Files that start clusters: what Ray and KubeRay take, and what keeps strangers and work off the head."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent

# The fields of KubeRay 1.6, https://ray-project.github.io/kuberay/reference/api/ (ray.io/v1), and of what they refer to
# in Kubernetes 1.28, https://kubernetes.io/docs/reference/generated/kubernetes-api/v1.28/, as far as they are used:
# a name leads to the fields inside, to a type, or to the words that are allowed. A list stands for entries of its kind.
RESOURCES = {"limits": dict, "requests": dict}
POD = {
    "metadata": {"labels": dict, "annotations": dict},
    "spec": {
        "serviceAccountName": str, "nodeSelector": dict, "restartPolicy": ("Always", "OnFailure", "Never"),
        "tolerations": [
            {
                "key": str, "operator": ("Exists", "Equal"), "value": str,
                "effect": ("NoSchedule", "PreferNoSchedule", "NoExecute"), "tolerationSeconds": int,
            }
        ],
        "containers": [
            {
                "name": str, "image": str, "imagePullPolicy": ("Always", "IfNotPresent", "Never"), "command": list,
                "args": list, "env": [{"name": str, "value": str, "valueFrom": dict}], "resources": RESOURCES,
                "volumeMounts": [{"name": str, "mountPath": str, "subPath": str, "readOnly": bool}],
            }
        ],
        "volumes": [{"name": str, "emptyDir": {"medium": str, "sizeLimit": str}, "persistentVolumeClaim": dict}],
    },
}  # fmt: skip
GROUP = {"rayStartParams": dict, "resources": dict, "labels": dict, "template": POD}
CLUSTER = {
    "authOptions": {"mode": ("token", "disabled")}, "rayVersion": str, "suspend": bool, "managedBy": str,
    "enableInTreeAutoscaling": bool, "headServiceAnnotations": dict, "gcsFaultToleranceOptions": dict,
    "upgradeStrategy": dict,
    "autoscalerOptions": {
        "resources": RESOURCES, "image": str, "imagePullPolicy": str, "securityContext": dict,
        "idleTimeoutSeconds": int, "upscalingMode": ("Default", "Aggressive", "Conservative"), "version": ("v1", "v2"),
        "env": list, "envFrom": list, "volumeMounts": list,
    },
    "headGroupSpec": {
        **GROUP, "headService": dict, "enableIngress": bool, "serviceType": ("ClusterIP", "NodePort", "LoadBalancer"),
    },
    "workerGroupSpecs": [
        {
            **GROUP, "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int, "suspend": bool,
            "idleTimeoutSeconds": int, "scaleStrategy": dict, "numOfHosts": int,
        }
    ],
}  # fmt: skip
RAY_JOB = {
    "apiVersion": ("ray.io/v1",), "kind": ("RayJob",), "metadata": {"name": str, "namespace": str, "labels": dict},
    "spec": {
        "activeDeadlineSeconds": int, "backoffLimit": int, "rayClusterSpec": CLUSTER, "submitterPodTemplate": POD,
        "metadata": dict, "clusterSelector": dict, "submitterConfig": {"backoffLimit": int}, "managedBy": str,
        "deletionStrategy": dict, "entrypoint": str, "runtimeEnvYAML": str, "jobId": str,
        "submissionMode": ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"), "entrypointResources": str,
        "entrypointNumCpus": float, "entrypointNumGpus": float, "ttlSecondsAfterFinished": int,
        "preRunningDeadlineSeconds": int, "shutdownAfterJobFinishes": bool, "suspend": bool,
    },
}  # fmt: skip


def refused(given, allowed, where=""):
    """Return what does not fit, each with its place."""
    if isinstance(allowed, list):
        if not isinstance(given, list):
            return [f"{where}: must be a list"]
        return [fault for k, one in enumerate(given) for fault in refused(one, allowed[0], f"{where}[{k}]")]
    if isinstance(allowed, dict):
        if not isinstance(given, dict):
            return [f"{where}: must be a mapping"]
        unknown = [f"{where}.{name}: no such field" for name in given if name not in allowed]
        inside = [(given[name], allowed[name], f"{where}.{name}") for name in given if name in allowed]
        return unknown + [fault for one in inside for fault in refused(*one)]
    if isinstance(allowed, tuple):
        return [] if given in allowed else [f"{where}: must be one of {', '.join(allowed)}"]
    return [] if type(given) is allowed else [f"{where}: must be {allowed.__name__}"]


@pytest.fixture
def ray_job():
    return yaml.safe_load((ROOT / "configs" / "kuberay" / "rayjob.yaml").read_text())


def test_the_ray_job_has_only_fields_that_kuberay_publishes(ray_job):
    assert refused(ray_job, RAY_JOB) == []
    group = ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    group["minReplica"], group["maxReplicas"] = 0, "16"
    group["template"]["spec"]["containers"][0]["volumeMount"] = []
    where = ".spec.rayClusterSpec.workerGroupSpecs[0]"
    assert refused(ray_job, RAY_JOB) == [
        f"{where}.minReplica: no such field",
        f"{where}.maxReplicas: must be int",
        f"{where}.template.spec.containers[0].volumeMount: no such field",
    ]


def test_the_ray_job_keeps_work_off_the_head_and_strangers_out(ray_job):
    spec = ray_job["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["enableInTreeAutoscaling"]
    assert spec["shutdownAfterJobFinishes"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert [group["minReplicas"] for group in groups.values()] == [0, 0]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *groups.values())]
    for pod in pods:
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
        assert container["image"] == pods[0]["containers"][0]["image"]
    gpus = [pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0) for pod in pods]
    assert gpus == [0, 0, 1]
    assert f"ray=={cluster['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()


def test_the_ray_job_runs_a_job_that_is_there_with_options_that_compose(ray_job):
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from diva_ray.command_line import register

    python, job, *options = ray_job["spec"]["entrypoint"].split()
    assert python == "python"
    assert (ROOT / "jobs" / Path(job).name).is_file()
    register()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = OmegaConf.to_object(compose(Path(job).stem, overrides=options))
    workers = ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert config.cluster.kind == "ray"
    assert config.cluster.workers <= workers["maxReplicas"] * int(
        workers["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]
    )


def test_cluster_yaml_is_what_ray_takes():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    validate_config(config)
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    workers = [one for name, one in types.items() if name != config["head_node_type"]]
    assert {one["resources"].get("GPU", 0) for one in workers} == {0, 1}
    for one in workers:
        assert one["min_workers"] == 0
        assert one["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert one["max_workers"] <= config["max_workers"]
    starts = [
        command
        for node in ("head", "worker")
        for command in config[f"{node}_start_ray_commands"]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token " in command for command in starts)
    assert config["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    asked = re.search(r"diva_ray\[(.*)\]\"$", config["setup_commands"][-1]).group(1).split(",")
    assert asked == ["cluster", "aws"]
    assert {re.split(r"\W", one)[0] for name in asked for one in extras[name]} <= pinned
    with pytest.raises(Exception, match="max_workers"):
        validate_config({**config, "max_workers": "many"})
    with pytest.raises(Exception, match="max_worker"):
        validate_config({**config, "max_worker": 3})
