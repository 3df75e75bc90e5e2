"""f-AnoGAN learns what a good board looks like: on two seeds together, clearly better than chance."""

import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


@pytest.mark.alone
@pytest.mark.timeout(1200)
def test_fanogan_separates_boards_after_a_few_minutes_on_each_of_two_seeds(boards, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(f"""
        import json, sys, torch
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from conftest import train_and_score
        from kizu.training.data.manifest import Manifest
        from kizu.training.recipe import DetectorSection

        torch.set_num_threads(1)
        options = {{"features": 16, "latent": 32}}
        section = DetectorSection(kind="fanogan", epochs=40, batch_size=8, learning_rate=3e-4, options=options)
        seed = int(sys.argv[1])
        found = train_and_score(Manifest.read(Path({str(boards.root)!r})), section, Path(sys.argv[2]), seed)
        print(json.dumps(found.as_dict()))
        """)
    )
    # A process for each: networks this small do not gain from a second thread.
    command, environment = [sys.executable, str(script)], os.environ | {"OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([*command, str(seed), str(tmp_path / str(seed))], stdout=subprocess.PIPE, env=environment)
        for seed in (0, 1)
    ]
    found = [json.loads(process.communicate()[0]) for process in running]
    mean = sum(estimate["value"] for estimate in found) / 2
    half = math.hypot(*((estimate["upper"] - estimate["lower"]) / 2 for estimate in found)) / 2
    assert mean - half > 0.5, found
