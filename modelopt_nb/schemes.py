"""``python -m modelopt_nb.schemes``: every scheme on many prompts, or those named, as a table and its picture."""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    from modelopt_nb import SCHEMES, compare, load_pipeline, load_prompts, plot_schemes

    parser = argparse.ArgumentParser(prog="python -m modelopt_nb.schemes", description=__doc__)
    parser.add_argument("schemes", nargs="*", default=list(SCHEMES), help=f"of: {', '.join(SCHEMES)} (all of them)")
    parser.add_argument("--prompts", type=int, default=256, help="how many of the measure split (256)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (20)")
    parser.add_argument("--output", type=Path, default=Path("output/schemes"), help="folder of table.csv and table.png")
    args = parser.parse_args()

    prompts = load_prompts("measure", args.prompts)
    comparison = compare(load_pipeline(), args.schemes, prompts, steps=args.steps, batch_size=8)
    args.output.mkdir(parents=True, exist_ok=True)
    comparison.frame.drop(columns=list(comparison.COSTS)).to_csv(args.output / "table.csv", float_format="%.6g")
    plot_schemes(comparison).savefig(args.output / "table.png", dpi=120)
    print(comparison.table())
    print(f"\n{args.output / 'table.csv'}, {args.output / 'table.png'}")


if __name__ == "__main__":
    main()
