"""``python -m modelopt_nb.schemes``: every scheme on many prompts, or those named, as a table and its picture."""

from __future__ import annotations

import argparse
from pathlib import Path

POINTWISE = " pointwise"  # after a scheme's name


def main() -> None:
    from modelopt_nb import QUANT_TYPES, SCHEMES, compare, load_pipeline, load_prompts, make_config, plot_schemes

    fewer = [f"{name}{POINTWISE}" for name, t in QUANT_TYPES.items() if t.needs_block]
    parser = argparse.ArgumentParser(prog="python -m modelopt_nb.schemes", description=__doc__)
    parser.add_argument(
        "schemes",
        nargs="*",
        default=[*SCHEMES, *fewer],
        help=f"of: {', '.join(SCHEMES)}; with '{POINTWISE}' its 1x1 convolutions are packed as linear layers "
        f"(all of them, and {', '.join(fewer)})",
    )
    parser.add_argument("--prompts", type=int, default=128, help="how many of the measure split, up to 256 (128)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (20)")
    parser.add_argument("--output", type=Path, default=Path("output/schemes"), help="folder of table.csv and table.png")
    args = parser.parse_args()
    if twice := {name for name in args.schemes if args.schemes.count(name) > 1}:
        raise ValueError(f"schemes names {', '.join(sorted(twice))} twice. Allowed: each once")

    prompts = load_prompts("measure", args.prompts)
    configs = {
        name: make_config(name.removesuffix(POINTWISE), pointwise_as_linear=name.endswith(POINTWISE))
        for name in args.schemes
    }
    comparison = compare(load_pipeline(), configs, prompts, steps=args.steps, batch_size=8)
    args.output.mkdir(parents=True, exist_ok=True)
    comparison.frame.drop(columns=list(comparison.COSTS)).to_csv(args.output / "table.csv", float_format="%.6g")
    plot_schemes(comparison).savefig(args.output / "table.png", dpi=120)
    print(comparison.table())
    print(f"\n{args.output / 'table.csv'}, {args.output / 'table.png'}")


if __name__ == "__main__":
    main()
