"""Evaluators and load generators that pin packages against ours: `inspect-ai` and `guidellm`, in an interpreter of their own.

LACY_CLIENTS=PYTHON names one that has both (`pip install inspect-ai guidellm openai` in a fresh environment).
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess

import pytest
from export_small import make_config, random_params
from served import served

from lacy_jax.cascade import FactTablePartner, generate
from lacy_jax.export.hugging_face import export_hugging_face
from lacy_jax.export.run_directory import write_run
from lacy_jax.export.source import load_source

pytestmark = pytest.mark.slow
KEY = "test-key"


@pytest.fixture(scope="module")
def python():
    found = os.environ.get("LACY_CLIENTS")
    if not found:
        pytest.skip("LACY_CLIENTS names no interpreter that has inspect-ai and guidellm")
    return found


@pytest.fixture(scope="module")
def address(model, tokenizer, world):
    with served(model, tokenizer, FactTablePartner(world), app={"keys": [KEY]}) as (address, _):
        yield address


def by(python, *command, **environment):
    """Run a command of the other interpreter, without our packages and without the network."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, *command], env={**kept, "HF_HUB_OFFLINE": "1", **environment}, capture_output=True, text=True, timeout=400
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


_INSPECT = """
import json, sys
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import match
from inspect_ai.solver import generate

address, logs, kind, *pairs = json.loads(sys.argv[1])
samples = [Sample(input=prompt, target=text) for prompt, text in pairs]
task = Task(dataset=samples, solver=generate(), scorer=match("exact", ignore_case=False))
options = {"logprobs": True, "top_logprobs": 3, "max_tokens": 48, "temperature": 0.0, "seed": 0}
(log,) = eval(task, model=f"{kind}/lacy/tiny", model_base_url=f"{address}/v1", log_dir=logs, display="none", **options)
assert log.status == "success", log.error
choices = [sample.output.choices[0] for sample in log.samples]
print(json.dumps({
    "accuracy": log.results.scores[0].metrics["accuracy"].value,
    "texts": [choice.message.text for choice in choices],
    "stopped": [choice.stop_reason for choice in choices],
    "logprobs": [[entry.token for entry in choice.logprobs.content] for choice in choices],
    "written": log.stats.model_usage[log.eval.model].output_tokens,
}))
"""


@pytest.mark.parametrize("kind", ["openai-api", "openai-api-completions"])
def test_inspect_gets_our_texts(python, address, model, tokenizer, world, tmp_path, kind):
    settings = {"gate": "call_prob", "budget": 0.3, "max_new_tokens": 48, "progress": False}
    # The same prompts one by one, as requests have them.
    partner = FactTablePartner(world)
    texts = [generate(model, tokenizer, [world.prompt(i)], partner, **settings)[0] for i in range(3)]
    job = [address, str(tmp_path), kind, *((text.prompt, text.text) for text in texts)]
    found = json.loads(by(python, "-c", _INSPECT, json.dumps(job), LACY_API_KEY=KEY).splitlines()[-1])
    assert found["texts"] == [text.text for text in texts]
    assert found["accuracy"] == 1.0
    assert found["stopped"] == [{"eos": "stop", "length": "max_tokens"}[text.stopped] for text in texts]
    assert [len(tokens) for tokens in found["logprobs"]] == [len(text.tokens) for text in texts]
    assert found["written"] == sum(len(text.tokens) for text in texts)


def _load(python, tmp_path, *options):
    """The requests of a guidellm run."""
    report = tmp_path / "report.json"
    command = ["-m", "guidellm", "run", "--disable-console", "--output", f"kind=json,path={report}", *options]
    by(python, *command, GUIDELLM__MAX_WORKER_PROCESSES="1")  # Each imports torch.
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    assert not benchmark["requests"]["errored"]
    return benchmark["requests"]["successful"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_guidellm_measures_texts_of_the_length_it_asks_for(python, address, tokenizer, tmp_path, path):
    """It invents prompts with the exported tokenizer and forbids the end of a text."""
    config = make_config()
    (tmp_path / "run").mkdir()
    write_run(tmp_path / "run", config, tokenizer, random_params(config, tokenizer.vocab_size))
    export_hugging_face(dataclasses.replace(load_source(tmp_path / "run"), call=False), tmp_path / "hf")
    found = _load(
        python, tmp_path,
        "--backend", f"kind=openai_http,target={address},model=tiny,request_format={path},api_key={KEY}",
        "--profile", "kind=concurrent,streams=3", "--constraint", "kind=max_requests,count=9",
        "--tokenizer", f"kind=hf_auto,model={tmp_path / 'hf'}",
        "--data", "kind=synthetic_text,prompt_tokens=12,output_tokens=20",
    )  # fmt: skip
    assert len(found) == 9
    assert {request["output_metrics"]["text_tokens"] for request in found} == {20}
