"""Curves for a viewer, beside metrics.jsonl: TensorBoard's event files, Weights & Biases, trackio.

Each is a package that need not be there. TensorBoard is on by default, so its absence is told and no more; one of the other
two is asked for, so its absence ends the work before it begins.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Protocol

from csm.errors import CsmError
from csm.recipe import Recipe
from csm.training.lineage import run_id
from csm.training.run_folder import RunFolder

PROJECT = "csm-finetune"
INSTALL = "pip install 'csm-finetune[logs]'"


class Log(Protocol):
    """One viewer's writer."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Events:
    """All viewers that a run writes for; closed on leaving."""

    def __init__(self, logs: list[Log]):
        self.logs = logs

    def __enter__(self) -> Events:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for log in self.logs:
            log.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Tell every viewer the figures of a step."""
        tagged = {tag(key): value for key, value in values.items()}
        for log in self.logs:
            log.write(step, tagged)


def open_events(run: RunFolder, recipe: Recipe, start: int, notice: Callable[[str], None]) -> Events:
    """Open the viewers of `recipe.log_to`; what an interrupted run wrote after step `start` is hidden where possible.

    Raises:
        CsmError: wandb or trackio is asked for and not installed.
    """
    logs: list[Log] = []
    for name in recipe.log_to:
        if find_spec(name) is None:
            if name != "tensorboard":
                raise CsmError(
                    f"--log-to {name} needs the package {name}, which is not installed.", f"pip install {name}"
                )
            notice(f"the package tensorboard is not installed, so only metrics.jsonl is written ({INSTALL}).")
        elif name == "tensorboard":
            logs.append(_TensorBoard(run, start))
        else:
            logs.append(_Hosted(name, run))
    return Events(logs)


def tag(key: str) -> str:
    """`validation_codebook_3_loss` is `validation/codebook_3_loss`: viewers group by what stands before the slash."""
    for prefix in ("validation", "rate"):
        if key.startswith(f"{prefix}_"):
            return f"{prefix}/{key.removeprefix(f'{prefix}_')}"
    return f"training/{key}"


class _TensorBoard:
    """Event files in the run's folder `tensorboard`."""

    def __init__(self, run: RunFolder, start: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        self.writer.close()


class _Hosted:
    """wandb, or trackio, which has the same three calls."""

    def __init__(self, name: str, run: RunFolder):
        from importlib import import_module

        self.module: Any = import_module(name)
        identity = run.recipe()
        settings: dict[str, Any] = {"project": PROJECT, "name": f"{run.path.name}-{run_id(identity)}"}
        if name == "wandb":
            settings |= {"id": run_id(identity), "dir": str(run.path)}
        try:
            with redirect_stdout(sys.stderr):  # both like to print, and stdout is the run's answer
                self.module.init(config=identity, resume="allow", **settings)
        except Exception as error:  # no account, no network: each package has its own kinds
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CsmError(
                f"--log-to {name} could not begin: {first}", "Leave it out, or set the package up."
            ) from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.module.log(dict(values), step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self.module.finish()
