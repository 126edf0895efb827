"""Writes the numbers of a run: stats.jsonl always, TensorBoard and Weights & Biases where they are wanted.

A logger never stops a run and never asks a question: what cannot be had is said once, and training goes on.
"""

import contextlib
import errno
import json
import math
import os
import secrets
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args

WANDB_PROJECT = "SplatGAN"
WANDB_INIT_TIMEOUT_S = 30
WANDB_FILE = "wandb.json"  # in a run folder: the run's id, and the last step sent
WandbMode = Literal["offline", "online"]
WANDB_MODES = ("off", *get_args(WandbMode))
RESERVED = {"step", "nimg", "timing", "non_finite"}


class _Sink(Protocol):
    name: str

    def write(self, step: int, nimg: int, values: dict[str, float], timing: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class StatsLogger:
    """Writes one record per call to every sink that the run has.

    `stats.jsonl` holds a JSON object per line: step, nimg, the values by name, and `timing` with everything that comes
    from a clock, so that two equal runs differ in nothing else. Numbers that are not finite cannot be written in JSON:
    they become null, and `non_finite` names them with what they were.
    """

    def __init__(
        self,
        run_dir: str | Path,  # an existing folder
        tensorboard: bool | Literal["auto"] = "auto",  # "auto": if the package is installed, without a word otherwise
        wandb_mode: str = "off",  # off, offline (kept in the run folder) or online
        config: Mapping[str, Any] | None = None,  # JSON-able; shown by Weights & Biases beside the curves
        nimg: int = 0,  # images seen at the start: what a resumed run had logged beyond is replaced
    ):
        """Raises ValueError for an unknown `tensorboard` or `wandb_mode`; a sink that fails to open only warns."""
        if tensorboard not in (True, False, "auto"):
            raise ValueError(f"tensorboard is {tensorboard!r}; legal are True, False and 'auto'")
        if wandb_mode not in WANDB_MODES:
            raise ValueError(f"wandb_mode is {wandb_mode!r}; legal are {', '.join(WANDB_MODES)}")
        run_dir = Path(run_dir)
        makers: list[tuple[str, Callable[[], _Sink | None]]] = [("stats.jsonl", lambda: _JsonLines(run_dir))]
        if tensorboard:
            makers.append(("TensorBoard", lambda: _open_tensorboard(run_dir, tensorboard is True, nimg)))
        if wandb_mode != "off":
            mode = cast(WandbMode, wandb_mode)
            makers.append(("Weights & Biases", lambda: _Wandb(run_dir, mode, dict(config or {}))))
        self._sinks: list[_Sink] = []
        for name, make in makers:
            try:
                sink = make()
            except Exception as error:  # a sink is foreign code; whatever it raises must not end a run
                _warn(name, error)
                continue
            if sink is not None:
                self._sinks.append(sink)

    @property
    def sinks(self) -> tuple[str, ...]:
        """Names of the sinks that work."""
        return tuple(sink.name for sink in self._sinks)

    def write(
        self, step: int, nimg: int, values: Mapping[str, float], timing: Mapping[str, float] | None = None
    ) -> None:
        """Writes `values`, equal in equal runs, and `timing`, which comes from a clock or a meter; both by name.

        Raises ValueError if a value takes one of the names that a record has itself.
        """
        if taken := RESERVED & set(values):
            raise ValueError(f"values may not be named {', '.join(sorted(taken))}; a record has these itself")
        numbers = {name: float(value) for name, value in values.items()}
        clock = {name: float(value) for name, value in (timing or {}).items()}
        self._each(lambda sink: sink.write(int(step), int(nimg), numbers, clock))

    def close(self) -> None:
        self._each(lambda sink: sink.close())
        self._sinks = []

    def __enter__(self) -> "StatsLogger":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _each(self, act: Callable[[_Sink], None]) -> None:
        """Calls every sink; one that fails is dropped, which is also what keeps its warning to one."""
        for sink in tuple(self._sinks):
            try:
                act(sink)
            except Exception as error:
                _warn(sink.name, error)
                self._sinks.remove(sink)


def _warn(name: str, error: Exception) -> None:
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    warnings.warn(f"{name} is off for the rest of this run: {reason}", RuntimeWarning, stacklevel=2)


class _JsonLines:
    name = "stats.jsonl"

    def __init__(self, run_dir: Path):
        self._path = run_dir / self.name
        self._path.touch()
        self._unwritten = ""  # lines that a full disk has refused; the next write tries them again

    def write(self, step: int, nimg: int, values: dict[str, float], timing: dict[str, float]) -> None:
        record: dict[str, Any] = {**_finite(values), "timing": _finite(timing)}
        if odd := {k: str(v) for k, v in {**values, **timing}.items() if not math.isfinite(v)}:
            record["non_finite"] = odd
        line = json.dumps({"step": step, "nimg": nimg, **record}, allow_nan=False)
        refused_before = bool(self._unwritten)
        self._unwritten += line + "\n"
        try:
            append_whole(self._path, self._unwritten)
        except OSError as error:
            if not refused_before:
                _warn_once_refused(self.name, error)
            return
        self._unwritten = ""

    def close(self) -> None:
        """Tries once more to write the lines that a full disk has refused; every other is closed with its file."""
        if self._unwritten:
            append_whole(self._path, self._unwritten)
            self._unwritten = ""


def append_whole(path: Path, text: str) -> None:
    """Appends `text` or nothing: what a full disk took of it is cut off again. Raises OSError."""
    with open(path, "ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        data = text.encode()
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise


def _warn_once_refused(name: str, error: OSError) -> None:
    message = f"{name} cannot be written ({error.strerror}); its lines are kept until it can"
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _open_tensorboard(run_dir: Path, required: bool, nimg: int) -> _Sink | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        if required:
            raise _Missing("tensorboard") from None
        return None
    # Without it, curves of a resumed run would go back and forth between what was logged before and after.
    since = {"purge_step": nimg + 1} if nimg else {}
    return _TensorBoard(SummaryWriter(log_dir=str(run_dir), **since))


class _Missing(Exception):
    """Says that an optional package is not there."""

    def __init__(self, package: str):
        super().__init__(f"the package {package} is not installed (pip install {package})")


class _TensorBoard:
    name = "TensorBoard"

    def __init__(self, writer: Any):
        self._writer = writer

    def write(self, step: int, nimg: int, values: dict[str, float], timing: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=nimg)
        for name, value in timing.items():
            self._writer.add_scalar(f"Timing/{name}", value, global_step=nimg)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """Sends to one run of Weights & Biases from every start in a run folder: its id lies in the folder.

    Curves are drawn over the images seen. The service's own step may never go back, as the training's does when a run
    resumes from an earlier state, so it then counts on from the last one that was sent.
    """

    name = "Weights & Biases"

    def __init__(self, run_dir: Path, mode: WandbMode, config: dict[str, Any]):
        os.environ.setdefault("WANDB_SILENT", "true")
        try:
            import wandb
        except ImportError:
            raise _Missing("wandb") from None

        # Without a key, an online run would ask for one on the terminal.
        if mode == "online" and not wandb.api.api_key:
            message = "Weights & Biases has no API key (set WANDB_API_KEY); its records stay in the run folder"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
            mode = "offline"
        self._file = run_dir / WANDB_FILE
        self._id, self._step = self._recall()
        self._remember()
        settings = wandb.Settings(silent=True, console="off", init_timeout=WANDB_INIT_TIMEOUT_S)
        self._run = wandb.init(
            project=WANDB_PROJECT, name=run_dir.name, dir=str(run_dir), mode=mode, config=config, settings=settings,
            id=self._id, resume="allow",
        )  # fmt: skip
        self._run.define_metric("nimg")
        self._run.define_metric("*", step_metric="nimg")

    def _recall(self) -> tuple[str, int]:
        """Returns the run's id and the last step sent; a new id where the folder has none."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(self._file.read_text())
            return str(kept["id"]), int(kept["step"])
        return secrets.token_hex(4), -1

    def _remember(self) -> None:
        """Writes the file whole or not at all. Raises OSError."""
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps({"id": self._id, "step": self._step}))
        os.replace(partial, self._file)

    def write(self, step: int, nimg: int, values: dict[str, float], timing: dict[str, float]) -> None:
        clock = {f"Timing/{name}": value for name, value in timing.items()}
        self._step = max(step, self._step + 1)
        with contextlib.suppress(OSError):  # a full disk: the next line writes the file again
            self._remember()
        self._run.log({"nimg": nimg, **values, **clock}, step=self._step)

    def close(self) -> None:
        self._run.finish()
