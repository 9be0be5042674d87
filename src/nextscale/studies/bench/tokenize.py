"""`nextscale bench tokenize`: images to tokens, from files and part by part.

Letters: B batch, C width of a code, H W pixels, h w latent cells.
Special here: "files" is a token cache made of JPEGs in a folder, decoding, cropping and writing included; the
plain path does the same in one process, image by image, and encodes in float32, as the released trainer does.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy
import torch
from PIL import Image

from nextscale.data.settings import DataSettings
from nextscale.data.sources import open_source
from nextscale.data.sources.base import Source
from nextscale.data.token_cache import describe
from nextscale.data.tokenizing import make_cache
from nextscale.data.transforms import read_image, resize_and_crop
from nextscale.generate.folder import load_tokenizer, read_settings
from nextscale.generate.generator import Generator
from nextscale.pixels import to_model
from nextscale.studies.bench.clock import Timing, time_in_turn
from nextscale.studies.bench.models import num_tokenizer_parameters, random_tokenizer, refuse_large
from nextscale.studies.bench.peak import peak_of
from nextscale.studies.bench.rows import Row, Setting, limits_line, limits_of
from nextscale.studies.bench.settings import WORD, BenchSettings, Sized
from nextscale.studies.bench.work import Limits, Pass, encoder_pass, search_pass
from nextscale.studies.reference.autoencoder import encode_plainly, features_plainly, quantise_plainly
from nextscale.tokenizer.model import Tokenizer
from nextscale.tokenizer.settings import Precision
from nextscale.train.memory import encoding_bytes

#: Batches of images in the folder, and how much larger than a crop they are.
_BATCHES, _LARGER = 4, 1.25
_WHAT = ("files", "encoder", "quantiser")


def bench_tokenizing(settings: BenchSettings, device: torch.device) -> list[Row]:
    """Three rows for every size, batch and dtype. Raises ValueError for what does not fit into the memory."""
    for sized in settings.sized:
        for batch in settings.batches:
            work = 4 * encoding_bytes(sized.model.tokenizer, sized.model.schedule) * batch
            weights = 8 * num_tokenizer_parameters(sized.model)
            refuse_large(weights + work, sized, batch, device)
    rows: list[Row] = []
    for sized in settings.sized:
        with tempfile.TemporaryDirectory() as folder:
            home, tokenizer = Path(folder), random_tokenizer(sized.model, device)
            bare = sized.model.model_copy(update={"prior": None})
            Generator(bare, tokenizer).save(home / "model", dtype=torch.bfloat16)
            for batch in settings.batches:
                rows += _of_batch(settings, sized, home, tokenizer, batch=batch)
    return rows


def write_pictures(folder: Path, count: int, side: int) -> None:
    """JPEGs of smooth noise, in the folders of two classes."""
    numbers = numpy.random.default_rng(0)
    for number in range(count):
        place = folder / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        coarse = numbers.integers(0, 256, (side // 8 + 1, side // 8 + 1, 3), dtype=numpy.uint8)
        Image.fromarray(coarse).resize((side, side)).save(place / f"{number}.jpg", quality=90)


class _Folder:
    """Pictures, whose tokens are made again and again."""

    def __init__(self, home: Path, tokenizer: Tokenizer, batch: int, num_workers: int) -> None:
        self.home, self.tokenizer, self.batch, self.num_workers = home, tokenizer, batch, num_workers
        self.num_images = _BATCHES * batch
        shutil.rmtree(home, ignore_errors=True)
        write_pictures(home / "pictures", self.num_images, round(_LARGER * tokenizer.image_size[0]))
        self.source: Source = open_source(str(home / "pictures"))

    def by_default(self, dtype: Precision) -> None:
        """As `nextscale tokenize --precision` does."""
        data = DataSettings(enlarge=1.0, num_workers=self.num_workers)
        made_from = describe(
            self.source, data, held_out=None, tokenizer=self.tokenizer, tokenizer_sha256="0" * 64, views=1,
            seed=0, precision=dtype,
        )  # fmt: skip
        place = self.home / "tokens"
        make_cache(
            place, source=self.source, tokenizer=self.tokenizer, made_from=made_from,
            batch_size=self.batch, num_workers=self.num_workers, progress=False,
        )  # fmt: skip
        shutil.rmtree(place)

    def plainly(self) -> None:
        """One image after the other, then their tokens."""
        device = next(self.tokenizer.parameters()).device
        for start in range(0, self.num_images, self.batch):
            crops = [
                resize_and_crop(read_image(self.source, index), self.tokenizer.image_size)
                for index in range(start, start + self.batch)
            ]
            tokens_BL = encode_plainly(self.tokenizer, to_model(numpy.stack(crops)).to(device))
            numpy.save(self.home / f"tokens{start}.npy", tokens_BL.cpu().numpy())


@torch.no_grad()
def _encode(tokenizer: Tokenizer, images_BCHW: torch.Tensor, dtype: Precision) -> torch.Tensor:
    with torch.autocast(images_BCHW.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        return tokenizer.features(images_BCHW)


def encode_once(folder: Path, *, batch: int, dtype: Precision) -> None:
    """Tokens of one batch, with the tokenizer of a model folder."""
    tokenizer = load_tokenizer(folder, read_settings(folder))
    tokenizer.encode(torch.zeros(batch, 3, *tokenizer.image_size), precision=dtype)


def _of_batch(
    settings: BenchSettings, sized: Sized, home: Path, tokenizer: Tokenizer, *, batch: int
) -> list[Row]:
    device = next(tokenizer.parameters()).device
    folder = _Folder(home / "files", tokenizer, batch, settings.num_workers)
    images_BCHW = torch.rand(batch, 3, *tokenizer.image_size, device=device) * 2 - 1
    shape = (batch, tokenizer.quantizer.code_dim, *sized.model.schedule.latent_size)
    map_BChw = torch.randn(shape, device=device)
    plain_features = torch.no_grad()(partial(features_plainly, tokenizer, images_BCHW))
    ways: dict[str, Callable[[], object]] = {
        "plain files": folder.plainly, "plain encoder": plain_features,
        "plain quantiser": partial(quantise_plainly, tokenizer.quantizer, map_BChw),
        "quantiser": partial(tokenizer.quantizer.encode, map_BChw),
    }  # fmt: skip
    for dtype in settings.dtypes:
        ways[f"files {dtype}"] = partial(folder.by_default, dtype)
        ways[f"encoder {dtype}"] = partial(_encode, tokenizer, images_BCHW, dtype)
    dtypes = list(dict.fromkeys([*settings.dtypes, "float32"]))
    timings, limits = time_in_turn(ways, rounds=settings.rounds, device=device, dtypes=dtypes)
    rows = []
    for dtype in settings.dtypes:
        setting = Setting(sized, batch, dtype)
        parts = _WHAT if dtype == settings.dtypes[0] else _WHAT[:-1]  # the quantiser is float32 in any case
        found = [_row(setting, what, timings, limits) for what in parts]
        if device.type == "cpu":
            found[0]["peak_bytes"] = peak_of(
                "tokenize", folder=str(home / "model"), batch=batch, dtype=dtype
            )  # fmt: skip
        rows += found
    return rows


def _row(setting: Setting, what: str, timings: dict[str, Timing], limits: Limits) -> Row:
    sized, batch, dtype = setting
    settings, schedule = sized.model.tokenizer, sized.model.schedule
    encoder = encoder_pass(settings, schedule, batch=batch, dtype=dtype)
    search = search_pass(settings.quantizer, schedule, batch=batch)
    work: dict[str, list[Pass]] = {"files": [encoder, search], "encoder": [encoder], "quantiser": [search]}
    own = timings["quantiser" if what == "quantiser" else f"{what} {dtype}"]
    plain, times = timings[f"plain {what}"], _BATCHES if what == "files" else 1
    peak = None if own.peak_bytes is None else own.peak_bytes + _weights(sized)
    return setting._replace(dtype="float32" if what == "quantiser" else dtype).row(
        own.seconds / times, what=what, peak_bytes=peak,
        fraction_of_limit=limits.seconds(work[what]) / (own.seconds / times),
        speedup=own.speedup_over(plain), reference_seconds=plain.seconds / times, limits=limits_of(limits),
        told=[limits_line(limits)] if what == "files" else [],
    )  # fmt: skip


def _weights(sized: Sized) -> int:
    return num_tokenizer_parameters(sized.model) * WORD["float32"]
