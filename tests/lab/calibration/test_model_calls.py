import copy

import pytest
import torch

from modelopt_nb import denoising_loop, enable, generate, load_calls, make_config, quantize, record_calls, replay_loop

PROMPTS = ["a lemon on a blue background", "an owl on a red background"]


@pytest.fixture(autouse=True)
def enabled():
    enable()


def input_scales(model) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith("input_quantizer._amax")}


def test_replaying_all_calls_gives_the_amax_of_the_pipeline(pipeline, tmp_path):
    loop = denoising_loop(pipeline, PROMPTS, 3, steps=2, batch_size=1, guidance_scale=3.0)
    with record_calls(pipeline, None, path=tmp_path / "calls.pt") as calls:
        loop(pipeline.transformer)
    assert [call.step for call in calls] == [0, 1] * 2
    config = make_config("INT8", weight_only=False)
    found = []
    for forward_loop in (loop, replay_loop(calls), replay_loop(load_calls(tmp_path / "calls.pt"))):
        model = copy.deepcopy(pipeline.transformer)
        quantize(model, config, forward_loop)
        found.append(input_scales(model))
    assert len(found[0]) > 50
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in found[0])


@pytest.mark.parametrize("component", ["text_encoder", "vae"])
def test_other_components(pipeline, component):
    part = getattr(pipeline, component)
    loop = denoising_loop(pipeline, PROMPTS[:1], steps=1, component=component)
    with record_calls(pipeline, None, component=component) as calls:
        loop(part)
    assert {call.method for call in calls} == {"forward" if component == "text_encoder" else "decode"}
    assert not {"decode", "encode"} & vars(part).keys()
    config = make_config("INT8", weight_only=False, modules_to_not_convert=["encoder"] if component == "vae" else None)
    found = []
    for forward_loop in (loop, replay_loop(calls)):
        model = copy.deepcopy(part)
        quantize(model, config, forward_loop)
        found.append(input_scales(model))
    assert found[0] and all(torch.equal(found[0][name], found[1][name]) for name in found[0])


class Scheduler:
    """The part of a scheduler that recording depends on."""

    def set_timesteps(self, steps):
        self.timesteps = range(steps)

    def step(self, sample):
        return sample


@pytest.fixture
def fake():
    """A pipeline of one layer, whose call ``fake(steps)`` runs the layer on its step's number."""
    model, scheduler = torch.nn.Identity(), Scheduler()

    class Fake:
        components = {"transformer": model, "scheduler": scheduler}

        def __call__(self, steps):
            self.scheduler.set_timesteps(steps)
            for step in self.scheduler.timesteps:
                self.scheduler.step(self.transformer(torch.tensor(step)))

    pipeline = Fake()
    pipeline.transformer, pipeline.scheduler = model, scheduler
    return pipeline


@pytest.mark.parametrize(
    ("keep", "at", "steps"),
    [
        (1, None, [0]),
        (2, None, [0, 9]),
        (4, None, [0, 3, 6, 9]),
        (10, None, list(range(10))),
        (99, None, list(range(10))),
        (None, None, list(range(10))),
        (None, (0, 0.5, 1), [0, 4, 9]),
        (2, (0, 0.5, 1), [0, 9]),
        (None, [0.9], [8]),
    ],
)
def test_which_steps_are_kept(fake, keep, at, steps):
    with record_calls(fake, keep, at=at) as calls:
        fake(10)
    assert [call.step for call in calls] == steps == [call.args[0].item() for call in calls]
    assert {call.steps for call in calls} == {10}


def test_recordings_can_be_nested(fake):
    with record_calls(fake, None) as outer:
        fake(2)
        with record_calls(fake, None, at=(1,)) as inner:
            fake(3)
        fake(2)
    assert [call.step for call in outer] == [0, 1, 0, 1, 2, 0, 1]
    assert [call.step for call in inner] == [2]
    assert not {"step", "set_timesteps"} & vars(fake.scheduler).keys()


def test_many_calls_are_thinned_while_recording(fake):
    longest = 0
    with record_calls(fake, 5) as calls:
        for i in range(1000):
            fake.transformer(torch.tensor(i))
            longest = max(longest, len(calls))
    kept = [call.args[0].item() for call in calls]
    assert longest <= 21
    assert kept[0] == 0 and kept[-1] == 999
    assert all(200 <= b - a <= 300 for a, b in zip(kept, kept[1:], strict=False))


def test_steps_of_a_pipeline(pipeline):
    with record_calls(pipeline, None, at=(0.5,)) as calls:
        assert generate(pipeline, PROMPTS, steps=3, batch_size=1, decode=False) == []
    assert [(call.step, call.steps) for call in calls] == [(1, 3), (1, 3)]


def test_an_interrupted_recording_leaves_no_file(fake, tmp_path):
    with pytest.raises(KeyboardInterrupt), record_calls(fake, path=tmp_path / "calls.pt"):
        fake(2)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    assert not {"step", "set_timesteps"} & vars(fake.scheduler).keys()
    assert not fake.transformer._forward_pre_hooks


def test_a_scheduler_without_timesteps_is_in_one_step(fake):
    with record_calls(fake, None) as calls:
        fake(3)
        fake.scheduler.timesteps = None  # as before its first set_timesteps
        fake.transformer(torch.tensor(7))
    assert [(call.step, call.steps) for call in calls] == [(0, 3), (1, 3), (2, 3), (0, 1)]
