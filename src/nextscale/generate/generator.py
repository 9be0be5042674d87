"""`Generator`: a tokenizer and a prior together make images.

Letters: B batch, L tokens, H W pixels, C channels, h w cells.
Special here: one generation is one Python generator; each family has its own (`next_scale`, `next_token`,
`diffusion` beside this file). Whatever it needs lives in its frame, so two can run side by side, and one that
fails leaves nothing behind.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from nextscale.generate.card import CardSettings
from nextscale.generate.diffusion import step_by_step
from nextscale.generate.editing import Edit, Editing, Picture, prepare_edit, split_settings
from nextscale.generate.folder import Prior, load_prior, load_tokenizer, read_settings, save_model
from nextscale.generate.graphs import GraphedPrior, graphed
from nextscale.generate.hub import Push, push_folder
from nextscale.generate.next_scale import scale_by_scale
from nextscale.generate.next_token import token_by_token
from nextscale.generate.precision import Dtype, choose_dtype, lay_out
from nextscale.generate.request import Label, Request, Sampling, build_request
from nextscale.generate.result import Preview, Result
from nextscale.generate.settings import ModelSettings, Task
from nextscale.integrity.signatures import find_trusted_model
from nextscale.pixels import to_uint8
from nextscale.prior.next_scale import NextScalePrior
from nextscale.prior.next_token import NextTokenPrior
from nextscale.tokenizer.model import Tokenizer


class Generator:
    """A model that makes images.

    Args:
        settings: what ``config.json`` holds.
        tokenizer: makes images of tokens or features.
        prior: of any family; None for a model that only reconstructs.
        dtype: of the weights: "float32", "bfloat16", or "auto", which is bfloat16 where the hardware is
            faster with it. But for "float32", they are laid out for generating: see `lay_out`.
    """

    def __init__(
        self, settings: ModelSettings, tokenizer: Tokenizer, prior: Prior | None = None, *,
        dtype: Dtype = "float32",
    ) -> None:  # fmt: skip
        self.settings, self.tokenizer, self._prior = settings, tokenizer.eval(), prior
        self.dtype = choose_dtype(dtype, tokenizer.post_quant.weight.device)  #: of the weights
        if prior is not None:
            prior.eval()
        self._graphed: GraphedPrior | None = None
        self.laid_out = False  #: for generating alone
        if self.dtype != torch.float32 or (dtype == "auto" and tokenizer.post_quant.weight.is_cpu):
            self.lay_out()

    @classmethod
    def load(
        cls, model: str | Path, *, device: str | torch.device = "cpu", dtype: Dtype = "float32",
        verify_with: str | Path = "",
    ) -> Generator:  # fmt: skip
        """Load a model: a folder, a bundled name, or one of the Hugging Face hub, in this order.

        Args:
            model: its folder or name, or ``[hub:]owner/name[@revision]``.
            device: of the weights.
            dtype: see `Generator`.
            verify_with: who must have signed it: see `nextscale.integrity.signatures.check_signature`.

        Raises:
            ValueError: no such model, files that do not fit together, or that signature is not there.
        """
        return cls.from_pretrained(model, device=device, dtype=dtype, verify_with=verify_with)

    @classmethod
    def from_pretrained(
        cls, model: str | Path, *, revision: str | None = None, token: str | bool | None = None,
        cache_dir: str | Path | None = None, local_files_only: bool = False,
        device: str | torch.device = "cpu", dtype: Dtype = "float32", verify_with: str | Path = "",
    ) -> Generator:  # fmt: skip
        """As `load`, with what a model of the hub takes: see `nextscale.models.hub.fetch_model`."""
        hub = {"revision": revision, "token": token, "cache_dir": cache_dir}
        folder = find_trusted_model(model, verify_with, local_files_only=local_files_only, **hub)
        settings = read_settings(folder)
        stored = choose_dtype(dtype, device)
        prior = load_prior(folder, settings, dtype=stored).to(device) if settings.prior is not None else None
        tokenizer = load_tokenizer(folder, settings, dtype=stored).to(device)
        return cls(settings, tokenizer, prior, dtype=dtype)

    def save(
        self, folder: str | Path, *, dtype: torch.dtype = torch.float32, about: CardSettings | None = None
    ) -> None:
        """Write a model folder, whole or not at all; its card says also what is said ``about`` the model.

        Raises:
            ValueError: it holds other files, or the weights are laid out for generating.
        """
        if self.laid_out:
            raise ValueError("weights laid out for generating cannot be saved: load with dtype='float32'")
        save_model(
            Path(folder), self.settings, tokenizer=self.tokenizer, prior=self._prior, dtype=dtype, about=about
        )

    def save_pretrained(
        self, folder: str | Path, *, push_to_hub: bool = False, repo_id: str | None = None,
        about: CardSettings | None = None, **push: Unpack[Push],
    ) -> None:  # fmt: skip
        """As `save`; then as `push_to_hub`, if asked, to ``repo_id`` or a repository of the folder's name."""
        if not push_to_hub and (repo_id is not None or push):
            raise ValueError("repo_id and what goes with it have no effect: add push_to_hub=True")
        self.save(folder, about=about)
        if push_to_hub:
            push_folder(Path(folder), repo_id or Path(folder).resolve().name, **push)

    def push_to_hub(self, repo_id: str, *, about: CardSettings | None = None, **push: Unpack[Push]) -> str:
        """Write the model to the hub; returns the address of the commit. See `nextscale.generate.hub`."""
        with tempfile.TemporaryDirectory() as place:
            self.save(Path(place) / "model", about=about)
            return push_folder(Path(place) / "model", repo_id, **push)

    def to(self, device: str | torch.device) -> Generator:
        """Move the weights, forget CUDA graphs; returns self. Raises ValueError once they are laid out."""
        if self.laid_out:
            raise ValueError(f"weights are laid out for their device: load them with device={str(device)!r}")
        self._graphed = None
        self.tokenizer.to(device)
        if self._prior is not None:
            self._prior.to(device)
        return self

    def lay_out(self) -> Generator:
        """Generate faster, on CPUs; the weights neither train nor are saved any more. Returns self."""
        if not self.laid_out:
            lay_out(self.tokenizer, self._prior, self.dtype)
            self.laid_out = True
        return self

    def use_cuda_graphs(self) -> Generator:
        """Sample by `nextscale.generate.graphs`; returns self. Raises ValueError for what cannot."""
        self._graphed = graphed(self.prior)
        return self

    @property
    def prior(self) -> Prior:
        """The transformer. Raises ValueError when the model has none."""
        if self._prior is None:
            raise ValueError("model holds a tokenizer but no prior: train one with nextscale train prior")
        return self._prior

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class."""
        return self.settings.class_names

    def sampling(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Every sampling setting that decides: the model's own, replaced by those that are given."""
        kind = self.settings.prior.kind if self.settings.prior else "next_scale"
        return {**self.settings.sampling.known_to(kind), **given}

    @torch.no_grad()
    def __call__(
        self, labels: Sequence[Label], *, seeds: Sequence[int], smooth: bool = False,
        **settings: Unpack[Sampling],
    ) -> Result:  # fmt: skip
        """Make one image per label. Each depends on its seed, label and settings alone.

        Args:
            labels: class numbers or names; None is the unconditional class.
            seeds: one per image, whole numbers from 0.
            smooth: mix codes instead of drawing one (next-scale pictures only; the result carries no tokens).
            settings: see `nextscale.generate.request.Sampling`; what is not given is the model's own.

        Raises:
            ValueError: a value out of its range, with the range; a setting that has no effect on this prior.
        """
        return self._result(self.request(labels, seeds, smooth, settings))

    def stream(
        self, labels: Sequence[Label], *, seeds: Sequence[int], smooth: bool = False,
        **settings: Unpack[Sampling],
    ) -> Iterator[Preview]:  # fmt: skip
        """As calling the generator, but a `Preview` after each scale, row of tokens or step of diffusion; the
        last is the finished image.
        """
        return self._previews(self.request(labels, seeds, smooth, settings))

    @torch.no_grad()
    def edit(
        self, image: Picture, *, labels: Sequence[Label], seeds: Sequence[int], mask: Any = None,
        task: Task = "inpaint", **settings: Unpack[Editing],
    ) -> Result:  # fmt: skip
        """Make one image per label of which some tokens are those of a given image. Next-scale models only.

        Args:
            image: one for all, or one per label: a PIL image, uint8 ([B,] H, W, 3), or float ([B,] 3, H, W)
                in [-1, 1]; of the model's size, but any for outpaint, and smaller for upscale.
            labels: class numbers or names; None is the unconditional class.
            seeds: one per image, whole numbers from 0.
            mask: of inpaint and replace: 1 keeps, 0 generates anew; bool or float ([B,] H, W) of pixels or
                ([B,] h, w) of cells. A cell is kept as much as its least kept pixel; resized to each scale,
                what is above 0.5 is kept. In pasted pixels a value is the share of the given image.
            task: "inpaint" fills the hole from what is around it; "replace" lets the encoder see what was
                in the hole; "outpaint" makes the surroundings; "variation" keeps coarse scales; "upscale"
                keeps those that a small image determines.
            settings: as for calling the generator, and of the edit (None is the task's own):

                from_scale: coarser scales than this are kept whole, from 0 (none) to S (all); by default
                    those of at most three cells (inpaint, replace, where anything is kept), none (outpaint),
                    half (variation), those no larger than the small image's own latent map (upscale).
                hide: fill the hole from around it before encoding; inpaint does.
                paste: put kept pixels back, to the bit (upscale: let the result shrink to the small image,
                    nearly); done unless False (not of variation).
                feather: pixels over which the seam fades into the hole; by default half a cell.
                share, place: of outpaint: the share of the canvas's sides that the image takes (0.5), and
                    where it stands, (down, right) from 0 to 1 (the middle).

        Raises:
            ValueError: another family; a value, shape or mask that does not fit, and what would.
        """
        request, edit = self.edit_request(image, mask, labels, seeds, task, settings)
        result = self._result(request)
        return Result(edit.finish(result.images_BCHW), result.tokens_BL)

    def stream_edit(
        self, image: Picture, *, labels: Sequence[Label], seeds: Sequence[int], mask: Any = None,
        task: Task = "inpaint", **settings: Unpack[Editing],
    ) -> Iterator[Preview]:  # fmt: skip
        """As `edit`, but a `Preview` after each scale; the last is the finished image."""
        request, edit = self.edit_request(image, mask, labels, seeds, task, settings)
        return self._previews(request, edit)

    @torch.no_grad()
    def edit_request(
        self, image: Picture, mask: Any, labels: Sequence[Label], seeds: Sequence[int], task: Task,
        given: Editing,
    ) -> tuple[Request, Edit]:  # fmt: skip
        """What `edit` is asked for, checked and encoded: arguments and errors as there."""
        if not isinstance(self.prior, NextScalePrior):
            assert self.settings.prior is not None
            raise ValueError(
                f"edit keeps tokens scale by scale, the prior is of kind {self.settings.prior.kind}: "
                "use a next_scale model"
            )
        settings, sampling = split_settings(task, given)
        request = self.request(labels, seeds, False, sampling)
        edit = prepare_edit(
            self.tokenizer, image, mask, count=len(request.seeds), task=task, settings=settings
        )
        return request._replace(forced=edit.forced), edit

    def _result(self, request: Request) -> Result:
        parts: list[Tensor] = []
        finished: Tensor | None = None
        for tokens, features in self.steps(request):
            if tokens is not None:
                parts.append(tokens)
            finished = features
        assert finished is not None
        images_BCHW = self.tokenizer.decode_features(finished)
        return Result(images_BCHW, None if request.smooth or not parts else torch.cat(parts, dim=1))

    def _previews(self, request: Request, edit: Edit | None = None) -> Iterator[Preview]:
        parts: list[Tensor] = []
        steps, number = self.steps(request), 0
        while True:
            with torch.no_grad():  # not around the yield: the caller's code must not run in it
                step = next(steps, None)
                if step is None:
                    return
                tokens, features = step
                if tokens is not None:
                    parts.append(tokens)
                images_BCHW = self.tokenizer.decode_features(features)
                images = to_uint8(edit.finish(images_BCHW) if edit else images_BCHW)
                tokens_so_far = None if request.smooth or not parts else torch.cat(parts, dim=1)
            yield Preview(number, images, tokens_so_far)
            number += 1

    def request(
        self, labels: Sequence[Label], seeds: Sequence[int], smooth: bool, overrides: Sampling
    ) -> Request:
        """What calling the generator is asked for, checked: arguments and errors as there."""
        device = self.prior.position.device
        return build_request(labels, seeds, self.settings, overrides=overrides, smooth=smooth, device=device)

    def steps(self, request: Request) -> Iterator[tuple[Tensor | None, Tensor]]:
        """What a generation yields: new tokens (B, T), if any, and the features (B, C, h, w) so far."""
        prior = self.prior
        if isinstance(prior, NextScalePrior):
            return scale_by_scale(self._graphed or prior, self.tokenizer, request)
        if isinstance(prior, NextTokenPrior):
            return token_by_token(prior, self.tokenizer, request)
        return step_by_step(prior, request)
