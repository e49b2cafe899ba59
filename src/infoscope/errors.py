"""The one exception for what a user can mend."""


class InputError(ValueError):
    """Something given from outside is not what was expected; the message is one sentence that says what to do.

    The command line prints the message alone and exits with code 2. Broken invariants of our own are `assert`s.
    """
