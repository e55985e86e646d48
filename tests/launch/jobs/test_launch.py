"""The scripts of `headwater launch`: what stands in them, what is refused, and what they do as jobs end."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from headwater.configs import ConfigError, UserError
from headwater.launch.cli.front import split_arguments
from headwater.launch.jobs.job import Cluster, Job
from headwater.launch.jobs.launch import check, launch_job
from headwater.launch.jobs.slurm import limit_seconds, read_options
from headwater.launch.jobs.stages import split_stage

LAYOUT = """
corpus: {sources: [{kind: factbook}]}
model: {layers: 2, heads: 4, kv_heads: 4}
train: {global_batch: 16, micro_batch: 1}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(LAYOUT)
    return path


def job(config: Path, *overrides: str, **options: object) -> Job:
    return Job(config=str(config), overrides=list(overrides), **options)  # type: ignore[arg-type]


def assert_parses(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_torchrun_script_has_the_rendezvous_and_the_run(config: Path):
    one = job(config, "out=runs/a b", "train.steps=7", nodes=2, gpus_per_node=4, restarts=5, port=1234)
    assert launch_job(one, submit=False) == 0
    script = Path("runs/a b/launch.sh")
    assert_parses(script)
    assert os.access(script, os.X_OK)
    text = script.read_text()
    words = shlex.split(text.partition("exec ")[2].replace("\\\n", " "))
    for option, value in {
        "--nnodes": "2",
        "--nproc-per-node": "4",
        "--max-restarts": "5",
        "--rdzv-backend": "c10d",
        "--log-dir": "runs/a b/logs",
        "--shutdown-timeout": "570",
        "-m": "headwater.launch.jobs.agent",
    }.items():
        assert words[words.index(option) + 1] == value
    assert words[-4:] == ["headwater.train", str(config), "out=runs/a b", "train.steps=7"]
    assert ":1234" in text


def test_one_machine_needs_no_address(config: Path):
    launch_job(job(config, "out=run", nodes=1, gpus_per_node=2), submit=False)
    text = Path("run/launch.sh").read_text()
    assert_parses(Path("run/launch.sh"))
    assert "--standalone" in text
    assert "HEADWATER_" not in text


def test_torchrun_script_refuses_to_start_without_the_first_machine(config: Path):
    launch_job(job(config, "out=run", nodes=2, gpus_per_node=1), submit=False)
    environment = {name: value for name, value in os.environ.items() if name != "HEADWATER_HEAD"}
    result = subprocess.run(["bash", "run/launch.sh"], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "first machine" in result.stderr


def test_slurm_script_has_what_slurm_reads(config: Path):
    slurm = job(
        config,
        "out=runs/a b",
        nodes=4,
        gpus_per_node=4,
        slurm=True,
        time_limit="1-02:00:00",
        notice_minutes=15,
        cluster=Cluster(partition="long"),
    )
    launch_job(slurm, submit=False)
    script = Path("runs/a b/launch.sbatch")
    assert_parses(script)
    assert Path("runs/a b/logs").is_dir()
    directives = [line[len("#SBATCH ") :] for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {
        "--nodes=4",
        "--ntasks-per-node=1",
        "--gpus-per-node=4",
        "--time=1-02:00:00",
        "--signal=TERM@900",
        "--partition=long",
        "--requeue",
        "--open-mode=append",
    } <= set(directives)
    assert not any("account" in directive for directive in directives)
    assert f"--output='{Path.cwd()}/runs/a b/logs/slurm-%j.out'" in directives
    assert "--shutdown-timeout 870" in script.read_text()
    assert "scontrol show hostnames" in script.read_text()


@pytest.fixture
def fake_slurm(config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Runs the script of a job where `srun` and `sbatch` do what they are told; returns its status and what it says."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "here")
    monkeypatch.setenv("SLURM_JOB_ID", "7")

    def run(srun: str, sbatch: str = "echo 8", **options: object) -> tuple[int, str]:
        for name, does in {"scontrol": "echo here", "srun": f"echo x >>calls; {srun}", "sbatch": sbatch}.items():
            (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{does}\n")
            (tmp_path / "bin" / name).chmod(0o755)
        Path("calls").unlink(missing_ok=True)
        launch_job(job(config, "out=run", gpus_per_node=2, slurm=True, restarts=2, **options), submit=False)
        done = subprocess.run(["bash", "run/launch.sbatch"], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    return run


def calls() -> int:
    return len(Path("calls").read_text().split())


def test_slurm_script_starts_its_agents_again_as_often_as_it_may(fake_slurm: Callable[..., tuple[int, str]]):
    status, said = fake_slurm("exit 7")
    assert (status, calls()) == (7, 3)
    assert "started again (2 of 2)" in said
    assert "given up after status 7" in said
    second = 'if test "$(wc -l <calls)" = 2; then echo finished >"$HEADWATER_ENDED"; else exit 9; fi'
    assert fake_slurm(second)[0] == 0
    assert calls() == 2
    assert fake_slurm("exit 0")[0] == 1, "a machine that fails leaves a status of 0, and nothing said"
    assert calls() == 3


def test_slurm_script_does_not_try_again_what_must_be_mended(fake_slurm: Callable[..., tuple[int, str]]):
    for how in ("exit 2", 'echo refused >"$HEADWATER_ENDED"; exit 137'):
        status, said = fake_slurm(how)
        assert (status, calls()) == (2, 1)
        assert "must be mended" in said


@pytest.mark.parametrize("status", [0, 1, 137, 143])
def test_slurm_script_knows_a_stop_whatever_srun_makes_of_it(fake_slurm: Callable[..., tuple[int, str]], status: int):
    said = fake_slurm(f'echo "stopped step 3 of 9" >"$HEADWATER_ENDED"; exit {status}')
    assert said[0] == 143
    assert calls() == 1
    assert "told to stop, and saved: step 3 of 9" in said[1]
    assert f"to go on: sbatch {Path.cwd()}/run/launch.sbatch" in said[1]


def test_a_chain_submits_itself_while_it_comes_further_and_ends_with_a_summary(
    fake_slurm: Callable[..., tuple[int, str]],
):
    for step in (3, 6):
        status, said = fake_slurm(f'echo "stopped step {step} of 9" >"$HEADWATER_ENDED"', chain=True)
        assert status == 0
        assert "goes on in job 8" in said
    status, said = fake_slurm('echo "stopped step 6 of 9" >"$HEADWATER_ENDED"', chain=True)
    assert status == 1
    assert "no further than the job before it (step 6 of 9)" in said
    status, said = fake_slurm('echo "stopped step 7 of 9" >"$HEADWATER_ENDED"', "exit 1", chain=True)
    assert status == 1
    assert f"from where you may: sbatch {Path.cwd()}/run/launch.sbatch" in said
    status, said = fake_slurm('echo "finished step 9 of 9" >"$HEADWATER_ENDED"', chain=True)
    assert status == 0
    assert "job 7: finished: step 9 of 9" in said
    assert said.count("job 7 came to") == 4
    assert not list(Path("run/logs").iterdir()), "nothing is left of the chain"


def test_a_chain_that_is_told_before_it_began_is_tried_once_more(fake_slurm: Callable[..., tuple[int, str]]):
    assert fake_slurm("exit 143", chain=True)[0] == 0
    assert fake_slurm("exit 130", chain=True)[0] == 1


def lines_of(config: Path, **options: object) -> set[str]:
    launch_job(job(config, "out=run", gpus_per_node=2, slurm=True, **options), submit=False)
    assert_parses(Path("run/launch.sbatch"))
    return set(Path("run/launch.sbatch").read_text().splitlines())


def test_what_clusters_need(config: Path):
    asked = {"gpu_request": "gres", "exclusive": False, "cpus_per_task": 6, "memory": "40G"}
    options = read_options(["qos=high", "overcommit", "--mail-type=END", "time=00:30:00"])
    lines = lines_of(config, cluster=Cluster(options=options, prologue="module load cuda\nexport A=1\n", **asked))
    for option in ("gres=gpu:2", "cpus-per-task=6", "mem=40G", "qos=high", "overcommit", "mail-type=END"):
        assert f"#SBATCH --{option}" in lines
    assert "#SBATCH --time=00:30:00" in lines, "what is asked for takes the place of ours"
    assert "#SBATCH --time=24:00:00" not in lines
    assert {"module load cuda", "export A=1"} <= lines
    assert not any("exclusive" in line or "gpus-per-node" in line for line in lines)
    assert any(line.startswith("    srun --kill-on-bad-exit=1 --cpus-per-task=6 ") for line in lines)
    plain = lines_of(config, cluster=Cluster(gpu_request="none"))
    assert "#SBATCH --exclusive" in plain
    assert not any("gpu" in line and line.startswith("#SBATCH") for line in plain)
    for wrong in ("=high", "QOS=high", "a b=c"):
        with pytest.raises(UserError, match="--sbatch"):
            read_options([wrong])


def test_a_prologue_that_fails_ends_the_job(fake_slurm: Callable[..., tuple[int, str]]):
    assert fake_slurm("exit 0", cluster=Cluster(prologue="false\n"))[0] == 1
    assert not Path("calls").exists()


def test_containers(config: Path):
    here = Path.cwd()
    text = "\n".join(lines_of(config, cluster=Cluster(image="nvcr.io#a/b:1", mounts=("/data:/data",))))
    mounts = f"--container-mounts={here}:{here},{here}/run:{here}/run,/data:/data"
    options = f"--container-image=nvcr.io#a/b:1 {mounts} --container-workdir={here}"
    assert f"srun --kill-on-bad-exit=1 {options}" in text.replace("'", "")
    assert "    python -m headwater.launch.jobs.agent" in text
    text = "\n".join(lines_of(config, cluster=Cluster(image="a.sif")))
    assert f"srun --kill-on-bad-exit=1 apptainer exec --nv --pwd {here} --bind {here}:{here}" in text
    launch_job(job(config, "out=run", gpus_per_node=2, cluster=Cluster(image="a.sif")), submit=False)
    assert "exec apptainer exec" in Path("run/launch.sh").read_text()
    with pytest.raises(UserError, match="without --slurm"):
        check(job(config, "out=run", gpus_per_node=2, cluster=Cluster(image="b")))


def test_stages_are_launched_where_they_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "index").mkdir()
    (tmp_path / "index/index.json").touch()
    (tmp_path / "c.yaml").write_text("corpus: {sources: [{kind: factbook}]}")
    cases = {
        "index index/run model.run=run": ("run/index/headwater", "jobs.agent", "headwater.attribution.index index/run"),
        "trace index=index out=found/t.jsonl": ("found", "headwater.launch trace index=index out=found/t.jsonl", ""),
        "evaluate run=run": ("run", "headwater.launch evaluate run=run", ""),
        "report run=run": ("run", "headwater.launch report run=run", ""),
        "corpus c.yaml out=made": ("made", "headwater.launch corpus c.yaml out=made", ""),
        "demo out=demo": ("demo", "headwater.launch demo out=demo", ""),
        "study lds out=lds": ("lds", "headwater.launch study lds out=lds", ""),
        "c.yaml out=pre train.micro_batch=1": ("pre", "jobs.agent", "headwater.train c.yaml out=pre"),
    }
    for words, (place, *parts) in cases.items():
        stage, rest = split_stage(words.split())
        config, overrides = split_arguments(rest)
        one = Job(stage=stage, config=config, overrides=overrides, gpus_per_node=2, slurm=True)
        assert launch_job(one, submit=False) == 0
        assert_parses(Path(place, "launch.sbatch"))
        text = Path(place, "launch.sbatch").read_text()
        assert all(part in text for part in parts), text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("c.yaml out=new", "has no files"),
        ("corpus c.yaml out=new", "has no files"),
        ("fine.yaml out=new model.init_from=gone", "gone is missing"),
        ("fine.yaml out=new corpus.tokenizer.path=gone.json model.vocab_size=64", "gone.json is missing"),
        ("index index/run model.run=gone", "gone/checkpoints is missing"),
        ("trace index=gone out=new/t.jsonl", "gone/index.json is missing"),
        ("trace index=gone", "writes what it finds to a file"),
        ("evaluate run=gone", "gone is missing"),
    ],
)
def test_what_is_missing_is_refused_before_anything_is_written(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("corpus: {sources: [{kind: jsonl, path: gone.jsonl}]}")
    (tmp_path / "fine.yaml").write_text("corpus: {sources: [{kind: factbook}]}")
    before = set(tmp_path.iterdir())
    stage, rest = split_stage(words.split())
    config, overrides = split_arguments(rest)
    one = Job(stage=stage, config=config, overrides=overrides, gpus_per_node=1, slurm=True)
    with pytest.raises(UserError, match=message):
        launch_job(one, submit=False)
    assert set(tmp_path.iterdir()) == before
    if "out=new " not in f"{words} " and stage != "trace":
        return
    if message != "writes what it finds to a file":  # another job may make it
        assert launch_job(replace(one, cluster=Cluster(options={"dependency": "afterok:3"})), submit=False) == 0


def test_a_layout_that_fits_no_gpu_is_refused_but_on_cpus(config: Path):
    wide = ["out=run", "model.hidden=32768", "model.ffn_hidden=131072", "model.layers=40", "zero.stage=0"]
    with pytest.raises(ConfigError, match="memory per GPU"):
        check(job(config, *wide, gpus_per_node=2))
    check(job(config, *wide, gpus_per_node=2, cluster=Cluster(gpu_request="none")))
    middling = ["out=run", "model.hidden=8192", "model.ffn_hidden=24576", "model.layers=10", "zero.stage=0"]
    check(job(config, *middling, gpus_per_node=2))
    with pytest.raises(ConfigError, match="memory per GPU"):
        check(job(config, *middling, gpus_per_node=2, gpu="l40s"))
    with pytest.raises(UserError, match="--gpu is not known"):
        check(job(config, "out=run", gpus_per_node=2, gpu="h1000"))


def test_options_that_a_stage_knows_nothing_of(config: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    wrong = [({"nodes": 2}, "runs on one machine"), ({"chain": True, "slurm": True}, "--chain of report")]
    for options, message in wrong:
        with pytest.raises(UserError, match=message):
            check(Job(stage="report", overrides=["run=run"], **options))
    with pytest.raises(UserError, match="--chain of pretrain without --slurm"):
        check(job(config, "out=run", gpus_per_node=2, chain=True))


def test_submit_calls_sbatch_with_the_script(config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    slurm = job(config, "out=run", nodes=1, gpus_per_node=2, slurm=True)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(UserError, match="sbatch is not on this machine"):
        launch_job(slurm, submit=True)
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "sbatch"
    fake.write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/called\nexit 3\n')
    fake.chmod(0o755)
    assert launch_job(slurm, submit=True) == 3
    assert (tmp_path / "called").read_text() == "run/launch.sbatch\n"


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        (["train.global_batch=6"], {"nodes": 2, "gpus_per_node": 2}, "train.global_batch = 6"),
        (["parallel.tensor=4"], {"nodes": 2, "gpus_per_node": 2}, "at most gpus_per_node"),
        (["parallel.pipeline=2"], {"nodes": 1, "gpus_per_node": 3}, "gpus = 3"),
        (["train.stops=6"], {}, "did you mean train.steps"),
    ],
)
def test_a_layout_that_cannot_work_writes_nothing(config: Path, overrides: list[str], options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        launch_job(job(config, "out=run", *overrides, **options), submit=False)
    assert not Path("run").exists()


def test_bad_times_are_refused(config: Path):
    assert limit_seconds("1-00:00:01") == 86401
    with pytest.raises(UserError, match="time-limit"):
        limit_seconds("24h")
    with pytest.raises(UserError, match="--notice"):
        check(job(config, slurm=True, time_limit="00:10:00", notice_minutes=10))
    with pytest.raises(UserError, match="needs a configuration"):
        check(Job(config=None))
