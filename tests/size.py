"""Check the size of the helper: under 2,000 lines of at most 120 characters. Run by ``make lint``."""

from __future__ import annotations

import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "modelopt_nb"
APART = ("lab", "upstream/repairs")  # the laboratory, and what is deleted once upstream is fixed
MOST, WIDEST = 2_000, 120


def lines(*, inside: tuple[str, ...] = ("",), outside: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """Return the lines of every Python file of the package, by path, in some folders and not in others."""
    paths = {p.relative_to(PACKAGE).as_posix(): p for p in sorted(PACKAGE.rglob("*.py"))}
    chosen = {name: p for name, p in paths.items() if name.startswith(inside) and not name.startswith(outside)}
    return {name: p.read_text(encoding="utf-8").splitlines() for name, p in chosen.items()}


def main() -> int:
    helper = lines(outside=APART)
    counts = {"helper": helper, "repairs": lines(inside=("upstream/repairs",)), "laboratory": lines(inside=("lab",))}
    sizes = {name: sum(map(len, files.values())) for name, files in counts.items()}
    print(", ".join(f"{name} {size} lines" for name, size in sizes.items()) + f"; the helper may have {MOST - 1}")
    wide = [f"{name}:{i}" for name, text in helper.items() for i, line in enumerate(text, 1) if len(line) > WIDEST]
    if wide:
        print(f"longer than {WIDEST} characters: {', '.join(wide)}")
    return int(sizes["helper"] >= MOST or bool(wide))


if __name__ == "__main__":
    sys.exit(main())
