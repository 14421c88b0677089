import pytest

from modelopt_nb import layer_frame, layer_groups
from modelopt_nb.lab.search.groups import as_groups, covering_modules
from tests.architectures import build


def test_groups_hold_each_layer_once():
    model = build("Sana")[0]
    every = list(layer_frame(model).index)
    for by in ("layer", "block", "kind", "part"):
        groups = layer_groups(model, by)
        assert sorted(name for names in groups.values() for name in names) == sorted(every)
    assert list(layer_groups(model, "part")) == [
        "embedding", "modulation", "block 0 attention", "block 0 cross-attention", "block 0 pointwise convolution",
        "block 0 convolution", "output projection",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"a": "attn1", "b": "to_q"}, r"groups holds transformer_blocks.0.attn1.to_q twice: in 'a' and in 'b'"),
        ({"a": "attn7"}, r"groups\['a'\] holds 'attn7', which matches no layer"),
        ({"a": []}, r"groups\['a'\] is empty"),
        ("colour", r"by='colour' is not known. Allowed: layer, kind, block, part"),
    ],
)
def test_wrong_groups(transformer, groups, message):
    with pytest.raises(ValueError, match=message):
        as_groups(transformer, groups, layer_frame(transformer).index)


def test_covering_modules():
    layers = ["a.0.q", "a.0.k", "a.1.q", "a.10.q", "b"]
    assert covering_modules({"a.0.q", "a.0.k"}, layers) == ["a.0"]
    assert covering_modules({"a.0.q", "a.1.q", "b"}, layers) == ["a.0.q", "a.1", "b"]
    assert covering_modules(set(layers), layers) == ["a", "b"]
    assert covering_modules(set(), layers) == []
