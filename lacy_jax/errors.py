"""Errors a user can cause.

Everything a user can get wrong (a config typo, a missing file, a corrupt record) raises `LacyError` or one
of its subclasses with a message of one line that says what is wrong, where, and what to do. The command line
prints that line and exits with 2; library users catch the class. Anything else that escapes is a bug of ours
and keeps its traceback.
"""


class LacyError(Exception):
    """Base of all errors a user can act on. `str(error)` is one line."""


class ConfigError(LacyError):
    """A config field is unknown, out of range, or contradicts another."""


class DataError(LacyError):
    """A corpus, tokenizer, label or dataset file is missing, empty, corrupt or does not match the run."""


class CheckpointError(LacyError):
    """A checkpoint is missing, unreadable, or belongs to another config."""


class TrainingError(LacyError):
    """Training cannot go on: a NaN or Inf loss, or a batch that makes no sense."""


class PeerLostError(TrainingError):
    """Another process of the same job is gone, so nothing that needs all of them can be finished."""


class PartnerError(LacyError):
    """A partner failed or is not available."""
