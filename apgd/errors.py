"""The exceptions whose messages are for people: what was put in is wrong, or a disk is full."""


class InputError(Exception):
    """Raised when something the caller supplied breaks a rule.

    The message is one sentence that names the value and the rule; command lines print it without a
    traceback and exit with status 2.
    """


class DamagedError(InputError):
    """Raised when a file of our own is not what was written: truncated, or with other bits."""


class DiskFullError(OSError):
    """Raised when a file cannot be written because its disk, or somebody's share of it, is full.

    Made like any OSError, of errno, its text and the path; it crosses processes as one.
    """

    def __str__(self) -> str:
        return (
            f"the disk of {self.filename} is full ({self.strerror}); make room there and run the "
            f"same command again, which goes on from here"
        )


class MemoryFullError(RuntimeError):
    """Raised when work does not fit into memory; the message says which, and where."""
