"""One training step as data: phases with a module, an optimiser and an interval, and what a micro-batch adds to each.

Global sample index i = images seen so far + position in the total batch. Rank r takes whole, consecutive micro-batches.
All draws are functions of (seed, stream, i), so the step itself has no random state (torch_utils/random.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import dnnlib
from gaussian import Cameras
from gaussian.statistics import scene_statistics
from torch_utils import distributed, random
from torch_utils.pairwise import PairwiseSum
from torch_utils.training_stats import Collector
from training import losses
from training.config import TrainingConfig
from training.dataset import Batch
from training.images import composite, mirror


@dataclass
class MicroBatch:
    """`batch_gpu` consecutive samples of a step, on the device. Cameras and backgrounds are of the fakes.

    Labels are what the discriminator is told: those of the cameras, with noise where the configuration has any.
    """

    indices: range  # global sample indices
    real: Tensor  # [b, 3, R, R] in -1..1, composited and flipped
    real_labels: Tensor  # [b, 25]
    g_z: Tensor  # [b, z_dim] latents of the generator phase
    g_cameras: Cameras  # [b, V]
    g_labels: Tensor  # [b, V, 25]
    g_background: Tensor  # [b, V, 3]
    d_z: Tensor  # [b, z_dim] latents of the discriminator phase
    d_cameras: Cameras  # [b, 1]
    d_labels: Tensor  # [b, 25]
    d_background: Tensor  # [b, 3], shared by the real and the fake sample of one index
    first: bool  # of this rank's share: carries the scene statistics


class SampleStream:
    """Turns global sample indices into micro-batches. Pure: equal indices give equal numbers on any rank."""

    def __init__(self, config: TrainingConfig, labels: Tensor, z_dim: int, device: torch.device):
        self.config, self.labels, self.z_dim, self.device = config, labels.cpu(), z_dim, device
        self.order = random.EpochOrder(config.seed, "data", len(labels))
        # Of all labels: the published code takes the micro-batch's, which changes with its size.
        self.label_std = self.labels.std(0, correction=0)
        self.colour = None if config.background == "random" else torch.tensor(dnnlib.parse_color(config.background))

    def share(self, nimg: int) -> range:
        """This rank's samples of the step that starts after `nimg` images."""
        size = self.config.batch // distributed.world_size()
        return range(nimg + distributed.rank() * size, nimg + (distributed.rank() + 1) * size)

    def items(self, nimg: int):
        """Data items of this rank's share: int64 array."""
        return self.order(self.share(nimg))

    def micro_batches(self, nimg: int, batch: Batch) -> list[MicroBatch]:
        """Cuts this rank's share of a step, loaded as `batch`, into micro-batches on the device."""
        config, share = self.config, self.share(nimg)
        size, parts = config.batch_gpu, []
        g_labels = self.camera_labels("G", range(nimg, nimg + config.batch))  # of the total batch
        for start in range(0, len(share), size):
            indices = share[start : start + size]
            rows = slice(start, start + size)
            background = self._background("background", indices, (3,))
            masks = None if batch.masks is None else batch.masks[rows].to(self.device)
            flip = self._flips("mirror", indices).to(self.device)
            images, masks, labels = mirror(
                batch.images[rows].to(self.device), masks, batch.labels[rows].to(self.device), flip
            )
            own = torch.arange(indices.start - nimg, indices.stop - nimg)
            views = torch.stack([g_labels[(own - v) % config.batch] for v in config.views], dim=1)  # [b, V, 25]
            d_labels = self.camera_labels("D", indices)
            parts.append(
                MicroBatch(
                    indices=indices,
                    real=composite(images, masks, background),
                    real_labels=self._told("real", indices, labels),
                    g_z=self._normal("G/z", indices),
                    g_cameras=Cameras.from_labels(views.to(self.device)),
                    g_labels=self._told("G", indices, views.to(self.device)),
                    g_background=self._background("G/background", indices, (len(config.views), 3)),
                    d_z=self._normal("D/z", indices),
                    d_cameras=Cameras.from_labels(d_labels[:, None].to(self.device)),
                    d_labels=self._told("D", indices, d_labels.to(self.device)),
                    d_background=background,
                    first=start == 0,
                )
            )
        return parts

    def camera_labels(self, phase: str, indices: range) -> Tensor:
        """Labels of uniformly drawn data items, mirrored at random like the real ones: [len(indices), 25]."""
        items = random.integers(self.config.seed, f"{phase}/camera", indices, len(self.labels))
        labels = self.labels[items]
        flip = self._flips(f"{phase}/mirror", indices)
        mirrored = Cameras.from_labels(labels).mirror().labels
        return torch.where(flip[:, None], mirrored, labels)

    def _flips(self, stream: str, indices: range) -> Tensor:
        return (random.uniform(self.config.seed, stream, indices) < 0.5) & self.config.mirror

    def _told(self, phase: str, indices: range, labels: Tensor) -> Tensor:
        """Labels [b, ..., 25] as the discriminator gets them."""
        if not self.config.label_noise:
            return labels
        noise = random.normal(self.config.seed, f"{phase}/label noise", indices, tuple(labels.shape[1:]))
        return labels + (self.config.label_noise * self.label_std * noise).to(labels)

    def _background(self, stream: str, indices: range, shape: tuple[int, ...]) -> Tensor:
        """RGB in 0..1 of each sample [len(indices), *shape]: its own draw, or the one colour of the run."""
        if self.colour is None:
            return self._uniform(stream, indices, shape)
        return self.colour.expand(len(indices), *shape).to(self.device)

    def _uniform(self, stream: str, indices: range, shape: tuple[int, ...]) -> Tensor:
        return random.uniform(self.config.seed, stream, indices, shape).to(self.device)

    def _normal(self, stream: str, indices: range) -> Tensor:
        return random.normal(self.config.seed, stream, indices, (self.z_dim,)).to(self.device)


@dataclass
class Phase:
    """A unit of GAN work: which module learns, how often, and what one micro-batch adds to its gradient."""

    name: str
    module: nn.Module
    optimizer: torch.optim.Optimizer
    every: int  # steps
    clip: float  # largest norm of the mean gradient over the total batch
    accumulate: Callable[[MicroBatch, float], None]  # (micro-batch, blur sigma)
    frozen: list[nn.Module] = field(default_factory=list)  # parts of the module that do not learn
    learning: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        frozen = {id(p) for part in self.frozen for p in part.requires_grad_(False).parameters()}
        self.learning = [p for p in self.module.parameters() if id(p) not in frozen]


@dataclass(frozen=True)
class StepReport:
    """What a step has to tell the loop, still on the device."""

    step: int
    nimg: int  # images seen before it
    phases: list[tuple[str, list[str]]]  # those that were due: name, and of what it says whether it was not finite
    values: Tensor  # [R + all names] the requests, summed over ranks, then a 1 for everything that was not finite

    def requests(self, values: Tensor) -> list[bool]:
        """Which requests any rank has made, from `values` on the CPU."""
        count = len(values) - sum(len(names) for _, names in self.phases)
        return [bool(v) for v in values[:count]]

    def bad(self, values: Tensor) -> dict[str, list[str]]:
        """Phase -> names of what was not finite in it, from `values` on the CPU."""
        flags = iter(values[len(values) - sum(len(names) for _, names in self.phases) :].tolist())
        return {phase: [name for name in names if next(flags)] for phase, names in self.phases}


class GanStep:
    """The networks, their optimisers and the phases G, D and R1 over them."""

    def __init__(self, config: TrainingConfig, G: nn.Module, D: nn.Module, G_ema: nn.Module, stats: Collector):
        self.config, self.G, self.D, self.G_ema, self.stats = config, G, D, G_ema, stats
        self.w_sum = PairwiseSum()  # of w over the fakes of this step
        self.loss: Tensor | None = None  # of the phase under way, over this rank's micro-batches
        self.opt_G = _adam(G, config.g_lr, (0.0, config.beta2))
        # Lazy regularisation (StyleGAN2, appendix B): D takes (interval + 1) / interval as many steps.
        ratio = config.r1_interval / (config.r1_interval + 1) if config.gamma > 0 else 1.0
        self.opt_D = _adam(D, config.d_lr * ratio, (0.0, config.beta2**ratio))
        frozen = D.freezable()[: config.freeze_d] if config.freeze_d else []
        self.phases = [
            Phase("G", G, self.opt_G, 1, config.g_clip, self.accumulate_G),
            Phase("D", D, self.opt_D, 1, config.d_clip, self.accumulate_D, frozen),
        ]
        if config.gamma > 0:
            r1 = Phase("R1", D, self.opt_D, config.r1_interval, config.d_clip, self.accumulate_R1, frozen)
            self.phases.append(r1)

    def run(self, step: int, nimg: int, micro_batches: list[MicroBatch], requests: Sequence[bool] = ()) -> StepReport:
        """All phases that are due at `step`, then the moving averages. `nimg`: images seen before this step.

        `requests` of this rank travel with the first phase's gradient, so that all ranks learn of them in one step.
        """
        wanted = torch.zeros(len(requests), device=next(self.G.parameters()).device)
        for i, request in enumerate(requests):
            if request:
                wanted[i] = 1.0
        phases, found = [], []
        sigma = losses.blur_sigma_at(nimg, self.config.blur_sigma, self.config.blur_fade_kimg * 1000)
        for phase in self.phases:
            if step % phase.every:
                continue
            self.accumulate(phase, micro_batches, sigma)
            names, flags, summed = self.apply(phase, wanted if not phases else wanted[:0])
            found += [summed, flags]
            phases.append((phase.name, names))
        self.update_w_avg()
        self.update_ema(nimg)
        return StepReport(step, nimg, phases, torch.cat(found))

    def accumulate(self, phase: Phase, micro_batches: Sequence[MicroBatch], sigma: float) -> None:
        """Sets the gradients of `phase` to this rank's part of the sum over the total batch.

        Each micro-batch's gradient is whole before it enters the sum, and the sum is pairwise: so 2 ranks with a power
        of two of micro-batches each take the very steps of one process. Rounding that differed would soon show: Adam
        without momentum makes a whole step of the sign of a rounding error.
        """
        for parameter in phase.learning:
            parameter.requires_grad_(True)
        total = PairwiseSum()
        for micro in micro_batches:
            phase.module.zero_grad(set_to_none=True)
            phase.accumulate(micro, sigma)
            total.add([p.grad for p in phase.learning if p.grad is not None])
        learnt = [p for p in phase.learning if p.grad is not None]  # the same for all micro-batches
        for parameter, grad in zip(learnt, total.total(), strict=True):
            parameter.grad = grad
        phase.module.requires_grad_(False)

    def _backward(self, loss: Tensor) -> None:
        loss.backward()
        self.loss = loss.detach() if self.loss is None else self.loss + loss.detach()

    # What one micro-batch adds. Every loss is (its sum) / (total batch): splits and ranks only add.

    def accumulate_G(self, micro: MicroBatch, sigma: float) -> None:
        config = self.config
        neighbours = config.knn_neighbours if config.knn_weight or config.center_weight else 0
        terms = losses.generator_terms(
            self.G, self.D, micro.g_z, micro.g_cameras, micro.g_background, sigma, neighbours, micro.g_labels
        )
        loss = terms.adversarial
        if terms.knn is not None:
            loss = loss + config.knn_weight * terms.knn + config.center_weight * terms.center
            self.stats.report("Loss/G/knn", terms.knn)
            self.stats.report("Loss/G/center", terms.center)
        self._backward(loss.sum() / config.batch)
        self.stats.report("Loss/G/adversarial", terms.adversarial)
        self.stats.report("Logits/G", terms.logits)
        self.stats.report("Logits/G/sign", terms.logits.sign())
        if micro.first:
            for name, values in scene_statistics(terms.scene, micro.g_cameras).items():
                self.stats.report(name, values)

    def accumulate_D(self, micro: MicroBatch, sigma: float) -> None:
        with torch.no_grad():
            ws = self.G.mapping(micro.d_z)
            self.w_sum.add([ws[:, 0].sum(0)])
            rendering = self.G.render(self.G.synthesis(ws), micro.d_cameras, background=micro.d_background[:, None])
        for images, labels, real in (
            (rendering.image[:, 0], micro.d_labels, False),
            (micro.real, micro.real_labels, True),
        ):
            loss, logits = losses.discriminator_terms(self.D, images, labels, real, sigma)
            self._backward(loss.sum() / self.config.batch)
            name = "real" if real else "fake"
            self.stats.report(f"Loss/D/{name}", loss)
            self.stats.report(f"Logits/{name}", logits)
            self.stats.report(f"Logits/{name}/sign", logits.sign())

    def accumulate_R1(self, micro: MicroBatch, sigma: float) -> None:
        penalty = losses.r1_penalty(self.D, micro.real, micro.real_labels, sigma)
        self._backward(penalty.sum() * (self.config.gamma / 2 * self.config.r1_interval / self.config.batch))
        self.stats.report("Loss/D/r1_penalty", penalty)

    # What happens once per step, to the mean over the total batch.

    def apply(self, phase: Phase, requests: Tensor) -> tuple[list[str], Tensor, Tensor]:
        """Sums the gradient over ranks, clips it once, and steps; a non-finite loss or gradient skips the step.

        Returns the names "loss", the parameters' and "norm over all", for each a 1 if it was not finite, and
        `requests` [R] summed over the ranks.
        """
        assert self.loss is not None
        named = [(n, p.grad) for n, p in phase.module.named_parameters() if p.grad is not None]
        extra = torch.cat([self.loss.reshape(1), requests.to(self.loss)])
        loss, requests = distributed.all_reduce_gradients(list(phase.module.parameters()), extra).tensor_split([1])
        self.loss = None
        grads = [g for _, g in named]
        norms = torch.stack(torch._foreach_norm(grads))  # one fused call for all parameters
        total = norms.norm()
        bad = ~(total + loss.sum()).isfinite()
        torch._foreach_mul_(grads, (phase.clip / (total + 1e-6)).clamp(max=1.0))
        phase.optimizer.found_inf = bad.float()  # the fused step skips itself on the device: no sync
        phase.optimizer.grad_scale = None
        phase.optimizer.step()
        self.stats.report(f"Gradient/{phase.name}/norm", total)
        self.stats.report(f"Gradient/{phase.name}/skipped", bad.float())
        names = ["loss", *(n for n, _ in named), "norm over all"]
        flags = (~torch.cat([loss, norms, total[None]]).isfinite()).float()
        self.stats.report_rows(f"NonFinite/{phase.name}", names, flags)
        return names, flags, requests

    def update_w_avg(self) -> None:
        """Moves G's truncation centre once per step towards the total batch's mean w, equally on all ranks."""
        (w_sum,) = self.w_sum.total()
        self.G.update_w_avg(distributed.all_reduce_sum(w_sum) / self.config.batch, self.config.batch)

    def update_ema(self, nimg: int) -> None:
        """Exponential moving average of G's parameters with a half-life in images; buffers are copied."""
        config = self.config
        halflife = min(config.ema_halflife_kimg * 1000, config.ema_rampup * nimg)
        beta = 0.5 ** (config.batch / max(halflife, 1e-8))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.G_ema.parameters()), list(self.G.parameters()), 1 - beta)
            for averaged, current in zip(self.G_ema.buffers(), self.G.buffers(), strict=True):
                averaged.copy_(current)


def _adam(module: nn.Module, lr: float, betas: tuple[float, float]) -> torch.optim.Adam:
    return torch.optim.Adam(module.parameters(), lr=lr, betas=betas, eps=1e-8, fused=True)
