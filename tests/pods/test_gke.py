"""`lacy gke` against stand-ins for gcloud, kubectl and xpk, and its manifests against the schemas of Kubernetes and JobSet."""

from __future__ import annotations

import copy
import json
import lzma
import re
import shlex

import jsonschema
import kubernetes_validate
import pytest
import yaml
from docs_commands import commands
from tpu_stand_in import SCRIPTS, TRAIN

from lacy_jax.errors import EXIT_STATUSES, STOPPED, USER_ERROR
from lacy_jax.planning.slices import TPUS, parse_topology, shapes
from lacy_jax.pods.manifest import Workload, jobset, xpk_restart_statuses

CLUSTER = ("--cluster=c", "--zone=us-west4-a", "--name=lacy")
SUBMIT = ("--name=lacy", *TRAIN, "--image=registry/lacy:1")


@pytest.fixture
def submit(cloud, gke):
    """The manifest that `lacy gke submit` gives to kubectl."""

    def submitted(kind: str, *more: str) -> dict:
        assert gke("submit", *SUBMIT, f"--type={kind}", *more) == 0
        return yaml.safe_load((cloud.folder / "calls.stdin").read_text())

    return submitted


def pod_of(found: dict) -> dict:
    (job,) = found["spec"]["replicatedJobs"]
    return job["template"]["spec"]["template"]["spec"]


@pytest.fixture(scope="session")
def crd(shared_data) -> dict:
    """Schema of a JobSet."""
    text = lzma.decompress((shared_data / "k8s" / "jobset_crd.yaml.xz").read_bytes()).decode()
    (version,) = [v for v in yaml.safe_load(text)["spec"]["versions"] if v["name"] == "v1alpha2"]
    return version["schema"]["openAPIV3Schema"]


def strict(schema):
    """The schema with unknown fields refused, as an API server does that checks strictly."""
    if isinstance(schema, dict):
        schema = {key: strict(value) for key, value in schema.items()}
        if (
            "properties" in schema
            and "type" in schema
            and not schema.get("x-kubernetes-preserve-unknown-fields")
        ):
            schema.setdefault("additionalProperties", False)
    elif isinstance(schema, list):
        schema = [strict(value) for value in schema]
    return schema


EVERYTHING = [
    (),
    ("--spot", "--slices=2", "--service-account=writer", "--data=/data:claim", "--env=A=b c"),
    (
        "--flex",
        "--queue=team",
        "--host-network",
        "--data=/data:gs://bucket/some/folder",
        "--libtpu-flags=--x=1 --y=2",
    ),
    ("--config.checkpoint.ram=/ram", "--data=/data:claim", "--env=A=b"),
    ("--reservation=ours", "--data=/data:gs://bucket", "--ttl=60", "--restarts=3"),
]


@pytest.mark.parametrize("options", EVERYTHING)
def test_manifests_hold_the_schemas(submit, crd, options):
    found = submit("v5p-128", *options)
    schema = strict(crd)
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.Draft202012Validator(schema).validate(found)
    (job,) = found["spec"]["replicatedJobs"]
    whole = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "x"},
        "spec": job["template"]["spec"],
    }
    kubernetes_validate.validate(whole, kubernetes_validate.latest_version(), strict=True)
    broken = copy.deepcopy(found)
    broken["spec"]["failurePolicy"]["rules"][0]["action"] = "FailJobset"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate(broken)


def test_the_manifest_says_what_was_asked(submit):
    found = submit(
        "v5p-128", "--slices=2", "--spot", "--data=/data:claim", "--service-account=writer", "--queue=team",
        "--env=A=b c", "--libtpu-flags=--x=1 --y=2", '--config.name=a "b" \\c',
    )  # fmt: skip
    (job,) = found["spec"]["replicatedJobs"]
    pod = pod_of(found)
    assert (job["replicas"], job["template"]["spec"]["completions"]) == (2, 16)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["command"][:3] == ["lacy", "train", "--distributed"]
    assert container["command"][-1] == '--config.name=a "b" \\c'
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "claim"
    assert found["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team"}
    assert {one["name"]: one["value"] for one in container["env"]} == {
        "JAX_COMPILATION_CACHE_DIR": "gs://b/runs/lacy/compilation_cache",
        "LIBTPU_INIT_ARGS": "--x=1 --y=2",
        "A": "b c",
    }


def test_pods_can_write_the_bucket(submit, gke, cloud, capsys):
    """By Workload Identity, which does not serve the host's network; or by their nodes, which need scopes for that."""
    pod = pod_of(submit("v6e-16", "--service-account=writer"))
    assert pod["serviceAccountName"] == "writer"
    assert "hostNetwork" not in pod
    pod = pod_of(submit("v6e-16", "--host-network", "--data=/data:gs://bucket/folder"))
    assert (pod["hostNetwork"], pod["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    assert "serviceAccountName" not in pod
    attributes = pod["volumes"][0]["csi"]["volumeAttributes"]
    assert attributes == {
        "bucketName": "bucket", "mountOptions": "implicit-dirs,only-dir=folder", "hostNetworkPodKSA": "true",
    }  # fmt: skip
    assert gke("submit", *SUBMIT, "--type=v6e-16", "--host-network", "--service-account=writer") == 2
    assert "Workload Identity does not serve pods on the host's network" in capsys.readouterr().err
    assert gke("pool", *CLUSTER, "--type=v6e-16", "--node-service-account=sa@p") == 0
    for words in ("--workload-metadata=GKE_METADATA", "--scopes=cloud-platform", "--service-account=sa@p"):
        assert words in cloud.calls[-1]


# -- how it goes on ------------------------------------------------------------------------------------------------------


def goes_on(found: dict, status: int | None) -> str:
    """What Kubernetes and JobSet do with a pod that ended with `status`, or was disrupted (None): their rules, in their order.

    Messages are those of pkg/controller/job/pod_failure_policy.go; without a rule, `backoffLimit` fails the Job.
    """
    (job,) = found["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["backoffLimit"] == 0
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for number, rule in enumerate(spec["podFailurePolicy"]["rules"]):
        assert rule["action"] == "FailJob"
        if "onExitCodes" in rule:
            assert (rule["onExitCodes"]["containerName"], rule["onExitCodes"]["operator"]) == ("train", "In")
            fits = status in rule["onExitCodes"]["values"]
            text = f"Container train for pod default/x failed with exit code {status} matching FailJob rule at index {number}"
        else:
            fits = status is None
            text = f"Pod default/x has condition DisruptionTarget matching FailJob rule at index {number}"
        if fits:
            reason, message = "PodFailurePolicy", text
            break
    for rule in found["spec"]["failurePolicy"]["rules"]:
        patterns = rule["onJobFailureMessagePatterns"]
        if reason in rule["onJobFailureReasons"] and any(re.search(one, message) for one in patterns):
            return rule["action"]
    return "RestartJobSet"


def test_the_jobset_goes_by_the_table_of_statuses(submit):
    found = submit("v6e-16")
    actions = {"no": "FailJobSet", "yes": "RestartJobSet", "free": "RestartJobSetAndIgnoreMaxRestarts"}
    for known in EXIT_STATUSES:
        if known.status:
            assert goes_on(found, known.status) == actions[known.again], known
    assert goes_on(found, None) == actions["free"]
    assert goes_on(found, 3) == actions["yes"]
    assert goes_on(found, USER_ERROR.status) == "FailJobSet"
    # A pod that is preempted must not count as done.
    assert f"--stopped-exit={STOPPED.status}" in pod_of(found)["containers"][0]["command"]
    assert found["spec"]["failurePolicy"]["maxRestarts"] == 100


def test_xpk_is_asked_for_the_same_training(cloud, gke):
    assert (
        gke(
            "xpk",
            *SUBMIT,
            *CLUSTER,
            "--type=v5litepod-16",
            "--slices=2",
            "--project=p",
            "--config.name=two words",
        )
        == 0
    )
    assert xpk_restart_statuses() == [1, 69, 74, 75]
    assert cloud.calls == [
        "xpk workload create --cluster=c --zone=us-west4-a --project=p --workload=lacy --tpu-type=v5litepod-16 --num-slices=2 "
        "--docker-image=registry/lacy:1 --max-restarts=100 --restart-on-exit-codes=1,69,74,75 "
        "--termination-grace-period-seconds=120 --ttl-seconds-after-finished=86400 "
        "--env=JAX_COMPILATION_CACHE_DIR=gs://b/runs/lacy/compilation_cache --command=lacy train --distributed "
        "--stopped-exit=75 --config=experiments/paper_334m.py:lacy --workdir=gs://b/runs/lacy '--config.name=two words'"
    ]


# -- slices --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chip", TPUS)
def test_a_jobset_asks_for_all_chips_of_the_slice(chip):
    """What the JobSet controller and GKE require of a TPU slice: names, and chips that add up, for each that is sold."""
    for count, shape in shapes(TPUS[chip]).items():
        place = parse_topology(f"{chip}:{'x'.join(map(str, shape))}")
        found = jobset(Workload("lacy", place, "image", ("lacy",)))
        (job,) = found["spec"]["replicatedJobs"]
        spec = job["template"]["spec"]
        pod = pod_of(found)
        (container,) = pod["containers"]
        assert spec["parallelism"] == spec["completions"]
        assert pod["restartPolicy"] == "Never"
        assert (
            spec["completions"] * container["resources"]["limits"]["google.com/tpu"] == place.chips == count
        )
        assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "x".join(map(str, place.shape))


def test_pools_are_made_once_and_deleted(cloud, gke):
    pools = (*CLUSTER, "--type=v5litepod-16", "--slices=2")
    cloud.reply("node-pools list", "default\nlacy-0")
    assert gke("pool", *pools, "--spot") == 0
    (call,) = cloud.changes()
    assert call == (
        "gcloud container node-pools create lacy-1 --cluster=c --zone=us-west4-a --machine-type=ct5lp-hightpu-4t "
        "--workload-metadata=GKE_METADATA --scopes=cloud-platform --tpu-topology=4x4 --num-nodes=4 --spot"
    )
    assert gke("delete", *pools, "--pool") == 0
    assert [" ".join(c.split()[:5]) for c in cloud.changes()[1:]] == [
        "kubectl delete jobset lacy --ignore-not-found", "gcloud container node-pools delete lacy-0",
    ]  # fmt: skip


def test_ironwood_is_placed_by_a_workload_policy_made_once(cloud, gke):
    pools = (*CLUSTER, "--zone=us-central1-c", "--type=tpu7x:4x4x4")
    assert gke("pool", *pools) == 0
    policy, pool = cloud.changes()
    assert policy == (
        "gcloud compute resource-policies create workload-policy lacy-tpu7x-4x4x4 --type=HIGH_THROUGHPUT "
        "--accelerator-topology=4x4x4 --region=us-central1"
    )
    assert "--machine-type=tpu7x-standard-4t" in pool
    assert "--placement-policy=lacy-tpu7x-4x4x4" in pool
    assert "--tpu-topology" not in pool
    cloud.reply("resource-policies list", "lacy-tpu7x-4x4x4")
    assert gke("pool", *pools) == 0
    assert "resource-policies" not in cloud.changes()[-1]
    assert gke("pool", *CLUSTER, "--type=tpu7x:2x2x1") == 0
    assert "policy" not in cloud.changes()[-1], "one host is not placed"


def test_flex_start_asks_for_no_node_until_there_is_work(cloud, gke):
    assert gke("pool", *CLUSTER, "--type=v6e-16", "--flex", "--queue=team") == 0
    assert cloud.changes()[-1].endswith(
        "--num-nodes=0 --flex-start --enable-autoscaling --max-nodes=4 --location-policy=ANY --reservation-affinity=none "
        "--no-enable-autorepair --enable-queued-provisioning"
    )


def test_a_pool_that_fails_half_way_is_completed_by_the_same_command(cloud, gke, capsys):
    pools = (*CLUSTER, "--type=v5litepod-16", "--slices=3", "--reservation=ours")
    cloud.reply("node-pools list", "default", once=True)
    cloud.reply("create lacy-1", "quota", code=1, once=True)
    assert gke("pool", *pools) == 2
    assert "failed (1): gcloud container node-pools create lacy-1" in capsys.readouterr().err
    cloud.reply("node-pools list", "default\nlacy-0")
    assert gke("pool", *pools) == 0
    assert [call.split()[4] for call in cloud.changes()] == ["lacy-0", "lacy-1", "lacy-1", "lacy-2"]
    assert all(
        call.endswith("--reservation-affinity=specific --reservation=ours") for call in cloud.changes()
    )


# -- the rest ------------------------------------------------------------------------------------------------------------


def test_failures_are_named_and_other_actions_call_what_they_should(cloud, gke, capsys):
    cloud.reply("kubectl apply", "no such cluster", code=1, once=True)
    assert gke("submit", *SUBMIT, "--type=v6e-8") == 2
    assert "lacy gke: failed (1): kubectl apply" in capsys.readouterr().err
    assert gke("logs", "--name=lacy", "--follow") == 0
    assert cloud.calls[-1].endswith("--prefix --tail=50 --follow")
    assert gke("logs", "--name=lacy", "--past") == 0
    assert cloud.calls[-1].startswith("gcloud logging read")
    assert '"k8s-pod/jobset_sigs_k8s_io/jobset-name"="lacy"' in cloud.calls[-1]
    assert gke("status", "--name=lacy") == 0
    assert cloud.calls[-2:] == [
        "kubectl get jobset lacy", "kubectl get pods --selector=jobset.sigs.k8s.io/jobset-name=lacy",
    ]  # fmt: skip
    assert gke("resume", *SUBMIT, "--type=v6e-8") == 0
    assert [c.split()[1] for c in cloud.calls[-2:]] == ["delete", "apply"]


@pytest.mark.parametrize(("whole", "used"), [((0, 1, 2, 3), 4), ((0, 2, 3), 2), ((1,), 1)])
def test_a_run_goes_on_with_the_slices_that_are_left(cloud, gke, capsys, whole, used):
    """Of 128 rows three slices cannot have equal shares, so two are used."""
    for i in range(4):
        cloud.reply(f"gke-nodepool=lacy-{i} ", "True True" if i in whole else "True False")
    assert gke("resume", *SUBMIT, "--type=v6e-8", "--slices=4", "--min-slices=1") == 0
    assert f"{len(whole)} of 4 slices are there, {used} are used" in capsys.readouterr().err
    manifest = yaml.safe_load((cloud.folder / "calls.stdin").read_text())
    assert manifest["spec"]["replicatedJobs"][0]["replicas"] == used
    assert [c.split()[1] for c in cloud.calls[-2:]] == ["delete", "apply"]


def test_too_few_slices_delete_nothing(cloud, gke, capsys):
    cloud.reply("gke-nodepool=lacy-0 ", "True True")
    few = ("resume", *SUBMIT, "--type=v6e-8", "--slices=4", "--min-slices=2")
    assert gke(*few) == 2
    assert "1 of 4 slices are there, and none of 2 to 1" in capsys.readouterr().err
    cloud.reply("get nodes", "no connection", code=1)
    assert gke(*few) == 2
    assert "kubectl cannot list the nodes of lacy-1" in capsys.readouterr().err
    assert not any("delete" in call or "apply" in call for call in cloud.calls)


def test_memory_for_checkpoints_is_mounted_where_the_config_says(submit):
    pod = pod_of(submit("v6e-8", "--slices=2", "--config.checkpoint.ram=/ram"))
    (container,) = pod["containers"]
    assert container["volumeMounts"] == [{"name": "ram", "mountPath": "/ram"}]
    assert pod["volumes"] == [{"name": "ram", "csi": {"driver": "multitier-checkpoint.csi.storage.gke.io"}}]
    assert {"name": "JOBSET_NAME", "value": "lacy"} in container["env"]
    assert "--config.checkpoint.ram=/ram" in container["command"]


def test_submitting_twice_applies_the_same_manifest(submit, cloud):
    assert submit("v6e-8") == submit("v6e-8")
    assert cloud.calls == ["kubectl apply --filename=-"] * 2


def test_deleting_twice_is_harmless(cloud, gke):
    cloud.reply("node-pools list", "lacy-0", once=True)
    cloud.reply("node-pools list", "default")
    assert gke("delete", *CLUSTER, "--pool") == 0
    assert gke("delete", *CLUSTER, "--pool") == 0
    assert [" ".join(call.split()[:5]) for call in cloud.changes()] == [
        "kubectl delete jobset lacy --ignore-not-found", "gcloud container node-pools delete lacy-0",
        "kubectl delete jobset lacy --ignore-not-found",
    ]  # fmt: skip


@pytest.mark.parametrize("action", ["pool", "submit", "logs", "status", "resume", "delete", "xpk"])
@pytest.mark.parametrize("kind", ["v6e-8", "tpu7x:2x2x2"])
def test_dry_runs_call_nothing(cloud, gke, capsys, action, kind):
    assert gke(action, *SUBMIT, *CLUSTER, f"--type={kind}", "--pool", "--dry-run") == 0
    assert "+ " in capsys.readouterr().out
    assert cloud.calls == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("submit", *TRAIN), "--name=... is needed"),
        (("submit", *SUBMIT), "--type=... is needed"),
        (("submit", *SUBMIT, "--type=v6e-24"), "--type=v6e-24: no such slice"),
        (("submit", *SUBMIT, "--type=v6e-4", "--slices=2"), "slices of one host cannot be joined"),
        (("submit", *SUBMIT, "--type=v6e-8", "--data=x"), "expected /PATH:CLAIM"),
        (("submit", *SUBMIT, "--type=v6e-8", "--workdir=/tmp/x"), "must be gs://"),
        (("submit", *SUBMIT, "--type=v6e-8", "--config=no.py"), "no such file"),
        (("submit", *SUBMIT, "--type=v6e-8", "--config.train.stepz=1"), "stepz"),
        (("resume", *SUBMIT, "--type=v6e-8", "--config.train.steps=-1"), "config.train.steps"),
        (
            ("resume", *SUBMIT, "--type=v6e-8", "--slices=2", "--min-slices=3"),
            "must be between 1 and --slices=2",
        ),
        (
            ("resume", *SUBMIT, "--type=v6e-8", "--slices=2", "--min-slices=1", "--config.mesh.data=4"),
            "config.mesh.data = 4",
        ),
        (("submit", *SUBMIT, "--type=v6e-8", "--name=Bad_Name"), "must be lower-case"),
        (("submit", *SUBMIT, "--type=v6e-8", "--env=no value"), "expected NAME=VALUE"),
        (("pool", *CLUSTER, "--type=v6e-8", "--spot", "--flex"), "exclude each other"),
        (("pool", "--name=lacy", "--type=v6e-8"), "--cluster=... is needed"),
    ],
)
def test_bad_input_is_one_line_before_any_call(cloud, gke, capsys, arguments, says):
    """A typo in the config, too: nobody pays for a slice to find it."""
    assert gke(*arguments) == 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) == 1
    assert cloud.calls == []


def _commands_of_the_page() -> list[list[str]]:
    """Those of docs/tpu.md that make, start, show or delete something in the cloud; "..." stands for the options of `submit`."""
    found = [
        [word.replace("BUCKET", "bucket") for word in command]
        for command in commands((SCRIPTS.parent / "docs" / "tpu.md").read_text())
        if command[:2] == ["lacy", "gke"] or command[0].startswith("tpu_scripts/")
    ]
    (submit, *_) = [command for command in found if command[2] == "submit" and "..." not in command]
    return [
        [word for part in command for word in (submit[3:] if part == "..." else [part])] for command in found
    ]


@pytest.mark.parametrize("command", _commands_of_the_page(), ids=lambda words: "_".join(words[:3])[:40])
def test_every_command_of_the_page_has_a_dry_run(cloud, gke, capsys, command):
    if command[0] == "lacy":
        assert gke(*command[2:], "--dry-run") == 0
        said = capsys.readouterr().out
    else:
        done = cloud.shell(shlex.join([*command, "--dry-run"]))
        assert done.returncode == 0, done.stderr
        said = done.stdout
    assert "+ gcloud " in said or "+ kubectl " in said
    assert cloud.calls == []


def test_the_manifest_of_a_dry_run_is_yaml_and_plain(gke, capsys):
    assert gke("submit", *SUBMIT, "--type=v6e-8", "--dry-run") == 0
    text = capsys.readouterr().out
    manifest = yaml.safe_load(text[: text.index("+ kubectl")])
    assert json.loads(json.dumps(manifest)) == manifest
    assert "&id" not in text, "no anchors"


def test_the_docs_have_the_table_of_statuses():
    page = (SCRIPTS.parent / "docs" / "tpu.md").read_text()
    for known in EXIT_STATUSES:
        assert f"| {known.status} | {known.meaning} | {known.again} |" in page
