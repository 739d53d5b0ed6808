"""Several processes give the numbers of one, stop together, and can hand a run over to fewer."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from salt import shard
from salt.errors import RunFailed, UserError
from salt.specs import VitSpec
from salt.vit import Block
from salt.world import Launch, World, find_launch, first_host
from tests.rank_kit import ALONE, BRANCH, SHARDINGS, STEPS, Trainer, train
from tests.video_kit import write_video

ROOT = Path(__file__).parent.parent
LIMIT_S = 240


def together(size: int, *arguments: str) -> list[tuple[int, str]]:
    """Exit code and output of each of `size` processes of the kit that meet on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "error", "-m", "tests.rank_kit", *arguments]
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **meet, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        outputs = [process.communicate(timeout=LIMIT_S)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def assert_same(path: Path, state: dict[str, torch.Tensor], curve: torch.Tensor) -> None:
    found = load_file(path)
    found.pop("held", None)
    torch.testing.assert_close(found.pop("curve"), curve, atol=1e-6, rtol=0, msg=f"{path.name}: losses")
    assert set(found) == set(state)
    for name, tensor in state.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=0, msg=f"{path.name}: {name}")


def test_four_processes_and_then_two_train_as_one_does(tmp_path: Path) -> None:
    """Losses, gradient norms, weights, their average and AdamW's moments, with every kind of sharding; then
    from the middle with half the processes and another sharding.
    """
    alone = Trainer(ALONE)
    curve = train(alone, 0, STEPS)
    state = alone.state()
    assert curve[0, 1] > 0.7 > curve[-1, 1], "the norm is to be clipped in some steps only"
    assert curve[-1, 0] < 0.9 * curve[0, 0], "nothing is learnt"

    for code, output in together(4, str(tmp_path), "say", "start_to_end"):
        assert code == 0, output
    for sharding in SHARDINGS:
        assert_same(tmp_path / f"{sharding}-end.safetensors", state, curve)
        held = load_file(tmp_path / f"{sharding}-end.safetensors")["held"].item()
        whole = sum(tensor.numel() for tensor in state.values())
        assert held == whole if sharding == "none" else whole / 4 <= held < whole / 3.9
    assert_what_was_said(tmp_path, 4)
    for code, output in together(2, str(tmp_path), "go_on"):
        assert code == 0, output
    for sharding in SHARDINGS:
        assert_same(tmp_path / f"{sharding}-resumed.safetensors", state, curve[BRANCH:])


def assert_what_was_said(folder: Path, size: int) -> None:
    for rank in range(size):
        said = load_file(folder / f"said-{rank}.safetensors")
        assert said["places"].tolist() == list(range(3 * rank, 3 * rank + 3))
        assert said["mean"].tolist() == [1.5, 2.5, 3.5]
        assert said["own"].tolist() == [rank, rank + 1, rank + 2], "a mean is not to change its input"
        # Rank r gives r + 1 rows of r.
        assert said["gather"].tolist() == [[float(r)] * 2 for r in range(size) for _ in range(r + 1)]
        assert said["equal"].tolist() == [[r > 0] for r in range(size)]
        assert said["any"].tolist() == [False, True]
        assert said["share"].tolist() == [5, 7]
        assert said["on_main"].item() == (3 if rank == 0 else -1)
        raised = (folder / f"raised-{rank}").read_text()
        assert raised.startswith("data: rank 0 of 4: FileNotFoundError")
        assert "absent" in raised


def test_a_file_that_one_rank_cannot_read_stops_all_at_once(tmp_path: Path) -> None:
    write_video(tmp_path / "good.mp4", 20)
    (tmp_path / "bad.mp4").write_text("<html><body>404: there was a video here</body></html>")
    began = time.perf_counter()
    ends = together(2, str(tmp_path), "read_clips")
    assert time.perf_counter() - began < 60
    for rank, (code, output) in enumerate(ends):
        assert code == 1, output
        assert f"the run failed (data): rank 1 of 2: {tmp_path / 'bad.mp4'}: not a readable video" in output
        assert (tmp_path / f"steps-{rank}").read_text() == "2", "no rank goes into the step"


def test_ranks_notice_one_that_vanished(tmp_path: Path) -> None:
    began = time.perf_counter()
    (first, output), (second, _) = together(2, str(tmp_path), "vanish")
    assert (first, second) == (1, 3)
    assert "the run failed (ranks): rank 0 of 2 lost the others" in output
    assert time.perf_counter() - began < 60, "it is to notice before the kit's time limit"


def test_torchrun_starts_ranks(tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "tests.rank_kit", str(tmp_path), "vanish"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 1
    assert "tests.rank_kit FAILED" in done.stderr


TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_JOB_ID": "70000",
    "SLURM_STEP_ID": "2",
}


def test_how_a_process_was_started() -> None:
    by_torchrun = Launch(rank=5, size=8, local_rank=1, meet_at="env://")
    # 12000 + (64 * 70000 + 2) % 20000
    by_srun = Launch(rank=5, size=8, local_rank=1, meet_at="tcp://gpu03:12002")
    assert find_launch({}) is None
    assert find_launch(TORCHRUN) == find_launch(TORCHRUN, 8) == by_torchrun
    assert find_launch({**SRUN, **TORCHRUN}, 8) == by_torchrun, "torchrun, started by srun"
    assert find_launch(SRUN, 8) == by_srun
    other = {"MASTER_ADDR": "b", "MASTER_PORT": "77"}
    assert find_launch({**SRUN, **other}, 8) == Launch(rank=5, size=8, local_rank=1, meet_at="tcp://b:77")


def test_a_process_on_its_own_joins_nobody() -> None:
    assert find_launch(SRUN) is None, "tasks of a step may have runs of their own"
    assert find_launch(SRUN, 1) is None
    assert find_launch(TORCHRUN, 1) is None
    assert find_launch({"WORLD_SIZE": "1"}) is None
    lone_step = {**SRUN, "SLURM_STEP_NUM_TASKS": "1"}  # `srun --ntasks 1` in an allocation of 8
    with pytest.raises(UserError, match=r"asked to have 8 processes, but this one is on its own.*torchrun"):
        find_launch(lone_step, 8)
    with pytest.raises(UserError, match="asked to have 4 processes, but there are 8"):
        find_launch(TORCHRUN, 4)
    with pytest.raises(UserError, match="WORLD_SIZE is 8, but MASTER_PORT not set"):
        find_launch({n: v for n, v in TORCHRUN.items() if n != "MASTER_PORT"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("gpu[003-010,12],x", "gpu003"), ("r[1-2]c[07,9]-ib", "r1c07-ib")],
)
def test_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_a_batch_that_cannot_be_split_names_what_fits() -> None:
    world = World(rank=1, size=5, local_rank=1, device=torch.device("cpu"))
    with pytest.raises(RunFailed, match="batch_clips 24 .* 5 processes: start 2, 3, 4, 6, 8, 12 of them"):
        world.places(24)
    assert world.places(25) == range(5, 10)


def test_recomputed_blocks_give_the_same_bits() -> None:
    kept, recomputed = Trainer(ALONE), Trainer(ALONE, recompute=True)
    assert torch.equal(train(kept, 0, 3), train(recomputed, 0, 3))
    ours, theirs = kept.state(), recomputed.state()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert saved_numbers(recomputed) < saved_numbers(kept) / 3


def saved_numbers(trainer: Trainer) -> int:
    """Numbers that the forward pass of a block chain keeps for the backward pass."""
    saved = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal saved
        saved += tensor.numel()
        return tensor

    blocks = shard.blocks_of(trainer.model)
    x = torch.randn(4, 16, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        for block in blocks:
            x = block(x)
    return saved


@pytest.mark.filterwarnings("ignore")  # torch's compiler uses what torch has deprecated
def test_compiled_blocks_share_a_graph_and_keep_it() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Sequential(*(Block(VitSpec(width=16, depth=2, heads=2, mlp_width=32)) for _ in range(2)))
    names = list(plain.state_dict())
    x = torch.randn(2, 5, 16, requires_grad=True)  # as between blocks: else the first has a graph of its own
    wanted = plain(x).square().mean()
    gradients = torch.autograd.grad(wanted, list(plain.parameters()))
    shard.compile_blocks(plain)
    before = shard.recompilations()
    for _ in range(2):
        found = plain(x).square().mean()
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
        torch.testing.assert_close(torch.autograd.grad(found, list(plain.parameters())), gradients)
        assert shard.recompilations() == before + 1, "two blocks, one graph"
    assert list(plain.state_dict()) == names
