import json

import pytest
from click.testing import CliRunner

from benchmarks import augmentation


def test_the_target_reaches_the_augmented_runs_alone_and_p_is_told_by_quarters(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(augmentation, "synthesize_heads", lambda *args, **options: None)
    monkeypatch.setattr(augmentation, "measure", lambda run_dir, held_out: [{"kimg": 8.0, "swd2k": 9.0}])
    p = [0.0, 0.0, 0.1, 0.2, 0.3, 0.5, 0.4, 0.6]
    monkeypatch.setattr(augmentation, "statistics", lambda run_dir: {"kimg": [*range(8)], "p": p, "sign_real": p})
    monkeypatch.setattr(augmentation, "train_one", lambda outdir, name, data, arguments: seen.update({name: arguments}))
    result = CliRunner().invoke(
        augmentation.main,
        [f"--outdir={tmp_path}", "--seeds=3", "--target=0.3", f"--json={tmp_path / 'few.json'}", "--", "--kimg=8"],
    )
    assert result.exit_code == 0, result.output
    assert "p 0.400 in the third quarter of the ticks, 0.500 in the last" in result.output
    assert set(seen["ada-3"]) - set(seen["noaug-3"]) == {"--aug=ada", "--target=0.3"}
    assert {"--kimg=8", "--seed=3"} <= set(seen["noaug-3"])
    assert json.loads((tmp_path / "few.json").read_text())["augmented"] == ["--aug=ada", "--target=0.3"]


@pytest.mark.parametrize("p", [[0.2], [0.2, 0.2, 0.2]])
def test_a_short_run_has_quarters_too(p):
    assert augmentation.resting(p) == pytest.approx((0.2, 0.2))
