"""export_onnx.py: the files' heads, made by onnxruntime, are the generator's own, for batches of any size."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner

import export_onnx
from tests.training.families.gsgan.small import generator_config
from tests.training.visualization.networks import CONFIGS, network
from training.checkpoint import load_generator
from training.visualization import latents, onnx_files
from training.visualization.directions import network_key

TOLERANCE = 1e-4


def run(path, **feeds):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.asarray(value, np.float32) for name, value in feeds.items()})


def assert_the_same(G, paths, geometry):
    """Made for a batch of 2, and run for 1 and for 3."""
    mapping, synthesis = paths
    for count, psi in ((1, 1.0), (3, 0.6)):
        z = latents.seed_latents(list(range(count)), G.z_dim)
        cameras = geometry.frontal().expand(count)
        told = {"camera": cameras.labels} if G.mapping_follows_camera else {}
        (ws,) = run(mapping, z=z, psi=psi, **told)
        expected = G.mapping(z, cameras, psi)
        np.testing.assert_allclose(ws, expected.numpy(), rtol=0, atol=TOLERANCE)
        viewpoint = geometry.frontal().positions.expand(count, 3)
        splats = G.synthesis(expected).as_gaussians(viewpoint)
        found = dict(zip(onnx_files.SPLATS, run(synthesis, ws=ws), strict=True))
        for field in ("means", "log_scales", "opacity_logits", "sh"):
            np.testing.assert_allclose(found[field], getattr(splats, field).numpy(), rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(found["quats"], splats.unit_quats().numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["gsgan", "gghead"])
def test_heads_of_the_files_are_those_of_the_generator(name, geometry, tmp_path, monkeypatch):
    monkeypatch.setitem(CONFIGS, "gsgan", lambda: generator_config(blocks=1))  # the exporter takes its time
    G = network(name, geometry)
    with torch.no_grad():
        G.update_average(G.mapping(torch.randn(8, G.z_dim), geometry.frontal().expand(8)).mean(0), 10**6)
    assert_the_same(G, onnx_files.save_onnx(tmp_path / "net", G), geometry)


@torch.no_grad()
def test_the_script_writes_both_files_which_say_what_they_are(checkpoint_path, tmp_path):
    result = CliRunner().invoke(export_onnx.main, [f"--network={checkpoint_path}", f"--outdir={tmp_path}"])
    assert result.exit_code == 0, result.output
    paths = [tmp_path / f"network-snapshot-000000-{part}.onnx" for part in ("mapping", "synthesis")]
    assert result.stdout.split() == [str(path) for path in paths]
    G = load_generator(checkpoint_path)
    assert_the_same(G, paths, G.geometry)
    for path in paths:
        notes = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert notes["network"] == network_key(G) and notes["family"] == "cgs"
        assert json.loads(notes["geometry"]) == G.geometry.to_dict()


def test_fields_are_refused(geometry, tmp_path):
    with pytest.raises(ValueError, match="no splats"):
        onnx_files.save_onnx(tmp_path / "net", network("pigan", geometry))
