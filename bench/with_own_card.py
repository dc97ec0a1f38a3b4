"""Run a program as one of the ranks that torchrun starts: it sees its own GPU only, as cuda:0, as in `train gpus=N`.

torchrun --standalone --nproc-per-node 2 bench/with_own_card.py PROGRAM [ARGUMENT …]
"""

import runpy
import sys
from pathlib import Path

from lorgnette.planning.gpus import find_gpus
from lorgnette.training.launch import select_card

if __name__ == "__main__":
    if find_gpus():
        select_card()
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
