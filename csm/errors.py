"""The one exception that users see: a sentence that says what is wrong, and a hint that says what to do. And how to tell
that what others raise means that memory is short."""

MEMORY_PHRASES = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "failed to allocate",
    "alloc_failed",
)


class CsmError(Exception):
    """Work that could not be done, told in one sentence.

    Args:
        message: what is wrong, with the file (and line) it is wrong in.
        hint: what to do about it, naming a command or a flag where there is one.
        exit_code: what the command line exits with; 1 unless the table in `docs/commands.md` says otherwise.
    """

    def __init__(self, message: str, hint: str | None = None, exit_code: int = 1):
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception is a device's or the machine's way of saying that memory is short."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in MEMORY_PHRASES)
