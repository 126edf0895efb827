"""Formats durations and sizes for people to read."""


def format_time(seconds: float) -> str:
    """Formats a duration in at most three units: "8s", "5m 08s", "1h 02m 03s", "2d 03h 04m".

    seconds: rounded to whole seconds; negative durations keep their sign.
    """
    sign, whole = ("-" if seconds < 0 else ""), round(abs(seconds))
    minutes, s = divmod(whole, 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{sign}{days}d {h:02d}h {m:02d}m"
    if hours:
        return f"{sign}{h}h {m:02d}m {s:02d}s"
    return f"{sign}{m}m {s:02d}s" if minutes else f"{sign}{s}s"


def format_bytes(count: float) -> str:
    """Formats a size in binary units with three significant digits at least: "512 B", "1.50 KiB", "2.00 GiB"."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        # 1023.995 would be printed as "1024.00 KiB"; the next unit reads better.
        if abs(size) < 1023.995 or unit == "TiB":
            return f"{size:.0f} B" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1024
    raise AssertionError("the last unit takes every size")


def format_error(error: Exception) -> str:
    """Returns what an error says, without the number that the system has for it: "none.pkl: No such file"."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
