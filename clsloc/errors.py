"""The one kind of error that a user can mend."""


class UserError(Exception):
    """Wrong input from the user: one sentence with the offending value and the remedy.

    Command-line programs print the sentence on stderr and exit with ``EXIT_STATUS``.
    """

    EXIT_STATUS = 2
