"""How trials are called."""


def trial_id(number: int) -> str:
    """How trial 3 is called everywhere: "0003"."""
    return f"{number:04d}"
