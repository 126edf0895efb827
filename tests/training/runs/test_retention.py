"""Which snapshots stay, by hand-made folders; the alarms, by hand-made statistics."""

import json

import pytest
import torch

import metrics
from training.families import family
from training.runs.retention import Retention, parse_keep
from training.safety.alarms import AGAIN, IN_A_ROW, CollapseAlarms


@pytest.fixture
def folder(tmp_path):
    """Snapshots after 0, 400, ..., 2400 kimg with an FID that is best at 800 and a recall that is best at 1200."""
    values = {0: (90, 0.1), 400: (40, 0.2), 800: (10, 0.3), 1200: (20, 0.9), 1600: (30, 0.4), 2000: (35, 0.5)}
    for kimg in [*values, 2400]:
        progress = {"nimg": kimg * 1000, "step": kimg, "tick": kimg}
        torch.save({"format": 1, "progress": progress}, tmp_path / f"network-snapshot-{kimg:06d}.pkl")
    for column, name in enumerate(("fid2k_full", "pr20k3_full")):
        with open(tmp_path / f"metric-{name}.jsonl", "w") as file:
            for kimg, row in values.items():
                line = {"snapshot_pkl": f"network-snapshot-{kimg:06d}.pkl", "results": {name: row[column]}}
                file.write(json.dumps(line) + "\n")
    (tmp_path / "network-snapshot-000001.pkl").write_bytes(b"damaged")
    return tmp_path


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ("last:3", {1600, 2000, 2400}),
        ("best:fid2k_full:1", {800, 2400}),
        ("best:pr20k3_full:2", {1200, 2000, 2400}),
        ("every:1000", {0, 1200, 2000, 2400}),
        ("last:2,best:fid2k_full:2,every:2000", {0, 800, 1200, 2000, 2400}),
    ],
)
def test_rules(folder, rules, kept):
    unwanted = {int(p.stem[-6:]) for p in parse_keep(rules, metrics.larger_is_better).unwanted(folder)}
    assert unwanted == {0, 400, 800, 1200, 1600, 2000, 2400} - kept  # and never the damaged one


def test_parsing():
    assert parse_keep("all", bool) is None and parse_keep("last:3", bool) == Retention(3)
    assert parse_keep("best:x:2", lambda name: name == "x") == Retention(best=(("x", 2, True),))
    for rules in ("last:0", "newest", "best:fid2k_full", "every:0.5", ""):
        with pytest.raises(ValueError, match="legal are last:N"):
            parse_keep(rules, bool)


HEALTHY = {"Logits/real/sign": 0.6, "Logits/fake/sign": -0.6, "Loss/D/real": 0.4, "Gaussians/near_transparent": 0.5,
           "Gaussians/visible": 0.85, "Gaussians/flatness": 0.5, "Gaussians/level3/black": 0.02,
           "Gaussians/level2/near_transparent": 0.3}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "sick"),
    [
        ("logits saturated", {"Logits/real/sign": 1.0, "Logits/fake/sign": -1.0, "Loss/D/real": 1e-4}),
        ("pairs saturated", {"Logits/pairs/sign": 1.0, "Loss/D/pairs": 1e-4}),
        ("splats transparent", {"Gaussians/near_transparent": 0.99}),
        ("splats off-screen", {"Gaussians/visible": 0.02}),
        ("depth flat", {"Gaussians/flatness": 0.99}),
        ("level 3 black", {"Gaussians/level3/black": 0.82}),
        ("level 2 transparent", {"Gaussians/level2/near_transparent": 0.97}),
    ],
)
def test_alarms(name, sick):
    alarms = CollapseAlarms(family("cgs").alarms)
    said = [alarms.see(HEALTHY | sick) for _ in range(IN_A_ROW + AGAIN)]
    assert [len(lines) for lines in said] == [0] * (IN_A_ROW - 1) + [1] + [0] * (AGAIN - 1) + [1]
    assert said[IN_A_ROW - 1][0].startswith(f"{name} for {IN_A_ROW} ticks")
    assert not alarms.see(HEALTHY) and not alarms.see(HEALTHY | sick)  # one good tick and it counts anew
