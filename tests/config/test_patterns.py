import pytest

from modelopt_nb import as_patterns, matching_layers
from modelopt_nb.config.patterns import matches

MODULES = {"blocks", "blocks.1", "blocks.10", "blocks.1.q", "blocks.10.q"}


def test_the_whole_name_of_a_module_matches_all_in_it_and_no_other():
    assert matches("blocks.1", "blocks.1.q", MODULES)
    assert not matches("blocks.1", "blocks.10.q", MODULES)
    assert matches("blocks.1.q.weight", "blocks.1.q", MODULES)  # the name of a parameter, as Diffusers' page has it


def test_anything_else_is_a_part_of_a_name_or_a_shell_style_pattern():
    assert matches("locks.1", "blocks.10.q", MODULES)
    assert matches("blocks.*.q", "blocks.10.q", MODULES)
    assert matches("bl?cks", "blocks.1.q", MODULES)
    assert not matches("blocks.?.k", "blocks.1.q", MODULES)


@pytest.mark.parametrize("pattern", ["weight", "quantizer", "q", "weight_quantizer"])
def test_a_pattern_is_matched_against_the_layers_name_alone(pattern):
    assert not matches(pattern, "blocks.1.ff", {"blocks.1.ff"})


def test_patterns_become_a_new_list():
    given = ["a", "b"]
    assert as_patterns("x", given) == given and as_patterns("x", given) is not given
    assert as_patterns("x", "a") == ["a"]
    assert as_patterns("x", None) == []
    assert as_patterns("x", (name for name in given)) == given
    with pytest.raises(ValueError, match="x holds ' '. Allowed: module names or patterns"):
        as_patterns("x", ["a", " "])


def test_a_pattern_without_a_match_names_the_nearest():
    with pytest.raises(ValueError, match=r"x holds 'blcks.1', which matches no layer of Model. Nearest: blocks"):
        matching_layers("Model", "x", "blcks.1", ["blocks.1.q"], MODULES)
    with pytest.raises(ValueError, match=r"x holds .zzzz., which matches no layer of Model. .*blocks.1.q"):
        matching_layers("Model", "x", "zzzz", ["blocks.1.q"], MODULES)
