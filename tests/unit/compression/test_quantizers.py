"""Quantizers alone: their codes, their gradients, and where their ranges come from."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from orchestrator.compression.quantizers import ActivationQuantizer, WeightQuantizer
from orchestrator.compression.ranges import activation_range, weight_scales
from orchestrator.errors import DivergedError
from orchestrator.training.optimizers import split_parameters

BITS = range(2, 9)
METHODS = ["minmax", "percentile", "mse"]

torch.set_num_threads(1)


def weights(seed: int = 0, shape: tuple[int, ...] = (6, 4, 3, 3)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.linspace(0.01, 3.0, shape[0]).view(-1, *[1] * (len(shape) - 1))


def calibrated(values: Tensor, bits: int, method: str = "minmax") -> ActivationQuantizer:
    quantizer = ActivationQuantizer(bits)
    assert torch.equal(quantizer(values), values)
    quantizer.calibrate(method)
    return quantizer


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (6, 40), (6, 1, 3, 3)])
def test_weight_codes_are_whole_and_within_their_bits(bits: int, shape: tuple[int, ...]) -> None:
    weight = weights(shape=shape)
    quantizer = WeightQuantizer(weight, bits)
    assert quantizer.scale.shape == (6,)
    codes = (quantizer(weight).flatten(1) / quantizer.scale[:, None]).detach()
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
    assert codes.round().abs().max() <= 2 ** (bits - 1) - 1
    assert max(len(row.round().unique()) for row in codes) <= 2**bits - 1


@pytest.mark.parametrize("bits", BITS)
def test_activation_codes_are_whole_and_within_their_bits(bits: int) -> None:
    values = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + 0.5
    quantizer = calibrated(values, bits)
    out = quantizer(3 * values).detach()  # well beyond the range that was seen
    codes = out / quantizer.scale.detach() + quantizer.zero_point.detach()
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
    assert (int(codes.round().min()), int(codes.round().max())) == (0, 2**bits - 1)
    assert len(out.unique()) <= 2**bits


def lsq(values: Tensor, step: Tensor, lowest: Tensor | float, highest: Tensor | float, factor: float) -> Tensor:
    """Esser et al. 2020, equations 1 and 2, by autograd: a gradient passes through a rounding as if there were none."""
    scaled = (step - step * factor).detach() + step * factor
    clipped = torch.clamp(values / scaled, lowest, highest)
    return ((clipped.round() - clipped).detach() + clipped) * scaled


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (6, 40), (6, 1, 3, 3)])
def test_weights_learn_as_the_paper_says(bits: int, granularity: str, shape: tuple[int, ...]) -> None:
    weight, upstream = weights(shape=shape).requires_grad_(), weights(1, shape)
    quantizer = WeightQuantizer(weight, bits, granularity)
    quantizer.relative_step.data *= 0.9  # so that some are clipped, and none lies on the very end
    out = quantizer(weight)
    (out * upstream).sum().backward()
    per_channel = granularity == "channel"
    step, values = leaf(quantizer.scale if per_channel else quantizer.scale[:1]), leaf(weight)
    limit, num = 2 ** (bits - 1) - 1, weight[0].numel() if per_channel else weight.numel()
    wanted = lsq(values, step.view(-1, *[1] * (len(shape) - 1)), -limit, limit, 1 / math.sqrt(num * limit))
    (wanted * upstream).sum().backward()
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(weight.grad, values.grad)
    # The parameter counts units; its gradient is such that a step of descent moves the step size by the paper's.
    torch.testing.assert_close(quantizer.relative_step.grad * quantizer.unit, step.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shift", [0.0, -0.4])
@pytest.mark.parametrize("stretch", [0.7, 1.3])
def test_activations_learn_as_the_paper_says(bits: int, shift: float, stretch: float) -> None:
    """Of both signs too, where the zero point moves the offset as in LSQ+: only what is clipped pulls at it."""
    generator = torch.Generator().manual_seed(1)
    seen = torch.rand(4, 3, 8, 8, generator=generator) + shift
    quantizer = calibrated(seen, bits)
    upstream = torch.randn(seen.shape, generator=generator)
    x = (seen * stretch).requires_grad_()
    out = quantizer(x)
    (out * upstream).sum().backward()
    step, values, (scale, zero) = leaf(quantizer.scale), leaf(x), quantizer.codes()
    limit = 2**bits - 1
    factor = 1 / math.sqrt(3 * 8 * 8 * limit)
    wanted = lsq(values, step, -zero, limit - zero, factor)
    (wanted * upstream).sum().backward()
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(x.grad, values.grad)
    torch.testing.assert_close(quantizer.relative_step.grad * scale, step.grad, rtol=1e-3, atol=1e-4)
    if shift:
        clipped = (values / step <= -zero) | (values / step >= limit - zero)
        offset_gradient = (upstream * clipped).sum() * factor
        torch.testing.assert_close(quantizer.zero_point.grad, (-offset_gradient / scale).reshape(1).detach())
    else:
        assert quantizer.zero_point.grad is None


def test_half_a_step_beyond_the_range_is_beyond_it() -> None:
    """torch's own kernels take 1.3 steps above the last code as inside; the paper does not."""
    quantizer = calibrated(torch.tensor([[0.0, 3.0]]), 2)
    x = torch.tensor([[1.3, 2.9, 3.3, 4.0]], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [[1, 1, 0, 0]]
    learnt = quantizer.relative_step.grad.item() * math.sqrt(4 * 3)
    assert learnt == pytest.approx((1 - 1.3) + (3 - 2.9) + 3 + 3, rel=1e-5)


def test_what_follows_may_write_into_the_outcome() -> None:
    """As a dropout in place does, before the classifier of some torchvision networks."""
    quantizer, values = calibrated(torch.rand(4, 16), 4), torch.rand(4, 16)
    gradients = []
    for write in (lambda out: out * 0.5, lambda out: out.mul_(0.5)):
        x = leaf(values)
        quantizer.relative_step.grad = None
        write(quantizer(x)).square().sum().backward()
        gradients.append((x.grad, quantizer.relative_step.grad))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert torch.equal(gradients[0][1], gradients[1][1])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("bits", "moves"), [(2, 10), (4, 10), (8, 3)])  # rounding to many codes is soon another
def test_gradient_descent_moves_the_step_as_it_moves_the_papers(bits: int, moves: int, momentum: float) -> None:
    weight = weights(shape=(6, 40))
    quantizer = WeightQuantizer(weight, bits)
    quantizer.relative_step.data *= 0.9
    before = quantizer.step()
    step = nn.Parameter(before.clone())
    limit = 2 ** (bits - 1) - 1
    factor = 1 / math.sqrt(40 * limit)
    ours = torch.optim.SGD([quantizer.relative_step], lr=0.02, momentum=momentum)
    papers = torch.optim.SGD([step], lr=0.02, momentum=momentum)
    for _ in range(moves):
        for optimizer, out in ((ours, quantizer(weight)), (papers, lsq(weight, step[:, None], -limit, limit, factor))):
            optimizer.zero_grad()
            (out - 1.3 * weight).square().mean(1).sum().backward()
            optimizer.step()
    torch.testing.assert_close(quantizer.step(), step.detach(), rtol=1e-3, atol=1e-6)
    assert (quantizer.step() / before - 1).abs().max() > 0.005


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_a_move_of_adam_is_a_fraction_of_the_step_whatever_its_size(size: float) -> None:
    weight = size * weights(shape=(6, 40))
    quantizer = WeightQuantizer(weight, 8, "tensor")
    before = quantizer.step()
    optimizer = torch.optim.AdamW(quantizer.parameters(), lr=0.01, weight_decay=0.0)
    (quantizer(weight) / size).square().sum().backward()
    optimizer.step()
    assert (quantizer.step() / before - 1).abs().tolist() == pytest.approx([0.01] * 6, rel=1e-3)


def test_a_step_stays_positive_and_comes_back() -> None:
    weight = weights(shape=(6, 40))
    quantizer = WeightQuantizer(weight, 4)
    quantizer.relative_step.data.fill_(-3.0)  # as a rate that is far too large leaves it
    assert (quantizer.step() > 0).all()
    for sign, moves in ((1, False), (-1, True)):
        quantizer.relative_step.grad = None
        (sign * quantizer.scale.sum()).backward()
        assert ((quantizer.relative_step.grad != 0) == moves).all()
    assert quantizer(weight).isfinite().all()


def test_optimizers_do_not_decay_step_sizes() -> None:
    layers = nn.ModuleList([WeightQuantizer(weights(), 4), WeightQuantizer(weights(), 4, "tensor"), ActivationQuantizer(4)])
    decayed, spared = split_parameters(layers)
    assert decayed == []
    assert len(spared) == 4


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_a_step_for_every_channel_or_one_for_all(granularity: str) -> None:
    weight = weights()
    quantizer = WeightQuantizer(weight, 4, granularity)
    assert quantizer.step().shape == (6,)
    assert len(quantizer.step().unique()) == len(quantizer.relative_step) == (6 if granularity == "channel" else 1)
    rows = weight.flatten(1) if granularity == "channel" else weight.reshape(1, -1)
    torch.testing.assert_close(quantizer.step(), weight_scales(rows, 7).expand(6))
    codes = quantizer(weight).detach().flatten(1) / quantizer.step()[:, None]
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)


def test_another_granularity_is_refused() -> None:
    with pytest.raises(ValueError, match="must be channel or tensor; given 'group'"):
        WeightQuantizer(weights(), 4, "group")


def test_gradients_pass_straight_through_inside_the_range_and_stop_outside() -> None:
    quantizer = calibrated(torch.linspace(0, 1, 101).view(1, -1), 4)
    x = torch.tensor([[-0.5, 0.33, 0.5, 1.5]], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0, 1, 1, 0]]


@pytest.mark.parametrize("bits", [2, 4])
def test_learning_the_scale_lowers_the_error(bits: int) -> None:
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    quantizer = WeightQuantizer(weight, bits)
    quantizer.relative_step.data *= 3  # a bad start
    first = (quantizer(weight) - weight).square().sum().item()
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        (quantizer(weight) - weight).square().mean().backward()
        optimizer.step()
    assert (quantizer(weight) - weight).square().sum().item() < 0.7 * first


def test_eight_bits_are_close_to_float() -> None:
    weight = weights()
    error = (WeightQuantizer(weight, 8)(weight) - weight).flatten(1).norm(dim=1) / weight.flatten(1).norm(dim=1)
    assert error.max().item() < 0.01
    values = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert ((calibrated(values, 8)(values) - values).norm() / values.norm()).item() < 0.01


def test_fewer_bits_lose_more() -> None:
    weight = weights()
    errors = [(WeightQuantizer(weight, bits)(weight) - weight).norm().item() for bits in BITS]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 20 * errors[-1]


@pytest.mark.parametrize("shift", [0.0, -0.4])
@pytest.mark.parametrize("num", [1, 7, 64])
def test_block_by_block_is_all_at_once(monkeypatch: pytest.MonkeyPatch, shift: float, num: int) -> None:
    seen = torch.rand(num, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + shift
    quantizer = calibrated(seen, 4)
    outcomes = []
    for block in (seen[:3].numel(), 2**40):
        monkeypatch.setattr("orchestrator.compression.quantizers._BLOCK_VALUES", block)
        values = leaf(1.2 * seen)
        quantizer.zero_grad()
        out = quantizer(values)
        (out * seen).sum().backward()
        grads = [p.grad for p in quantizer.parameters() if p.grad is not None]
        outcomes.append([out.detach(), values.grad, *(grad.clone() for grad in grads)])
    assert len(outcomes[0]) == (4 if shift else 3)
    torch.testing.assert_close(outcomes[0], outcomes[1])


def test_bf16_values_are_quantized_in_full_precision_and_stay_bf16() -> None:
    values = torch.rand(4, 16, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    quantizer = calibrated(values, 8)
    out = quantizer(values)
    assert torch.equal(out, quantizer(values.detach().float()).bfloat16())
    out.sum().backward()
    assert values.grad.dtype == torch.bfloat16
    assert WeightQuantizer(weights(), 8)(weights().bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_what_is_never_negative_keeps_zero_at_code_nothing(method: str, bits: int) -> None:
    values = torch.relu(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    quantizer = calibrated(values, bits, method)
    scale, zero_point = quantizer.codes()
    assert zero_point == 0
    assert scale > 0
    assert not quantizer.zero_point.requires_grad
    assert quantizer(torch.zeros(1, 4)).abs().max().item() == 0


@pytest.mark.parametrize("method", METHODS)
def test_zero_is_exact_with_both_signs(method: str) -> None:
    values = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)) - 0.7
    quantizer = calibrated(values, 8, method)
    assert quantizer.zero_point.requires_grad
    assert 0 < quantizer.codes()[1] < 255
    assert quantizer(torch.zeros(1, 4)).abs().max().item() == 0


def test_codes_are_those_that_quantization_uses() -> None:
    values = torch.randn(64, generator=torch.Generator().manual_seed(3)).view(4, 16)
    quantizer = calibrated(values, 4)
    quantizer.zero_point.data += 0.4  # as training leaves it
    quantizer.relative_step.data *= 1.1
    scale, zero_point = quantizer.codes()
    wanted = ((values / scale).round() + zero_point).clamp(0, 15).sub(zero_point).mul(scale)
    torch.testing.assert_close(quantizer(values).detach(), wanted)


def test_reading_the_codes_warns_of_nothing() -> None:
    quantizer = calibrated(torch.rand(4, 4), 8)
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            quantizer.codes()
    finally:
        torch.set_warn_always(False)


def test_a_quantizer_watches_many_batches_before_it_decides() -> None:
    quantizer = ActivationQuantizer(8)
    for high in (1.0, 5.0, 2.0):
        quantizer(torch.linspace(-0.5, high, 50).view(1, -1))
    quantizer.calibrate("minmax")
    scale, zero_point = quantizer.codes()
    assert scale == pytest.approx(5.5 / 255)
    assert zero_point == round(0.5 / scale)


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_nothing_but_zeros_gets_codes_that_more_can_come_of(method: str) -> None:
    quantizer = calibrated(torch.zeros(2, 8), 4, method)
    assert torch.equal(quantizer(torch.zeros(2, 8)), torch.zeros(2, 8))
    assert quantizer.codes() == (pytest.approx(1 / 15), 0)
    x = torch.full((2, 8), 0.4, requires_grad=True)
    quantizer(x).sum().backward()
    assert (x.grad == 1).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [1e-3, 2.0, -2.0, 1e4])
@pytest.mark.parametrize("num", [1, 2, 100])
def test_a_constant_is_kept(method: str, value: float, num: int) -> None:
    quantizer = calibrated(torch.full((1, num), value), 8, method)
    assert quantizer(torch.full((1, 4), value)).tolist()[0] == pytest.approx([value] * 4, rel=0.01)
    assert quantizer(torch.zeros(1, 4)).abs().max().item() == 0


@pytest.mark.parametrize("method", METHODS)
def test_what_is_never_positive_keeps_zero_at_the_last_code(method: str) -> None:
    values = -torch.rand(4, 64, generator=torch.Generator().manual_seed(0))
    quantizer = calibrated(values, 4, method)
    assert quantizer.codes()[1] == 15
    assert ((quantizer(values) - values).norm() / values.norm()).item() < 0.1


def test_a_percentile_of_almost_nothing_but_zeros_keeps_the_rest() -> None:
    values = torch.zeros(10_000)
    values[17] = 3.0
    assert activation_range(values, 15, "percentile") == (0.0, 3.0)


@settings(deadline=None, max_examples=200)
@given(
    values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=6),
    method=st.sampled_from(METHODS),
    bits=st.sampled_from([2, 4, 8]),
)
def test_every_calibration_ends_in_a_positive_step_and_a_code_for_zero(values: list[float], method: str, bits: int) -> None:
    quantizer = calibrated(torch.tensor([values]), bits, method)
    scale, zero_point = quantizer.codes()
    assert 0 < scale < math.inf
    assert 0 <= zero_point <= 2**bits - 1
    assert quantizer(torch.tensor([values])).isfinite().all()
    assert quantizer(torch.zeros(1, 1)).item() == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_activations_that_are_not_finite_end_the_trial(method: str, bad: float) -> None:
    quantizer = ActivationQuantizer(8)
    quantizer(torch.tensor([[1.0, bad]]))
    with pytest.raises(DivergedError, match="calibration needs finite activations"):
        quantizer.calibrate(method)


def test_an_unknown_calibration_is_refused() -> None:
    with pytest.raises(ValueError, match="must be minmax, percentile or mse; given 'entropy'"):
        activation_range(torch.ones(3), 15, "entropy")


def test_one_large_value_among_many_is_seen() -> None:
    values = torch.zeros(64, 16, 32, 32)
    values[40, 3, 7, 21] = 9.0
    assert calibrated(values, 8).codes()[0] == pytest.approx(9 / 255)


def test_every_column_of_the_images_is_seen() -> None:
    """64 x 16 x 32 x 32 values, of which 2^15 are kept: each 32nd would be the first column of every row."""
    values = torch.linspace(0, 1, 32).expand(64, 16, 32, 32)
    quantizer = ActivationQuantizer(8)
    quantizer(values)
    seen = quantizer._seen.values()
    assert len(seen) == (1 << 15) + 2
    assert len(seen.unique()) == 32
    assert seen.mean().item() == pytest.approx(0.5, abs=0.01)


def test_many_batches_are_kept_in_bounded_memory_and_count_the_same() -> None:
    quantizer = ActivationQuantizer(8)
    for batch in range(200):
        quantizer(torch.full((1, 1 << 15), float(batch)))
    seen = quantizer._seen.values()
    assert len(seen) <= (1 << 20) + 400
    assert seen.mean().item() == pytest.approx(99.5, abs=2)
    assert (seen.min().item(), seen.max().item()) == (0.0, 199.0)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), bits=st.sampled_from([2, 3, 4, 8]), power=st.floats(1.0, 4.0))
def test_weight_scales_lose_no_more_than_the_plain_maximum(seed: int, bits: int, power: float) -> None:
    weight = weights(seed)
    weight = weight.sign() * weight.abs() ** power
    limit = 2 ** (bits - 1) - 1
    flat = weight.flatten(1)

    def error(scale: Tensor) -> Tensor:
        return ((flat / scale[:, None]).round().clamp(-limit, limit) * scale[:, None] - flat).square().sum(1)

    ours, plain = error(weight_scales(flat, limit)), error(flat.abs().amax(1) / limit)
    assert (ours <= plain * (1 + 1e-5)).all()


@pytest.mark.parametrize("bits", BITS)
def test_the_start_loses_less_than_the_papers(bits: int) -> None:
    """2 mean|v| / sqrt(limit), section 2.1, for weights and for what a rectifier lets through."""
    weight, limit = weights(), 2 ** (bits - 1) - 1
    papers = lsq(weight, (2 * weight.abs().flatten(1).mean(1) / math.sqrt(limit)).view(-1, 1, 1, 1), -limit, limit, 1.0)
    ours = WeightQuantizer(weight, bits)(weight)
    assert (ours - weight).norm() <= (papers - weight).norm()
    values, limit = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).relu(), 2**bits - 1
    papers = lsq(values, 2 * values.mean() / math.sqrt(limit), 0, limit, 1.0)
    assert (calibrated(values, bits, "mse")(values) - values).norm() <= (papers - values).norm()


@pytest.mark.parametrize("outlier", [10.0, 30.0])
def test_one_large_weight_does_not_set_the_step_of_all(outlier: float) -> None:
    row = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    row[0, 5] = outlier
    alone = weight_scales(row[:, 6:], 1).item()
    assert weight_scales(row, 1).item() == pytest.approx(alone, rel=0.6)
    assert weight_scales(row, 1).item() < 2.0


def test_a_channel_of_zeros_has_the_step_of_the_others() -> None:
    rows = weights().flatten(1)
    rows[2] = 0
    scales = weight_scales(rows, 7)
    assert scales[2].item() == pytest.approx(scales[[0, 1, 3, 4, 5]].mean().item())
    assert weight_scales(torch.zeros(2, 5), 7).tolist() == pytest.approx([1 / 7] * 2)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_weight_scales_beat_the_plain_maximum_at_few_bits(bits: int) -> None:
    weight, limit = weights(), 2 ** (bits - 1) - 1
    flat = weight.flatten(1)
    errors = []
    for scale in (weight_scales(flat, limit), flat.abs().amax(1) / limit):
        rounded = (flat / scale[:, None]).round().clamp(-limit, limit) * scale[:, None]
        errors.append((rounded - flat).square().sum().item())
    assert errors[0] < 0.9 * errors[1]


def test_a_channel_of_zeros_stays_zero() -> None:
    weight = weights()
    weight[2] = 0
    out = WeightQuantizer(weight, 4)(weight)
    assert out.isfinite().all()
    assert out[2].abs().max().item() == 0


@pytest.mark.parametrize(("method", "wanted"), [("minmax", (-2.0, 10.0)), ("percentile", (-1.0, 1.0))])
def test_ranges_cover_the_extremes_or_leave_them_out(method: str, wanted: tuple[float, float]) -> None:
    values = torch.cat([torch.linspace(-1, 1, 9998), torch.tensor([-2.0, 10.0])])
    assert activation_range(values, 255, method) == pytest.approx(wanted, abs=0.01)


@pytest.mark.parametrize("limit", [3, 15, 255])
@pytest.mark.parametrize("shift", [0.0, 1.0, -2.0])
def test_the_least_error_range_loses_no_more_than_the_extremes(limit: int, shift: float) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5000, generator=generator) ** 3 + shift

    def error(ends: tuple[float, float]) -> float:
        scale = (ends[1] - ends[0]) / limit
        zero = round(-ends[0] / scale)
        return (((values / scale).round() + zero).clamp(0, limit).sub(zero).mul(scale) - values).square().mean().item()

    best = activation_range(values, limit, "mse")
    extremes = activation_range(values, limit, "minmax")
    assert best[0] <= 0 <= best[1]
    assert error(best) <= error(extremes) * (1 + 1e-6)
    if limit == 3:
        assert error(best) < 0.8 * error(extremes)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [-3.0, -2.0, -1.0]])
def test_every_range_contains_zero(method: str, values: list[float]) -> None:
    low, high = activation_range(torch.tensor(values), 255, method)
    assert low <= 0 <= high
    assert low < high
