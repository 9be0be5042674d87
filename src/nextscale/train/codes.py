"""The codebook in training: running means instead of gradients, and moving codes that nobody uses.

Letters: B batch, L tokens of all scales, V codes, C width of a code.
Special here: all that a step needs to know about its batch are sums of fixed shape in `totals`, formed by
`add` alone. Micro-batches add to them, processes may add them up, and `after_step` uses and clears them: so
neither the number of micro-batches nor that of processes changes what happens to a code.
"""

from __future__ import annotations

import numpy
import torch
from torch import Tensor, nn

from nextscale.tokenizer.quantizer import Quantized
from nextscale.train.settings import CodeTraining

#: A running count below this holds no more information: the code stays where it is.
_FEWEST = 1e-6


class CodeKeeper:
    """Watches over one codebook."""

    def __init__(self, codebook: nn.Embedding, settings: CodeTraining, *, reset_after: int) -> None:
        self.codebook, self.settings, self.reset_after = codebook, settings, reset_after
        num_codes, device = codebook.num_embeddings, codebook.weight.device
        self.idle_steps_V = torch.zeros(num_codes, dtype=torch.int64, device=device)
        self.totals = {"code_counts_V": torch.zeros_like(self.idle_steps_V)}
        if settings.ema_decay:
            codebook.weight.requires_grad_(False)
            # as if every code had stood for itself once
            self.running_counts_V = torch.ones(num_codes, device=device)
            self.running_sums_VC = codebook.weight.detach().clone()
            self.totals["code_sums_VC"] = torch.zeros_like(self.running_sums_VC)

    @torch.no_grad()
    def add(self, quantized: Quantized) -> None:
        """Add the codes that a micro-batch used, and what they stood for, to the totals of the step."""
        tokens, kept = quantized.tokens_BL.flatten(), quantized.kept_BL.flatten()
        self.totals["code_counts_V"].scatter_add_(0, tokens, kept.long())
        if "code_sums_VC" in self.totals:
            targets = quantized.targets_BLC.flatten(0, 1) * kept[:, None]
            self.totals["code_sums_VC"].index_add_(0, tokens, targets)

    @torch.no_grad()
    def after_step(self, random: numpy.random.Generator) -> None:
        """Move the codes as the totals of the step demand, and clear these.

        Args:
            random: the step's own numbers, the same in every process.
        """
        counts_V = self.totals["code_counts_V"]
        self.idle_steps_V = torch.where(counts_V > 0, 0, self.idle_steps_V + 1)
        if self.settings.ema_decay:
            self._follow_means()
        if self.reset_after:
            self._move_idle(random)
        for total in self.totals.values():
            total.zero_()

    def _follow_means(self) -> None:
        """N <- d N + (1 - d) n, M <- d M + (1 - d) m, code = M / N, with the step's counts n and sums m (van
        den Oord et al. 2017, arXiv 1711.00937, appendix A.1).
        """
        share = 1 - self.settings.ema_decay
        self.running_counts_V.lerp_(self.totals["code_counts_V"].float(), share)
        self.running_sums_VC.lerp_(self.totals["code_sums_VC"], share)
        counts_V1 = self.running_counts_V[:, None]
        means_VC = self.running_sums_VC / counts_V1.clamp_min(_FEWEST)
        self.codebook.weight.copy_(torch.where(counts_V1 > _FEWEST, means_VC, self.codebook.weight))

    def _move_idle(self, random: numpy.random.Generator) -> None:
        """Put codes that were idle for too long beside codes that are used, the more often the likelier."""
        idle = (self.idle_steps_V > self.reset_after).nonzero().flatten()
        ends_V = self.totals["code_counts_V"].cumsum(0)
        if not len(idle):
            return
        weight = self.codebook.weight
        places = torch.from_numpy(random.integers(int(ends_V[-1]), size=len(idle))).to(ends_V)
        chosen = torch.searchsorted(ends_V, places, right=True)
        noise = torch.from_numpy(random.standard_normal((len(idle), weight.shape[1]))).to(weight)
        weight[idle] = weight[chosen] + 0.1 * weight.std(dim=0) * noise
        self.idle_steps_V[idle] = 0
        if self.settings.ema_decay:  # as if it had stood for its new place as often as the mean code did
            count = self.running_counts_V.mean()
            self.running_counts_V[idle] = count
            self.running_sums_VC[idle] = count * weight[idle]

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold besides the codebook; the totals are empty between steps."""
        kept = {"idle_steps_V": self.idle_steps_V}
        if self.settings.ema_decay:
            kept |= {"running_counts_V": self.running_counts_V, "running_sums_VC": self.running_sums_VC}
        return kept

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        for name in self.state():
            setattr(self, name, tensors[name].to(self.codebook.weight.device))
