"""The dial of a checkpoint on a page: quality against cost when its threshold is shifted. Pure."""

from trainer.drawing.axes import short
from trainer.drawing.chart import Curve, Mark, chart
from trainer.drawing.page import facts, section, table
from trainer.laboratory.dial import Dial, DialPoint

WORDS = (
    "One checkpoint, its patches cut with other thresholds than it learnt with: a higher one gives fewer and longer "
    "patches, and costs less."
)


def dial_section(dial: Dial) -> str:
    """Facts, plots and a table, the trained threshold marked."""
    rule = dial.patching
    said = facts(
        [
            ("model", dial.model),
            ("text", f"{dial.data}: {dial.documents:,} documents, {dial.bytes:,} bytes"),
            ("patches", f"{rule.rule}, learnt with theta {dial.trained.theta:.4f} nats"),
            ("entropy model", f"{short(dial.entropy_flops_per_byte)} FLOPs a byte on top, whatever the threshold"),
        ]
    )
    heads = ["theta", "shift", "bits/byte", "bytes/patch", "FLOP/byte", ""]
    lines = [_line(point) for point in dial.points]
    figures = table(heads, lines, "The points of the dial, by threshold")
    return section("Dial", f'{said}<div class="charts">{_plots(dial)}</div>{figures}', WORDS)


def _line(point: DialPoint) -> list[str]:
    return [
        f"{point.theta:.4f}",
        f"{point.shift:+.4f}",
        f"{point.bits_per_byte:.4f}",
        f"{point.bytes_per_patch:.2f}",
        short(point.flops_per_byte),
        "<strong>learnt with</strong>" if point.trained else "",
    ]


def _plots(dial: Dial) -> str:
    trained = dial.trained
    by_cost = sorted((point.flops_per_byte, point.bits_per_byte) for point in dial.points)
    by_theta = [(point.theta, point.bytes_per_patch) for point in dial.points]
    marks = [Mark(trained.theta, "the threshold that the model was trained with", "threshold of training")]
    quality = chart(
        "Quality and cost over the dial",
        "bits per byte",
        "useful FLOPs of a forward pass a byte, entropy model left out",
        [
            Curve("threshold shifted", by_cost, dots=True),
            Curve("learnt with", [(trained.flops_per_byte, trained.bits_per_byte)], 1, shape=1, line=False, named=True),
        ],
        x_log=True,
        from_zero=False,
        words="Down and left is better. The diamond is the threshold that the model learnt with.",
    )
    size = chart(
        "Patch size over the threshold",
        "bytes a patch",
        "theta in nats",
        [Curve("bytes a patch", by_theta, dots=True)],
        marks,
        words="The dashed line is the threshold that the model learnt with.",
    )
    return quality + size
