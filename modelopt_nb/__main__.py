"""``python -m modelopt_nb demo|schemes|doctor``: see :mod:`modelopt_nb.lab.cli`."""

from modelopt_nb.lab.cli import main

if __name__ == "__main__":
    main()
