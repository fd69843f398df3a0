"""Every field of a run config, its default and its meaning, grouped by the room that reads it."""

from __future__ import annotations

import ml_collections
from ml_collections import config_dict

from lacy_jax.registry import Kind, Option, Registry


def _options(kind: str, *fields: str, **about: str) -> Registry[Option]:
    """A choice between plain words; the code that reads the field acts on the word."""
    entries = [Option(name, text) for name, text in about.items()]
    return Registry(Kind(kind, fields, __name__), entries)


# `lacy VERB --help` lists the choices of every field. The choices between plain words are defined here; the others are
# the registries named in `lacy_jax.registry`.
ON_BAD_RECORD = _options(
    "on bad record", "corpus.on_bad_record", "input.on_bad_record",
    error="stop, and name the record",
    skip="leave it out (in training: its place is padded), and count it",
)  # fmt: skip
PACKINGS = _options(
    "packing", "input.packing",
    split="documents end to end, cut at seq_len",
    whole="a document is cut only if it is longer than seq_len",
)  # fmt: skip
FAMILIES = _options(
    "model family", "model.family",
    gpt2="learned positions, LayerNorm, GELU, biases",
    llama="rotary positions, RMSNorm, SwiGLU, no biases",
)  # fmt: skip
DTYPES = _options(
    "compute dtype", "model.dtype",
    float32="everywhere",
    bfloat16="activations and matmuls; parameters, optimiser state and loss stay float32",
)  # fmt: skip
CALL_OBJECTIVES = _options(
    "call objective", "objective.call_objective",
    renormalised="learned targets are renormalised without CALL (the paper)",
    full="softmax over the vocabulary and CALL everywhere, which calibrates p(CALL): the better gate so far",
)  # fmt: skip
MASK_SCOPES = _options(
    "mask scope", "objective.mask_scope",
    micro_batch="each micro-batch of train.accumulation has a mask of its own",
    step="one mask for all micro-batches of a step, as without accumulation; costs a forward pass more",
)  # fmt: skip
LOSSES = _options(
    "loss", "objective.loss",
    fused="in chunks of tokens; the logits of a batch never exist at once",
    reference="materialises the logits: what the fused loss is tested against",
)  # fmt: skip
ON_NAN = _options(
    "on NaN", "train.on_nan",
    stop="end the run",
    skip="drop the update, count it, and go on",
)  # fmt: skip
ON_SPIKE = _options(
    "on loss spike", "train.on_spike",
    report="report it and go on",
    rewind="go back to the last checkpoint and skip the batches that led to it",
)  # fmt: skip
REACHES = _options(
    "partner reach", "generate.partner_reach",
    token="one token of the partner; one word or punctuation mark if it has no tokens (the paper)",
    word="the rest of the current word, or the next word",
    span="a whole fact, or a phrase",
)  # fmt: skip
ON_PARTNER_FAILURE = _options(
    "on partner failure", "generate.on_partner_failure",
    stop="end the generation; texts written so far are kept",
    **{"continue": "the model goes on alone at that place, and the failure is recorded"},
)  # fmt: skip


def get_default_config() -> ml_collections.ConfigDict:
    """The defaults, locked. An experiment overrides fields; it does not add any."""
    c = ml_collections.ConfigDict()
    c.name = "run"
    c.plugins = ()  # Modules or files (.py) that add entries to the registries: docs/extending.md.
    c.seed = 0  # The only seed: data order, initialisation, random masks, sampling derive from it.

    # -- corpus: where text comes from (lacy prepare) --------------------------------------------------------
    c.corpus = corpus = ml_collections.ConfigDict()
    corpus.kind = "world"
    # File or glob, optionally .gz .bz2 .xz .zst; a folder for hf; "name" or "name/config:version" for tfds.
    corpus.path = ""
    corpus.text_field = "text"  # The field that holds the text (jsonl, parquet, hf, lmlm, tfds).
    corpus.split = "train"  # tfds and hf.
    corpus.on_bad_record = "error"
    corpus.max_documents = 0  # 0 = all.
    corpus.max_chars = 0  # Keep the first sentences that fit; 0 = whole texts. Not for the world.
    corpus.people = 2000  # world only: number of people, hence of facts.
    corpus.texts_per_person = 4  # world only: differently worded biographies written of each person.
    corpus.world_seed = (
        0  # world only: names the world; separate from `seed`, so that runs can share one world.
    )

    # -- tokenizer -------------------------------------------------------------------------------------------
    c.tokenizer = tokenizer = ml_collections.ConfigDict()
    tokenizer.path = ""  # An existing SentencePiece .model; empty = train one on the corpus.
    tokenizer.vocab_size = 32_000  # Base vocabulary; CALL is one extra id after it.
    tokenizer.byte_fallback = True
    tokenizer.split_digits = True
    tokenizer.normalization = "identity"  # SentencePiece rule name: identity | nmt_nfkc | nfkc ...
    tokenizer.character_coverage = 0.9995
    tokenizer.bos_piece = "<s>"
    tokenizer.eos_piece = "</s>"
    tokenizer.pad_piece = "<pad>"
    tokenizer.max_training_documents = 20_000  # Documents read for tokenizer training.

    # -- labels ----------------------------------------------------------------------------------------------
    c.labels = labels = ml_collections.ConfigDict()
    labels.labeller = "auto"  # docs/labels.md
    labels.spacy_model = "en_core_web_sm"
    labels.first_mention = "document"
    labels.online = False  # Label the text as training reads it, instead of using the stored labels.

    # -- dataset: labelled tokens on disk (lacy prepare writes it, lacy train reads it) ------------------------
    c.dataset = dataset = ml_collections.ConfigDict()
    dataset.path = ""  # Folder; empty = WORKDIR/dataset.
    dataset.mixture = ()  # ((path, weight), ...): train on several datasets; replaces `path` for training.
    dataset.cache = (
        ""  # Folder of this host for copies of a dataset in a bucket; empty = among the temporary files.
    )
    dataset.cache_gb = 20.0  # How much it may hold; 0 = every record is read from the bucket.
    dataset.shards = 4
    dataset.workers = 1  # Processes that label and tokenise.
    dataset.valid_fraction = 0.01  # Split by hash of the document id.

    # -- input: from records to batches -----------------------------------------------------------------------
    c.input = inp = ml_collections.ConfigDict()
    inp.seq_len = 1024
    inp.batch_size = 8  # Sequences in the GLOBAL batch of one optimiser step (all its micro-batches).
    inp.packing = "split"
    inp.confine_to_document = True  # Attention and targets stay inside a document.
    inp.shuffle = True
    inp.epochs = (
        0  # 0 = as many as `train.steps` needs (reshuffled each epoch); otherwise stop after so many.
    )
    inp.on_bad_record = "error"  # What to do with a corrupt record of the dataset.
    inp.threads = 4  # Grain read threads.
    inp.prefetch = 16  # Grain prefetch buffer, in batches.

    # -- model: a preset; every field set here overrides it -------------------------------------------------
    c.model = model = ml_collections.ConfigDict()
    model.preset = "tiny"
    model.family = "gpt2"
    model.d_model = config_dict.placeholder(int)
    model.n_layers = config_dict.placeholder(int)
    model.n_heads = config_dict.placeholder(int)
    model.n_kv_heads = config_dict.placeholder(int)
    model.d_ff = config_dict.placeholder(int)
    model.max_seq_len = config_dict.placeholder(int)  # Longest context; default at least input.seq_len.
    model.head_dim = config_dict.placeholder(int)  # Default d_model / n_heads.
    model.tie_head = config_dict.placeholder(bool)
    model.query_dim = 0  # Length of the vectors that the model asks an index with; 0 = no query head.
    model.qk_norm = config_dict.placeholder(bool)
    model.rope_theta = config_dict.placeholder(float)
    model.rope_scaling = config_dict.placeholder(tuple)  # ("linear", 2.0), ("llama3", 8.0, 1.0, 4.0, 8192)
    # Keys a query sees, per layer, repeated over the depth: (1024,), (512, 512, 512, 0); 0 = all.
    model.sliding_window = config_dict.placeholder(tuple)
    model.norm_eps = config_dict.placeholder(float)
    model.attention_bias = config_dict.placeholder(bool)  # llama: biases on the projections (gpt2 has them).
    model.mlp_bias = config_dict.placeholder(bool)
    # False: no bias on attention's output projection in spite of attention_bias, as in Qwen2.
    model.attention_out_bias = config_dict.placeholder(bool)
    model.dropout = 0.0
    model.dtype = "float32"  # The type that activations are computed in.
    model.remat = "dots"  # What the backward pass recomputes.
    model.scan_layers = True  # False: one by one, faster on TPUs and GPUs, slower to compile (docs/plan.md).
    model.attention = "auto"
    model.attention_block = 512  # Splash: most queries and keys at once, 128 times a power of two.

    # -- objective: what is delegated, and how the loss counts it (arXiv:2602.12005 §4) ------------------------
    c.objective = objective = ml_collections.ConfigDict()
    objective.policy = "lacy"
    objective.call_rate = 0.15  # Share of valid targets delegated in each (micro-)batch.
    objective.call_objective = "renormalised"
    objective.mask_scope = "micro_batch"  # Over what targets are ranked where train.accumulation is above 1.
    objective.ignore_rate = 0.15  # lacy_ignore, rho_skip: share of valid targets that get no gradient.
    objective.z_loss = 0.0  # Coefficient of lse_V**2.
    objective.query_weight = 1.0  # Of the query head's loss, beside the others at delegated targets.
    objective.loss = "fused"
    objective.chunk = 0  # Tokens per chunk of the fused loss; 0 = chosen from the vocabulary size.
    # rho, spacy_ref: "dataset" (stored reference nll) or a run directory of a frozen model.
    objective.reference = ""

    # -- optimiser ---------------------------------------------------------------------------------------------
    c.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.name = "adamw"
    optimizer.learning_rate = 5e-4
    optimizer.schedule = "cosine"
    optimizer.warmup_steps = 100
    optimizer.decay_fraction = 0.2  # wsd: share of the steps that decays.
    optimizer.final_lr_fraction = 0.1
    optimizer.b1 = 0.9
    optimizer.b2 = 0.95
    optimizer.eps = 1e-8
    optimizer.weight_decay = 0.1  # On matrices only.
    optimizer.clip_norm = 1.0
    optimizer.momentum = 0.95  # muon
    optimizer.update_rms = 0.2  # muon: size of an entry's update, AdamW's; 0 = the original's scale, sqrt(max(1, outputs / inputs)).
    optimizer.slow_b = 0.9999  # ademamix: of the slow average of the gradient
    optimizer.slow_share = 5.0  # ademamix: its weight beside the fast one, alpha
    optimizer.lr_scale = ()  # ((pattern of names, share of the rate), ...): (("blocks.0.*", 0.5),); the last match counts.
    optimizer.ema_decay = 0.0  # Exponential moving average of the parameters, such as 0.999; 0 = none. lacy export --average=ema

    # -- training ------------------------------------------------------------------------------------------------
    c.train = train = ml_collections.ConfigDict()
    train.steps = 1000
    train.accumulation = 1  # Micro-batches per step; objective.mask_scope says over what the mask is taken.
    train.on_nan = "stop"
    train.max_skipped = 10  # With on_nan=skip: stop after this many in a row.
    train.on_spike = "report"  # What a loss spike is: health.loss_spike.
    train.max_rewinds = 3  # With on_spike=rewind: stop after this many in a run.
    train.log_every = 10
    train.eval_every = 500  # 0 = only at the end.
    train.eval_batches = 8
    train.quantization = "none"
    train.shard_optimizer = False  # Split parameters and optimiser state over `mesh.data` too (ZeRO-1).
    train.compiler_options = ()  # XLA options of the step, on TPUs only: ("NAME=VALUE", ...).
    train.trainable = ()  # Patterns of the names of what is trained, ("call", "blocks.-[12].*"); () = everything.
    train.init_from = ""  # Run directory whose parameters a fresh run starts from, e.g. one of `lacy import`.

    c.mesh = mesh = ml_collections.ConfigDict()
    mesh.data = -1  # -1 = all devices the other axes leave.
    mesh.fsdp = 1
    mesh.sequence = 1
    mesh.tensor = 1

    c.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every = 500  # Steps; the last step is always saved.
    checkpoint.keep = 2  # Most recent ones.
    checkpoint.keep_every = 0  # Also keep each multiple of this many steps; 0 = none.
    checkpoint.keep_best = 1  # Best by validation nll; 0 = none.
    checkpoint.asynchronous = True
    # Folder in the memory of each host, for checkpoints between those above (docs/tpu.md); "" = none. Several processes.
    checkpoint.ram = ""
    checkpoint.ram_every = 50  # Steps.
    checkpoint.timeout_s = 600  # How long one process waits for the others to finish a checkpoint.

    c.metrics = metrics = ml_collections.ConfigDict()
    metrics.tensorboard = True
    metrics.wandb = False
    metrics.cloud_goodput = (
        False  # ml-goodput-measurement: Cloud Logging and Monitoring; needs the extra `cloud`.
    )
    metrics.cloud_diagnostics = (
        False  # google-cloud-mldiagnostics: metrics, XProf on demand (port 9999); the same extra.
    )
    metrics.peak_flops = 0.0  # Per device, for utilisation; 0 = tabulated, measured where unknown.

    # -- health: monitoring of a run (training/health.py, training/profiling.py); may change between resumes ------
    c.health = health = ml_collections.ConfigDict()
    health.heartbeat_s = 30.0  # At least so many seconds between two writes of WORKDIR/heartbeat.json.
    health.window = (
        64  # Steps whose medians define what is usual; nothing is judged before a quarter of them.
    )
    health.slow_step = 3.0  # A step is an outlier if it takes this many times the median; 0 = off.
    health.loss_spike = 10.0  # A loss is a spike if it is this many deviations above the median; 0 = off.
    health.profile_start = 0  # First step of a profiler trace; 0 = none. SIGUSR1 asks for one at any time.
    health.profile_steps = 5  # Steps per trace.
    health.profiler_port = 0  # Of each process, where XProf may ask for a trace at any time; 0 = none.

    # -- generation with a partner --------------------------------------------------------------------------------
    c.generate = generate = ml_collections.ConfigDict()
    generate.prompts = ""  # JSONL with `prompt` (and optionally `id`); empty = prompts made from the corpus.
    generate.num_prompts = 50
    generate.partner = "none"
    generate.gate = "auto"
    generate.budget = 0.22  # Call budget: share of generated tokens the partner may write.
    generate.max_new_tokens = 256
    generate.temperature = 0.0  # 0 = greedy.
    generate.top_k = 0  # 0 = off.
    generate.top_p = 1.0  # Sample from the fewest tokens that hold this share of the probability; 1 = off.
    generate.batch_size = 16
    generate.partner_reach = "span"  # How much one call may return.
    generate.on_partner_failure = "continue"
    generate.step = 0  # Checkpoint step to load; 0 = latest.
    return c.lock()
