"""The proof of a bundle as text: every check, and parity by shape and by kind of inputs."""

from __future__ import annotations

from app.manifest import Check, Manifest, Parity, ParityCase, Precision

_OUTCOMES = {True: "passed", False: "FAILED", None: "skipped"}


def check_lines(checks: tuple[Check, ...] | list[Check]) -> list[str]:
    """One line a check: passed, FAILED or skipped."""
    width = max((len(check.name) for check in checks), default=0)
    return [f"{_OUTCOMES[check.passed]}  {check.name:<{width}}  {check.detail}" for check in checks]


def parity_lines(title: str, parity: Parity) -> list[str]:
    """A table of the largest relative error of every shape and kind of inputs, the worst of all above it."""
    worst = parity.worst
    shapes = list(dict.fromkeys(case.shape for case in parity.cases))
    kinds = list(dict.fromkeys(case.inputs for case in parity.cases))
    found: dict[tuple[tuple[int, ...], str], ParityCase] = {(case.shape, case.inputs): case for case in parity.cases}
    label = max(len(_shape(shape)) for shape in shapes)
    lines = [
        f"{title}: worst {worst.error:.2e} of {worst.allowed or parity.tolerance:.2g} allowed, "
        f"{worst.output + ' for ' if worst.output else ''}{worst.inputs} inputs of shape {list(worst.shape)}",
        *(f"  {side} is {value:.2e} from PyTorch in float64" for side, value in parity.rounding.items()),
        f"  {'shape':<{label}}  " + "  ".join(f"{kind:>14}" for kind in kinds),
    ]
    for shape in shapes:
        cells = (found.get((shape, kind)) for kind in kinds)
        row = "  ".join(f"{cell.error:>14.1e}" if cell is not None else " " * 14 for cell in cells)
        lines.append(f"  {_shape(shape):<{label}}  {row}")
    return lines


def precision_lines(precision: Precision) -> list[str]:
    """What fewer bits cost on the metric; nothing to say in float32."""
    if precision.kind == "fp32":
        return []
    pairs = (f"{name} {precision.full[name]:.6g} -> {precision.reduced[name]:.6g}" for name in precision.full)
    kept = f"; {len(precision.kept)} projections in float32" if precision.kept else ""
    return [
        f"{precision.kind}: {', '.join(pairs)} on {precision.dataset} {precision.split}, "
        f"{precision.loss_percent:+.3f} % worse of {precision.max_loss_percent:g} % allowed{kept}"
    ]


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def proof(manifest: Manifest) -> str:
    """The whole report of one export."""
    lines = [
        *precision_lines(manifest.precision),
        *check_lines(manifest.checks),
        *parity_lines("parity", manifest.parity),
    ]
    if manifest.explain_parity is not None:
        lines += parity_lines("outputs on request", manifest.explain_parity)
    return "\n".join(lines)
