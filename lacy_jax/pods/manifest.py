"""The JobSet that runs `lacy train` on TPU slices, as data.

One Job per slice, one pod per host. How a pod ends decides what comes next, by the table of `lacy_jax.errors`: a Job
fails with its first pod (`backoffLimit: 0`), its pod failure policy says why in the message, and the JobSet acts on it.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from lacy_jax.errors import EXIT_STATUSES, STOPPED, ConfigError
from lacy_jax.planning.slices import Topology

COORDINATOR_PORTS = (8471, 8080)
"""Ports of libtpu within a slice, and between slices."""
RAM_DRIVER = "multitier-checkpoint.csi.storage.gke.io"
"""Of GKE's multi-tier checkpointing: memory of the host that outlives a pod, and a replicator beside it."""
GRACE_S = 120
"""Seconds from SIGTERM until a pod is killed: enough for the step under way and its checkpoint."""
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LONGEST_NAME = 40  # A pod's name, NAME-slice-JOB-INDEX and a suffix, may have 63 characters.
_REASON = "PodFailurePolicy"  # The failure reason of a Job that a rule has failed.


@dataclasses.dataclass(frozen=True)
class Workload:
    """What runs, and where.

    Attributes:
      name: of the JobSet. place: its slices. image: of the container.
      command: words of the container's command.
      env: environment of the container.
      service_account: of Kubernetes; bound to a principal that may write the bucket (Workload Identity).
      host_network: pods use the network of their host, which is faster between slices; Workload Identity does not work
        for them, so the service account of their nodes must be able to write the bucket.
      data: (path in the container, what is mounted there: a PersistentVolumeClaim, or gs://BUCKET/FOLDER).
      ram: path at which GKE's multi-tier checkpointing mounts memory of the host; "" = not used.
      restarts: how many the JobSet may have, of those that count.
      spot, flex: the node pool is of this kind. reservation: name of the reservation that the node pool uses.
      queue: of Kueue; "" = none.
      ttl_s: seconds after which the finished JobSet is deleted.
    """

    name: str
    place: Topology
    image: str
    command: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    service_account: str = ""
    host_network: bool = False
    data: tuple[str, str] | None = None
    ram: str = ""
    restarts: int = 100
    spot: bool = False
    flex: bool = False
    reservation: str = ""
    queue: str = ""
    ttl_s: int = 86_400

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or len(self.name) > _LONGEST_NAME:
            raise ConfigError(
                f"--name={self.name}: must be lower-case letters, digits and dashes, start with a letter, and have at most "
                f"{_LONGEST_NAME} characters"
            )
        if self.host_network and self.service_account:
            raise ConfigError(
                "--host-network and --service-account exclude each other: Workload Identity does not serve pods on the host's "
                "network; give the node pool a --node-service-account that may write the bucket"
            )


def jobset(work: Workload) -> dict[str, Any]:
    """The manifest, JSON-safe."""
    place = work.place
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": work.name,
            # One job takes one whole slice.
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
            **({"labels": {"kueue.x-k8s.io/queue-name": work.queue}} if work.queue else {}),
        },
        "spec": {
            "failurePolicy": {"maxRestarts": work.restarts, "rules": _jobset_rules()},
            "ttlSecondsAfterFinished": work.ttl_s,
            "replicatedJobs": [
                {
                    "name": "slice",
                    "replicas": place.slices,
                    "template": {
                        "spec": {
                            "parallelism": place.hosts,
                            "completions": place.hosts,
                            "backoffLimit": 0,
                            "podFailurePolicy": {"rules": _pod_rules()},
                            "template": _pod(work),
                        }
                    },
                }
            ],
        },
    }


# -- how it goes on after a failure --------------------------------------------------------------------------------------

_FREE = [s.status for s in EXIT_STATUSES if s.again == "free"]
_NEVER = [s.status for s in EXIT_STATUSES if s.again == "no" and s.status]


def _pod_rules() -> list[dict[str, Any]]:
    """The first matching rule fails the Job and gives its own number; if none matches, `backoffLimit` fails it."""

    def exits(statuses: list[int]) -> dict[str, Any]:
        return {
            "action": "FailJob",
            "onExitCodes": {"containerName": "train", "operator": "In", "values": statuses},
        }

    disrupted = {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return [exits(_NEVER), disrupted, exits(_FREE)]


def _jobset_rules() -> list[dict[str, Any]]:
    """Rules by the number in the Job's message (kubernetes/pkg/controller/job/pod_failure_policy.go); any other failure
    is a restart that counts."""
    return [
        {
            "name": "userError",
            "action": "FailJobSet",
            "onJobFailureReasons": [_REASON],
            "onJobFailureMessagePatterns": ["FailJob rule at index 0"],
        },
        {
            "name": "preempted",
            "action": "RestartJobSetAndIgnoreMaxRestarts",
            "onJobFailureReasons": [_REASON],
            "onJobFailureMessagePatterns": ["FailJob rule at index [12]"],
        },
    ]


# -- the pod -------------------------------------------------------------------------------------------------------------


def _pod(work: Workload) -> dict[str, Any]:
    machine = work.place.machine
    selector = {
        "cloud.google.com/gke-tpu-accelerator": machine.accelerator,
        "cloud.google.com/gke-tpu-topology": "x".join(map(str, work.place.shape)),
    }
    if work.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    if work.flex:
        selector["cloud.google.com/gke-flex-start"] = "true"
    if work.reservation:
        selector["cloud.google.com/reservation-name"] = work.reservation
    container: dict[str, Any] = {
        "name": "train",
        "image": work.image,
        "command": list(work.command),
        "ports": [{"containerPort": port} for port in COORDINATOR_PORTS],
        "resources": {"limits": {"google.com/tpu": machine.chips}},
    }
    if work.env:
        container["env"] = [{"name": name, "value": value} for name, value in work.env]
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_S,
        "nodeSelector": selector,
        "containers": [container],
    }
    if work.service_account:
        spec["serviceAccountName"] = work.service_account
    if work.host_network:
        spec |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    if work.flex:  # Nodes from queued provisioning are reserved for the workload that waited for them.
        spec["tolerations"] = [
            {"key": "cloud.google.com/gke-queued", "operator": "Exists", "effect": "NoSchedule"}
        ]
    template: dict[str, Any] = {"spec": spec}
    if work.data:
        path, what = work.data
        container["volumeMounts"] = [{"name": "data", "mountPath": path, "readOnly": True}]
        spec["volumes"] = [{"name": "data", **_volume(what, work.host_network)}]
        if what.startswith("gs://"):
            template["metadata"] = {"annotations": {"gke-gcsfuse/volumes": "true"}}
    if work.ram:
        container.setdefault("env", []).append({"name": "JOBSET_NAME", "value": work.name})
        container.setdefault("volumeMounts", []).append({"name": "ram", "mountPath": work.ram})
        spec.setdefault("volumes", []).append({"name": "ram", "csi": {"driver": RAM_DRIVER}})
    return template


def _volume(what: str, host_network: bool) -> dict[str, Any]:
    if not what.startswith("gs://"):
        return {"persistentVolumeClaim": {"claimName": what, "readOnly": True}}
    bucket, _, folder = what.removeprefix("gs://").strip("/").partition("/")
    options = ["implicit-dirs", *([f"only-dir={folder}"] if folder else [])]
    attributes = {"bucketName": bucket, "mountOptions": ",".join(options)}
    if host_network:  # The driver uses the pod's own account, although the network is the host's.
        attributes["hostNetworkPodKSA"] = "true"
    return {"csi": {"driver": "gcsfuse.csi.storage.gke.io", "readOnly": True, "volumeAttributes": attributes}}


# -- xpk -----------------------------------------------------------------------------------------------------------------

_XPK_RESTARTS = frozenset((42, *range(127, 256)))
"""Statuses after which xpk restarts a workload by default (see its `--restart-on-exit-codes`)."""


def xpk_restart_statuses() -> list[int]:
    """Statuses after which xpk must be told to restart; it counts every restart."""
    return [s.status for s in EXIT_STATUSES if s.again != "no" and s.status not in _XPK_RESTARTS]


def training(config: str, workdir: str, overrides: list[str]) -> tuple[str, ...]:
    """The container's command. A run stopped by a signal is not finished: for Kubernetes its pod has failed."""
    return (
        "lacy",
        "train",
        "--distributed",
        f"--stopped-exit={STOPPED.status}",
        f"--config={config}",
        f"--workdir={workdir}",
        *(f"--config.{one}" for one in overrides),
    )
