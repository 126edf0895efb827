"""Shows how far a metric is."""

from __future__ import annotations

from tqdm import tqdm


class ProgressBar:
    """Shows a tqdm bar that starts afresh for every kind of image. With several processes it is that of the first."""

    def __init__(self, name: str) -> None:
        self.name, self.what, self.bar = name, "", tqdm(disable=True)

    def __call__(self, what: str, done: int, total: int) -> None:
        """Moves the bar of `what` to `done` of `total` images."""
        if what != self.what:
            self.bar.close()
            self.what = what
            self.bar = tqdm(total=total, desc=f"{self.name}: {what}", unit="img", leave=False, disable=None)
        self.bar.update(done - self.bar.n)
        if done == total:
            self.bar.close()
