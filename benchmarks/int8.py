"""Whether int8 products would make sampling faster on this CPU: the linear layers of a d16, by their rows.

    OMP_NUM_THREADS=1 python benchmarks/int8.py

bfloat16 (packed, as `nextscale.prior.sampling_block` has them), int8 weights with bfloat16 inputs (torch's
kernel), oneDNN's int8 products with inputs quantised on the fly (one scale for all), and those products
alone. One run, interleaved, medians; milliseconds for the layers of 16 blocks.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

BLOCKS = 16
SHAPES = ((1024, 3072), (1024, 1024), (1024, 4096), (4096, 1024))  # inputs, outputs: qkv, proj, fc1, fc2
ROWS = (2, 8, 18, 32, 50, 72, 128, 200, 338, 512)  # of the ten scales at 256 pixels, with guidance
ROUNDS = 7
MIDDLE = 128  # of uint8: what stands for 0


def quantised(x: Tensor) -> tuple[Tensor, float]:
    """Input as uint8 around 128, and the size of a step."""
    low, high = torch.aminmax(x)
    inverse = 127 / torch.maximum(-low, high)
    return (x * inverse).round_().add_(MIDDLE).to(torch.uint8), float(1 / inverse)


class Layer:
    """The layers of one shape in all blocks, in all ways."""

    def __init__(self, rows: int, inputs: int, outputs: int) -> None:
        self.x = torch.randn(rows, inputs).bfloat16()
        self.weights = [torch.randn(outputs, inputs).bfloat16() for _ in range(BLOCKS)]
        self.packed = [torch.ops.mkldnn._reorder_linear_weight(weight) for weight in self.weights]
        self.scales = [weight.float().abs().amax(1) / 127 for weight in self.weights]
        self.whole = [
            (weight.float() / scale[:, None]).round().to(torch.int8)
            for weight, scale in zip(self.weights, self.scales, strict=True)
        ]
        self.packed8 = [torch.ops.onednn.qlinear_prepack(weight, None) for weight in self.whole]
        self.zeros = torch.zeros(outputs, dtype=torch.int64)
        self.ready = quantised(self.x)

    def bfloat16(self, block: int) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(self.x, self.packed[block], None, "none", [], "")

    def int8_weights(self, block: int) -> Tensor:
        return torch._weight_int8pack_mm(self.x, self.whole[block], self.scales[block].bfloat16())

    def int8(self, block: int) -> Tensor:
        return self._product(block, *quantised(self.x))

    def int8_product_alone(self, block: int) -> Tensor:
        return self._product(block, *self.ready)

    def _product(self, block: int, x: Tensor, step: float) -> Tensor:
        return torch.ops.onednn.qlinear_pointwise(
            x, step, MIDDLE, self.packed8[block], self.scales[block], self.zeros, None, 1.0, 0,
            torch.bfloat16, "none", [], "",
        )  # fmt: skip


def medians(ways: dict[str, Callable[[int], Tensor]]) -> dict[str, float]:
    """Milliseconds of all blocks, way by way."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            for block in range(BLOCKS):
                way(block)
            seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(of) for name, of in seconds.items()}


@torch.no_grad()
def main() -> None:
    """Print one line per number of rows, and the sum over an image."""
    names = ("bfloat16", "int8_weights", "int8", "int8_product_alone")
    print("rows", *names, "relative error of bfloat16, int8")
    image = dict.fromkeys(names, 0.0)
    for rows in ROWS:
        total, errors = dict.fromkeys(names, 0.0), []
        for shape in SHAPES:
            layer = Layer(rows, *shape)
            for name, milliseconds in medians({name: getattr(layer, name) for name in names}).items():
                total[name] += milliseconds
            exact = layer.x.float() @ layer.weights[0].float().t()
            errors.append([
                float((way(0).float() - exact).norm() / exact.norm()) for way in (layer.bfloat16, layer.int8)
            ])  # fmt: skip
        told = [f"{statistics.mean(column):.4f}" for column in zip(*errors, strict=True)]
        print(rows, *(f"{total[name]:.1f}" for name in names), *told, flush=True)
        image = {name: image[name] + total[name] for name in names}
    print("an image", *(f"{image[name]:.0f}" for name in names))


if __name__ == "__main__":
    main()
