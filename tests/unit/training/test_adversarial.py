"""Attacks against their optima, their bounds and their papers' algorithms; what they must leave alone."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.compression.fake_quantize import calibrate, insert_quantizers
from orchestrator.models.cifar_resnet import CifarResNet
from orchestrator.training.adversarial import Free, fgsm, make_perturbation, pgd, straight_through

# Pixels of three channels with means of 100, 120 and 90 and deviations of 50, 60 and 40.
MEAN, STD = (torch.tensor(values).view(1, 3, 1, 1) for values in ([100.0, 120.0, 90.0], [50.0, 60.0, 40.0]))
SCALE, OFFSET = 1 / STD, -MEAN / STD
LOW, HIGH = OFFSET, 255 * SCALE + OFFSET
EIGHT = 8 * SCALE

ATTACKS = ["fgsm", "pgd", "fast"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_pixels(count: int = 6) -> Tensor:
    """Whole pixels, the first row of each image black and the last white: there the range binds before the ball does."""
    pixels = torch.randint(0, 256, (count, 3, 8, 8), generator=seeded(1)).float()
    pixels[:, :, 0], pixels[:, :, -1] = 0.0, 255.0
    return pixels


def normalised(pixels: Tensor) -> Tensor:
    return pixels * SCALE + OFFSET


def to_pixels(images: Tensor) -> Tensor:
    return (images - OFFSET) / SCALE


def network(seed: int = 0) -> nn.Module:
    """A residual network whose statistics have seen images: in evaluation mode it does something else than before."""
    torch.manual_seed(seed)
    model = CifarResNet(8, 4, 5, 3)
    for _ in range(3):
        model(normalised(some_pixels()) * 2)
    return model


@pytest.fixture
def images() -> Tensor:
    return normalised(some_pixels())


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(6) % 5


def made(
    method: str, epsilon: float = 8 / 255, steps: int = 5, seed: int = 0, precision: str = "fp32"
) -> Callable[..., Tensor]:
    perturb = make_perturbation(method, epsilon, steps, 2 / 255, SCALE, OFFSET, seeded(seed), precision)
    assert perturb is not None
    return perturb


def losses(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        return F.cross_entropy(model(images), labels, reduction="none")


def unbounded() -> tuple[Tensor, Tensor]:
    return torch.full((1, 1, 1, 1), -1e9), torch.full((1, 1, 1, 1), 1e9)


def linear(weight: Tensor) -> nn.Module:
    """Logits of two classes from images (B, 1, 1, features)."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], 2, bias=False))
    model[1].weight.data = weight
    return model


def test_fgsm_is_the_exact_optimum_for_a_linear_model() -> None:
    """No corner of the ball has a larger loss, and a convex function is largest in a corner."""
    model = linear(torch.tensor([[0.5, -1.0, 2.0, 0.1], [-0.3, 0.4, 1.0, 0.7]]))
    points, labels = torch.randn(3, 1, 1, 4, generator=seeded()), torch.tensor([0, 1, 0])
    epsilon = torch.full((1, 1, 1, 1), 0.25)
    found = fgsm(model, points, labels, epsilon, *unbounded())
    towards = torch.tensor([-1.0, 1.0, -1.0, 1.0])  # the sign of the second row less the first: what helps class 1
    wanted = points + 0.25 * towards * torch.tensor([1.0, -1.0, 1.0]).view(3, 1, 1, 1)
    torch.testing.assert_close(found, wanted)
    best = losses(model, found, labels)
    for corner in itertools.product([-0.25, 0.25], repeat=4):
        assert bool((losses(model, points + torch.tensor(corner), labels) <= best + 1e-6).all())


@pytest.mark.parametrize("start", [0, None])
def test_pgd_reaches_that_optimum_too(start: int | None) -> None:
    model = linear(torch.tensor([[0.5, -1.0, 2.0], [-0.3, 0.4, 1.0]]))
    points, labels = torch.randn(4, 1, 1, 3, generator=seeded()), torch.tensor([0, 1, 0, 1])
    epsilon, step = (torch.full((1, 1, 1, 1), value) for value in (0.25, 0.1))
    generator = None if start is None else seeded(start)
    found = pgd(model, points, labels, epsilon, step, 6, *unbounded(), generator)
    torch.testing.assert_close(found, fgsm(model, points, labels, epsilon, *unbounded()))


@pytest.mark.parametrize("method", ATTACKS)
def test_images_stay_in_the_ball_and_in_the_pixel_range(method: str, images: Tensor, labels: Tensor) -> None:
    pixels = to_pixels(made(method)(network(), images, labels))
    assert float((pixels - some_pixels()).abs().max()) <= 8 + 1e-3
    assert float(pixels.min()) >= -1e-3
    assert float(pixels.max()) <= 255 + 1e-3
    in_every_channel = (pixels - some_pixels()).abs().amax((0, 2, 3))
    torch.testing.assert_close(in_every_channel, torch.full((3,), 8.0), rtol=0, atol=1e-3)


def test_a_random_start_is_uniform_in_the_ball(images: Tensor, labels: Tensor) -> None:
    """With no step, only the start is left."""
    start = pgd(network(), images, labels, EIGHT, EIGHT, 0, LOW - 9, HIGH + 9, seeded())
    moved = to_pixels(start) - some_pixels()
    assert float(moved.abs().max()) <= 8 + 1e-3
    assert float(moved.mean()) == pytest.approx(0, abs=0.5)
    assert float(moved.std()) == pytest.approx(16 / 12**0.5, rel=0.05)


def test_pgd_finds_no_smaller_loss_than_fgsm_and_fgsm_no_smaller_than_none(images: Tensor, labels: Tensor) -> None:
    model = network()
    clean = losses(model, images, labels)
    once = losses(model, made("fgsm")(model, images, labels), labels)
    often = losses(model, pgd(model, images, labels, EIGHT, EIGHT / 4, 20, LOW, HIGH, None), labels)
    assert bool((once > clean).all())
    assert bool((often >= once - 1e-5).all())
    assert float(often.mean()) > float(once.mean()) * 1.001


def test_fast_is_one_step_of_five_quarters_of_epsilon_from_a_random_start(images: Tensor, labels: Tensor) -> None:
    model = network().eval()
    unit = torch.rand(images.shape, generator=seeded(3))
    start = (images + EIGHT * (2 * unit - 1)).clamp(LOW, HIGH).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(start), labels), start)
    moved = (start + 1.25 * EIGHT * gradient.sign() - images).clamp(-EIGHT, EIGHT)
    torch.testing.assert_close(made("fast", seed=3)(model, images, labels), (images + moved).clamp(LOW, HIGH).detach())


@pytest.mark.parametrize("method", ATTACKS)
def test_examples_do_not_depend_on_their_batch(method: str, images: Tensor, labels: Tensor) -> None:
    model = network()
    together = made(method)(model, images, labels)
    perturb = made(method)  # the same draws, because they fill images in order
    apart = torch.cat([perturb(model, images[:4], labels[:4]), perturb(model, images[4:], labels[4:])])
    torch.testing.assert_close(apart, together, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["pgd", "fast"])
def test_equal_seeds_find_equal_images_and_the_global_generator_rests(method: str, images: Tensor, labels: Tensor) -> None:
    model = network()
    torch.manual_seed(9)
    wanted = torch.rand(3)
    torch.manual_seed(9)
    one, two = made(method, seed=4), made(method, seed=4)
    first = one(model, images, labels)
    assert torch.equal(torch.rand(3), wanted)
    assert torch.equal(first, two(model, images, labels))
    assert not torch.equal(first, one(model, images, labels))
    assert not torch.equal(first, made(method, seed=5)(model, images, labels))


@pytest.mark.parametrize("method", ATTACKS)
def test_nothing_of_the_network_moves(method: str, images: Tensor, labels: Tensor) -> None:
    model = network().train()
    model.bn.eval()  # a module may have a mode of its own
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    state, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    before = images.clone()
    found = made(method)(model, images, labels)
    assert torch.equal(images, before)
    assert not images.requires_grad
    assert not found.requires_grad
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model.fc.weight.grad, torch.ones_like(model.fc.weight))
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if name != "fc.weight")


def test_modes_are_put_back_after_an_error(images: Tensor) -> None:
    model = network().train()
    with pytest.raises(IndexError):
        made("pgd")(model, images, torch.full((6,), 77))
    assert all(module.training for module in model.modules())


def test_dropout_does_not_hide_pixels_from_an_attack() -> None:
    model = nn.Sequential(nn.Dropout(0.9), linear(torch.tensor([[1.0] * 40, [-1.0] * 40]))).train()
    found = fgsm(model, torch.zeros(2, 1, 1, 40), torch.tensor([0, 1]), torch.full((1, 1, 1, 1), 0.5), *unbounded())
    torch.testing.assert_close(found.flatten(1), torch.tensor([[-0.5], [0.5]]).expand(2, 40))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_finds_nearly_the_same_images(precision: str, images: Tensor, labels: Tensor) -> None:
    model = network()
    seen: list[torch.dtype] = []
    model.fc.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    full = made("fgsm")(model, images, labels)
    mixed = made("fgsm", precision=precision)(model, images, labels)
    assert seen == [torch.float32, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]]
    assert mixed.dtype == torch.float32
    assert not torch.equal(mixed, full)
    assert float(((mixed - images).sign() == (full - images).sign()).float().mean()) > 0.9
    assert float(losses(model, mixed, labels).mean()) > float(losses(model, images, labels).mean())
    assert bool(((mixed - images).abs() <= EIGHT + 1e-6).all())


def test_half_precision_still_sees_the_gradient_of_a_sure_network() -> None:
    """Its share of doubt is 3e-7 and the weights are 0.01: the product is below what half precision holds."""
    model = linear(torch.tensor([[0.01, -0.01, 7.5], [-0.01, 0.01, -7.5]]))
    points, labels = torch.tensor([0.0, 0.0, 1.0]).expand(512, 1, 1, 3), torch.zeros(512, dtype=torch.int64)
    found = fgsm(model, points, labels, torch.full((1, 1, 1, 1), 0.5), *unbounded(), "fp16")
    torch.testing.assert_close(found.flatten(1), torch.tensor([-0.5, 0.5, 0.5]).expand(512, 3))


def test_the_layout_of_the_batch_stays(images: Tensor, labels: Tensor) -> None:
    model = network().to(memory_format=torch.channels_last)
    batch = images.contiguous(memory_format=torch.channels_last)
    for method in [*ATTACKS, "free"]:
        found = made(method)(model, batch, labels)
        assert found.is_contiguous(memory_format=torch.channels_last), method


def test_an_attack_works_where_gradients_are_off(images: Tensor, labels: Tensor) -> None:
    model = network()
    wanted = made("pgd")(model, images, labels)
    with torch.no_grad():
        assert torch.equal(made("pgd")(model, images, labels), wanted)


def test_gradients_pass_the_quantizers_straight_through(images: Tensor, labels: Tensor) -> None:
    """Rounding has no slope anywhere, and yet the attack finds a way up."""
    model = insert_quantizers(network(), 8, 8, True)
    calibrate(model, [images], "minmax")
    found = made("pgd")(model, images, labels)
    noise = (images + EIGHT * (2 * torch.rand(images.shape, generator=seeded()) - 1).sign()).clamp(LOW, HIGH)
    clean, drawn, sought = (float(losses(model, batch, labels).mean()) for batch in (images, noise, found))
    assert sought > clean + 5 * abs(drawn - clean)


def test_pixels_on_the_ends_of_a_quantizers_range_are_changed_too(images: Tensor, labels: Tensor) -> None:
    """The first row is black and the last white: in the third channel, whose range is the widest, these are the ends.

    The zero point is rounded to a code, so that one of them lies beyond the range, where a quantizer's gradient is zero.
    """
    model = insert_quantizers(network(), 8, 8, True)
    calibrate(model, [images], "minmax")
    masked = made("fgsm")(model, images, labels)
    logits = model(images)
    with straight_through([model.quantize_0]):
        assert torch.equal(model(images), logits)
        found = made("fgsm")(model, images, labels)
    assert torch.equal(made("fgsm")(model, images, labels), masked)
    for row in (0, -1):  # half of the pixels would have to leave the pixel range
        assert 0.25 < float((found != images)[:, 2, row].float().mean()) < 0.75
    assert not bool((masked != images)[:, 2, 0].any()) or not bool((masked != images)[:, 2, -1].any())
    assert float(losses(model, found, labels).mean()) > float(losses(model, masked, labels).mean())


@pytest.fixture
def gang_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_the_reducer_of_ddp_does_not_see_an_attack(gang_of_one: None, images: Tensor, labels: Tensor) -> None:
    alone = network().train()
    together = nn.parallel.DistributedDataParallel(copy.deepcopy(alone))
    calls: list[int] = []
    together.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        found, wanted = made("pgd")(together, images, labels), made("pgd")(alone, images, labels)
        assert torch.equal(found, wanted)
        F.cross_entropy(together(found), labels).backward()
        F.cross_entropy(alone(wanted), labels).backward()
    assert len(calls) == 2  # the steps alone: every call of DDP may exchange buffers between ranks
    for theirs, ours in zip(together.module.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, ours.grad)


def batches_of_two() -> list[tuple[Tensor, Tensor]]:
    images = normalised(some_pixels(12))
    return [(images[:6], torch.arange(6) % 5), (images[6:], torch.arange(6) % 3)]


def test_free_training_is_algorithm_1_of_its_paper() -> None:
    """Against a loop written after the paper, that asks for both gradients at once and keeps the perturbation itself."""
    ours, theirs = network().train(), network().train()
    perturb = made("free", steps=3)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.05)
    for images, labels in batches_of_two() * 2:
        for _ in range(3):
            value = F.cross_entropy(ours(perturb(ours, images, labels)), labels)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    delta = torch.zeros(6, 3, 8, 8)
    for images, labels in batches_of_two() * 2:
        for _ in range(3):
            seen = (images + delta).clamp(LOW, HIGH).requires_grad_()
            value = F.cross_entropy(theirs(seen), labels)
            *of_weights, of_images = torch.autograd.grad(value, [*theirs.parameters(), seen])
            with torch.no_grad():
                for parameter, gradient in zip(theirs.parameters(), of_weights, strict=True):
                    parameter -= 0.05 * gradient
            delta = (delta + EIGHT * of_images.sign()).clamp(-EIGHT, EIGHT)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_free_training_calls_the_network_once_a_step() -> None:
    model = network().train()
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    perturb = made("free", steps=2)
    for images, labels in batches_of_two():
        for _ in range(2):
            F.cross_entropy(model(perturb(model, images, labels)), labels).backward()
    assert len(calls) == 4


def test_free_perturbations_start_at_zero_and_go_on_in_the_next_batch() -> None:
    model = network().train()
    perturb = made("free", steps=1)
    (first, labels), (second, others) = batches_of_two()
    seen = perturb(model, first, labels)
    torch.testing.assert_close(seen, first)
    F.cross_entropy(model(seen), labels).backward()
    delta = (EIGHT * seen.grad.sign()).clamp(-EIGHT, EIGHT)
    torch.testing.assert_close(perturb(model, second, others).detach(), (second + delta).clamp(LOW, HIGH))
    torch.testing.assert_close(perturb(model, first[:2], labels[:2]).detach(), first[:2])


def test_the_parts_of_a_batch_share_its_free_perturbation() -> None:
    """Accumulation cuts what it was given: each part's backward pass fills its part of the gradient."""
    model = network().eval()
    whole, parts = made("free", steps=2), made("free", steps=2)
    images, labels = batches_of_two()[0]
    F.cross_entropy(model(whole(model, images, labels)), labels).backward()
    batch = parts(model, images, labels)
    for part, truth in zip(batch.split(2), labels.split(2), strict=True):
        F.cross_entropy(model(part), truth).backward()
    torch.testing.assert_close(parts(model, images, labels), whole(model, images, labels))


def test_free_training_refuses_a_loop_that_does_not_repeat() -> None:
    perturb = made("free", steps=2)
    (first, labels), (second, others) = batches_of_two()
    perturb(network(), first, labels)
    with pytest.raises(AssertionError, match="takes the whole batch `repeats` times"):
        perturb(network(), second, others)


def test_the_methods_by_name(images: Tensor, labels: Tensor) -> None:
    model = network()
    assert make_perturbation("none", 0.1, 1, 0.1, SCALE, OFFSET, seeded()) is None
    torch.testing.assert_close(made("fgsm")(model, images, labels), fgsm(model, images, labels, EIGHT, LOW, HIGH))
    wanted = pgd(model, images, labels, EIGHT, EIGHT / 4, 5, LOW, HIGH, seeded(2))
    torch.testing.assert_close(made("pgd", seed=2)(model, images, labels), wanted)
    assert isinstance(made("free"), Free)
    with pytest.raises(ValueError, match="must be none, fgsm, pgd, fast or free; given 'cw'"):
        make_perturbation("cw", 0.1, 1, 0.1, SCALE, OFFSET, seeded())
