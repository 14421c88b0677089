import sys
import threading
import warnings

import pytest
from modelopt.torch.quantization import model_calib

from modelopt_nb import quiet


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
