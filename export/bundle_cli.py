"""The commands on a finished bundle: `kronserve inspect` and `kronserve verify`. Neither needs torch."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from export.cli import fail, missing

_INSPECT_EXAMPLES = """\
examples:
  kronserve inspect model_repository/hot-etth1/1
  kronserve inspect model_repository/hot-adrenal/1 --json
"""

_VERIFY_EXAMPLES = """\
examples:
  kronserve verify model_repository/hot-etth1/1
  kronserve verify model_repository/hot-adrenal/1 --trusted-keys trusted.pem --json
"""


def inspect(argv: list[str]) -> int:
    """Show what a bundle is: task, signature, graph, provenance, parity, metrics."""
    parser = argparse.ArgumentParser(
        prog="kronserve inspect",
        description="Show what a bundle is: task, signature, graph, provenance, parity, metrics.",
        epilog=_INSPECT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder NAME/VERSION with manifest.json")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    try:
        from export.inspection import BundleError, describe, render
    except ModuleNotFoundError as error:
        return missing("export", error)
    try:
        description = describe(options.bundle)
    except BundleError as error:
        return fail(f"kronserve inspect: {error}")
    sys.stdout.write((json.dumps(description, indent=2) if options.json else render(description)) + "\n")
    return 0


def verify(argv: list[str]) -> int:
    """Check a bundle: its files, its graphs, and its answers against those that PyTorch gave at the export.

    Exit status: 0 no check failed, 1 one did.
    """
    parser = argparse.ArgumentParser(
        prog="kronserve verify",
        description="Check a bundle's files, its graphs in ONNX Runtime and in onnx's reference evaluator, and its "
        "answers against those that PyTorch gave at the export. Exits with 1 when a check fails.",
        epilog=_VERIFY_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder NAME/VERSION with manifest.json")
    parser.add_argument("--trusted-keys", type=Path, metavar="FILE", help="PEM public keys; one must have signed it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    if not options.bundle.is_dir():
        return fail(f"kronserve verify: {options.bundle}: no such folder")
    try:
        from export.report import check_lines
        from export.verification import verify_bundle

        checks = verify_bundle(options.bundle, options.trusted_keys)
    except ModuleNotFoundError as error:
        return missing("sign" if error.name == "cryptography" else "export", error)
    except (OSError, ValueError) as error:
        return fail(f"kronserve verify: {error}")
    if options.json:
        sys.stdout.write(json.dumps([check.model_dump() for check in checks], indent=2) + "\n")
    else:
        sys.stdout.write("\n".join(check_lines(checks)) + "\n")
    return 1 if any(check.failed for check in checks) else 0
