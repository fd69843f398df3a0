"""The verb `gke` of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable

_ACTIONS = {
    "pool": "make the node pools NAME-0, NAME-1, ...: one a slice (--cluster --zone --type)",
    "submit": "start training as a JobSet (--type --image --config --workdir)",
    "resume": "delete what is left of the JobSet, and submit it again",
    "status": "the JobSet and its pods",
    "logs": "of the first pod of each slice",
    "delete": "the JobSet; with --pool the node pools, too",
    "xpk": "the same workload through xpk",
}


def add_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Register the verb; `verb(name, run, about)` makes a sub-parser with the options all verbs share."""
    gke = verb("gke", _gke, "TPU slices on Google Kubernetes Engine: node pools, and training on them")
    gke.add_argument(
        "action",
        choices=_ACTIONS,
        metavar="ACTION",
        help="; ".join(f"{name}: {about}" for name, about in _ACTIONS.items()),
    )
    text = {
        "name": "of JobSet and node pools",
        "type": "slice: v5litepod-16, v5p-128, v6e-64, tpu7x:4x4x4 ...",
        "image": "made from tpu_scripts/Dockerfile",
        "data": "PATH:CLAIM or PATH:gs://BUCKET/FOLDER: mount the dataset there, read-only",
        "service-account": "of Kubernetes, which may write the bucket (Workload Identity)",
        "node-service-account": "pool: of the nodes, which may write the bucket; for --host-network",
        "reservation": "pool, submit: of which the slices are taken",
        "queue": "of Kueue; pool --flex: nodes come when the queue asks for them",
        "libtpu-flags": "LIBTPU_INIT_ARGS of the pods; `lacy plan` takes the same",
        "cluster": "of the node pools",
        "zone": "of the slices",
        "project": "if not gcloud's default",
    }
    for name, about in text.items():
        gke.add_argument(f"--{name}", default="", help=about)
    numbers = {
        "slices": (1, "number of slices (multislice; default 1)"),
        "min-slices": (0, "resume: with the slices that are whole, at least so many of --slices"),
        "restarts": (100, "of the JobSet after failures that count; preemptions do not (default 100)"),
        "ttl": (86_400, "seconds until a finished JobSet is deleted (default a day); logs are kept"),
    }
    for name, (default, about) in numbers.items():
        gke.add_argument(f"--{name}", type=int, default=default, metavar="N", help=about)
    gke.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="of the pods; may be repeated"
    )
    flags = {
        "spot": "pool, submit: cheaper, may be taken away at any time",
        "flex": "pool, submit: flex-start (Dynamic Workload Scheduler): nodes come when there are all",
        "host-network": "pods on their host's network, faster between slices; needs --node-service-account",
        "follow": "logs: stay and show new lines",
        "past": "logs: from Cloud Logging, also of pods that are gone",
        "pool": "delete: the node pools, too",
        "dry-run": "print commands and manifest, run none",
    }
    for name, about in flags.items():
        gke.add_argument(f"--{name}", action="store_true", help=about)


def _gke(options: argparse.Namespace) -> None:
    from lacy_jax.pods.gke import gke_command

    gke_command(options)
