"""Random numbers that belong to an image or a sample, never to a batch, a rank or a neighbour.

Special here: every draw comes from a counter-based generator (Philox) whose key says what the numbers are
for. Nothing holds state, so the same key gives the same numbers on any machine, in any batch, in any order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy

_MAX_SEED = 2**63 - 1


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise ValueError unless every seed is a whole number in [0, 2**63)."""
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, (int, numpy.integer)) or not 0 <= seed <= _MAX_SEED:
            raise ValueError(f"seed {seed!r} must be a whole number from 0 to {_MAX_SEED}")


# What the numbers are for, in the highest bits of a key's second half: no two purposes share a stream.
_TOKENS, _CODES, _SAMPLE, _ORDER, _STEP, _NOISE, _LESSON = (purpose << 60 for purpose in range(7))
_CANDIDATE = 15 << 60


def _generator(first: int, second: int) -> numpy.random.Generator:
    # an array of uint64: a list with a number from 2**63 on would become float64, and many keys one
    key = numpy.array([first, second], dtype=numpy.uint64)
    return numpy.random.Generator(numpy.random.Philox(key=key))


def _generators(keys: Iterable[tuple[int, int]]) -> Iterator[numpy.random.Generator]:
    """One generator set to key after key, since making one takes longer than drawing from it.

    Draw what is wanted of a key before asking for the next.
    """
    bits = numpy.random.Philox(key=0)
    generator, state = numpy.random.Generator(bits), bits.state
    for first, second in keys:
        state["state"]["key"][0], state["state"]["key"][1] = first, second
        bits.state = state
        yield generator


def token_uniforms(seed: int, num_tokens: int) -> numpy.ndarray:
    """One number in [0, 1) for each token of the image with this seed: float64 (L,)."""
    return _generator(int(seed), _TOKENS).random(num_tokens)


def code_uniforms(seed: int, scale: int, num_cells: int, vocab_size: int) -> numpy.ndarray:
    """One number in [0, 1) for each cell of a scale and each code (`smooth` only): float32 (T, V)."""
    return _generator(int(seed), _CODES | scale).random((num_cells, vocab_size), dtype=numpy.float32)


def image_normals(seed: int, draw: int, shape: tuple[int, ...]) -> numpy.ndarray:
    """Standard normal numbers of the image with this seed (diffusion only): float32.

    Draw 0 is the noise that it starts from, draw k what step k adds.
    """
    return _generator(int(seed), _NOISE | draw).standard_normal(shape, dtype=numpy.float32)


def lesson_normals(keys: Sequence[int], shape: tuple[int, ...]) -> numpy.ndarray:
    """Standard normal numbers that training or validation images are disturbed by: float32 (B, *shape)."""
    drawn = numpy.empty((len(keys), *shape), dtype=numpy.float32)
    for row, generator in zip(drawn, _generators((key, _LESSON) for key in keys), strict=True):
        generator.standard_normal(dtype=numpy.float32, out=row)
    return drawn


def sample_uniforms(seed: int, epoch: int, sample: int, count: int) -> numpy.ndarray:
    """The random choices of training for one sample in one epoch (crop, flip, dropout): float64 (count,)."""
    return _generator(seed, _SAMPLE | (epoch << 40) | sample).random(count)


def sample_uniforms_of(seed: int, places: Iterable[tuple[int, int]], count: int) -> numpy.ndarray:
    """`sample_uniforms` of many (epoch, sample): float64 (B, count)."""
    keys = ((seed, _SAMPLE | (epoch << 40) | sample) for epoch, sample in places)
    rows = [generator.random(count) for generator in _generators(keys)]
    return numpy.stack(rows) if rows else numpy.empty((0, count))


def epoch_order(seed: int, epoch: int, num_samples: int) -> numpy.ndarray:
    """The order in which an epoch visits the samples: a permutation, int64 (num_samples,)."""
    return _generator(seed, _ORDER | epoch).permutation(num_samples)


def step_generator(seed: int, step: int) -> numpy.random.Generator:
    """Random numbers of a training step that belong to no sample (moving idle codes)."""
    return _generator(seed, _STEP | step)


def candidate_seed(seed: int, number: int) -> int:
    """The seed of an image's candidate in rejection sampling; candidate 0 has the image's own."""
    return int(_generator(int(seed), _CANDIDATE | number).integers(_MAX_SEED + 1)) if number else int(seed)
