"""The one exception that means "the input is wrong", as opposed to "the program is"."""


class InputError(Exception):
    """Raised when something the caller supplied breaks a rule.

    The message is one sentence that names the value and the rule; command lines print it without a
    traceback and exit with status 2.
    """
