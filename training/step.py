"""Runs a step: for every phase that is due it sums gradients over micro-batches and ranks, clips and steps.

What the losses are is the objective's matter (training/families/base.py). Every loss is a mean over the total batch,
so splits into micro-batches and ranks only add.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torch_utils import distributed
from torch_utils.pairwise import PairwiseSum
from torch_utils.training_stats import Collector
from training.averages import average_name, decay
from training.families.base import Generator, Objective, Phase, StepContext
from training.samples import MicroBatch, RunConfig


@dataclass(frozen=True)
class StepReport:
    """Holds what a step has to tell the loop, still on the device."""

    step: int  # number of the step
    nimg: int  # images seen before it
    phases: list[tuple[str, list[str]]]  # phases that were due: name, and what it says of each whether it was finite
    values: Tensor  # [R + all names] the requests, summed over ranks, then a 1 for everything that was not finite

    def requests(self, values: Tensor) -> list[bool]:
        """Returns which requests any rank has made, from `values` on the CPU."""
        count = len(values) - sum(len(names) for _, names in self.phases)
        return [bool(v) for v in values[:count]]

    def bad(self, values: Tensor) -> dict[str, list[str]]:
        """Returns, for each phase, the names of what was not finite in it, from `values` on the CPU."""
        flags = iter(values[len(values) - sum(len(names) for _, names in self.phases) :].tolist())
        return {phase: [name for name in names if next(flags)] for phase, names in self.phases}


def averages(config: RunConfig, objective: Objective) -> Mapping[str, Callable[[int], float]]:
    """Returns the moving averages of G by name, the objective's and those that the run keeps besides.

    Each is a function from the images seen to the share that is kept.
    """

    def batch_at(nimg: int) -> int:
        return config.stage_at(nimg).batch

    return {**objective.averages(), **{average_name(kimg): decay(kimg, batch_at) for kimg in config.ema_kimg}}


class GanStep:
    """Runs the phases of an objective, and moves the averages of G."""

    def __init__(
        self,
        config: RunConfig,
        G: Generator,
        objective: Objective,
        averaged: Mapping[str, nn.Module],  # moving averages of G by the names that the objective gives them
        stats: Collector,
    ):
        self.config, self.G, self.objective, self.averaged, self.stats = config, G, objective, averaged, stats
        self.optimizers = dict(objective.optimizers())
        if unfused := [name for name, o in self.optimizers.items() if not o.defaults.get("fused")]:
            raise ValueError(f"optimiser {unfused[0]} must be fused, so that a non-finite gradient skips its step")
        self.phases = list(objective.phases())
        self.decays = averages(config, objective)
        self.ws_sum = PairwiseSum()  # of ws over this rank's generated images of the phase under way
        self.ws_total: Tensor | None = None  # over all ranks and the phases of this step; None where no loss gives ws
        self.loss_scale = 1.0  # on losses before they go back, off again in the gradients; see torch_utils/precision.py
        self.loss: Tensor | None = None  # of the phase under way, over this rank's micro-batches

    def optimized(self) -> dict[str, tuple[nn.Module, torch.optim.Optimizer]]:
        """Returns each optimiser with the module that it steps, by the optimiser's name in checkpoints."""
        modules = {id(phase.optimizer): phase.module for phase in self.phases}
        return {name: (modules[id(optimizer)], optimizer) for name, optimizer in self.optimizers.items()}

    def run(self, step: int, nimg: int, micro_batches: list[MicroBatch], requests: Sequence[bool] = ()) -> StepReport:
        """Runs all phases that are due at `step`, then the moving averages. `nimg`: images seen before this step.

        `requests` of this rank travel with the first phase's gradient, so that all ranks learn of them in one step.
        A non-finite loss or gradient skips the optimiser's step on the device: nothing waits for it.
        """
        wanted = torch.zeros(len(requests), device=self.G.device)
        for i, request in enumerate(requests):
            if request:
                wanted[i] = 1.0
        self._set_learning_rates(nimg)
        phases: list[tuple[str, list[str]]] = []
        found: list[Tensor] = []
        for phase in self.phases:
            if step % phase.every:
                continue
            self.accumulate(phase, nimg, micro_batches)
            names, flags, summed, bad = self.reduce(phase, wanted if not phases else wanted[:0])
            phase.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # the fused step reads it on the device
            phase.optimizer.grad_scale = None  # type: ignore[attr-defined]
            phase.optimizer.step()
            found += [summed, flags]
            phases.append((phase.name, names))
        self.update_truncation(nimg)
        self.update_averages(nimg)
        for name, values in self.objective.end_step(step).items():
            self.stats.report(name, values)
        return StepReport(step, nimg, phases, torch.cat(found))

    def accumulate(self, phase: Phase, nimg: int, micro_batches: Sequence[MicroBatch]) -> None:
        """Sets the gradients of `phase` to this rank's part of the sum over the total batch.

        Each micro-batch's gradient is whole before it enters the sum, and the sum is pairwise: so 2 ranks with a power
        of two of micro-batches each take the very steps of one process. Rounding that differed would soon show: Adam
        without momentum makes a whole step of the sign of a rounding error.
        """
        for parameter in phase.learning:
            parameter.requires_grad_(True)
        total, batch = PairwiseSum(), self.config.stage_at(nimg).batch
        for micro in micro_batches:
            phase.module.zero_grad(set_to_none=True)
            for loss in phase.losses(micro, StepContext(nimg, micro.draws, micro.classes)):
                mean = loss.total.sum() / batch
                scaled = mean if self.loss_scale == 1 else mean * self.loss_scale
                scaled.backward()  # type: ignore[no-untyped-call]
                self.loss = mean.detach() if self.loss is None else self.loss + mean.detach()
                for name, values in loss.report.items():
                    self.stats.report(name, values)
                if loss.ws is not None:
                    self.ws_sum.add([loss.ws.sum(0)])
            total.add([p.grad for p in phase.learning if p.grad is not None])
        learnt = [p for p in phase.learning if p.grad is not None]  # the same for all micro-batches
        grads = total.total()
        if self.loss_scale != 1:
            torch._foreach_mul_(grads, 1 / self.loss_scale)
        for parameter, grad in zip(learnt, grads, strict=True):
            parameter.grad = grad
        phase.module.requires_grad_(False)

    def reduce(self, phase: Phase, requests: Tensor) -> tuple[list[str], Tensor, Tensor, Tensor]:
        """Sums the gradient of `phase` over ranks, clips it once and finds what is not finite.

        All that is summed over ranks travels in one message: gradients, loss, requests, ws.

        Returns the names "loss", the parameters' and "norm over all"; for each a 1 if it is not finite; `requests` [R]
        summed over the ranks; and whether anything is not finite, as a tensor.
        """
        assert self.loss is not None
        named = [(n, p.grad) for n, p in phase.module.named_parameters() if p.grad is not None]
        ws = self.ws_sum.total() if self.ws_sum else []  # of all ranks or of none
        extra = torch.cat(
            [self.loss.reshape(1), requests.to(self.loss), *(part.flatten().to(self.loss) for part in ws)]
        )
        summed = distributed.all_reduce_gradients(list(phase.module.parameters()), extra)
        loss, requests, ws_total = summed.tensor_split([1, 1 + len(requests)])
        if ws:
            ws_total = ws_total.view_as(ws[0])
            self.ws_total = ws_total if self.ws_total is None else self.ws_total + ws_total
        self.loss = None
        grads = [g for _, g in named]
        norms = torch.stack(torch._foreach_norm(grads))  # one fused call for all parameters
        total = norms.norm()
        bad = ~(total + loss.sum()).isfinite()
        torch._foreach_mul_(grads, (phase.clip / (total + 1e-6)).clamp(max=1.0))
        self.stats.report(f"Gradient/{phase.name}/norm", total)
        self.stats.report(f"Gradient/{phase.name}/skipped", bad.float())
        names = ["loss", *(n for n, _ in named), "norm over all"]
        flags = (~torch.cat([loss, norms, total[None]]).isfinite()).float()
        self.stats.report_rows(f"NonFinite/{phase.name}", names, flags)
        return names, flags, requests, bad

    def update_truncation(self, nimg: int) -> None:
        """Moves G's truncation centre once per step towards the total batch's mean ws, equally on all ranks."""
        if self.ws_total is None:  # the objective moves no truncation centre
            return
        batch = self.config.stage_at(nimg).batch
        self.G.update_average(self.ws_total / batch, batch)
        self.ws_total = None

    def update_averages(self, nimg: int) -> None:
        """Moves every average of G's parameters by its decay; buffers are copied."""
        with torch.no_grad():
            for name, decay in self.decays.items():
                averaged = self.averaged[name]
                torch._foreach_lerp_(list(averaged.parameters()), list(self.G.parameters()), 1 - decay(nimg))
                for kept, current in zip(averaged.buffers(), self.G.buffers(), strict=True):
                    kept.copy_(current)

    def _set_learning_rates(self, nimg: int) -> None:
        rates, factor = self.objective.learning_rates(self.config.stage_at(nimg)), self.config.lr_factor(nimg)
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rates[name] * factor
