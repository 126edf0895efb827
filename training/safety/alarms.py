"""Alarms for runs that go on but no longer learn: read from the statistics of a tick, which cost no step anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

IN_A_ROW = 3  # ticks before an alarm
AGAIN = 20  # ticks until it is repeated


class Collapsed(RuntimeError):
    """An alarm stopped the run, as --stop-on-collapse asks for."""


@dataclass(frozen=True)
class Alarm:
    """What a statistic must not do. Limits lie far outside of what runs of `tiny` that learn show (docs/resume.md)."""

    name: str
    meaning: str
    bounds: dict[str, tuple[float, float]]  # statistic -> range in which all of them must be for the alarm


ALARMS = (
    Alarm(
        "logits saturated",
        "the discriminator tells every image and G no longer learns from it; raise --gamma or lower --dlr",
        {"Logits/real/sign": (0.995, 1.0), "Logits/fake/sign": (-1.0, -0.995), "Loss/D/real": (0.0, 0.01)},
    ),
    Alarm(
        "splats transparent",
        "nearly all splats hardly show, and what does not show does not learn; lower --glr",
        {"Gaussians/near_transparent": (0.95, 1.0)},
    ),
    Alarm(
        "splats off-screen",
        "most splats are outside of the image; check the labels, raise --center-dists",
        {"Gaussians/visible": (0.0, 0.1)},
    ),
    Alarm(
        "depth flat",
        "the splats lie in a plane; check that the data's cameras differ, keep --use-multiview-reg on",
        {"Gaussians/flatness": (0.97, 1.0)},
    ),
)


class CollapseAlarms:
    """Counts, for each alarm, the ticks in a row in which it holds."""

    def __init__(self) -> None:
        self._ticks = dict.fromkeys((alarm.name for alarm in ALARMS), 0)

    def see(self, values: Mapping[str, float]) -> list[str]:
        """A line for each alarm that is due after a tick with the statistics `values`."""
        lines = []
        for alarm in ALARMS:
            holds = all(low <= values.get(name, float("nan")) <= high for name, (low, high) in alarm.bounds.items())
            self._ticks[alarm.name] = count = self._ticks[alarm.name] + 1 if holds else 0
            if count >= IN_A_ROW and (count - IN_A_ROW) % AGAIN == 0:
                figures = ", ".join(f"{name} {values[name]:.3g}" for name in alarm.bounds)
                lines.append(f"{alarm.name} for {count} ticks ({figures}): {alarm.meaning}")
        return lines
