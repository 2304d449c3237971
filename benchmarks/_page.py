"""What the benchmarks share: their arguments, how they end, and the table and page that they write."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import daptq
from daptq.artifacts import write_bytes, write_json

RESULTS = Path(__file__).resolve().parent / "results"


def add_policy_arguments(parser: argparse.ArgumentParser) -> None:
    """Which policy is quantized, and with which data."""
    parser.add_argument("--policy", default="reference", help="policy to quantize: name or folder")
    parser.add_argument("--data", default="tabletop:train", help="calibration data, as source:split")


def add_results_argument(parser: argparse.ArgumentParser) -> None:
    """Where the table is written."""
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the table")


def add_work_argument(parser: argparse.ArgumentParser, name: str) -> None:
    """Where a killed run left what the next one continues."""
    parser.add_argument("--work", type=Path, default=Path("runs") / name, help="folder for what a rerun continues")


def add_worker_arguments(parser: argparse.ArgumentParser, *, batch: bool = True) -> None:
    """How many processes drive, and how many episodes share a call."""
    parser.add_argument("--workers", type=int, default=2, help="processes")
    if batch:
        parser.add_argument("--batch", type=int, default=8, help="episodes that share one call of the policy")


def write_table(folder: Path, stem: str, data: Mapping[str, Any], page: str) -> None:
    """Writes ``<stem>.json`` and the page ``<stem>.md``, and prints the page's path.

    Args:
        folder: Where to.
        stem: Name without ending.
        data: What was measured.
        page: What the page says.
    """
    write_json(folder / f"{stem}.json", data)
    write_bytes(folder / f"{stem}.md", page.encode())
    print(folder / f"{stem}.md")


def run_benchmark(main: Callable[[], None]) -> None:
    """Runs a benchmark; an error of daptq's becomes one line and the exit code 2."""
    try:
        main()
    except daptq.DaptqError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
