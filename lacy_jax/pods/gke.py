"""What `lacy gke` does: node pools, and the JobSet's life, through gcloud, kubectl and xpk. Each can be repeated."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable

import yaml
from etils import epath

from lacy_jax.command_line import config_of
from lacy_jax.config import validate
from lacy_jax.errors import ConfigError, LacyError
from lacy_jax.planning.slices import Topology, parse_topology
from lacy_jax.pods.manifest import GRACE_S, Workload, jobset, training, xpk_restart_statuses


def gke_command(options: argparse.Namespace) -> None:
    """Do what `options.action` says.

    Raises:
      ConfigError: an option is missing or wrong.
      LacyError: gcloud, kubectl or xpk failed, or is not installed.
    """
    _need(options, "name")
    ACTIONS[options.action](options)


def _need(options: argparse.Namespace, *names: str) -> None:
    for name in names:
        if not getattr(options, name):
            raise ConfigError(f"lacy gke {options.action}: --{name.replace('_', '-')}=... is needed")


def _place(options: argparse.Namespace) -> Topology:
    _need(options, "type")
    return parse_topology(options.type, options.slices, "--type")


def _run(options: argparse.Namespace, words: list[str], given: str = "") -> None:
    """Run a command that changes or shows something; under --dry-run only print it."""
    if options.dry_run:
        print(f"{given}+ {shlex.join(words)}")
        return
    try:
        done = subprocess.run(words, input=given or None, text=True, check=False)
    except FileNotFoundError:
        raise LacyError(f"{words[0]} is not installed") from None
    if done.returncode:
        raise LacyError(f"failed ({done.returncode}): {shlex.join(words[:5])}")


def _where(options: argparse.Namespace) -> list[str]:
    _need(options, "cluster", "zone")
    project = [f"--project={options.project}"] if options.project else []
    return [f"--cluster={options.cluster}", f"--zone={options.zone}", *project]


# -- node pools ----------------------------------------------------------------------------------------------------------


def pools_there(options: argparse.Namespace) -> list[str]:
    """Names of the cluster's node pools; under --dry-run none."""
    if options.dry_run:
        return []
    words = ["gcloud", "container", "node-pools", "list", *_where(options), "--format=value(name)"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LacyError(
            f"gcloud cannot list the node pools of {options.cluster}: {done.stderr.strip()[-200:]}"
        )
    return done.stdout.split()


def pool_arguments(options: argparse.Namespace, place: Topology) -> list[str]:
    """Arguments of `gcloud container node-pools create`, without names and places.

    The pods' identity comes from Kubernetes (--workload-metadata) or, for pods on the host's network, from the nodes'
    service account. The scopes must let that account write: by default it may only read storage.
    """
    arguments = [
        f"--machine-type={place.machine.name}",
        "--workload-metadata=GKE_METADATA",
        "--scopes=cloud-platform",
    ]
    if options.node_service_account:
        arguments.append(f"--service-account={options.node_service_account}")
    if place.hosts > 1:
        arguments.append(
            f"--placement-policy={policy_name(place)}"
            if place.machine.workload_policy
            else f"--tpu-topology={'x'.join(map(str, place.shape))}"
        )
    if options.flex:
        arguments += [
            "--num-nodes=0", "--flex-start", "--enable-autoscaling", f"--max-nodes={place.hosts}", "--location-policy=ANY",
            "--reservation-affinity=none", "--no-enable-autorepair",
        ]  # fmt: skip
        if options.queue:
            arguments.append("--enable-queued-provisioning")
        return arguments
    arguments.append(f"--num-nodes={place.hosts}")
    if options.spot:
        arguments.append("--spot")
    if options.reservation:
        arguments += ["--reservation-affinity=specific", f"--reservation={options.reservation}"]
    return arguments


def policy_name(place: Topology) -> str:
    """Name of the workload policy that places slices of this shape; one policy serves all pools of that shape."""
    return f"lacy-{place.chip.name}-{'x'.join(map(str, place.shape))}"


def _pool(options: argparse.Namespace) -> None:
    place, where = _place(options), _where(options)
    if sum((options.spot, options.flex, bool(options.reservation))) > 1:
        raise ConfigError("--spot, --flex and --reservation exclude each other")
    there = pools_there(options)
    if place.machine.workload_policy and place.hosts > 1:
        _policy(options, place)
    for name in (f"{options.name}-{i}" for i in range(place.slices)):
        if name in there:
            print(f"node pool {name} exists already", file=sys.stderr)
            continue
        _run(
            options,
            ["gcloud", "container", "node-pools", "create", name, *where, *pool_arguments(options, place)],
        )


def _policy(options: argparse.Namespace, place: Topology) -> None:
    region = f"--region={options.zone.rsplit('-', 1)[0]}"
    project = [f"--project={options.project}"] if options.project else []
    policies = ["gcloud", "compute", "resource-policies"]
    name = policy_name(place)
    if not options.dry_run:
        words = [*policies, "list", f"--filter=name={name}", "--format=value(name)", *project]
        if name in subprocess.run(words, capture_output=True, text=True, check=False).stdout.split():
            return
    shape = "x".join(map(str, place.shape))
    kind = ["--type=HIGH_THROUGHPUT", f"--accelerator-topology={shape}"]
    _run(options, [*policies, "create", "workload-policy", name, *kind, region, *project])


# -- the JobSet ----------------------------------------------------------------------------------------------------------


def workload(options: argparse.Namespace) -> Workload:
    """What the options ask for, checked: a typo is found here, before a slice is paid for.

    Raises:
      ConfigError: an option is missing or wrong, or the config is.
    """
    place = _place(options)
    _need(options, "image", "config", "workdir")
    if not options.workdir.startswith("gs://"):
        raise ConfigError(f"--workdir={options.workdir}: must be gs://..., which all workers can write")
    if not epath.Path(options.config.partition(":")[0]).exists():
        raise ConfigError(f"--config={options.config}: no such file")
    config = config_of(options)
    validate(config)
    data = None
    if options.data:
        path, _, what = options.data.partition(":")
        if not path.startswith("/") or not what:
            raise ConfigError(f"--data={options.data}: expected /PATH:CLAIM or /PATH:gs://BUCKET/FOLDER")
        data = (path, what)
    return Workload(
        name=options.name,
        place=place,
        image=options.image,
        command=training(options.config, options.workdir, options.overrides),
        env=environment(options),
        service_account=options.service_account,
        host_network=options.host_network,
        data=data,
        ram=config.checkpoint.ram,
        restarts=options.restarts,
        spot=options.spot,
        flex=options.flex,
        reservation=options.reservation,
        queue=options.queue,
        ttl_s=options.ttl,
    )


def environment(options: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    """The container's environment: a compilation cache beside the run unless one is named, flags of libtpu, and --env.

    Raises:
      ConfigError: an --env is not NAME=VALUE.
    """
    found = {"JAX_COMPILATION_CACHE_DIR": f"{options.workdir.rstrip('/')}/compilation_cache"}
    if options.libtpu_flags:
        found["LIBTPU_INIT_ARGS"] = options.libtpu_flags
    for one in options.env:
        name, equals, value = one.partition("=")
        if not name.isidentifier() or not equals:
            raise ConfigError(f"--env={one}: expected NAME=VALUE")
        found[name] = value
    return tuple(found.items())


def _submit(options: argparse.Namespace) -> None:
    text = yaml.safe_dump(jobset(workload(options)), sort_keys=False, width=120)
    _run(options, ["kubectl", "apply", "--filename=-"], text)


def _resume(options: argparse.Namespace) -> None:
    workload(options)  # A typo must not delete anything.
    if options.min_slices:
        options.slices = _slices_to_use(options)
    _run(options, ["kubectl", "delete", "jobset", options.name, "--ignore-not-found"])
    _submit(options)


def _slices_to_use(options: argparse.Namespace) -> int:
    """As many of --slices as are whole and share the config's batch; the run's data order does not depend on it.

    Raises:
      ConfigError: --min-slices or the config does not allow for fewer.
      LacyError: fewer than --min-slices are there.
    """
    place, config = _place(options), config_of(options)
    if not 1 <= options.min_slices <= options.slices:
        raise ConfigError(
            f"--min-slices={options.min_slices}: must be between 1 and --slices={options.slices}"
        )
    if config.mesh.data != -1:
        raise ConfigError(
            f"config.mesh.data = {config.mesh.data}: fewer slices have fewer devices; -1 takes those that are there"
        )
    if options.dry_run:
        return options.slices
    there = sum(_ready_nodes(f"{options.name}-{i}") >= place.hosts for i in range(options.slices))
    rows = config.input.batch_size // config.train.accumulation
    joined = config.mesh.sequence * config.mesh.tensor  # Devices that hold the same rows.
    for count in range(there, options.min_slices - 1, -1):
        if rows % (place.devices // place.slices * count // joined) == 0:
            print(f"{there} of {options.slices} slices are there, {count} are used", file=sys.stderr)
            return count
    raise LacyError(
        f"{there} of {options.slices} slices are there, and none of {options.min_slices} to {there} can share the {rows} rows "
        f"of a micro-batch: wait, or lower --min-slices={options.min_slices}"
    )


def _ready_nodes(pool: str) -> int:
    """Nodes of a node pool that can take pods."""
    words = ["kubectl", "get", "nodes", f"--selector=cloud.google.com/gke-nodepool={pool}"]
    ready = '--output=jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}'
    done = subprocess.run([*words, ready], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LacyError(f"kubectl cannot list the nodes of {pool}: {done.stderr.strip()[-200:]}")
    return done.stdout.split().count("True")


def _status(options: argparse.Namespace) -> None:
    _run(options, ["kubectl", "get", "jobset", options.name])  # It lacks the label that its pods have.
    _run(options, ["kubectl", "get", "pods", f"--selector=jobset.sigs.k8s.io/jobset-name={options.name}"])


def _logs(options: argparse.Namespace) -> None:
    if options.past:
        pods = f'labels."k8s-pod/jobset_sigs_k8s_io/jobset-name"="{options.name}"'
        project = [f"--project={options.project}"] if options.project else []
        words = ["gcloud", "logging", "read", f'resource.type="k8s_container" AND {pods}']
        _run(
            options,
            [
                *words,
                "--format=value(timestamp,resource.labels.pod_name,textPayload)",
                "--order=asc",
                *project,
            ],
        )
        return
    selector = f"jobset.sigs.k8s.io/jobset-name={options.name},batch.kubernetes.io/job-completion-index=0"
    follow = ["--follow"] if options.follow else []
    _run(
        options,
        ["kubectl", "logs", f"--selector={selector}", "--container=train", "--prefix", "--tail=50", *follow],
    )


def _delete(options: argparse.Namespace) -> None:
    _run(options, ["kubectl", "delete", "jobset", options.name, "--ignore-not-found"])
    if not options.pool:
        return
    where, there = _where(options), pools_there(options)
    for name in (f"{options.name}-{i}" for i in range(options.slices)):
        if options.dry_run or name in there:
            _run(options, ["gcloud", "container", "node-pools", "delete", name, *where, "--quiet"])


def _xpk(options: argparse.Namespace) -> None:
    work = workload(options)
    if work.data or work.service_account or work.queue or work.ram:
        raise ConfigError(
            "lacy gke xpk: --data, --service-account, --queue and checkpoint.ram are xpk's own matter"
        )
    statuses = ",".join(map(str, xpk_restart_statuses()))
    _run(
        options,
        [
            "xpk", "workload", "create", *_where(options), f"--workload={work.name}", f"--tpu-type={options.type}",
            f"--num-slices={work.place.slices}", f"--docker-image={work.image}", f"--max-restarts={work.restarts}",
            f"--restart-on-exit-codes={statuses}", f"--termination-grace-period-seconds={GRACE_S}",
            f"--ttl-seconds-after-finished={work.ttl_s}", *(f"--env={name}={value}" for name, value in work.env),
            f"--command={shlex.join(work.command)}",
        ],
    )  # fmt: skip


ACTIONS: dict[str, Callable[[argparse.Namespace], None]] = {
    "pool": _pool,
    "submit": _submit,
    "resume": _resume,
    "status": _status,
    "logs": _logs,
    "delete": _delete,
    "xpk": _xpk,
}
