"""ResNet for small images: He et al. 2016, "Deep Residual Learning", section 4.2 (depth 6n+2, three stages).

One change: where a block changes its shape, the shortcut is a 1x1 convolution (their option B) instead of zero padding, because
padded shortcuts cannot be pruned along the dependency graph.
"""

from __future__ import annotations

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.end = nn.ReLU()  # a module of its own: what is matched or hooked is the same in a traced graph
        same = stride == 1 and in_channels == channels
        self.shortcut: nn.Module = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x_BCHW)))
        out = self.bn2(self.conv2(out))
        rectified: Tensor = self.end(out + self.shortcut(x_BCHW))
        return rectified


class CifarResNet(nn.Module):
    """Images (B, C, H, W) to logits (B, num_classes).

    Args:
        depth: 6n+2.
        width: channels of the first stage; the next two have twice and four times as many.
    """

    def __init__(self, depth: int, width: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        assert depth % 6 == 2, depth
        self.conv = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        blocks: list[nn.Module] = []
        channels = width
        for stage in range(3):
            for position in range((depth - 2) // 6):
                out_channels = width * 2**stage
                blocks.append(BasicBlock(channels, out_channels, 2 if stage and not position else 1))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        features = self.blocks(self.relu(self.bn(self.conv(x_BCHW))))
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits
