"""Warns of runs that go on but no longer learn, by the statistics of a tick, which cost no step anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from training.families.base import Alarm

IN_A_ROW = 3  # ticks before an alarm
AGAIN = 20  # ticks until it is repeated


class Collapsed(RuntimeError):
    """Stops a run for an alarm, as --stop-on-collapse asks for."""


COMMON_ALARMS = (
    Alarm(
        "logits saturated",
        "the discriminator tells every image and G no longer learns from it; raise --gamma or lower --dlr",
        {"Logits/real/sign": (0.995, 1.0), "Logits/fake/sign": (-1.0, -0.995), "Loss/D/real": (0.0, 0.01)},
    ),
    Alarm(
        "pairs saturated",
        "the discriminator tells real from generated in every pair; raise --gamma or --r2-gamma, or lower --dlr",
        {"Logits/pairs/sign": (0.995, 1.0), "Loss/D/pairs": (0.0, 0.01)},
    ),
)


class CollapseAlarms:
    """Counts, for each alarm, the ticks in a row in which it holds."""

    def __init__(self, of_family: Sequence[Alarm] = ()) -> None:
        self.alarms = (*COMMON_ALARMS, *of_family)
        self._ticks = dict.fromkeys((alarm.name for alarm in self.alarms), 0)

    def see(self, values: Mapping[str, float]) -> list[str]:
        """Returns a line for each alarm that is due after a tick with the statistics `values`."""
        lines = []
        for alarm in self.alarms:
            holds = all(low <= values.get(name, float("nan")) <= high for name, (low, high) in alarm.bounds.items())
            self._ticks[alarm.name] = count = self._ticks[alarm.name] + 1 if holds else 0
            if count >= IN_A_ROW and (count - IN_A_ROW) % AGAIN == 0:
                figures = ", ".join(f"{name} {values[name]:.3g}" for name in alarm.bounds)
                lines.append(f"{alarm.name} for {count} ticks ({figures}): {alarm.meaning}")
        return lines
