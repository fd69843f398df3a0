"""Errors a user can cause.

Everything a user can get wrong (a config typo, a missing file, a corrupt record) raises `LacyError` or one of its
subclasses, with a message of one line that says what is wrong, where, and what to do. The command line prints that line
and exits with the class's status; library users catch the class. Any other exception is a bug of ours and keeps its
traceback.

Programs that restart a run (the JobSet of GKE, xpk, tpu_scripts/resume.sh) act on `EXIT_STATUSES`.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ExitStatus:
    """How `lacy train` ends.

    Attributes:
      status: of the process.
      meaning: for people.
      again: whether what started it should start it again: "no", "yes" (as often as it allows), or "free" (that does
        not count).
    """

    status: int
    meaning: str
    again: str


DONE = ExitStatus(0, "the run is finished, or was stopped by a signal without `--stopped-exit`", "no")
DEFECT = ExitStatus(1, "a defect of ours, with a traceback", "yes")
USER_ERROR = ExitStatus(2, "config, data or the run itself is wrong; one line says what", "no")
PEER_LOST = ExitStatus(69, "another process of the job died or hangs, or could not be joined", "yes")
STORAGE = ExitStatus(74, "a checkpoint could not be written, or storage does not answer", "yes")
STOPPED = ExitStatus(75, "stopped by a signal, after a checkpoint, with `--stopped-exit=75`", "free")
ABORTED = ExitStatus(134, "JAX aborted it, because another process died (SIGABRT)", "yes")
KILLED = ExitStatus(137, "killed: out of host memory, or its time to stop was over (SIGKILL)", "yes")

EXIT_STATUSES = (DONE, DEFECT, USER_ERROR, PEER_LOST, STORAGE, STOPPED, ABORTED, KILLED)


def one_line(error: object, most: int = 300) -> str:
    """The message of an error, or any text, on one line of at most `most` characters; an error without one gives its class."""
    named = type(error).__name__ if isinstance(error, BaseException) else ""
    return " ".join(str(error).split())[:most] or named


class LacyError(Exception):
    """Base of all errors a user can act on. `str(error)` is one line."""

    exit_status = USER_ERROR.status


class ConfigError(LacyError):
    """A config field is unknown, out of range, or contradicts another."""


class DataError(LacyError):
    """A corpus, tokenizer, label or dataset file is missing, empty, corrupt or does not match the run."""


class StorageError(LacyError):
    """A disk or a bucket does not take what is written, or does not answer."""

    exit_status = STORAGE.status


class CheckpointError(LacyError):
    """A checkpoint is missing, unreadable, or belongs to another config."""


class CheckpointWriteError(CheckpointError, StorageError):
    """A checkpoint cannot be written."""

    exit_status = STORAGE.status


class TrainingError(LacyError):
    """Training cannot go on: a NaN or Inf loss, or a batch that cannot be used."""


class PeerLostError(TrainingError):
    """Another process of the same job is gone or never came, so work that needs all processes cannot be finished."""

    exit_status = PEER_LOST.status


class PartnerError(LacyError):
    """A partner failed or is not available."""


if __name__ == "__main__":  # tpu_scripts/resume.sh asks, with any Python that is there: `again` of a status.
    import sys

    print(next((known.again for known in EXIT_STATUSES if str(known.status) == sys.argv[1]), "yes"))
