"""Generation: every token and score replayed through the full forward pass; partners, failures, limits."""

from __future__ import annotations

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from cascade_fakes import CONTEXT, Scripted, make_batch, make_model
from flax import nnx

from lacy_jax.cascade import (
    FactTablePartner,
    GenerationStopped,
    Partner,
    Prompt,
    budget_summary,
    calibration_scores,
    engine,
    generate,
    read_generations,
    read_prompts,
    write_generations,
)
from lacy_jax.cascade.boundary import Boundary
from lacy_jax.errors import ConfigError, DataError, LacyError, PartnerError
from lacy_jax.objectives import scored_gates

pytestmark = pytest.mark.oldest

NEW = (
    64  # With any prompt more than one bucket of 64 and at most the context: one cache size, one compilation.
)
OPTIONS = {"max_new_tokens": NEW, "progress": False, "gate": "call_prob", "batch_size": 4}


@pytest.fixture(scope="module")
def prompts(world):
    extra = ["She", "In 1984 the Žižkov 東京 " * 2]
    return [world.prompt(i) for i in range(3)] + extra


def prompt_ids(tokenizer, generation):
    return np.concatenate([[tokenizer.bos_id], tokenizer.encode(generation.prompt)])


def check_consistent(generation, tokenizer):
    """What holds for every generation, whoever wrote it."""
    ids = np.array(generation.tokens, int)
    given = prompt_ids(tokenizer, generation)
    assert tokenizer.decode(np.concatenate([given, ids])) == generation.prompt + generation.text
    assert ids.size == 0 or (ids.min() >= 0 and ids.max() < tokenizer.vocab_size)  # CALL is vocab_size.
    assert not set(ids.tolist()) & {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    assert len(generation.origins) == len(generation.gate_scores) == len(generation.pieces) == len(ids)
    assert generation.call_share == pytest.approx(
        np.mean([o == "partner" for o in generation.origins] or [0])
    )
    assert [generation.spans[0][0] if generation.spans else 0, *(end for _, end, _ in generation.spans)] == [
        0,
        *(start for start, _, _ in generation.spans[1:]),
        *([len(generation.text)] if generation.spans else []),
    ]


def goes_on_with(boundary, before):
    """[V] pieces that go on with the character that is begun; all False where none is."""
    need = 0
    for token in before:
        need = (
            max(need - int(boundary.tail[token]), 0) if boundary.inner[token] else int(boundary.lead[token])
        )
    left = need - boundary.tail
    inside = np.where(boundary.inner, left >= 0, (left == 0) & (boundary.lead == 0))
    return (need > 0) & (boundary.tail > 0) & inside


def check_replay(generation, model, tokenizer, full_forward, gate="call_prob"):
    """The model's tokens are the greedy choice, and the scores those, of a forward pass over the final text."""
    given = prompt_ids(tokenizer, generation)
    tokens = np.concatenate([given, generation.tokens]).astype(np.int32)
    z, c = full_forward(model, tokens)
    z = z.copy()
    scores = np.stack([c - np.log(np.exp(z.astype(np.float64)).sum(-1)), c - z.max(-1)], axis=-1)[
        :, {"call_prob": 0, "call_margin": 1}[gate]
    ]
    z[:, [tokenizer.bos_id, tokenizer.pad_id]] = -np.inf
    boundary = Boundary(tokenizer)
    for i, (token, who, score) in enumerate(
        zip(generation.tokens, generation.origins, generation.gate_scores)
    ):
        at = len(given) + i - 1  # The position whose output decides token i.
        if who == "model":
            assert score is not None
        if who == "model" and z[at, token] < z[at].max() - 1e-3:
            # A call is due, and waits for the end of a character: only pieces that go on with it are written.
            allowed = goes_on_with(boundary, tokens[: at + 1])
            assert allowed[token]
            assert z[at, token] >= z[at][allowed].max() - 1e-3
        if score is not None:
            assert score == pytest.approx(scores[at], abs=1e-3)
    if generation.stopped == "eos":
        assert int(z[-1].argmax()) == tokenizer.eos_id
    elif generation.stopped == "length":
        assert len(generation.tokens) == NEW


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_greedy_text_without_partner_is_that_of_the_full_forward_pass(
    tokenizer, prompts, full_forward, family
):
    model = make_model(tokenizer.vocab_size, family, seed=4)
    found = generate(model, tokenizer, prompts, **OPTIONS)
    assert [g.prompt for g in found] == prompts
    assert min(len(set(g.tokens)) for g in found) > 5  # Not a text that any wrong cache would give too.
    for generation in found:
        check_consistent(generation, tokenizer)
        check_replay(generation, model, tokenizer, full_forward)
        assert set(generation.origins) <= {"model"}
        assert (generation.calls, generation.call_share, generation.budget) == (0, 0.0, 0.0)


@pytest.mark.parametrize("gate", ["call_prob", "call_margin"])
def test_partner_text_is_in_the_text_and_in_the_cache(model, tokenizer, world, prompts, full_forward, gate):
    partner = FactTablePartner(world)
    found = generate(model, tokenizer, prompts, partner, **{**OPTIONS, "gate": gate}, budget=0.3)
    for generation in found:
        check_consistent(generation, tokenizer)
        check_replay(generation, model, tokenizer, full_forward, gate)
        assert generation.budget_met, generation.budget_note
        assert abs(generation.call_share - 0.3) * len(generation.tokens) <= 1.5 or generation.stopped == "eos"
    assert sum(generation.calls for generation in found) > 10


def test_partner_is_asked_with_the_text_so_far_and_its_answer_follows(model, tokenizer, prompts):
    answer = " Zoë東"
    partner = Scripted(answer)
    found = generate(model, tokenizer, prompts, partner, **OPTIONS, budget=0.4)
    texts = {generation.prompt + generation.text: generation for generation in found}
    whole_answers = 0
    for asked in partner.asked:
        following = next(text[len(asked) :] for text in texts if text.startswith(asked))
        assert answer.startswith(following[:2])  # Cut to the budget at the earliest after " Z".
        whole_answers += following.startswith(answer)
    assert whole_answers > 0.6 * len(partner.asked) > 0
    for generation in found:
        check_consistent(generation, tokenizer)
        assert any(partner.asked[0].startswith(g.prompt) for g in found)
        written = "".join(
            generation.text[start:end] for start, end, who in generation.spans if who == "partner"
        )
        assert set(written) <= set(answer)


def test_no_call_inside_a_character(tokenizer, model):
    """Hot sampling writes byte pieces at random; a call waits for the end of a character."""
    partner = Scripted(" и")
    texts = generate(model, tokenizer, ["a"] * 12, partner, **OPTIONS, budget=0.3, temperature=8.0)
    boundary = Boundary(tokenizer)
    byte_pieces = 0
    for generation in texts:
        check_consistent(generation, tokenizer)
        ids = np.array(generation.tokens)
        byte_pieces += int((boundary.lead[ids] > 0).sum())
        for i, who in enumerate(generation.origins):
            if who == "partner" and (i == 0 or generation.origins[i - 1] == "model"):
                assert len(boundary.whole_characters(ids[:i])) == i
    assert byte_pieces > 20


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_text_does_not_depend_on_the_batch(model, tokenizer, world, prompts, temperature):
    def texts(batch_size, seed=1):
        partner = FactTablePartner(world)
        options = {
            **OPTIONS,
            "gate": "call_margin",
            "temperature": temperature,
            "top_k": 50,
            "seed": seed,
            "batch_size": batch_size,
        }
        return generate(model, tokenizer, prompts, partner, **options, budget=0.2)

    alone, together = texts(1), texts(4)
    assert [g.text for g in alone] == [g.text for g in together]
    assert [g.origins for g in alone] == [g.origins for g in together]
    if temperature:
        assert [g.text for g in texts(4, seed=2)] != [g.text for g in together]


def test_sampling_from_the_single_best_is_greedy(model, tokenizer, prompts):
    greedy = generate(model, tokenizer, prompts, **OPTIONS)
    sampled = generate(model, tokenizer, prompts, **OPTIONS, temperature=2.0, top_k=1)
    assert [g.tokens for g in greedy] == [g.tokens for g in sampled]


def test_nothing_is_compiled_anew_for_other_prompts_gates_and_budgets(model, tokenizer, world):
    def run(count, gate, budget, prompt):
        partner = FactTablePartner(world)
        generate(
            model,
            tokenizer,
            [prompt] * count,
            partner,
            **{**OPTIONS, "gate": gate},
            budget=budget,
        )

    for prompt in ("He was", "A longer prompt that"):
        run(4, "call_prob", 0.1, prompt)
    compiled = engine.advance._cache_size(), engine.feed._cache_size()
    for gate in scored_gates():
        run(4, gate, 0.3, "Quite another text that")
    run(8, "entropy", 0.0, "She")
    assert (engine.advance._cache_size(), engine.feed._cache_size()) == compiled


@pytest.mark.parametrize("devices", [1, 8])
def test_a_model_on_a_mesh_is_compiled_for_once(model, tokenizer, world, prompts, devices):
    """As a restored run is: what a step returns lies on the mesh, and so does what the first step gets."""

    def write(model):
        texts = generate(model, tokenizer, prompts[:3], FactTablePartner(world), **OPTIONS)
        return [text.tokens for text in texts]

    whole = jax.sharding.NamedSharding(jax.make_mesh((devices,), ("data",)), jax.sharding.PartitionSpec())
    restored = nnx.merge(*nnx.split(model))
    nnx.update(restored, jax.device_put(nnx.state(restored), whole))
    before = [(loop, loop._cache_size()) for loop in (engine.advance, engine.feed)]
    texts = write(restored)
    assert [loop._cache_size() - size for loop, size in before] == [1, 1]
    assert texts == write(model)


def test_calibration_changes_the_first_decisions(model, tokenizer, prompts):
    """With calibration scores far above any of the model's, no early decision is among the top."""
    partner = Scripted(" x")
    partner.reach = "token"  # May be called anywhere.
    high = np.linspace(1e3, 2e3, 500)
    first = [
        min((i for i, who in enumerate(g.origins) if who == "partner"), default=NEW)
        for g in generate(model, tokenizer, prompts, partner, **OPTIONS, budget=0.2, calibration_scores=high)
    ]
    low = generate(model, tokenizer, prompts, partner, **OPTIONS, budget=0.2, calibration_scores=high - 1e4)
    assert min(first) >= 5
    assert all(g.origins[0] == "partner" for g in low)


# -- partners that fail ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [PartnerError("partner scripted: away"), ConnectionError("reset")])
def test_model_goes_on_alone_when_the_partner_fails(model, tokenizer, prompts, error):
    partner = Scripted(error)
    found = generate(model, tokenizer, prompts, partner, **OPTIONS, budget=0.3)
    alone = generate(model, tokenizer, prompts, **OPTIONS)
    assert [g.text for g in found] == [g.text for g in alone]
    assert partner.calls == 3  # Then it is not asked any more.
    assert sum(g.partner_failures for g in found) > 0
    assert all("given up" in g.budget_note and not g.budget_met for g in found if len(g.tokens) == NEW)
    assert "not met in" in budget_summary(found)


def test_a_partner_that_fails_now_and_then_is_used(model, tokenizer, prompts):
    partner = Scripted(" word", PartnerError("busy"))
    found = generate(model, tokenizer, prompts, partner, **OPTIONS, budget=0.3)
    assert all(g.calls > 0 for g in found)
    assert any(g.partner_failures > 0 for g in found)
    for generation in found:
        check_consistent(generation, tokenizer)


def test_stop_on_failure_loses_nothing(model, tokenizer, prompts, tmp_path):
    partner = Scripted(" word", " word", " word", PartnerError("away"))
    with pytest.raises(GenerationStopped, match=r"away; .*kept") as stopped:
        generate(model, tokenizer, prompts, partner, **OPTIONS, budget=0.3, on_partner_failure="stop")
    kept = stopped.value.generations
    assert 2 <= len(kept) < len(prompts) + 1
    assert kept[-1].stopped == "partner" or kept[-2].stopped == "partner"
    for generation in kept:
        check_consistent(generation, tokenizer)
    write_generations(tmp_path / "kept.jsonl", kept)
    assert [g.text for g in read_generations(tmp_path / "kept.jsonl")] == [g.text for g in kept]


def test_a_silent_partner_leaves_the_budget_unmet_and_says_so(model, tokenizer, prompts, full_forward):
    found = generate(model, tokenizer, prompts, Scripted(""), **OPTIONS, budget=0.5)
    for generation in found:
        assert set(generation.origins) == {"model"}
        check_replay(generation, model, tokenizer, full_forward)
        assert not generation.budget_met
        assert "returned nothing" in generation.budget_note


@pytest.mark.parametrize(
    ("answer", "says"),
    [([], "4 texts in"), (["a", "b", "c"], "4 texts in"), ([None] * 4, "no answer to 4 of 4 texts")],
)
def test_a_partner_that_breaks_the_protocol_is_a_failure(model, tokenizer, answer, says):
    class Broken(Partner):
        name = "broken"

        def complete(self, texts):
            return answer

    with pytest.raises(PartnerError, match=f"partner broken: {says}"):
        generate(model, tokenizer, ["He"] * 4, Broken(), **OPTIONS, budget=0.5, on_partner_failure="stop")


def test_a_rambling_partner_is_cut_to_the_budget(model, tokenizer, prompts):
    partner = Scripted(" on and on about Žižkov and 東京" * 5)
    for generation in generate(model, tokenizer, prompts, partner, **OPTIONS, budget=0.25):
        check_consistent(generation, tokenizer)
        assert generation.origins.count("partner") <= 0.25 * NEW + 1
        assert not any("\ufffd" in generation.text[s:e] for s, e, who in generation.spans if who == "partner")


def test_budget_zero_asks_nobody(model, tokenizer, prompts):
    partner = Scripted(" x")
    found = generate(model, tokenizer, prompts, partner, **OPTIONS, budget=0.0)
    assert partner.calls == 0
    assert all(g.budget_met and g.calls == 0 for g in found)


# -- limits and bad options --------------------------------------------------------------------------------------


def test_a_prompt_longer_than_the_context_is_named(model, tokenizer):
    prompts = [Prompt("He was", "fits"), Prompt("Mara Ellison " * 60, "mara")]
    tokens = 1 + len(tokenizer.encode(prompts[1].text))
    with pytest.raises(DataError, match=rf"prompt 'mara' has {tokens} tokens.*{CONTEXT}"):
        generate(model, tokenizer, prompts, **OPTIONS)


def test_a_text_ends_where_the_context_ends(model, tokenizer, full_forward):
    found = generate(model, tokenizer, ["He was"] * 4, **{**OPTIONS, "max_new_tokens": 1000})[0]
    length = len(prompt_ids(tokenizer, found)) + len(found.tokens)
    assert (length, found.stopped) == (CONTEXT, "context") or found.stopped == "eos"
    check_replay(found, model, tokenizer, full_forward)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"budget": 1.5}, r"call budget 1.5: must be in \[0, 1\]"),
        ({"budget": -0.1}, "call budget"),
        ({"max_new_tokens": 0}, "generate.max_new_tokens = 0"),
        ({"batch_size": 0}, "generate.batch_size = 0"),
        ({"temperature": -1.0}, "generate.temperature"),
        ({"top_k": -1}, "generate.top_k"),
        ({"gate": "vibes"}, "gate = 'vibes'"),
        ({"on_partner_failure": "panic"}, "expected one of stop, continue"),
    ],
)
def test_bad_options_are_refused(model, tokenizer, option, message):
    with pytest.raises(ConfigError, match=message):
        generate(model, tokenizer, ["He"], **{**OPTIONS, **option})


def test_the_tokenizer_of_another_run_is_refused(model):
    with pytest.raises(ConfigError, match="420 pieces, the model 500"):
        generate(model, types.SimpleNamespace(vocab_size=420), ["He"], **OPTIONS)


def test_no_prompts_no_texts(model, tokenizer):
    assert generate(model, tokenizer, [], **OPTIONS) == []


# -- files -------------------------------------------------------------------------------------------------------


def test_generations_survive_their_file(model, tokenizer, world, prompts, tmp_path):
    found = generate(model, tokenizer, prompts, FactTablePartner(world), **OPTIONS, budget=0.2)
    found[0] = dataclasses.replace(found[0], text=found[0].text + "\u2028\U0001f389")
    write_generations(tmp_path / "out" / "texts.jsonl", found)
    assert read_generations(tmp_path / "out" / "texts.jsonl") == found
    lines = (tmp_path / "out" / "texts.jsonl").read_bytes().strip().split(b"\n")
    assert len(lines) == len(prompts)
    for line in lines:  # Strict JSON: a score that is no number must not become NaN.
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_generations_are_written_whole_or_not_at_all(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(LacyError, match="cannot write"):
        write_generations(tmp_path / "file" / "texts.jsonl", [])
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_prompts_are_read_with_their_place(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "He was", "id": "a"}\n\n{"prompt": "She \\u2028was"}\n')
    assert read_prompts(path) == [Prompt("He was", "a"), Prompt("She \u2028was", "prompts.jsonl:3")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no prompts in it"),
        ('{"prompt": "a"}\n{"text": "b"}\n', "prompts.jsonl:2: no prompt"),
        ('{"prompt": "a"\n', "prompts.jsonl:1: not JSON"),
        ('["a"]\n', "prompts.jsonl:1: expected a JSON object"),
    ],
)
def test_bad_prompt_files_are_named_with_the_line(tmp_path, content, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_prompts(path)
    with pytest.raises(DataError, match="prompts"):
        read_prompts(tmp_path / "missing.jsonl")


def test_calibration_of_a_real_gate_runs_through_generation(model, tokenizer, prompts, world):
    tokens = np.stack([np.resize(tokenizer.encode(world.text(i).text), 64) for i in range(4)])
    scores = calibration_scores(model, [make_batch(tokens, np.ones((4, 64)))], "call_margin")
    found = generate(
        model, tokenizer, prompts, FactTablePartner(world), **{**OPTIONS, "gate": "call_margin"}, budget=0.1,
        calibration_scores=scores,
    )  # fmt: skip
    assert all(g.budget_met for g in found)
