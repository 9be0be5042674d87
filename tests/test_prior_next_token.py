"""The next-token transformer: who may look at whom, steps against the whole, and its way of sampling."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from models_for_tests import (
    CLASSES,
    PRIOR_KINDS,
    VOCAB,
    make_loud,
    model_settings,
    prior_settings,
    random_generator,
    slow_draw,
    slow_filter,
    tokens_of,
)
from nextscale import Generator
from nextscale.prior import next_token as module
from nextscale.prior.next_token import NextTokenPrior
from nextscale.rng import token_uniforms
from nextscale.scales import ScaleSchedule

SCHEDULE = ScaleSchedule(sizes=((3, 4),))
LENGTH = SCHEDULE.num_tokens


def _prior(*, loud: bool = True, **changes: Any) -> NextTokenPrior:
    settings = prior_settings(kind="next_token", **changes)
    prior = NextTokenPrior(settings, SCHEDULE, vocab_size=VOCAB, num_classes=len(CLASSES))
    if loud:
        make_loud(prior)
    return prior


def _inputs() -> tuple[Tensor, Tensor]:
    return torch.tensor([1, 10, 4]), torch.randint(VOCAB, (3, LENGTH))


@pytest.fixture(scope="module")
def generator() -> Generator:
    return random_generator(model_settings(sizes=SCHEDULE.sizes, prior={"kind": "next_token"}, num_phis=1))


@pytest.mark.parametrize("kind", PRIOR_KINDS, ids=str)
@torch.no_grad()
def test_a_place_reads_what_is_before_it_and_nothing_else(kind: dict[str, Any]) -> None:
    prior = _prior(**kind)
    labels, tokens = _inputs()
    logits = prior(labels, tokens)
    assert logits.shape == (3, LENGTH, VOCAB) and logits.dtype == torch.float32
    for place in range(LENGTH):
        changed = tokens.clone()
        changed[:, place:] = (changed[:, place:] + 7) % VOCAB
        other = prior(labels, changed)
        assert torch.allclose(other[:, : place + 1], logits[:, : place + 1], atol=1e-5, rtol=0)
        assert place == LENGTH - 1 or ((other - logits)[:, place + 1].abs().amax(dim=-1) > 1e-2).all()


@torch.no_grad()
def test_against_attention_with_a_dense_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    prior, (labels, tokens) = _prior(), _inputs()
    logits = prior(labels, tokens)
    hidden = torch.ones(LENGTH, LENGTH).triu(1).bool()

    def dense(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        return ((query @ key.mT) * scale).masked_fill(hidden, -torch.inf).softmax(dim=-1) @ value

    monkeypatch.setattr(module, "_attend_to_earlier", dense)
    assert torch.allclose(prior(labels, tokens), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", PRIOR_KINDS, ids=str)
@torch.no_grad()
def test_step_by_step_against_the_whole(kind: dict[str, Any]) -> None:
    prior, (labels, tokens) = _prior(**kind), _inputs()
    condition, cache = prior.condition(labels), prior.new_cache(3)
    steps = [
        prior.step(place, condition, tokens[:, place - 1] if place else None, cache)
        for place in range(LENGTH)
    ]
    assert steps[0].std() > 1
    assert torch.allclose(torch.cat(steps, dim=1), prior(labels, tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("loud", [False, True], ids=["fresh", "loud"])
def test_every_parameter_gets_a_gradient_with_recomputation_the_same(loud: bool) -> None:
    prior, gradients = _prior(loud=loud), []
    tokens = torch.arange(VOCAB).repeat(4)[: LENGTH * 11].reshape(11, LENGTH)
    for recompute in (False, True):
        prior.zero_grad()
        logits = prior(torch.arange(11), tokens, recompute=recompute)
        nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
        for name, parameter in prior.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        gradients.append([parameter.grad.clone() for parameter in prior.parameters()])
    assert all(torch.allclose(one, other, atol=1e-7) for one, other in zip(*gradients, strict=True))


def test_what_does_not_fit() -> None:
    settings = prior_settings(kind="next_token")
    with pytest.raises(
        ValueError, match=r"of one scale, given 2: train one with --schedule.sizes \[\[3,4\]\]"
    ):
        NextTokenPrior(settings, ScaleSchedule(sizes=((1, 1), (3, 4))), vocab_size=8, num_classes=2)
    with pytest.raises(ValueError, match=r"expected tokens \(B, 12\), given \(3, 11\)"):
        _prior()(torch.tensor([1, 2, 3]), torch.zeros(3, 11, dtype=torch.int64))


# sampling


@torch.no_grad()
def _slowly(generator: Generator, label: int, seed: int, *, guidance: float, **options: Any) -> Tensor:
    """Whole passes, no cache, no batch; what is not yet drawn holds random tokens."""
    tokens = torch.randint(VOCAB, (1, LENGTH), generator=torch.Generator().manual_seed(seed))
    uniforms = token_uniforms(seed, LENGTH)
    for place in range(LENGTH):
        conditional = generator.prior(torch.tensor([label]), tokens)[0, place]
        unconditional = generator.prior(torch.tensor([len(CLASSES)]), tokens)[0, place]
        logits = (1 + guidance) * conditional - guidance * unconditional
        tokens[0, place] = slow_draw(slow_filter(logits.tolist(), **options), uniforms[place])
    return tokens


@pytest.mark.parametrize(
    "options",
    [
        {"guidance": 0.0, "top_k": 0, "top_p": 1.0, "temperature": 1.0},
        {"guidance": 1.5, "top_k": 0, "top_p": 1.0, "temperature": 1.0},
        {"guidance": 0.7, "top_k": 12, "top_p": 0.8, "temperature": 1.3},
    ],
    ids=str,
)
def test_sampling_is_what_the_slow_reference_draws(generator: Generator, options: dict[str, Any]) -> None:
    labels, seeds = [1, 5, 9], [7, 8, 2**63 - 1]
    result = generator(labels, seeds=seeds, **options)
    expected = torch.cat([_slowly(generator, *pair, **options) for pair in zip(labels, seeds, strict=True)])
    assert torch.equal(tokens_of(result), expected)
    assert torch.equal(result.images_BCHW, generator.tokenizer.decode(expected))
    for row in range(3):
        alone = generator(labels[row : row + 1], seeds=seeds[row : row + 1], **options)
        assert torch.equal(tokens_of(alone), expected[row : row + 1])


def test_every_setting_counts_and_may_differ_within_a_batch(generator: Generator) -> None:
    plain = tokens_of(generator([1], seeds=[3]))
    changes: list[dict[str, Any]] = [{"guidance": 3.0}, {"top_k": 1}, {"top_p": 0.1}, {"temperature": 3.0}]
    for change in changes:
        assert not torch.equal(tokens_of(generator([1], seeds=[3], **change)), plain)
    both = tokens_of(generator([1, 1], seeds=[3, 3], guidance=[0.0, 3.0]))
    assert torch.equal(both[:1], plain)
    assert torch.equal(both[1:], tokens_of(generator([1], seeds=[3], guidance=3.0)))


def test_a_stream_shows_every_row(generator: Generator) -> None:
    result, previews = generator([1, 2], seeds=[3, 4]), list(generator.stream([1, 2], seeds=[3, 4]))
    assert [preview.scale for preview in previews] == [0, 1, 2]
    assert [tuple(preview.tokens_BL.shape) for preview in previews] == [(2, 4), (2, 8), (2, 12)]
    assert numpy.array_equal(previews[-1].images, result.images)
    assert not numpy.array_equal(previews[0].images, previews[1].images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smooth": True}, "smooth mixes the codes of a whole scale, the prior is of kind next_token"),
        ({"sampler": "ddim"}, "sampler would have no effect: the prior is of kind next_token; leave it out"),
        ({"num_steps": 5}, "num_steps would have no effect: the prior is of kind next_token"),
    ],
)
def test_what_it_does_not_know(generator: Generator, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generator([1], seeds=[0], **options)
