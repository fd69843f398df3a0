"""tpu_scripts/gke.sh against stand-ins: node pools, the JobSet manifest, xpk."""

from __future__ import annotations

import re

import pytest
import yaml
from tpu_stand_in import TRAIN

from lacy_jax.planning.slices import parse_topology


def test_gke_manifest_is_valid_and_complete(cloud):
    done = cloud.run(
        "gke", "submit", "--name=lacy", *TRAIN, "--image=registry/lacy:1", "--type=v5p-128", "--slices=2", "--spot",
        "--data=/data:claim", "--service-account=writer", "--", '--config.name=a "b" \\c',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load((cloud.folder / "calls.stdin").read_text())
    (job,) = found["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert (job["replicas"], job["template"]["spec"]["completions"]) == (2, 16)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["command"][:3] == ["lacy", "train", "--distributed"]
    assert container["command"][-1] == '--config.name=a "b" \\c'
    assert container["resources"]["limits"]["google.com/tpu"] == 4
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "claim"
    assert pod["serviceAccountName"] == "writer"


def test_gke_pools_are_made_once_and_deleted(cloud):
    cluster = ("--cluster=c", "--zone=z", "--name=lacy", "--type=v5litepod-16", "--slices=2")
    cloud.reply("node-pools list", "default\nlacy-0")
    assert cloud.run("gke", "pool", *cluster, "--spot").returncode == 0
    (call,) = cloud.changes()
    assert (
        "create lacy-1 --cluster=c --zone=z --machine-type=ct5lp-hightpu-4t --num-nodes=4 --tpu-topology=4x4 --spot"
        in call
    )
    assert cloud.run("gke", "delete", *cluster, "--pool").returncode == 0
    assert [" ".join(c.split()[:5]) for c in cloud.changes()[1:]] == [
        "kubectl delete jobset lacy --ignore-not-found", "gcloud container node-pools delete lacy-0",
    ]  # fmt: skip


def test_gke_failure_is_named_and_other_verbs_call_what_they_should(cloud):
    cloud.reply("kubectl apply", "no such cluster", code=1)
    submit = ("--name=lacy", *TRAIN, "--image=i", "--type=v6e-8")
    done = cloud.run("gke", "submit", *submit)
    assert done.returncode == 2
    assert "kubectl could not submit lacy" in done.stderr
    assert cloud.run("gke", "logs", "--name=lacy", "--follow").returncode == 0
    assert cloud.calls[-1].endswith("--prefix --tail=50 --follow")
    assert cloud.run("gke", "status", "--name=lacy").returncode == 0
    assert cloud.run("gke", "xpk", *submit, "--cluster=c", "--zone=z").returncode == 0
    assert cloud.calls[-1].startswith(
        "xpk workload create --cluster=c --zone=z --workload=lacy --tpu-type=v6e-8"
    )
    cloud.run("gke", "resume", *submit)
    assert [c.split()[1] for c in cloud.calls[-2:]] == ["delete", "apply"]


def submit(cloud, kind: str, *more: str) -> dict:
    done = cloud.run("gke", "submit", "--name=lacy", *TRAIN, "--image=i", f"--type={kind}", *more)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load((cloud.folder / "calls.stdin").read_text())


@pytest.mark.parametrize(
    "kind", ["v4-8", "v4-32", "v5litepod-16", "v5litepod-256", "v5p-8", "v5p-128", "v6e-8", "v6e-64"]
)
def test_a_jobset_asks_for_all_chips_of_the_slice(cloud, kind):
    """What the JobSet controller and GKE require of a TPU slice: fields, names, and chips that add up."""
    found = submit(cloud, kind)
    place = parse_topology(kind)
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert found["spec"]["failurePolicy"] == {"maxRestarts": 100}
    (job,) = found["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"]
    assert spec["backoffLimit"] == 0  # A lost worker fails the job; the JobSet starts all anew.
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["restartPolicy"] == "Never"
    assert spec["completions"] * container["resources"]["limits"]["google.com/tpu"] == place.chips
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "x".join(map(str, place.shape))
    names = [found["metadata"]["name"], job["name"], container["name"]]
    assert all(re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name) for name in names)
    # A pod that is preempted must not count as done.
    assert "--stopped-exit=75" in container["command"]


def test_submitting_twice_applies_the_same_manifest(cloud):
    assert submit(cloud, "v6e-8") == submit(cloud, "v6e-8")
    assert cloud.calls == ["kubectl apply --filename=-"] * 2


def test_a_pool_that_fails_half_way_is_completed_by_the_same_command(cloud):
    cluster = ("--cluster=c", "--zone=z", "--name=lacy", "--type=v5litepod-16", "--slices=3")
    cloud.reply("node-pools list", "default", once=True)
    cloud.reply("create lacy-1", "quota", code=1, once=True)
    done = cloud.run("gke", "pool", *cluster, "--reserved=ours")
    assert done.returncode == 2
    assert "failed (1): gcloud container node-pools create" in done.stderr
    cloud.reply("node-pools list", "default\nlacy-0")
    assert cloud.run("gke", "pool", *cluster, "--reserved=ours").returncode == 0
    made = [call.split()[4] for call in cloud.changes()]
    assert made == ["lacy-0", "lacy-1", "lacy-1", "lacy-2"]
    assert all(
        call.endswith("--reservation-affinity=specific --reservation=ours") for call in cloud.changes()
    )


def test_deleting_twice_is_harmless(cloud):
    cluster = ("--cluster=c", "--zone=z", "--name=lacy", "--pool")
    cloud.reply("node-pools list", "lacy-0", once=True)
    cloud.reply("node-pools list", "default")
    assert cloud.run("gke", "delete", *cluster).returncode == 0
    assert cloud.run("gke", "delete", *cluster).returncode == 0
    assert [" ".join(call.split()[:5]) for call in cloud.changes()] == [
        "kubectl delete jobset lacy --ignore-not-found", "gcloud container node-pools delete lacy-0",
        "kubectl delete jobset lacy --ignore-not-found",
    ]  # fmt: skip


@pytest.mark.parametrize("action", ["pool", "submit", "logs", "status", "resume", "delete", "xpk"])
def test_gke_dry_runs_call_nothing(cloud, action):
    done = cloud.run(
        "gke", action, "--name=lacy", *TRAIN, "--image=i", "--type=v6e-8", "--cluster=c", "--zone=z", "--pool", "--dry-run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "+ " in done.stdout
    assert cloud.calls == []


def test_xpk_is_asked_for_the_same_training(cloud):
    done = cloud.run(
        "gke", "xpk", "--name=lacy", *TRAIN, "--image=i", "--type=v5litepod-16", "--slices=2", "--cluster=c", "--zone=z",
        "--project=p", "--", "--config.name=two words",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert cloud.calls == [
        "xpk workload create --cluster=c --zone=z --project=p --workload=lacy --tpu-type=v5litepod-16 --num-slices=2 "
        "--docker-image=i --max-restarts=100 --command=lacy train --distributed --stopped-exit=75 "
        "--config=experiments/paper_334m.py:lacy --workdir=gs://b/runs/lacy --config.name=two\\ words "
    ]
