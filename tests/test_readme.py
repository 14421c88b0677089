"""README.md's map and tables are true, every public name is documented, and no old name or phrase is left."""

import re
import subprocess
from pathlib import Path

import nbformat
import pytest

import modelopt_nb

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def layout() -> dict[str, str]:
    """The map of README's section "Repository layout": phrase by path, folders with a slash at the end."""
    (block,) = re.findall(r"## Repository layout\n.*?```text\n(.*?)```", README, re.S)
    found, folders = {}, []
    for line in block.splitlines():
        indent = len(line) - len(line.lstrip())
        names, _, phrase = line.strip().partition("  ")
        folders = [(level, folder) for level, folder in folders if level < indent]
        parent = folders[-1][1] if folders else ""
        for name in names.split():
            found[parent + name] = phrase.strip()
        if names.endswith("/") and " " not in names:
            folders.append((indent, parent + names))
    return found


def tracked() -> list[str]:
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        pytest.skip("needs a git checkout")
    return [name for name in result.stdout.split("\0") if (ROOT / name).is_file()]


def test_every_path_in_the_map_exists():
    missing = [p for p in layout() if not ((ROOT / p).is_dir() if p.endswith("/") else (ROOT / p).is_file())]
    assert not missing


def test_every_module_is_in_the_map_with_a_phrase():
    """An empty ``__init__.py`` says nothing, and needs no line."""
    modules = [
        p for p in (ROOT / "modelopt_nb").rglob("*.py") if p.name != "__init__.py" or p.parent.name == "modelopt_nb"
    ]
    phrases = layout()
    assert not [name for p in modules if not phrases.get(name := p.relative_to(ROOT).as_posix())]


def test_every_top_level_file_and_folder_is_in_the_map():
    tops = {name.split("/")[0] for name in tracked()}
    assert tops <= {path.split("/")[0] for path in layout()}


def test_every_link_of_readme_and_contributing_leads_somewhere():
    for document in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
        assert not [link for link in links if not (ROOT / link).exists()], document


def test_every_public_name_is_in_readme_or_documented():
    """A constant has the docstring of its class, so it has to be in README."""
    verbs = set(re.findall(r"`([A-Za-z_]+)", README))
    for name in set(modelopt_nb.__all__) - verbs:
        value = getattr(modelopt_nb, name)
        assert not isinstance(value, (bool, int, float, str, dict, tuple, list, set, frozenset)), (
            f"{name} is not in README"
        )
        assert (value.__doc__ or "").strip(), f"{name} has no docstring"


def test_every_verb_in_readmes_tables_is_public():
    """The first column of the tables of verbs; a method, such as ``model.save_pretrained``, has a dot."""
    cells = re.findall(r"^\| (`[^|]*) \|", README, re.M)
    verbs = [verb for cell in cells for verb in re.findall(r"`([A-Za-z_]+)(?![\w.])", cell.split(" | ")[0])]
    assert len(verbs) > 30 and not set(verbs) - set(modelopt_nb.__all__)


#: Names that the package no longer has, and phrases that are out, as regular expressions with what to say instead.
OUT = {
    r"\b[Ss]tudio\b": "workbench",
    r"\breader\b|\breader_distance\b|\bread_right\b|(?:modelopt_nb|mnb)\.read\b|(?m:^from modelopt_nb.* import .*\bread\b)": "classifier, classify",
    r"\bcheckup\b": "doctor",
    r"\btry_scheme\b": "check_scheme",
    r"\bSpotTheQuantized\b|\bblind\b(?![ _-]test)": "blind_test, BlindTest",
    r"\bexperiments\b": "sensitivity",
    r"\bmodelopt_nb[./]deployment\b|import deployment\b": "export",
    r"\bmixed\b(?![- ](?:integer|precision))": "per_layer",
    r"\b[Dd]raw(?:s|n|ing)?\b|\bdrew\b": "generate",
    r"\bclass Call\b|\bCall\(|\[Call\]|(?m:^from modelopt_nb.* import .*\bCall\b)": "ModelCall",
    r"\brecorded\(|\bcapture\b|\bwatched\b": "record_calls",
    r"\blargest_inputs\b|\bshow_inputs\b|\brun_checked\b": "input_amax, collect_amax, run_forward_loop",
    r"\bBeside\b|\bbeside\b": "BackgroundWidget; next to",
    r"\bDrawn\b": "Tile; computed from",
    r"\bwritten_whole\b": "atomic_folder",
    r"\bundone_on_error\b": "rollback_on_error",
    r"\bswapped\b": "with_component",
    r"\bprompts_encoded_once\b": "cached_prompt_embeddings",
    r"\bnames_layer\b|\bnamed\(": "matches, matching_layers",
    r"\bgarbage_kept\b|\bfreed_memory_kept\b|\bgc\.freeze\b": "nothing: they are gone",
    r"\bmeasured\(|\bwithout_weights\b": "plain names",
    r"\b(?:comparison|frontier|tried)\.grid\b": "plot_grid(comparison)",
    r"\b(?:pulp|PuLP)\b": "scipy.optimize.milp",
    r"what\s+it\s+is\s+that": "what",
    r"\banew\b": "again",
    r"\btold\b": "reported, distinguished",
    r"\bas\s+it\s+was\b": "unchanged",
    r"where\s+there\s+is\s+one": "if there is one",
    r"\bis\s+given\b": "gets, takes",
    r"on\s+the\s+day\s+that": "when",
    r"the house\b(?!hold)|The house\b": "repository layout",
    r"hardly\s+anyone\s+sees": "a number with a source",
}
TEXT = {".py", ".pyi", ".md", ".ipynb", ".js", ".css", ".toml", ".yml", ".yaml", ""}
#: Files that may hold what is out, each with the reason.
EXCEPT = {
    "tests/test_readme.py": "the patterns themselves",
    "tests/seed-modelopt-doc.md": "Diffusers' page, word for word",
    "LICENSE": "the licence, word for word",
}


def text_of(name: str) -> str:
    """A file's text; of a notebook the sources and the text outputs."""
    path = ROOT / name
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        parts.append(cell.source)
        for output in cell.get("outputs", []):
            parts += [output.get("text", ""), output.get("data", {}).get("text/plain", "")]
    return "\n".join(parts)


def test_no_old_name_and_no_banned_phrase_is_left():
    found = []
    for name in tracked():
        if name in EXCEPT or Path(name).suffix not in TEXT or name.startswith("data/emoji/"):
            continue
        text = text_of(name)
        for pattern, instead in OUT.items():
            for match in re.finditer(pattern, text):
                found.append(f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r} is out; say: {instead}")
    assert not found, "\n" + "\n".join(found)
