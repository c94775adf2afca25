"""The two ways in which a command ends without a traceback.

Invariant: the message is one line for the person who typed the command, and says what to do.
"""


class InputError(Exception):
    """Something that was asked for, or a folder that was given, cannot be used: exit status 2."""


class FailureError(Exception):
    """The request was right, but this machine or the network could not do it: exit status 1."""
