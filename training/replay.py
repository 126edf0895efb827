"""Runs the one step again that a diagnosis describes, and says where numbers stop being finite."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from torch_utils import distributed
from training import checkpoint
from training.dataset import ImageDataset
from training.runs.resume import Start
from training.safety.watchdog import name_some
from training.training_loop import Options, Trainer

_KEYS = {"step", "nimg", "phase", "tensors", "state", "device", "threads", "ranks", "reason"}


def replay(path: Path, say: Callable[[str], None]) -> bool:
    """Replays the step of the diagnosis at `path` and tells `say` line by line; True if it is bad again.

    The state lies beside the diagnosis, the data where it was. Raises ValueError for a file that is no diagnosis, and
    what opening the checkpoint and the data raises.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--replay={path}: cannot be read: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not a diagnosis: it is not JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(record, dict) or (missing := _KEYS - set(record)):
        what = f"missing {', '.join(sorted(missing))}" if isinstance(record, dict) else "no JSON object"
        raise ValueError(f"{path}: not a diagnosis: {what}")
    device = distributed.initialise(torch.device(record["device"]).type)
    torch.set_num_threads(record["threads"])
    state = checkpoint.load_checkpoint(path.parent / record["state"])
    config = checkpoint.config_of(path.parent / record["state"], state)
    dataset = ImageDataset(config.data, config.index_list, config.objective.pose_law)
    trainer = Trainer(config, Options(path.parent, device, Start(state=state)), dataset)
    run = trainer.state
    say(f"Replays step {run.step} after {run.nimg} images, in which {record['reason']}")
    if record["ranks"] != distributed.world_size():
        say(f"The run had {record['ranks']} ranks, this is one process: sums round otherwise")
    batch = dataset.load(trainer.stream.items(run.nimg))
    with _FirstNonFinite({"G": trainer.G, "D": trainer.D}) as first:
        report = trainer.gan.run(run.step, run.nimg, trainer.stream.micro_batches(run.nimg, batch))
    for line in first.lines:
        say(line)
    found = {phase: names for phase, names in report.bad(report.values.cpu()).items() if names}
    for phase, names in found.items():
        say(f"Phase {phase}: not finite: {name_some(names)}")
    same = found.get(record["phase"]) == record["tensors"]
    if found:
        say("The same tensors as in the run" if same else "Other tensors than in the run")
    else:
        say("Everything is finite this time")
    return bool(found)


class _FirstNonFinite:
    """Notes, while the `with` block runs, the first module of each network whose output is not finite."""

    def __init__(self, networks: dict[str, nn.Module]):
        self.lines: list[str] = []
        self._seen: set[str] = set()
        self._networks = networks
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> _FirstNonFinite:
        for title, network in self._networks.items():
            for name, module in network.named_modules():
                self._hooks.append(module.register_forward_hook(self._hook(title, name or "the whole network")))
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook(self, title: str, name: str) -> Callable:
        def hook(module: nn.Module, arguments: object, output: object) -> None:
            parts = output if isinstance(output, tuple | list) else (output,)
            tensors = [p for p in parts if isinstance(p, torch.Tensor) and p.is_floating_point()]
            finite = all(bool(p.isfinite().all()) for p in tensors)
            if not finite and title not in self._seen:
                self._seen.add(title)
                self.lines.append(f"Forward: the first output of {title} that is not finite is of {name}")

        return hook
