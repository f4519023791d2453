"""Errors whose message is all that a user needs; the command line prints them without a traceback."""


class UsageError(ValueError):
    """Something given by the user is missing or wrong. The message says what, and what to do instead."""


class TrainingDiverged(RuntimeError):
    """A loss or a weight is no longer finite."""


class NotSaved(OSError):
    """A run could not write one of its files. The message says which and why, and from where the run can go on."""
