import json
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from benchmarks import augmentation

POINT = {"kimg": 8.0, "swd2k": 9.0, "sign_train": 0.5, "sign_held_out": 0.25}


def test_the_target_reaches_the_augmented_runs_alone_and_p_is_told_by_quarters(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(augmentation, "synthesize_heads", lambda *args, **options: None)
    monkeypatch.setattr(augmentation, "measure", lambda *folders: [POINT])
    p = [0.0, 0.0, 0.1, 0.2, 0.3, 0.5, 0.4, 0.6]
    monkeypatch.setattr(augmentation, "statistics", lambda run_dir: {"kimg": [*range(8)], "p": p, "sign_real": p})
    monkeypatch.setattr(augmentation, "train_one", lambda outdir, name, data, arguments: seen.update({name: arguments}))
    result = CliRunner().invoke(
        augmentation.main,
        [f"--outdir={tmp_path}", "--seeds=3", "--target=0.3", f"--json={tmp_path / 'few.json'}", "--", "--kimg=8"],
    )
    assert result.exit_code == 0, result.output
    assert "ada, seed 3: after 8 kimg swd2k 9.00, sign of unchanged images 0.50 in training, 0.25" in result.output
    assert "p 0.400 in the third quarter of the ticks, 0.500 in the last" in result.output
    assert set(seen["ada-3"]) - set(seen["noaug-3"]) == {"--aug=ada", "--target=0.3"}
    assert {"--kimg=8", "--seed=3"} <= set(seen["noaug-3"])
    assert json.loads((tmp_path / "few.json").read_text())["augmented"] == ["--aug=ada", "--target=0.3"]


@pytest.mark.parametrize("p", [[0.2], [0.2, 0.2, 0.2]])
def test_a_short_run_has_quarters_too(p):
    assert augmentation.resting(p) == pytest.approx((0.2, 0.2))


def test_the_sign_is_of_images_as_training_shows_them_without_augmentation(tmp_path, checkpoint_path, monkeypatch):
    augmentation.synthesize_heads(tmp_path, 8, 32, seed=0)
    corner = SimpleNamespace(
        outputs=lambda x, at: SimpleNamespace(logits=(x[:, 0, 0, 0] - 0.99) * (at.labels[:, 24] > 0))
    )
    monkeypatch.setattr(augmentation, "load_discriminator", lambda network: corner)
    assert augmentation.sign(checkpoint_path, tmp_path / "32") == 1.0  # no head reaches the corner: it is white
    monkeypatch.setattr(augmentation, "read_config", lambda network: SimpleNamespace(shown_background="black"))
    assert augmentation.sign(checkpoint_path, tmp_path / "32", count=3) == -1.0
