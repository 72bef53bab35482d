"""The error a user can mend."""


class InputError(ValueError):
    """A manifest, bundle, option or folder that breaks a rule.

    The message names the value received, the rule and the remedy, on one line.
    The command line prints it and exits with 2; nothing has been read or
    written by then.
    """
