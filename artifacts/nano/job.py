"""A training run that can be stopped and gone on with: optimiser, schedule, checkpoints and log."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SEED = 20261123
SAVE_EVERY = 100
LOG_EVERY = 20
WARM_UP = 100  # steps


class Job:
    """AdamW with warm-up and a cosine to zero in each cycle, gradient clipping, a moving average of the weights.

    `state`/NAME.pt holds everything that a resumed run needs; it is replaced as a whole, so a killed run loses at
    most `SAVE_EVERY` steps.
    """

    def __init__(
        self, state: Path, name: str, modules: Mapping[str, nn.Module], cycles: Sequence[tuple[int, float]]
    ) -> None:
        state.mkdir(parents=True, exist_ok=True)
        self.file, self.log = state / f"{name}.pt", state / f"{name}.jsonl"
        self.modules, self.cycles, self.total = modules, cycles, sum(steps for steps, _ in cycles)
        self.parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
        decayed = [p for p in self.parameters if p.ndim > 1]
        others = [p for p in self.parameters if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98))
        self.average = [p.detach().clone() for p in self.parameters]
        self.step, self.seconds = 0, 0.0
        self.sums: dict[str, list[float]] = {}
        if self.file.exists():
            self._load()

    def steps(self, batches: Callable[[int], Iterator[Any]]) -> Iterator[Any]:
        """The remaining batches of `batches(first step)`."""
        if self.step >= self.total:
            return
        source = batches(self.step)
        while self.step < self.total:
            self.started = time.monotonic()
            yield next(source)

    def learn(self, loss: Tensor, shown: Mapping[str, float]) -> None:
        """One step of the optimiser."""
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        keep = min(0.998, 1 - 10 / (self.step + 10))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - keep)
        self.seconds += time.monotonic() - self.started
        for key, value in {"loss": loss.item(), "norm": norm.item(), **shown}.items():
            self.sums.setdefault(key, []).append(value)
        if self.step % LOG_EVERY == 0 or self.step == self.total:
            self._write_log()
        if self.step % SAVE_EVERY == 0 or self.step == self.total:
            self._save()

    def use_average(self) -> None:
        """Put the averaged weights into the modules."""
        with torch.no_grad():
            for parameter, mean in zip(self.parameters, self.average, strict=True):
                parameter.copy_(mean)

    def _rate(self) -> float:
        """Each cycle (steps, peak rate) warms up, then falls to zero along a cosine."""
        step, cycle = self.step, 0
        while step >= self.cycles[cycle][0]:
            step -= self.cycles[cycle][0]
            cycle += 1
        steps, peak = self.cycles[cycle]
        left = math.pi * max(0, step - WARM_UP) / max(1, steps - WARM_UP)
        return peak * min(1, (step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(left))

    def _write_log(self) -> None:
        means = {}
        for key, values in self.sums.items():
            known = [v for v in values if v == v]
            means[key] = float(f"{sum(known) / len(known):.4g}") if known else None
        self.sums.clear()
        line = json.dumps({"step": self.step, "seconds": round(self.seconds), **means})
        print(line, flush=True)
        with self.log.open("a") as file:
            file.write(line + "\n")

    def _save(self) -> None:
        content = {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "step": self.step,
            "seconds": self.seconds,
        }
        staged = self.file.with_suffix(".tmp")
        torch.save(content, staged)
        staged.replace(self.file)

    def _load(self) -> None:
        content = torch.load(self.file, weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(content["modules"][name])
        self.optimiser.load_state_dict(content["optimiser"])
        self.average = content["average"]
        self.step, self.seconds = content["step"], content["seconds"]
