"""The file that ships: what is in it, and that it computes what the network computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

from orchestrator.compression.fake_quantize import calibrate, insert_quantizers, settle_biases
from orchestrator.compression.folding import fold_norms
from orchestrator.compression.grids import Grids, TensorGrid, split_off_grids
from orchestrator.compression.onnx_export import FromPixels, export_float, export_quantized
from orchestrator.data.batches import DeviceData
from orchestrator.errors import UnbuildableError
from orchestrator.models.cifar_resnet import CifarResNet

Quantize = Callable[..., fx.GraphModule]
Floats = Any

EXAMPLE = torch.zeros(1, 1, 8, 8)


def served(path: Path, pixels: Tensor) -> Floats:
    """Logits of the file in the runtime, opened without any of our code."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": pixels.numpy()})[0]


def wrapper(digits: DeviceData) -> Callable[[nn.Module], FromPixels]:
    return FromPixels.of(digits.normalizer.scale, digits.normalizer.offset)


def write_float(model: nn.Module, digits: DeviceData, path: Path) -> Path:
    export_float(wrapper(digits)(fold_norms(model)), EXAMPLE, path)
    return path


def write_quantized(graph: fx.GraphModule, digits: DeviceData, path: Path) -> Path:
    folded, grids = split_off_grids(graph)
    export_quantized(wrapper(digits)(folded), grids.below(FromPixels.NETWORK), EXAMPLE, path)
    return path


def graph_logits(model: nn.Module, digits: DeviceData) -> Floats:
    with torch.no_grad():
        return model.eval()(digits.normalizer(digits.images)).numpy()


def assert_computes_the_graph(path: Path, graph: nn.Module, digits: DeviceData, pixels: Tensor) -> None:
    """Every prediction, and the very logits but for a few images in which a sum lay on the edge between two codes."""
    got, wanted = served(path, pixels), graph_logits(graph, digits)
    assert float((got.argmax(1) == wanted.argmax(1)).mean()) >= 0.995
    assert float(np.isclose(got, wanted, rtol=1e-4, atol=1e-4).all(1).mean()) >= 0.9


def integers(path: Path, shape: tuple[int, int, int] = (1, 8, 8)) -> dict[str, Any]:
    """Layer to the integers of its weight, as the runtime unpacks them."""
    proto = onnx.load(str(path))
    names = {
        node.input[1].removesuffix(".step"): node.input[0]
        for node in proto.graph.node
        if node.op_type == "DequantizeLinear" and node.input[1].endswith(".step")
    }
    stored = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
    made = [name for name in names.values() if name not in stored]
    for name in made:
        proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.INT8, None))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    unpacked = dict(zip(made, session.run(made, {"image": np.zeros((1, *shape), np.float32)}), strict=True)) if made else {}
    return {layer: {**stored, **unpacked}[name] for layer, name in names.items()}


def kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(str(path)).graph.node]


def assert_names_nothing_of_this_machine(path: Path) -> None:
    content = path.read_bytes()
    repository = str(Path(__file__).parents[3]).encode()
    for trace in (repository, b"/home", b"/tmp", b".py", b"site-packages", b"Traceback"):
        assert trace not in content, trace


# --- float ---------------------------------------------------------------------------------------------------------------


def test_a_float_file_computes_the_network_from_pixels(
    tmp_path: Path, dense: nn.Module, digits: DeviceData, pixels: Tensor
) -> None:
    path = write_float(dense, digits, tmp_path / "model.onnx")
    np.testing.assert_allclose(served(path, pixels), graph_logits(dense, digits), rtol=1e-3, atol=1e-3)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("num", [1, 2, 7])
def test_a_file_takes_any_number_of_images(
    tmp_path: Path, dense: nn.Module, digits: DeviceData, pixels: Tensor, num: int
) -> None:
    path = write_float(dense, digits, tmp_path / "model.onnx")
    np.testing.assert_allclose(served(path, pixels[:num]), graph_logits(dense, digits)[:num], rtol=1e-3, atol=1e-3)


def test_a_float_file_is_checked_stripped_and_free_of_norms(tmp_path: Path, dense: nn.Module, digits: DeviceData) -> None:
    path = write_float(dense, digits, tmp_path / "model.onnx")
    proto = onnx.load(str(path))
    onnx.checker.check_model(proto, full_check=True)
    assert "BatchNormalization" not in kinds(path)
    assert [one.name for one in proto.graph.input] == ["image"]
    assert [one.name for one in proto.graph.output] == ["logits"]
    assert not proto.graph.value_info
    assert not proto.metadata_props
    assert all(not node.metadata_props and not node.doc_string for node in proto.graph.node)
    assert_names_nothing_of_this_machine(path)


def test_exporting_leaves_the_network_as_it_was(tmp_path: Path, dense: nn.Module, digits: DeviceData) -> None:
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    write_float(dense, digits, tmp_path / "model.onnx")
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


def test_a_small_network_gives_a_smaller_file(tmp_path: Path, dense: nn.Module, narrow: nn.Module, digits: DeviceData) -> None:
    large, small = (write_float(model, digits, tmp_path / f"{id(model)}.onnx") for model in (dense, narrow))
    weights = [sum(parameter.numel() for parameter in model.parameters()) for model in (dense, narrow)]
    saved = large.stat().st_size - small.stat().st_size
    assert saved == pytest.approx(4 * (weights[0] - weights[1]), rel=0.05)


# --- the kept graph -------------------------------------------------------------------------------------------------------


def test_another_width_through_the_kept_graph_is_the_file_of_a_fresh_translation(
    tmp_path: Path, dense: nn.Module, narrow: nn.Module, digits: DeviceData, fresh_graphs: dict[str, Any]
) -> None:
    write_float(dense, digits, tmp_path / "first.onnx")
    quantized_bytes(dense, digits, tmp_path / "first4.onnx")
    kept = list(fresh_graphs.values())
    assert len(kept) == 2  # with quantizers and without
    through_kept = write_float(narrow, digits, tmp_path / "kept.onnx").read_bytes()
    quantized = quantized_bytes(narrow, digits, tmp_path / "kept4.onnx")
    assert [id(graph) for graph in fresh_graphs.values()] == [id(graph) for graph in kept]
    fresh_graphs.clear()
    assert write_float(narrow, digits, tmp_path / "fresh.onnx").read_bytes() == through_kept
    assert quantized_bytes(narrow, digits, tmp_path / "fresh4.onnx") == quantized


def quantized_bytes(model: nn.Module, digits: DeviceData, path: Path) -> bytes:
    graph = insert_quantizers(model, 4, 6, first_last_8bit=True)
    calibrate(graph, [digits.normalizer(digits.images[:64])], "mse")
    settle_biases(graph)
    return write_quantized(graph, digits, path).read_bytes()


def test_an_untrained_network_through_the_kept_graph_is_the_file_of_a_fresh_translation(
    tmp_path: Path, dense: nn.Module, digits: DeviceData, fresh_graphs: dict[str, Any]
) -> None:
    write_float(dense, digits, tmp_path / "first.onnx")
    untrained = CifarResNet(8, 8, 10, 1)
    through_kept = write_float(untrained, digits, tmp_path / "kept.onnx").read_bytes()
    fresh_graphs.clear()
    assert write_float(untrained, digits, tmp_path / "fresh.onnx").read_bytes() == through_kept


def test_a_graph_that_does_not_fit_is_translated_anew(
    tmp_path: Path, dense: nn.Module, digits: DeviceData, pixels: Tensor, fresh_graphs: dict[str, Any]
) -> None:
    """Biases that were all zero at the first translation are one initializer in its graph."""
    write_float(CifarResNet(8, 8, 10, 1), digits, tmp_path / "untrained.onnx")
    path = write_float(dense, digits, tmp_path / "dense.onnx")
    np.testing.assert_allclose(served(path, pixels), graph_logits(dense, digits), rtol=1e-3, atol=1e-3)


class Widths(nn.Module):
    """Its wiring is one whatever its width, but a width is written into its graph as a number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, width, 3, padding=1), nn.Linear(width, 3)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).reshape(x.shape[0], self.width, -1).mean(2))


def test_widths_written_into_the_graph_are_noticed(tmp_path: Path, fresh_graphs: dict[str, Any]) -> None:
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for width in (4, 8, 4):
        torch.manual_seed(width)
        model = Widths(width).eval()
        export_float(model, EXAMPLE, tmp_path / "model.onnx")
        with torch.no_grad():
            np.testing.assert_allclose(served(tmp_path / "model.onnx", images), model(images).numpy(), atol=1e-5)


class Folded(nn.Module):
    """What the exporter computes from weights before it writes them: a transposed one, a scaled one, a gathered one."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.gain = nn.Linear(8, 16), nn.Parameter(torch.rand(16, 1, 1, 1))
        self.conv, self.table = nn.Conv2d(8, 16, 1), nn.Parameter(torch.rand(5, 16))
        self.register_buffer("places", torch.tensor([4, 0, 2]))
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x[:, 0]).mean(1)
        scaled = torch.nn.functional.conv2d(x.transpose(1, 3), self.conv.weight * self.gain).mean((2, 3))
        return self.fc(tokens + scaled + self.table[self.places].sum(0))


def test_weights_that_the_exporter_computes_with_are_this_networks(tmp_path: Path, fresh_graphs: dict[str, Any]) -> None:
    """Twice: a graph that was kept must not carry what came of another network's weights."""
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = Folded().eval()
        with torch.no_grad():
            wanted = model(images).numpy()
        export_float(model, EXAMPLE, tmp_path / "model.onnx")
        np.testing.assert_allclose(served(tmp_path / "model.onnx", images), wanted, atol=1e-4)
    assert fresh_graphs == {}


def test_a_block_of_convnext_is_exported_with_its_weights(tmp_path: Path, digits: DeviceData) -> None:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    torch.manual_seed(0)
    model = ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=10).eval()
    for parameter in model.parameters():
        parameter.data = torch.rand_like(parameter) - 0.4
    images = torch.rand(2, 3, 32, 32) * 255
    export_float(fold_norms(model), torch.zeros(1, 3, 32, 32), tmp_path / "model.onnx")
    with torch.no_grad():
        np.testing.assert_allclose(served(tmp_path / "model.onnx", images), model(images).numpy(), rtol=1e-3, atol=1e-3)


# --- quantized ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_bits", range(2, 9))
def test_a_quantized_file_agrees_with_the_graph_and_holds_integers_of_its_bits(
    tmp_path: Path, quantized: Quantize, digits: DeviceData, pixels: Tensor, weight_bits: int
) -> None:
    graph = quantized(weight_bits)
    path = write_quantized(graph, digits, tmp_path / "model.onnx")
    assert_computes_the_graph(path, graph, digits, pixels)
    stored = integers(path)
    assert len(stored) == 10
    _, grids = split_off_grids(graph)
    for name, grid in grids.weights.items():
        values = stored[f"network.{name}"]
        assert values.dtype == np.int8
        limit = 2 ** (grid.bits - 1) - 1
        assert np.abs(values).max() <= limit
        assert len(np.unique(values)) > min(2, limit)  # the bits are used


def test_the_integers_are_those_that_training_ended_with(tmp_path: Path, quantized: Quantize, digits: DeviceData) -> None:
    graph = quantized(4)
    stored = integers(write_quantized(graph, digits, tmp_path / "model.onnx"))
    for name, module in graph.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weights = module.get_submodule("parametrizations.weight.0")
            scale = weights.scale.detach().abs().view(-1, *[1] * (module.weight.ndim - 1))
            wanted = (module.weight.detach() / scale).round().numpy().astype(np.int32)
            got = stored[f"network.{name}"].astype(np.int32)
            # Folding a norm may turn the sign of a whole channel.
            turned = np.sign((got * wanted).reshape(len(got), -1).sum(1)).reshape(-1, *[1] * (got.ndim - 1))
            np.testing.assert_array_equal(got * np.where(turned == 0, 1, turned).astype(np.int32), wanted)


def test_a_quantized_file_has_no_float_weights(tmp_path: Path, quantized: Quantize, digits: DeviceData) -> None:
    path = write_quantized(quantized(8), digits, tmp_path / "model.onnx")
    proto = onnx.load(str(path))
    onnx.checker.check_model(proto, full_check=True)
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(kinds(path))
    floats = {one.name: tuple(one.dims) for one in proto.graph.initializer if one.data_type == TensorProto.FLOAT}
    large = {name: dims for name, dims in floats.items() if len(dims) > 1}
    assert set(large.values()) <= {(1, 1, 1, 1)}  # scale and offset of the pixels
    assert len(integers(path)) == 10
    assert_names_nothing_of_this_machine(path)


def optimized_kinds(path: Path, folder: Path) -> list[str]:
    """What the runtime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return kinds(folder / "optimized.onnx")


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(8, 8), (8, 4), (2, 8), (3, 8), (4, 4), (5, 5), (6, 8), (7, 7)])
def test_the_runtime_computes_with_integers_whatever_is_stored(
    tmp_path: Path, quantized: Quantize, digits: DeviceData, weight_bits: int, activation_bits: int
) -> None:
    """Packed weights are unpacked when the file is opened: nothing of that is left in what runs."""
    path = write_quantized(quantized(weight_bits, activation_bits), digits, tmp_path / "model.onnx")
    fused = optimized_kinds(path, tmp_path)
    assert fused.count("QLinearConv") == 9
    assert fused.count("QLinearAdd") == 2  # the third goes to a mean, which the runtime computes from floats
    assert not {"Conv", "BitShift", "BitwiseAnd", "Where", "CumSum"} & set(fused)


@pytest.mark.parametrize("activation_bits", range(2, 9))
def test_activations_below_eight_bits_are_clipped_as_integers(
    tmp_path: Path, quantized: Quantize, digits: DeviceData, pixels: Tensor, activation_bits: int
) -> None:
    graph = quantized(8, activation_bits)
    path = write_quantized(graph, digits, tmp_path / "model.onnx")
    assert_computes_the_graph(path, graph, digits, pixels)
    proto = onnx.load(str(path))
    clips = [node for node in proto.graph.node if node.op_type == "Clip"]
    values = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
    if activation_bits == 8:
        assert clips == []
        return
    makers = {name: node.op_type for node in proto.graph.node for name in node.output}
    assert len(clips) == 6  # every tensor that layers read, but for the first and the last layer's
    assert {int(values[node.input[2]]) for node in clips} == {2**activation_bits - 1}
    assert {makers[node.input[0]] for node in clips} == {"QuantizeLinear"}
    for node in clips:
        proto.graph.output.append(helper.make_tensor_value_info(node.output[0], TensorProto.UINT8, None))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    codes = session.run([node.output[0] for node in clips], {"image": pixels.numpy()})
    assert all(code.dtype == np.uint8 for code in codes)
    assert max(int(code.max()) for code in codes) == 2**activation_bits - 1


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(2, 2), (4, 4), (8, 8)])
def test_every_layer_may_have_the_narrow_bits(
    tmp_path: Path, quantized: Quantize, digits: DeviceData, pixels: Tensor, weight_bits: int, activation_bits: int
) -> None:
    graph = quantized(weight_bits, activation_bits, first_last_8bit=False)
    path = write_quantized(graph, digits, tmp_path / "model.onnx")
    assert_computes_the_graph(path, graph, digits, pixels)
    assert max(np.abs(values).max() for values in integers(path).values()) == 2 ** (weight_bits - 1) - 1


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7])
def test_narrow_weights_take_their_bits_and_no_more(tmp_path: Path, quantized: Quantize, digits: DeviceData, bits: int) -> None:
    narrow, eight = (write_quantized(quantized(one), digits, tmp_path / f"{one}.onnx") for one in (bits, 8))
    stored = integers(eight)
    inner = sum(values.size for values in list(stored.values())[1:-1])
    saved = eight.stat().st_size - narrow.stat().st_size
    unpacking = 3000  # its functions, and a shape and a call a layer
    assert saved >= inner * (8 - bits) / 8 - unpacking


def test_a_quantized_file_repeats_itself(tmp_path: Path, quantized: Quantize, digits: DeviceData) -> None:
    one, other = (write_quantized(quantized(4, 4), digits, tmp_path / f"{name}.onnx").read_bytes() for name in "ab")
    assert one == other
    assert {path.name for path in tmp_path.iterdir()} == {"a.onnx", "b.onnx"}


def test_a_pruned_network_is_written_quantized(
    tmp_path: Path, quantized: Quantize, narrow: nn.Module, digits: DeviceData, pixels: Tensor
) -> None:
    graph = quantized(8, model=narrow)
    path = write_quantized(graph, digits, tmp_path / "model.onnx")
    assert_computes_the_graph(path, graph, digits, pixels)
    shapes = [values.shape[0] for values in integers(path).values()]
    assert max(shapes) == 16


class Clipped(nn.Module):
    """Depthwise, with ReLU6, a bias, and no norm: as in MobileNet."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6()
        )
        self.fc = nn.Linear(8 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.nn.functional.avg_pool2d(self.layers(x), 2).flatten(1))


@pytest.mark.parametrize("activation_bits", [4, 8])
def test_clipped_activations_and_depthwise_layers_are_kept(
    tmp_path: Path, digits: DeviceData, pixels: Tensor, train: Callable[..., nn.Module], activation_bits: int
) -> None:
    torch.manual_seed(0)
    graph = insert_quantizers(train(Clipped(), 3, 0.1), 8, activation_bits, first_last_8bit=False)
    calibrate(graph, [digits.normalizer(digits.images[:128])], "mse")
    train(graph, 1, 0.01)
    calibrate(graph, [digits.normalizer(digits.images[:128])], "mse", carriers_only=True)
    settle_biases(graph)
    path = write_quantized(graph, digits, tmp_path / "model.onnx")
    assert_computes_the_graph(path, graph, digits, pixels)


class Pooled(nn.Module):
    """A maximum between layers, layers in a row, and a head of two: as in VGG."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1)
        )
        self.head = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout())
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.head(self.layers(x)))


@pytest.mark.parametrize("activation_bits", [4, 8])
def test_a_maximum_is_taken_among_codes(
    tmp_path: Path, digits: DeviceData, pixels: Tensor, train: Callable[..., nn.Module], activation_bits: int
) -> None:
    torch.manual_seed(0)
    graph = insert_quantizers(train(Pooled(), 2, 0.1), 8, activation_bits, first_last_8bit=False)
    calibrate(graph, [digits.normalizer(digits.images[:128])], "mse")
    settle_biases(graph)
    path = write_quantized(graph, digits, tmp_path / "model.onnx")
    assert_computes_the_graph(path, graph, digits, pixels)
    fused = optimized_kinds(path, tmp_path)
    assert fused.count("QLinearConv") == 2
    assert "Conv" not in fused
    assert "MaxPool" in "".join(fused)


def test_weights_that_the_exporter_renamed_are_reported(tmp_path: Path, quantized: Quantize, digits: DeviceData) -> None:
    folded, grids = split_off_grids(quantized(8))
    with pytest.raises(UnbuildableError, match="renamed the weights of conv"):
        export_quantized(wrapper(digits)(folded), grids, EXAMPLE, tmp_path / "model.onnx")


def test_quantizers_that_the_exporter_took_out_are_reported(tmp_path: Path, quantized: Quantize, digits: DeviceData) -> None:
    folded, grids = split_off_grids(quantized(8))
    below = grids.below(FromPixels.NETWORK)
    more = Grids({**below.tensors, "network.quantize_99": TensorGrid(1.0, 0, 8)}, below.weights)
    with pytest.raises(UnbuildableError, match="took out the quantizers network"):
        export_quantized(wrapper(digits)(folded), more, EXAMPLE, tmp_path / "model.onnx")


def vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10)


def convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)], num_classes=10)


@pytest.mark.parametrize("make", [vit, convnext])
@pytest.mark.parametrize("weight_bits", [8, 4])
def test_layers_of_tokens_are_whole_numbers_as_well(tmp_path: Path, make: Callable[[], nn.Module], weight_bits: int) -> None:
    """The exporter transposes their weights, and computes with an attention's: names and values have to survive it."""
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    images = torch.randn(32, 3, 32, 32)
    graph = insert_quantizers(model, weight_bits, 8, first_last_8bit=True)
    calibrate(graph, [images], "mse")
    settle_biases(graph)
    folded, grids = split_off_grids(graph.eval())
    export_quantized(folded, grids, images[:1], tmp_path / "model.onnx")
    with torch.no_grad():
        wanted = graph(images).numpy()
    got = served(tmp_path / "model.onnx", images)
    assert (got.argmax(1) == wanted.argmax(1)).all()
    assert np.isclose(got, wanted, rtol=1e-3, atol=1e-3).all(1).mean() >= 0.9
    stored = integers(tmp_path / "model.onnx", (3, 32, 32))
    assert set(stored) == set(grids.weights)
    for name, grid in grids.weights.items():
        assert int(np.abs(stored[name]).max()) <= 2 ** (grid.bits - 1) - 1
