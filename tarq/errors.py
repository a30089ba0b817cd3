"""The errors tarq raises for its user: each message names the file, line or option, and the fix.

A wrong call from code (shapes that do not fit, an unknown mode) raises a plain ``ValueError``.
"""


class TarqError(Exception):
    """Base of every error a user can fix; the command line prints it without a traceback."""


class ConfigError(TarqError, ValueError):
    """An option, or a field of the configuration, whose value cannot be used; the message names it."""


class DataError(TarqError):
    """Audio, transcripts or word lists that cannot be used as given."""


class ModelError(TarqError):
    """A model that is missing, unsupported or not what its configuration says."""


class CheckpointError(TarqError):
    """A quantized checkpoint that cannot be written or read."""


class CalibrationError(TarqError):
    """Calibration that cannot give usable statistics."""


class OutputError(TarqError):
    """A result file that cannot be written."""


class ResumeError(TarqError):
    """A run that cannot go on where an earlier one stopped."""
