"""Run the command line: ``python -m modelopt_nb``."""

from modelopt_nb.lab.cli import main

main()
