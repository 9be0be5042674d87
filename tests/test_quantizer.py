"""The quantiser of the tokenizer: codes, phis, precision, and which gradient goes where."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models_for_tests import (
    SCHEDULE,
    loud_tokenizer,
    random_images,
    random_tokens,
)
from nextscale.scales import ScaleSchedule
from nextscale.tokenizer.quantizer import MultiScaleQuantizer, Phi, nearest_rows, rotate_onto
from nextscale.tokenizer.settings import QuantizerSettings

WIDE = ScaleSchedule(sizes=((1, 1), (2, 3), (3, 5)))


# codes and phis


@pytest.mark.parametrize(
    ("num_phis", "expected"),
    [(0, (0, 1, 2, 3)), (1, (0, 0, 0, 0)), (2, (0, 0, 1, 1)), (4, (0, 1, 2, 3))],
)
def test_phis_are_shared_as_set(num_phis: int, expected: tuple[int, ...]) -> None:
    quantizer = loud_tokenizer(SCHEDULE, num_phis=num_phis).quantizer
    assert len(quantizer.phis) == (num_phis or 4) and quantizer.phi_of_scale == expected


def test_a_given_choice_of_phis_goes_before_the_rule() -> None:
    tokenizer, tokens = loud_tokenizer(SCHEDULE, num_phis=2), random_tokens(SCHEDULE)
    other = loud_tokenizer(SCHEDULE, num_phis=2, phi_of_scale=(1, 1, 0, 0))
    other.load_state_dict(tokenizer.state_dict())
    assert other.quantizer.phi_of_scale == (1, 1, 0, 0)
    assert not torch.allclose(other.decode(tokens), tokenizer.decode(tokens), atol=1e-2)


@pytest.mark.parametrize("wrong", [(0, 1, 2), (0, 1, 2, 4), (0, 1, 2, -1)], ids=str)
def test_a_choice_that_names_no_phi(wrong: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must name one of 4 phis for each of 4 scales"):
        MultiScaleQuantizer(QuantizerSettings(code_dim=4, num_phis=4, phi_of_scale=wrong), SCHEDULE)


def test_the_share_of_the_convolution() -> None:
    maps = torch.randn(2, 6, 4, 4)
    phi = Phi(6, 0.25)
    convolved = F.conv2d(maps, phi.weight, phi.bias, padding=1)
    assert torch.allclose(phi(maps), 0.75 * maps + 0.25 * convolved, atol=1e-6)
    assert torch.equal(Phi(6, 0.0)(maps), maps)


def test_the_nearest_code_by_distance_or_direction() -> None:
    found = {}
    for unit_codes in (False, True):
        quantizer = loud_tokenizer(SCHEDULE, unit_codes=unit_codes).quantizer
        with torch.no_grad():
            quantizer.codebook.weight.zero_()
            quantizer.codebook.weight[:, 0] = -100.0
            quantizer.codebook.weight[3] = torch.tensor([1.0, 0, 0, 0, 0, 0])
            quantizer.codebook.weight[5] = torch.tensor([9.0, 9, 0, 0, 0, 0])
        vectors = torch.tensor([[2.0, 1.9, 0, 0, 0, 0], [9.0, 1, 0, 0, 0, 0]])
        found[unit_codes] = quantizer.nearest(vectors[:, None]).flatten().tolist()
    assert found == {False: [3, 5], True: [5, 3]}


def test_unit_codes_still_enter_the_map_at_their_own_length() -> None:
    tokenizer, tokens = loud_tokenizer(SCHEDULE, unit_codes=True), random_tokens(SCHEDULE)
    plain = loud_tokenizer(SCHEDULE, unit_codes=False)
    plain.load_state_dict(tokenizer.state_dict())
    assert torch.equal(tokenizer.decode(tokens), plain.decode(tokens))
    images = random_images(tokenizer)
    assert not torch.equal(tokenizer.encode(images), plain.encode(images))


def test_the_quantiser_stays_in_float32_under_autocast() -> None:
    tokenizer, tokens = loud_tokenizer(SCHEDULE), random_tokens(SCHEDULE)
    inputs, images = tokenizer.teacher_inputs(tokens), random_images(tokenizer)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.teacher_inputs(tokens), inputs)
        features = tokenizer.features(images)
        assert features.dtype == torch.bfloat16
        assert torch.equal(tokenizer.encode(images), tokenizer.quantizer.encode(features.float()))
        decoded, quantized = tokenizer(images)
    assert quantized.features_BChw.dtype == torch.float32 and quantized.codebook_loss.dtype == torch.float32
    assert decoded.isfinite().all()


# gradients


def test_every_parameter_gets_a_gradient() -> None:
    for num_phis in (0, 1, 4):
        tokenizer = loud_tokenizer(SCHEDULE, num_phis=num_phis, vocab_size=8).train()
        images = random_images(tokenizer, 8)
        decoded, quantized = tokenizer(images)
        loss = (decoded - images).square().mean() + quantized.codebook_loss + quantized.commitment_loss
        loss.backward()
        for name, parameter in tokenizer.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_the_gradient_passes_straight_through_to_the_encoder() -> None:
    """What the decoder wishes of its input arrives unchanged at the features, and nowhere else."""
    tokenizer = loud_tokenizer(SCHEDULE)
    features = torch.randn(2, 6, 4, 4, requires_grad=True)
    quantized = tokenizer.quantizer(features)
    assert torch.allclose(
        quantized.features_BChw, list(tokenizer.quantizer.maps(quantized.tokens_BL))[-1], atol=1e-5
    )
    wish = torch.randn(2, 6, 4, 4)
    (quantized.features_BChw * wish).sum().backward(retain_graph=True)
    assert features.grad is not None and torch.equal(features.grad, wish)
    assert tokenizer.quantizer.codebook.weight.grad is None
    assert all(parameter.grad is None for parameter in tokenizer.quantizer.phis.parameters())


def test_each_loss_pulls_its_own_side() -> None:
    quantizer = loud_tokenizer(SCHEDULE).quantizer
    for loss, moved in (("codebook_loss", False), ("commitment_loss", True)):
        features = torch.randn(2, 6, 4, 4, requires_grad=True)
        quantizer.zero_grad(set_to_none=True)
        getattr(quantizer(features), loss).backward()
        assert (features.grad is not None and bool(features.grad.abs().max() > 0)) is moved
        weight = quantizer.codebook.weight.grad
        assert (weight is not None and bool(weight.abs().max() > 0)) is not moved


def test_losses_are_means_over_the_scales() -> None:
    tokenizer = loud_tokenizer(SCHEDULE)
    features = torch.randn(2, 6, 4, 4)
    quantized = tokenizer.quantizer(features)
    errors = [(part - features).square().mean() for part in tokenizer.quantizer.maps(quantized.tokens_BL)]
    assert quantized.codebook_loss.item() == pytest.approx(sum(errors).item() / 4, rel=1e-5)
    assert quantized.commitment_loss.item() == pytest.approx(sum(errors).item() / 4, rel=1e-5)


def test_training_targets_are_what_the_codes_were_chosen_for() -> None:
    quantizer, features = loud_tokenizer(SCHEDULE).quantizer, torch.randn(2, 6, 4, 4)
    quantized = quantizer(features)
    assert torch.equal(quantizer.nearest(quantized.targets_BLC), quantized.tokens_BL)
    maps = list(quantizer.maps(quantized.tokens_BL))
    left = F.interpolate(features - maps[1], size=(3, 3), mode="area").flatten(2).transpose(1, 2)
    assert torch.allclose(quantized.targets_BLC[:, 5:14], left, atol=1e-5)
    assert not quantized.targets_BLC.requires_grad and quantized.kept_BL.all()


# options of training


def test_the_rotation_is_that_of_the_paper() -> None:
    """Against an explicit matrix per cell; gradients turn with the code and are stretched."""
    features, codes = torch.randn(1, 5, 2, 2, requires_grad=True), torch.randn(1, 5, 2, 2)
    rotated = rotate_onto(features, codes)
    assert torch.allclose(rotated, codes, atol=1e-5)
    wish = torch.randn_like(codes)
    (rotated * wish).sum().backward()
    assert features.grad is not None
    for row in range(2):
        for column in range(2):
            e, q = features.detach()[0, :, row, column], codes[0, :, row, column]
            e_hat, q_hat = e / e.norm(), q / q.norm()
            middle = (e_hat + q_hat) / (e_hat + q_hat).norm()
            turn = torch.eye(5) - 2 * torch.outer(middle, middle) + 2 * torch.outer(q_hat, e_hat)
            assert torch.allclose(turn @ turn.T, torch.eye(5), atol=1e-5)
            expected = q.norm() / e.norm() * turn.T @ wish[0, :, row, column]
            assert torch.allclose(features.grad[0, :, row, column], expected, atol=1e-4)


@pytest.mark.parametrize("length", [0.0, 1e-9, -1.0])
def test_a_rotation_without_direction_stays_finite(length: float) -> None:
    codes = torch.randn(1, 5, 1, 1)
    features = (length * codes).requires_grad_()
    rotated = rotate_onto(features, codes)
    rotated.sum().backward()
    assert features.grad is not None and features.grad.isfinite().all()
    assert torch.allclose(rotated, codes, atol=1e-5)


def test_rotation_changes_gradients_of_the_encoder_alone() -> None:
    quantizer = loud_tokenizer(SCHEDULE).quantizer
    grads, values = [], []
    for rotate in (False, True):
        features = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
        quantized = quantizer(features, rotate=rotate)
        quantized.features_BChw.square().sum().backward()
        grads.append(features.grad)
        values.append(quantized)
    assert torch.allclose(values[0].features_BChw, values[1].features_BChw, atol=1e-5)
    assert torch.equal(values[0].codebook_loss, values[1].codebook_loss)
    assert not torch.allclose(grads[0], grads[1], atol=1e-2)
    assert quantizer.codebook.weight.grad is None


def test_samples_that_stop_early_end_in_the_map_of_their_scale() -> None:
    quantizer, features = loud_tokenizer(SCHEDULE).quantizer, torch.randn(4, 6, 4, 4)
    last = torch.tensor([0, 2, 3, 1])
    quantized = quantizer(features, last_scale_B=last)
    maps = [part.detach() for part in quantizer.maps(quantized.tokens_BL)]
    for sample, scale in enumerate(last.tolist()):
        assert torch.allclose(quantized.features_BChw[sample], maps[scale][sample], atol=1e-5)
    assert quantized.kept_BL.sum(dim=1).tolist() == [1, 14, 30, 5]
    errors = torch.tensor(
        [
            sum((maps[scale][sample] - features[sample]).square().mean() for scale in range(end + 1))
            / (end + 1)
            for sample, end in enumerate(last.tolist())
        ]
    )
    assert quantized.codebook_loss.item() == pytest.approx(errors.mean().item(), rel=1e-5)
    assert quantized.commitment_loss.item() == pytest.approx(errors.mean().item(), rel=1e-5)


def test_nobody_stopping_is_the_same_as_no_stopping() -> None:
    quantizer, features = loud_tokenizer(SCHEDULE).quantizer, torch.randn(4, 6, 4, 4)
    plain, whole = quantizer(features), quantizer(features, last_scale_B=torch.full((4,), 3))
    assert torch.equal(plain.features_BChw, whole.features_BChw) and torch.equal(plain.kept_BL, whole.kept_BL)
    assert plain.codebook_loss.item() == pytest.approx(whole.codebook_loss.item(), rel=1e-6)


def test_one_scale_is_the_quantiser_of_a_vqgan() -> None:
    """Nearest codes, straight through, two mean squared errors (van den Oord et al. 2017, equation 3)."""
    schedule = ScaleSchedule.square([4])
    quantizer = loud_tokenizer(schedule, num_phis=1, phi_ratio=0.0).quantizer
    features = torch.randn(3, 6, 4, 4, requires_grad=True)
    quantized = quantizer(features)
    vectors = features.detach().permute(0, 2, 3, 1).reshape(-1, 6)
    codes = quantizer.codebook.weight
    tokens = torch.cdist(vectors, codes).argmin(dim=1)
    assert torch.equal(quantized.tokens_BL, tokens.view(3, 16))
    chosen = codes[tokens].view(3, 4, 4, 6).permute(0, 3, 1, 2)
    expected = F.mse_loss(chosen, features.detach())
    assert torch.allclose(quantized.codebook_loss, expected) and torch.allclose(
        quantized.commitment_loss, expected
    )
    assert torch.allclose(quantized.features_BChw, chosen, atol=1e-6)
    mine = torch.autograd.grad(quantized.codebook_loss, codes, retain_graph=True)[0]
    assert torch.allclose(mine, torch.autograd.grad(expected, codes)[0], atol=1e-6)
    (pull,) = torch.autograd.grad(quantized.commitment_loss, features)
    assert torch.allclose(pull, 2 * (features - chosen).detach() / features.numel(), atol=1e-6)


@pytest.mark.parametrize("by_angle", [False, True])
@pytest.mark.parametrize("block", [1, 7, 40, 2**20])
def test_blocks_find_the_codes_that_all_distances_at_once_find(
    block: int, by_angle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextscale.tokenizer.quantizer._BLOCK", block)
    codes = torch.randint(-2, 3, (20, 3)).float()  # whole numbers: many codes are equally far
    vectors = torch.randint(-2, 3, (33, 3)).float()
    if by_angle:
        expected = (vectors @ codes.T).argmax(dim=1)
    else:
        expected = torch.cdist(vectors.double(), codes.double()).square().round().argmin(dim=1)
    assert nearest_rows(vectors, codes, by_angle=by_angle).equal(expected)
    assert nearest_rows(vectors[:0], codes).shape == (0,)
