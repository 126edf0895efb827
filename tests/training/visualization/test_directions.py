"""Tests directions of w: that they are what they are said to be, in every family, and the files that keep them."""

import numpy as np
import pytest
import torch

from tests.training.visualization import toys
from tests.training.visualization.networks import network
from training.visualization import directions
from training.visualization.directions import Directions, Scores
from training.visualization.latents import Heads
from training.visualization.sweeps import GRID_STEPS, Sweep
from training.visualization.video import Look


@pytest.mark.parametrize("name", ["cgs", "gsgan", "gghead", "epigraf", "eg3d"])
def test_the_named_layers_are_all_that_read_w(name, geometry):
    """Made deaf to one direction of w, they let nothing of it through; and nothing but they must be made so."""
    G = network(name, geometry)
    G.requires_grad_(True)
    total = torch.stack([matrix.square().sum() for matrix in G.style_weights()]).sum()
    grads = torch.autograd.grad(total, list(G.parameters()), allow_unused=True)
    heard = [p for p, grad in zip(G.parameters(), grads, strict=True) if grad is not None]
    assert len(heard) == len(G.style_weights()) and all(p.shape[1] == G.w_dim for p in heard)
    G.requires_grad_(False)
    axis = torch.nn.functional.normalize(torch.randn(G.w_dim), dim=0)
    ws = directions.latents.frontal_ws(G, torch.randn(1, G.z_dim), 1.0)
    cameras = geometry.frontal().reshape(1, 1)

    def shown(w):
        return G.render(G.synthesis(w), cameras, 16).rgb

    before = (shown(ws + 3 * axis) - shown(ws)).abs().max()
    for parameter in heard:
        parameter.sub_((parameter @ axis)[:, None] * axis)
    torch.testing.assert_close(shown(ws + 3 * axis), shown(ws), rtol=0, atol=1e-4)
    assert before > 1e-3


@pytest.mark.parametrize("name", ["pigan", "cgof"])
def test_sines_are_moved_through_the_features_before_them(name, geometry):
    G = network(name, geometry)
    w = directions.sampled_w(G, 40)
    found = directions.closed_form(G, w, 3)
    weight = G.siren.mapping_network.last.weight
    film = found.axes[:, : len(weight)]
    torch.testing.assert_close(film @ weight @ torch.linalg.pinv(weight), film, rtol=0, atol=1e-4)  # its image
    assert (found.axes[:, len(weight) :] == 0).all()  # of CGOF, the surface's blocks
    ws = directions.latents.frontal_ws(G, torch.randn(1, G.z_dim), 1.0)
    one, other = (G.synthesis(x).frequencies for x in (ws, ws + found.axes[0]))
    assert (one - other).abs().max() > 0.1


def test_the_closed_form_is_what_the_layers_heed_most(geometry):
    G = network("gghead", geometry)
    found = directions.closed_form(G, directions.sampled_w(G, 50), 4)
    matrix = torch.cat(G.style_weights())
    heeded = (matrix @ found.axes.t()).square().sum(0)
    torch.testing.assert_close(heeded / matrix.square().sum(), found.shares, rtol=1e-4, atol=0)
    others = torch.nn.functional.normalize(torch.randn(200, G.w_dim), dim=1)
    assert heeded[0] > (matrix @ others.t()).square().sum(0).max() and (found.shares.diff() < 0).all()


def test_principal_directions_spread_most(geometry):
    """The deviation along each is that of other heads, and signs are fixed."""
    G = network("cgs", geometry)
    found = directions.principal(G, directions.sampled_w(G, 1000), 5)
    torch.testing.assert_close(found.axes @ found.axes.t(), torch.eye(5), rtol=0, atol=1e-5)
    w = directions.w_of(G, torch.randn(3000, G.z_dim)).float()
    torch.testing.assert_close((w @ found.axes.t()).std(0), found.deviations, rtol=0.1, atol=0)
    assert (found.deviations.diff() <= 0).all() and found.names == ("pca1", "pca2", "pca3", "pca4", "pca5")
    assert (found.axes.gather(1, found.axes.abs().argmax(1, keepdim=True)) > 0).all()


def correlated_scores(G, count=300):
    """Scores that w tells: a, b that goes along with a, and noise that it does not tell."""
    torch.manual_seed(1)
    axes = torch.nn.functional.normalize(torch.randn(2, G.w_dim).double(), dim=1)
    w = directions.w_of(G, directions.latents.seed_latents(list(range(count)), G.z_dim))
    a = w @ axes[0]
    b = a / a.std() + 0.5 * (w @ axes[1]) / (w @ axes[1]).std()
    values = torch.stack([5 * a + 2, b, torch.randn(count).double()], dim=1)
    return Scores(tuple(range(count)), ("a", "b", "noise"), values.numpy()), axes


def test_scores_lead_w_and_leave_the_others(geometry):
    G = network("cgs", geometry)
    scores, axes = correlated_scores(G)
    held, free = (directions.by_scores(G, scores, hold=hold) for hold in (True, False))
    told = torch.stack([axes[0], axes[0] + 0 * axes[1]]).float()
    a_of_b = held.step("b") @ told[0]
    assert held.step("a") @ told[0] > 0 and free.step("b") @ told[0] > 0
    assert abs(a_of_b) < 0.05 * abs(free.step("b") @ told[0])  # b grows, and a stays
    assert held.shares[0] > 0.99 and held.shares[1] > 0.99 and held.shares[2] < 0.1
    torch.testing.assert_close(held.axes.norm(dim=1), torch.ones(3))


def test_shares_are_those_of_rows_that_were_left_out():
    """In closed form and one by one."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 8))
    y = (x[:, :2] @ rng.normal(size=(2, 1)) + 0.5 * rng.normal(size=(30, 1)))[:, 0]
    _, shares = directions.regressed(x, y[:, None])
    centred, target = x - x.mean(0), (y - y.mean()) / y.std()
    best = -np.inf
    for ridge in directions.RIDGES * np.linalg.svd(centred)[1].max() ** 2:
        errors = []
        for k in range(30):
            kept = np.arange(30) != k
            mean, level = x[kept].mean(0), target[kept].mean()
            part = x[kept] - mean
            slope = np.linalg.solve(part.T @ part + ridge * np.eye(8), part.T @ (target[kept] - level))
            errors.append(target[k] - level - (x[k] - mean) @ slope)
        best = max(best, 1 - np.square(errors).mean())
    assert shares[0] == pytest.approx(best, abs=0.01)


def test_a_network_without_such_layers_says_so(geometry):
    with pytest.raises(ValueError, match="names no layers that are affine in w"):
        directions.closed_form(toys.FogGenerator(geometry), torch.randn(10, 3).double(), 2)


# ---------------------------------------------------------------- files


def made(G, names=("up", "wide")):
    count = len(names)
    return Directions(directions.network_key(G), names, torch.eye(3)[:count], torch.full((count,), 0.5),
                      torch.ones(count))  # fmt: skip


def test_a_file_brings_directions_back(geometry, tmp_path):
    G = toys.FogGenerator(geometry)
    found = made(G)
    directions.save_directions(tmp_path / "d.npz", found)
    again = directions.read_directions(tmp_path / "d.npz", G)
    assert again.names == found.names and again.network == found.network
    for name in ("axes", "deviations", "shares"):
        assert torch.equal(getattr(again, name), getattr(found, name))
    G.scale.data.fill_(0.5)
    with pytest.raises(ValueError, match=r"d\.npz: directions of another network"):
        directions.read_directions(tmp_path / "d.npz", G)
    with pytest.raises(ValueError, match="two directions are called 'up'"):
        found.joined(made(G, ("up",)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,a\n0,1\n", "legal are a column seed"),
        ("seed\n0\n", "legal are a column seed and at least one"),
        ("seed,a\n0,1\n", "1 rows, and at least 20"),
        ("seed,a\n" + "".join(f"{k},1\n" for k in range(30)), "the scores of a must be finite, and not all equal"),
        ("seed,a\n" + "".join(f"{k}.5,{k}\n" for k in range(30)), "seeds must be whole numbers"),
        ("seed,a\n0,1,2\n1,2,3\n", "legal is a .csv with the columns"),
        ("seed,a\nx,y\n", "legal is a .csv with the columns"),
    ],
)
def test_tables_that_say_nothing(tmp_path, text, message):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        directions.read_scores(tmp_path / "s.csv")


def test_tables_of_either_form_are_the_same(tmp_path):
    values = np.arange(30) ** 2 % 7
    (tmp_path / "s.csv").write_text("seed, smile\n" + "".join(f"{k + 5},{v}\n" for k, v in enumerate(values)))
    np.savez(tmp_path / "s.npz", seeds=np.arange(5, 35), smile=values)
    one, other = (directions.read_scores(tmp_path / name) for name in ("s.csv", "s.npz"))
    assert one.seeds == other.seeds == tuple(range(5, 35)) and one.names == other.names == ("smile",)
    assert (one.values == other.values).all()


# ---------------------------------------------------------------- use


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("d.npz:3", Sweep("d.npz", None, 3.0)),
        ("d.npz:smile:-2.5", Sweep("d.npz", "smile", -2.5)),
        ("a/d.npz:pca1:1", Sweep("a/d.npz", "pca1", 1.0)),
    ],
)
def test_a_sweep_is_read(text, expected):
    assert Sweep.parse(text) == expected


@pytest.mark.parametrize("text", ["d.npz", "d.npz:smile", ":3", "d.npz:nan", ""])
def test_a_sweep_that_cannot_be_read(text):
    with pytest.raises(ValueError, match="legal is FILE:AMOUNT or FILE:NAME:AMOUNT"):
        Sweep.parse(text)


def test_a_film_moves_head_after_head_and_direction_after_direction(geometry, tmp_path):
    """Frame 0 of each part is the head, a quarter later it is moved by the amount, then back and to the other side."""
    G = toys.FogGenerator(geometry)
    directions.save_directions(tmp_path / "d.npz", made(G))
    heads = Heads(["a", "b", "c", "d"], ws=torch.rand(4, 2, 3))
    sweep = Sweep(str(tmp_path / "d.npz"), None, 3.0)
    assert sweep.num_keys(G, heads, cells=2) == 2 * 2
    ws = sweep.film_ws(G, heads, 2, 4 * 8, heads.ws)  # [F, cells, num_ws, w_dim]
    parts = ws.unflatten(0, (2, 2, 8))  # [head, direction, frame, cells, ...]
    base = heads.ws.unflatten(0, (2, 2)).transpose(0, 1)
    for frame, share in ((0, 0.0), (2, 1.0), (4, 0.0), (6, -1.0)):
        for k in range(2):
            expected = base + share * 3.0 * 0.5 * torch.eye(3)[k]
            torch.testing.assert_close(parts[:, k, frame], expected, rtol=0, atol=1e-5)


def test_a_grid_has_a_row_for_each_direction_of_each_head(geometry, tmp_path):
    G = toys.FogGenerator(geometry)
    directions.save_directions(tmp_path / "d.npz", made(G))
    heads = Heads(["a", "b"], ws=torch.full((2, 2, 3), 0.5))
    sweep = Sweep(str(tmp_path / "d.npz"), "up", 0.8)
    pictures = sweep.grid(G, heads, Look())
    assert pictures.shape == (2 * GRID_STEPS, 3, 8, 8)
    red = pictures[:GRID_STEPS, 0, 0, 0].float() / 255
    torch.testing.assert_close(red, 0.5 + 0.4 * torch.linspace(-1, 1, GRID_STEPS), rtol=0, atol=0.01)
    with pytest.raises(ValueError, match=r"d\.npz: there is no direction 'down'; legal are up, wide"):
        Sweep(str(tmp_path / "d.npz"), "down", 1.0).steps(G)
    with pytest.raises(ValueError, match=r"holds several directions; give .*d\.npz:NAME:2"):
        Sweep(str(tmp_path / "d.npz"), None, 2.0).moved(G, heads.ws)
