"""How far a run is: the whole state of the loop besides weights and optimizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Progress:
    """Written into every checkpoint as JSON."""

    step: int = 0  #: finished steps
    skipped: int = 0  #: of these, left out because loss or gradient was not finite
    skipped_in_a_row: int = 0
    best_score: float | None = None  #: of the evaluations on schedule
    best_step: int = 0
    looks_since_best: int = 0

    def after_step(self, finite: bool) -> Progress:
        """One step on."""
        return replace(
            self,
            step=self.step + 1,
            skipped=self.skipped + (not finite),
            skipped_in_a_row=0 if finite else self.skipped_in_a_row + 1,
        )

    def after_look(self, score: float, *, larger_is_better: bool) -> Progress:
        """One evaluation on; a score that is not a number is never the best."""
        better = score == score and (
            self.best_score is None
            or (score > self.best_score if larger_is_better else score < self.best_score)
        )
        if better:
            return replace(self, best_score=score, best_step=self.step, looks_since_best=0)
        return replace(self, looks_since_best=self.looks_since_best + 1)

    def in_words(self, num_steps: int, *, score: str, best: Path) -> list[str]:
        """What is worth knowing at the end about the way there.

        Args:
            num_steps: that were planned.
            score: name of the one that decides which weights are the best.
            best: where those are kept.
        """
        lines = []
        if self.step < num_steps:
            lines.append(
                f"stopped after step {self.step}: {self.looks_since_best} evaluations without a better "
                f"{score}"
            )
        if self.best_score is not None:
            lines.append(
                f"best {score} on schedule: {self.best_score:.4g} after step {self.best_step}, kept in {best}"
            )
        if self.skipped:
            lines.append(f"{self.skipped} steps were skipped: loss or gradient was not finite")
        return lines
