"""Quantizers alone: their codes, their gradients, and where their ranges come from."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orchestrator.compression.quantizers import ActivationQuantizer, WeightQuantizer, activation_range, weight_scales

BITS = range(2, 9)


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
    codes = quantizer(weight).flatten(1) / quantizer.scale[:, None]
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
    assert codes.round().abs().max() <= 2 ** (bits - 1) - 1
    assert max(len(row.round().unique()) for row in codes.detach()) <= 2**bits - 1


@pytest.mark.parametrize("bits", BITS)
def test_activation_codes_are_whole_and_within_their_bits(bits: int) -> None:
    values = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + 0.5
    quantizer = calibrated(values, bits)
    out = quantizer(3 * values).detach()  # well beyond the range that was seen
    codes = out / quantizer.scale.detach() + quantizer.zero_point.detach()
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
    assert (int(codes.round().min()), int(codes.round().max())) == (0, 2**bits - 1)
    assert len(out.unique()) <= 2**bits


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_learnt_scales_get_gradients(bits: int) -> None:
    weight = weights().requires_grad_()
    quantizer = WeightQuantizer(weight, bits)
    quantizer(weight).square().sum().backward()
    assert quantizer.scale.grad is not None
    assert (quantizer.scale.grad != 0).all()
    assert weight.grad is not None
    assert (weight.grad != 0).any()
    values = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    activation = calibrated(values, bits)
    activation(values).square().sum().backward()
    assert activation.scale.grad is not None
    assert activation.scale.grad.abs().item() > 0
    assert activation.zero_point.grad is not None


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
    quantizer.scale.data *= 3  # a bad start
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


def test_bf16_values_are_quantized_in_full_precision() -> None:
    values = torch.rand(4, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    quantizer = calibrated(values, 8)
    assert quantizer(values).dtype == torch.float32
    assert WeightQuantizer(weights(), 8)(weights().bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_what_is_never_negative_keeps_zero_at_code_nothing(method: str, bits: int) -> None:
    values = torch.relu(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    quantizer = calibrated(values, bits, method)
    scale, zero_point = quantizer.codes()
    assert zero_point == 0
    assert scale > 0
    assert not quantizer.zero_point.requires_grad
    assert quantizer(torch.zeros(1, 4)).abs().max().item() == 0


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
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
    quantizer.scale.data *= -1.1
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


def test_a_tensor_of_nothing_but_zeros_can_be_calibrated() -> None:
    for method in ("minmax", "percentile", "mse"):
        quantizer = calibrated(torch.zeros(2, 8), 4, method)
        assert torch.equal(quantizer(torch.zeros(2, 8)), torch.zeros(2, 8))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), bits=st.sampled_from([2, 3, 4, 8]), power=st.floats(1.0, 4.0))
def test_weight_scales_lose_no_more_than_the_plain_maximum(seed: int, bits: int, power: float) -> None:
    weight = weights(seed)
    weight = weight.sign() * weight.abs() ** power
    limit = 2 ** (bits - 1) - 1
    flat = weight.flatten(1)

    def error(scale: Tensor) -> Tensor:
        return ((flat / scale[:, None]).round().clamp(-limit, limit) * scale[:, None] - flat).square().sum(1)

    ours, plain = error(weight_scales(weight, limit)), error(flat.abs().amax(1) / limit)
    assert (ours <= plain * (1 + 1e-5)).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_weight_scales_beat_the_plain_maximum_at_few_bits(bits: int) -> None:
    weight, limit = weights(), 2 ** (bits - 1) - 1
    flat = weight.flatten(1)
    errors = []
    for scale in (weight_scales(weight, limit), flat.abs().amax(1) / limit):
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


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [-3.0, -2.0, -1.0]])
def test_every_range_contains_zero(method: str, values: list[float]) -> None:
    low, high = activation_range(torch.tensor(values), 255, method)
    assert low <= 0 <= high
    assert low < high
