import copy
import sys
import threading
import warnings

import pytest
import torch
from modelopt.torch.quantization import model_calib

from modelopt_nb import enable, make_config, quantize, quiet, repair_states, round_weight


def test_prints_of_other_threads_pass(capsys):
    with quiet():
        print("silenced")
        thread = threading.Thread(target=print, args=("passes",))
        thread.start()
        thread.join()
    print("after")
    assert capsys.readouterr().out == "passes\nafter\n"


def test_only_known_warnings_are_silenced():
    with quiet():
        warnings.warn("Real quantization has been applied to the model", stacklevel=1)
        with pytest.warns(UserWarning, match="another"):
            warnings.warn("another", stacklevel=1)


def test_everything_is_restored():
    stdout, bar = sys.stdout, model_calib.tqdm
    with pytest.raises(KeyError), quiet():
        assert sys.stdout is not stdout and model_calib.tqdm is not bar
        raise KeyError
    assert sys.stdout is stdout and model_calib.tqdm is bar


def test_two_threads_that_overlap_restore_everything(capsys):
    before, seen = (sys.stdout, warnings.filters[:], warnings.showwarning, model_calib.tqdm), []
    entered, leave = threading.Event(), threading.Event()

    def work():
        with quiet():
            entered.set()
            leave.wait(10)
            print("silenced")
            seen.append(model_calib.tqdm is before[3])

    thread = threading.Thread(target=work)
    with quiet():
        thread.start()
        entered.wait(10)
    print("passes")  # this thread has left, the other one is inside
    leave.set()
    thread.join()
    assert (sys.stdout, warnings.filters[:], warnings.showwarning, model_calib.tqdm) == before
    assert capsys.readouterr().out == "passes\n" and seen == [False]


def test_blocks_may_be_nested(capsys):
    before = sys.stdout, warnings.filters[:], model_calib.tqdm
    with quiet():
        with pytest.raises(KeyboardInterrupt), quiet():
            raise KeyboardInterrupt
        print("silenced")
    assert (sys.stdout, warnings.filters[:], model_calib.tqdm) == before
    assert not capsys.readouterr().out


def test_two_threads_quantize_at_once():
    before, errors = (sys.stdout, warnings.filters[:], model_calib.tqdm), []
    barrier = threading.Barrier(2, timeout=10)

    def loop(model):
        barrier.wait()  # both are inside quiet()
        model(torch.ones(1, 32))

    def work():
        try:
            quantize(
                torch.nn.Sequential(torch.nn.Linear(32, 32)), make_config("INT8_INT8", algorithm="smoothquant"), loop
            )
        except BaseException as error:
            errors.append(error)

    enable()
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not [e for e in errors if not isinstance(e, threading.BrokenBarrierError)]
    assert (sys.stdout, warnings.filters[:], model_calib.tqdm) == before


def test_the_global_generator_is_not_touched(transformer, inputs):
    before = torch.get_rng_state()
    repair_states()
    for scheme, algorithm in (("INT8_INT8", "max"), ("INT4 block", "svdquant"), ("NVFP4", "max")):
        model = copy.deepcopy(transformer)
        quantize(model, make_config(scheme, algorithm=algorithm), lambda model: model(**inputs))
    round_weight(torch.ones(2, 16), {"num_bits": 8})
    assert torch.equal(torch.get_rng_state(), before)
