"""The training loop: exact resume, frozen networks, lazy phases, averages, divergence, signals, several processes."""

import copy
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kizu.errors import DivergedError, UserError
from kizu.models.bundle import InputGeometry
from kizu.training import checkpoint
from kizu.training.data.batches import Batches
from kizu.training.detectors import DETECTORS
from kizu.training.loop import Ema, Interrupted, LoopSettings, Phase, Stage, TrainingLoop, clip_gradients
from kizu.training.parallel import Processes
from kizu.training.progress import RunLog

KINDS = [kind for kind in DETECTORS if kind not in ("semi-supervised", "padim")]
"""Those that train on images alone: the first's own tests give it what it needs, the second has nothing to train."""
GEOMETRY = InputGeometry(height=32, width=32, channels=1)
QUICK = LoopSettings(checkpoint_seconds=1e9, control_every=1, sample_every=10**9)


def images(count=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, 32, 32), dtype=torch.uint8, generator=generator)


def make_loop(make_method, kind, folder, epochs=2, settings=QUICK, log=None):
    method = make_method(kind, GEOMETRY, {"epochs": epochs, "batch_size": 4})
    torch.manual_seed(1)
    batches = Batches(images(), 4, seed=3)
    log = log or RunLog(None, quiet=True)
    return TrainingLoop(method, batches, folder, identity="test", log=log, settings=settings)


def weights(loop):
    return {name: tensor.clone() for name, tensor in loop.method.networks.state_dict().items()}


def assert_identical(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


class Recording(RunLog):
    """A log that keeps the losses."""

    def __init__(self):
        super().__init__(None, quiet=True)
        self.seen = []

    def scalars(self, stage, values, step):
        self.seen.append((stage, step, values))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop_after", [1, 4, 7, 12])
def test_a_stopped_and_resumed_run_has_the_same_losses_and_weights_as_one_left_alone(
    small_method, kind, stop_after, tmp_path, stop_at
):
    log = Recording()
    whole = make_loop(small_method, kind, tmp_path / "whole", log=log)
    whole.run()

    first = make_loop(small_method, kind, tmp_path / "parts", log=stop_at(stop_after))
    with pytest.raises(Interrupted):
        first.run()
    rest = Recording()
    second = make_loop(small_method, kind, tmp_path / "parts", log=rest)
    torch.manual_seed(999)  # whatever the random state was, the checkpoint's counts
    assert second.resume()
    second.run()
    assert_identical(weights(whole), weights(second))
    assert rest.seen == log.seen[len(log.seen) - len(rest.seen) :]


LONG_ENOUGH_TO_BE_KILLED = {"epochs": 25, "settings": LoopSettings(0, control_every=2, sample_every=10**9)}
"""Half a second at least, with a checkpoint at every second step."""


def test_a_run_killed_with_9_and_resumed_ends_with_the_same_weights(small_method, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys, torch
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from kizu.training.detectors import create_detector
        from kizu.training.recipe import DetectorSection
        from test_loop import LONG_ENOUGH_TO_BE_KILLED, make_loop

        def ganomaly(kind, geometry, fields):
            torch.manual_seed(0)
            options = {{"features": 4, "latent": 8}}
            return create_detector(geometry, DetectorSection(kind=kind, options=options, **fields))

        torch.set_num_threads({torch.get_num_threads()})
        make_loop(ganomaly, "ganomaly", Path(sys.argv[1]), **LONG_ENOUGH_TO_BE_KILLED).run()
        """)
    )
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "killed")])
    while not (tmp_path / "killed" / checkpoint.FILE).exists():
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(random.uniform(0, 0.3))
    process.kill()
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    resumed = make_loop(small_method, "ganomaly", tmp_path / "killed", **LONG_ENOUGH_TO_BE_KILLED)
    assert resumed.resume()
    resumed.run()
    whole = make_loop(small_method, "ganomaly", tmp_path / "whole", **LONG_ENOUGH_TO_BE_KILLED)
    whole.run()
    assert_identical(weights(whole), weights(resumed))


def test_networks_frozen_in_stage_two_keep_their_very_bits(small_method, tmp_path):
    loop = make_loop(small_method, "fanogan", tmp_path)
    networks = loop.method.networks
    loop._run_stage(loop.stages[0])
    frozen = {part: copy.deepcopy(getattr(networks, part).state_dict()) for part in ("generator", "critic")}
    encoder = copy.deepcopy(networks.encoder.state_dict())
    loop.step = 0
    loop._run_stage(loop.stages[1])
    for part, before in frozen.items():
        assert_identical(before, getattr(networks, part).state_dict())
    assert any(not torch.equal(encoder[name], tensor) for name, tensor in networks.encoder.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_phase_changes_only_what_it_trains(small_method, kind, tmp_path):
    loop = make_loop(small_method, kind, tmp_path)
    for stage in loop.stages:
        for phase in stage.phases:
            inside = {id(p) for p in phase.trains.parameters()}
            before = {name: p.detach().clone() for name, p in loop.method.networks.named_parameters()}
            loop.method.networks.requires_grad_(False)
            loop._update(phase, loop.batches.next())
            changed = {n for n, p in loop.method.networks.named_parameters() if not torch.equal(p, before[n])}
            trained = {n for n, p in loop.method.networks.named_parameters() if id(p) in inside}
            assert changed
            assert changed <= trained


class Line:
    """A method with one number to fit, for what the loop itself does."""

    def __init__(self, steps=20, loss=None, every=1, repeats=1, problem=None):
        self.net, self.mean = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        self.networks = nn.ModuleDict({"net": self.net, "mean": self.mean})
        for network in (self.net, self.mean):
            nn.init.zeros_(network.weight)
        self.calls = 0
        self.loss = loss or (lambda weight: (weight - 1).square().sum())
        self.ema = Ema(self.net, self.mean, 0.9, ramp_up=False)
        self.settings = (steps, every, repeats, problem)

    def stages(self, images):
        del images
        steps, every, repeats, problem = self.settings
        phase = Phase("fit", self.net, torch.optim.SGD(self.net.parameters(), 0.1), self._losses, repeats, every)
        return [Stage("line", steps, [phase], averages=[self.ema], problem=problem)]

    def _losses(self, x):
        del x
        self.calls += 1
        return {"total": self.loss(self.net.weight)}

    def detector(self):
        return self.net

    def samples(self, images):
        return images


def run_line(method, folder, **settings):
    chosen = LoopSettings(**({"control_every": 1} | settings))
    batches, log = Batches(images(), 4, 0), RunLog(None, quiet=True)
    loop = TrainingLoop(method, batches, folder, identity="x", log=log, settings=chosen)
    loop.run()
    return loop


def test_phases_run_as_often_as_they_say(tmp_path):
    method = Line(steps=20, every=4, repeats=3)
    run_line(method, tmp_path)
    assert method.calls == 5 * 3


def test_the_average_follows_its_closed_form(tmp_path):
    method = Line(steps=15)
    run_line(method, tmp_path)
    weight = average = 0.0
    for _ in range(15):
        weight -= 0.1 * 2 * (weight - 1)
        average = 0.9 * average + 0.1 * weight
    assert method.net.weight.item() == pytest.approx(weight, rel=1e-5)
    assert method.mean.weight.item() == pytest.approx(average, rel=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    def loss(weight):
        return (weight - 1).square().sum() * (math.nan if weight.item() > 0.9 else 1.0)

    with pytest.raises(DivergedError, match=r"diverged in stage 'line' at step \d+: fit/total is not finite"):
        run_line(Line(steps=100, loss=loss), tmp_path, checkpoint_seconds=0)
    state = checkpoint.load(tmp_path)
    assert state is not None
    assert torch.isfinite(state["networks"]["net.weight"]).all()


def test_a_collapse_that_lasts_stops_the_run_and_a_passing_one_does_not(tmp_path):
    with pytest.raises(DivergedError, match="collapsed in stage 'line' at step 5: all alike"):
        run_line(Line(problem=lambda: "all alike"), tmp_path / "a")
    moments = iter(["all alike", None] * 50)
    run_line(Line(problem=lambda: next(moments)), tmp_path / "b")


def test_a_signal_stops_the_run_with_a_checkpoint_to_resume_from(tmp_path):
    method = Line(steps=10**9)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(Interrupted):
        run_line(method, tmp_path)
    state = checkpoint.load(tmp_path)
    assert state is not None
    assert state["step"] == method.calls


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    run_line(Line(), tmp_path)
    other = TrainingLoop(Line(), Batches(images(), 4, 0), tmp_path, identity="y", log=RunLog(None, quiet=True))
    with pytest.raises(UserError, match="another recipe or data set"):
        other.resume()


def test_a_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / checkpoint.FILE).write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(UserError, match=checkpoint.FILE):
        checkpoint.load(tmp_path)


def test_batches_show_every_image_once_per_epoch_in_an_order_fixed_by_the_seed():
    pixels = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1).expand(10, 1, 32, 32)
    batches = Batches(pixels, 5, seed=1)
    seen = [((b.images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist() for b in (batches.next() for _ in range(6))]
    epochs = [[*seen[i], *seen[i + 1]] for i in (0, 2, 4)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    again = Batches(pixels, 5, seed=1)
    again.position = 3
    assert torch.equal(again.next().images, batches.at(torch.tensor(seen[3])).images)


def test_batches_carry_each_image_s_label_across_blocks_of_epochs(monkeypatch):
    monkeypatch.setattr("kizu.training.data.batches.BLOCK", 20)
    pixels = torch.arange(7, dtype=torch.uint8).reshape(7, 1, 1, 1).expand(7, 1, 32, 32)
    batches = Batches(pixels, 5, seed=1, labels=torch.arange(7) * 10)
    seen = []
    for _ in range(14):
        images, labels, _ = batches.next()
        assert (((images[:, 0, 0, 0] + 1) * 127.5).round() * 10).tolist() == labels.tolist()
        seen += labels.tolist()
    assert all(sorted(seen[i : i + 7]) == [0, 10, 20, 30, 40, 50, 60] for i in range(0, 70, 7))


def test_processes_share_each_batch_without_overlap():
    pixels = torch.arange(8, dtype=torch.uint8).reshape(8, 1, 1, 1).expand(8, 1, 32, 32)
    whole = Batches(pixels, 4, seed=0).next().images
    halves = [Batches(pixels, 4, seed=0, rank=rank, world_size=2).next().images for rank in (0, 1)]
    assert torch.equal(whole, torch.cat(halves))


class Mean:
    """A method that learns the mean of an image."""

    learns_from_ng = False

    def __init__(self):
        torch.manual_seed(0)
        self.networks = nn.Sequential(nn.Flatten(), nn.Linear(1024, 1))

    def stages(self, images):
        del images
        optimizer = torch.optim.Adam(self.networks.parameters(), 1e-3)
        return [Stage("mean", 12, [Phase("fit", self.networks, optimizer, self._losses)])]

    def _losses(self, batch):
        x = batch.images
        return {"total": (self.networks(x) - x.mean((1, 2, 3))[:, None]).square().mean()}

    def detector(self):
        return self.networks

    def samples(self, images):
        return images


def train_mean(folder):
    """Train `Mean` as one of the processes that torchrun started, or alone; save and return its weights."""
    processes = Processes()
    batches = Batches(images(16), 8, 0, rank=processes.rank, world_size=processes.world_size)
    method, log = Mean(), RunLog(None, quiet=True)
    settings = LoopSettings(control_every=3)
    TrainingLoop(method, batches, folder, identity="x", log=log, processes=processes, settings=settings).run()
    torch.save(method.networks.state_dict(), folder / f"rank{processes.rank}.pt")
    return method.networks.state_dict()


def test_two_processes_train_as_one_with_the_whole_batch(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(
        textwrap.dedent(f"""
        import atexit, os, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_loop import train_mean

        def no_thread_is_left():
            names = [Path(task, "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
            if any("gloo" in name for name in names):
                os._exit(3)

        if sys.platform == "linux":
            atexit.register(no_thread_is_left)  # runs after what Processes registers
        train_mean(Path(sys.argv[1]))
        """)
    )
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*torchrun, script, tmp_path / "two"], check=True, env=environment)
    a, b = (torch.load(tmp_path / "two" / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert_identical(a, b)
    one = train_mean(tmp_path / "one")
    for name in one:
        torch.testing.assert_close(one[name], a[name], rtol=1e-4, atol=1e-6)


def test_gradients_are_scaled_together_to_the_largest_norm():
    network = torch.nn.Linear(3, 2)
    network.weight.grad, network.bias.grad = torch.full((2, 3), 3.0), torch.full((2,), -4.0)
    before = torch.cat([network.weight.grad.flatten(), network.bias.grad])
    clip_gradients(network, 100.0)
    assert torch.equal(torch.cat([network.weight.grad.flatten(), network.bias.grad]), before)
    clip_gradients(network, 1.0)
    after = torch.cat([network.weight.grad.flatten(), network.bias.grad])
    torch.testing.assert_close(after, before / before.norm())


def test_a_phase_clips_what_its_optimiser_sees(tmp_path):
    network = torch.nn.Linear(4, 1)
    seen = []

    class Watching(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]).norm().item())
            return super().step(closure)

    def loss(batch):
        return {"total": 1e3 * network(batch.images.flatten(1)[:, :4]).sum()}

    phase = Phase("fit", network, Watching(network.parameters(), 0.1), loss, clip=0.5)
    method = SimpleNamespace(networks=network, stages=lambda _: [Stage("fit", 2, [phase])], samples=lambda x: x)
    batches = Batches(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), 2, 0)
    TrainingLoop(method, batches, tmp_path, identity="x", log=RunLog(None, quiet=True)).run()
    assert seen == pytest.approx([0.5, 0.5])
