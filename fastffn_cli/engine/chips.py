"""What the makers of accelerators state about them, and what share of it training code reaches.

Nothing here was measured by this project. Peaks are those of the fastest form of each chip: 16-bit
products with 32-bit sums, without structured sparsity. Links are those of the makers' own servers
of eight cards.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Links:
    """How cards reach each other: bytes a second that one card sends while it receives as many.

    `within` a node of `cards_per_node` cards, `between` nodes. Makers state the sum of both
    directions, of which this is half. `share` is what collectives are taken to reach of it, an
    assumption.
    """

    name: str
    within: float
    between: float
    cards_per_node: int
    share: float
    source: str


UNLIMITED = Links("none", float("inf"), float("inf"), 1, 1.0, "")


@dataclass(frozen=True)
class Chip:
    """Peaks of one accelerator, and the shares of them that are taken for attainable.

    `matrix_flops` counts 16-bit matrix FLOPs a second, a multiply-add as two; `lane_rate` 32-bit
    vector instructions a second, over all lanes; `bandwidth` bytes a second of device memory;
    `memory` the sizes it is sold with, in GiB.
    `matrix_share` and `bandwidth_share` are assumptions of the model, not measurements.
    """

    name: str
    matrix_flops: float
    lane_rate: float
    bandwidth: float
    matrix_share: float
    bandwidth_share: float
    source: str
    memory: tuple[int, ...] = ()
    links: Links = UNLIMITED


CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(
            name="V100",
            matrix_flops=125e12,
            lane_rate=15.7e12 / 2,
            bandwidth=900e9,
            matrix_share=0.5,
            bandwidth_share=0.8,
            source="NVIDIA Tesla V100 datasheet, SXM2: 125 TFLOPS tensor, 15.7 FP32, 900 GB/s",
            memory=(16, 32),
            links=Links(
                name="NVLink 2, 100 Gb/s InfiniBand",
                within=300e9 / 2,
                between=4 * 100e9 / 8 / 8,
                cards_per_node=8,
                share=0.75,
                source="NVIDIA V100 datasheet: 300 GB/s of NVLink; DGX-1: 4 ports of 100 Gb/s",
            ),
        ),
        Chip(
            name="A100",
            matrix_flops=312e12,
            lane_rate=19.5e12 / 2,
            bandwidth=2039e9,
            matrix_share=0.6,
            bandwidth_share=0.8,
            source="NVIDIA A100 datasheet, SXM 80 GB: 312 TFLOPS BF16, 19.5 FP32, 2,039 GB/s",
            memory=(40, 80),
            links=Links(
                name="NVLink 3, 200 Gb/s InfiniBand",
                within=600e9 / 2,
                between=8 * 200e9 / 8 / 8,
                cards_per_node=8,
                share=0.75,
                source="NVIDIA A100 datasheet: 600 GB/s of NVLink; DGX A100: 8 ports of 200 Gb/s",
            ),
        ),
        Chip(
            name="H200",
            matrix_flops=989e12,
            lane_rate=67e12 / 2,
            bandwidth=4800e9,
            matrix_share=0.6,
            bandwidth_share=0.8,
            source="NVIDIA H200 datasheet, SXM: 989 TFLOPS BF16 (1,979 with sparsity), 67 FP32, "
            "4.8 TB/s",
            memory=(141,),
            links=Links(
                name="NVLink 4, 400 Gb/s InfiniBand",
                within=900e9 / 2,
                between=8 * 400e9 / 8 / 8,
                cards_per_node=8,
                share=0.75,
                source="NVIDIA H200 datasheet: 900 GB/s of NVLink; DGX H200: 8 ports of 400 Gb/s",
            ),
        ),
        Chip(
            name="910B",
            matrix_flops=24 * 2 * 16**3 * 1.8e9,
            lane_rate=48 * 64 * 1.8e9,
            bandwidth=1600e9,
            matrix_share=0.6,
            bandwidth_share=0.75,
            source="Ascend 910B2: no public datasheet; from 24 cube cores of 16 x 16 x 16 "
            "multiply-adds and 48 vector cores of 64 lanes at 1.8 GHz, HBM 1.6 TB/s",
            memory=(64,),
            links=Links(
                name="HCCS, 200 Gb/s RoCE",
                within=392e9 / 2,
                between=8 * 200e9 / 8 / 8,
                cards_per_node=8,
                share=0.75,
                source="Atlas 800T A2 as others cite its specifications: 7 HCCS links of 56 GB/s, "
                "8 ports of 200 Gb/s",
            ),
        ),
    )
}
