"""Plans: machines, work, rates from real folders, and counts that the run keeps to."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from apgd import InputError
from apgd.checkpoints import open_weights, save_sealed
from apgd.data import Split
from apgd.files import sha256_file, write_json, write_sealed
from apgd.methods import methods
from apgd.shapes import merged_shapes, model_bytes, model_shapes
from apgd.suites import suites
from apgd.task_vectors import TaskVectors
from apgd.training_statistics import statistic_spec
from experiments import ablations, compare_methods, full_repro
from tune.cluster import plan
from tune.evaluators import Purpose, ScoreJob
from tune.experiment import Experiment, check
from tune.experts import data_cells, model_specs, wanted_statistics
from tune.planning.devices import DEVICES, IDLE_MINUTES, UTILISATION, processor_device
from tune.planning.estimate import Basis
from tune.planning.found import look
from tune.planning.machines import Machines, described, kind_of
from tune.planning.places import from_nodes
from tune.planning.plan import Plan, plan_of
from tune.planning.rates import measured_rates
from tune.planning.show import show
from tune.planning.work import (
    Work,
    example_count,
    longest_first,
    merging_work,
    rung_plans,
    training_work,
)
from tune.records import Kind, Record, RecordStore, Variant
from tune.search.stage import studies_of, study_key
from tune.workers.sharing import sharing_of

PLAN_LINE = re.compile(r"^ (?P<name>\S.*?)\s{2,}(?P<todo>\d+)\s+(?P<there>\d+)\s", re.MULTILINE)


def counts(output: str) -> dict[str, tuple[int, int]]:
    """To do and there by stage, as a plan prints them."""
    stages = output.split("GPU memory each")[0].rpartition("\n")[0]
    return {m["name"]: (int(m["todo"]), int(m["there"])) for m in PLAN_LINE.finditer(stages)}


def plain(experiment: Experiment, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(plan_of(experiment), console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def nowhere(**fields: object) -> Experiment:
    """An experiment of which nothing is on disk."""
    empty = Path(tempfile.gettempdir()) / "nothing-is-here"
    return Experiment(run_dir=empty / "run", experts_dir=empty / "experts", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["mini_vision", "mini_text"])
def test_shapes_are_those_of_the_base(name: str) -> None:
    suite = suites[name]
    base = open_weights(suite.base_path(), "base")
    assert model_shapes(suite) == {n: tuple(base.shape(n)) for n in base.names()}
    vectors = TaskVectors(suite.base_path(), {"a": suite.base_path()}, suite.is_merged, keep=False)
    assert merged_shapes(suite) == {n: vectors.shape(n) for n in vectors.names}
    assert model_bytes(suite) == 4 * sum(base[n].numel() for n in base.names())


@pytest.mark.parametrize(
    ("name", "share"), [("mini_vision", 0.03), ("clip_vit_b32_8", 0.01), ("clip_vit_l14_8", 0.01)]
)
def test_operations_of_vision_are_those_that_torch_counts(name: str, share: float) -> None:
    suite = suites[name]
    with torch.device("meta"):
        model = suite.build_model().eval()
        size = suite.image_size
        assert size is not None
        pixels = torch.empty(1, 3, size, size)
    with FlopCounterMode(display=False) as counter:
        if name == "mini_vision":
            model.encode_image(pixels)
        else:
            model(pixel_values=pixels)
    assert suite.forward_flops() == pytest.approx(counter.get_total_flops(), rel=share)


@pytest.mark.parametrize("name", ["flan_t5_base_glue", "flan_t5_large_glue"])
def test_operations_of_texts_are_those_that_torch_counts(name: str) -> None:
    suite = suites[name]
    with torch.device("meta"):
        model = suite.build_model().eval()
        prompt = torch.zeros(1, 512, dtype=torch.long)
        answer = torch.zeros(1, 10, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=prompt, decoder_input_ids=answer)
    assert suite.forward_flops() == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_numbers_of_examples_without_reading_them() -> None:
    suite = suites["mini_vision"]
    for task in ("scenes", "handwriting"):
        for split in Split:
            if suite.has_examples(task, split):
                assert example_count(suite, task, split) == len(suite.examples(task, split))
    clip = suites["clip_vit_b32_8"]
    assert example_count(clip, "mnist", Split.TEST) == 10_000
    assert example_count(clip, "mnist", Split.TRAIN) == 54_000
    assert example_count(clip, "mnist", Split.VALIDATION) == 6_000
    assert example_count(clip, "dtd", Split.TEST) == 1_880
    assert example_count(suites["flan_t5_base_glue"], "mnli", Split.VALIDATION) == 1_000


def test_time_is_work_over_rates() -> None:
    device = DEVICES["l4"]
    assert Work(mixed=121e12).seconds(device) == pytest.approx(1 / UTILISATION)
    assert Work(single=30.3e12).seconds(device, share=0.5) == pytest.approx(2 / UTILISATION)
    assert Work(bytes=300e9).seconds(device) == pytest.approx(1 / 0.7)
    clip = suites["clip_vit_b32_8"]
    settings = clip.finetune
    whole = training_work(clip, settings, 2000)
    assert whole == Work(mixed=3 * 2000 * 128 * clip.forward_flops())  # type: ignore[operator]
    again = training_work(clip, replace(settings, gradient_checkpointing=True), 2000)
    assert again is not None
    assert again.mixed == pytest.approx(4 / 3 * whole.mixed)  # type: ignore[union-attr]


def test_merging_is_the_methods_own_cost() -> None:
    suite, method = suites["mini_vision"], methods["doge_ta"]
    params = method.parse({"iterations": 10}).resolved(128, 8)
    work = merging_work(suite, method, params, 8)
    shapes = merged_shapes(suite).values()
    assert work is not None
    assert work.single == sum(method.cost(shape, 8, params).flops for shape in shapes)


def test_rows_are_handed_out_the_longest_first() -> None:
    suite = suites["mini_vision"]
    names = ("pretrained", "weight_averaging", "doge_am", "ensemble", "doge_ta")
    jobs = [ScoreJob(Purpose.FINAL, name, Variant.PUBLISHED, 0) for name in names]
    ordered = [job.method for job in longest_first(jobs, suite, None, None)]
    assert ordered.index("ensemble") < ordered.index("doge_ta") < ordered.index("weight_averaging")
    assert ordered[-1] == "pretrained"
    assert longest_first(jobs[:1] * 2, suite, None, None) == jobs[:1] * 2


def test_rungs_of_trials_are_the_searchs_own() -> None:
    experiment = nowhere(methods=("doge_ta", "ties"), trials=27)
    swept, plain_one = studies_of(experiment, experiment.full_suite)
    plans = rung_plans(swept)
    assert [plan.settings for plan in plans] == [7, 3, 2]  # as a real search of mini_vision had
    assert [plan.reached for plan in plans] == pytest.approx([1, 9 / 27, 3 / 27])
    assert [plan.settings for plan in rung_plans(plain_one)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("text", "count", "name", "gpus", "head"),
    [
        ("8xL4", 8, "L4", 1, True),
        ("4xA10G", 4, "A10G", 1, True),
        ("8x4090", 8, "4090", 1, False),
        ("2xRTX4090", 2, "4090", 1, False),
        ("2xcpu:16", 2, "cpu", 0, False),
    ],
)
def test_machines_are_described(text: str, count: int, name: str, gpus: int, head: bool) -> None:
    machines = described(text)
    assert (machines.count, machines.device_name, machines.gpus_each) == (count, name, gpus)
    assert (machines.head is not None) == head
    cluster = machines.cluster(8)
    assert cluster.workers == (count if gpus else 8)
    assert cluster.joined


@pytest.mark.parametrize(
    "text", ["", "L4", "0xL4", "8xT4", "2xcpu", "2xcpu:0", "8xL4:2", "8 x L4", "10001xL4"]
)
def test_what_is_no_description_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(InputError, match=re.escape(repr(text))) as refused:
        described(text)
    assert "\n" not in str(refused.value)


def test_devices_are_known_by_what_drivers_call_them() -> None:
    for full, name in (
        ("NVIDIA L4", "L4"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
    ):
        device = kind_of(full, 8)
        assert device is not None
        assert device.name == name
    assert kind_of("NVIDIA RTX 6000 Ada Generation", 8) is None
    processor = kind_of("AMD EPYC 7R13", 16)
    assert processor is not None
    assert not processor.is_gpu


def test_a_running_cluster_is_described_by_its_nodes() -> None:
    head = {"CPU": 4.0, "memory": 1e9, "node:__internal_head__": 1.0}
    worker = {"CPU": 4.0, "GPU": 1.0, "accelerator_type:L4": 1.0}
    machines = from_nodes([head, worker, worker], "192.0.2.1:6379")
    assert (machines.count, machines.gpus_each, machines.device_name) == (2, 1, "L4")
    assert machines.device is DEVICES["l4"]
    assert "3 nodes" in str(machines)
    unknown = from_nodes([{"CPU": 8.0, "GPU": 2.0}], "192.0.2.1:6379")
    assert unknown.device is None
    assert unknown.gpus_each == 2


def test_costs_are_machines_times_price_times_hours() -> None:
    plan = plan_of(nowhere(suite="clip_vit_b32_8", plan_for="8xL4"))
    cost = plan.cost
    assert cost is not None
    assert cost.spot is not None
    hours = plan.seconds / 3600
    assert cost.on_demand == pytest.approx(hours * (8 * 0.9776 + 0.192))
    assert cost.spot == pytest.approx(hours * (8 * 0.476 + 0.192))
    given = plan_of(nowhere(suite="clip_vit_b32_8", plan_for="8x4090", price=0.5))
    assert given.cost is not None
    assert given.cost.on_demand == pytest.approx(given.seconds / 3600 * 8 * 0.5)
    assert plan_of(nowhere(suite="clip_vit_b32_8", plan_for="8x4090")).cost is None


def test_what_idles_after_a_run_is_paid_for_too() -> None:
    cost = plan_of(nowhere(suite="clip_vit_b32_8", plan_for="8xL4")).cost
    assert cost is not None
    assert cost.idle == pytest.approx(8 * 0.9776 * 10 / 60)
    own = plan_of(nowhere(suite="clip_vit_b32_8", plan_for="8x4090", price=0.5)).cost
    assert own is not None
    assert own.idle == 0.0  # machines that nobody takes back
    config = yaml.safe_load((Path(__file__).parents[2] / "cluster.yaml").read_text())
    assert config["idle_timeout_minutes"] == IDLE_MINUTES


def test_a_run_of_less_than_a_minute_is_not_said_to_cost_nothing() -> None:
    experiment = nowhere(suite="mini_vision", plan_for="8xL4")
    plan = plan_of(experiment)
    assert plan.seconds < 60
    assert plan.cost is not None
    assert plan.cost.on_demand == pytest.approx((8 * 0.9776 + 0.192) / 60)
    assert "time: less than starting takes (calculated)" in plain(experiment)


def test_more_gpus_than_there_are_can_be_described() -> None:
    for plan_for, gpus in (("8xL4", 16), ("2xcpu:4", 1)):
        with pytest.raises(InputError, match=rf"gpus must be at most .*--plan-for {gpus}xL4"):
            plan_of(nowhere(plan_for=plan_for, gpus=gpus))


def test_a_plan_refuses_the_folders_that_a_run_would_refuse(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").touch()
    for changes, said in (
        ({"run_dir": tmp_path / "file"}, "--run-dir must be a folder"),
        ({"run_dir": tmp_path / "file" / "below"}, "--run-dir must be a folder"),
        ({"experts_dir": tmp_path / "file"}, "--experts-dir must be a folder"),
        ({"run_dir": tmp_path / "other"}, "holds other files"),
    ):
        folders = {"run_dir": tmp_path / "run", "experts_dir": tmp_path / "experts", **changes}
        with pytest.raises(InputError, match=said):
            plan_of(Experiment(plan_for="8xL4", **folders))
    assert {path.name for path in tmp_path.iterdir()} == {"file", "other"}


def test_more_machines_are_faster_as_far_as_there_are_jobs() -> None:
    def experts(text: str) -> float:
        stages = plan_of(nowhere(suite="clip_vit_b32_20", plan_for=text)).stages
        return next(stage.makespan for stage in stages if stage.name == "experts")

    one = experts("1xL4")
    assert experts("2xL4") == pytest.approx(one / 2)
    assert experts("8xL4") == pytest.approx(one * 3 / 20)  # 20 jobs in three rounds
    assert experts("20xL4") == experts("40xL4") == pytest.approx(one / 20)


def test_what_is_unknown_is_said_and_not_made_up() -> None:
    plan = plan_of(nowhere(suite="clip_vit_b32_8", plan_for="8xL4"))
    by_name = {stage.name: stage for stage in plan.stages}
    assert by_name["data"].basis is Basis.UNKNOWN
    assert by_name["experts"].basis is Basis.CALCULATED
    assert plan.unknown == ["data", "report"]
    assert "without what is unknown (data, report)" in plain(
        nowhere(suite="clip_vit_b32_8", plan_for="8xL4")
    )


def test_a_model_that_does_not_fit_is_said() -> None:
    suite = suites["clip_vit_l14_8"]
    plan = plan_of(nowhere(suite=suite.name, plan_for="4xL4"))
    assert plan.budget is not None
    assert plan.budget.fits
    assert plan.scorers.per_gpu >= 1
    small = Machines(
        1, replace(DEVICES["l4"], memory=3 * 10**9), 1, 4, None, True, "described", "L4"
    )
    assert small.gpu_bytes == 3 * 10**9


def test_scoring_workers_are_those_that_a_run_would_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APGD_CACHE", str(tmp_path))
    choices: dict[str, Any] = {"suite": "clip_vit_b32_8", "methods": ("ties",), "at_once": 3}

    def row(**fields: Any) -> list[str]:
        lines = plain(nowhere(**choices, **fields)).splitlines()
        return next(line.split() for line in lines if line.startswith(" scoring"))

    assert row(plan_for="1xL4")[1:3] == ["3", "1/4"]  # one search of three trials at a time
    assert row(plan_for="1xL4", scorers_per_gpu=2)[1:3] == ["2", "1/2"]
    experiment = nowhere(**choices)
    sharing = sharing_of(experiment, experiment.full_suite)
    sharing.remember("NVIDIA L4", 8 * 2**30)  # as a run there measures it
    found = row(plan_for="1xL4")
    assert found[1:3] == ["2", "1/2"]
    assert found[4:] == ["9.8", "GiB", "of", "22.4", "GiB,", "measured"]
    assert row(plan_for="8xL4", gpus=1)[1:3] == ["2", "1/2"]
    assert row(plan_for="1xA10G")[1:3] == ["3", "1/4"]
    # Of GPUs of an unknown kind only what was asked for is known.
    cluster = plan(1, 8, 2, False, 8)
    assert sharing.cut(cluster, None, 2**30).per_gpu == 1
    assert replace(sharing, share=2).cut(cluster, None, 2**30).workers == 3


@pytest.mark.parametrize("width", [80, 200])
def test_output_fits_the_width(width: int) -> None:
    experiment = nowhere(suite="clip_vit_b32_20", plan_for="8xL4", seeds=3)
    output = plain(experiment, width)
    table = [line for line in output.splitlines() if line.startswith(" ")]
    assert (
        max(map(len, table)) <= 80
        or width == 200
        or all(line.startswith("  ") for line in table if len(line) > 80)
    )
    found = counts(output)
    assert found["experts"] == (60, 0)
    assert found["search"] == (3 * 3 * 24, 0)
    assert "calculated" in output
    assert "measured" in output


def test_rates_come_from_manifests_and_records(tmp_path: Path) -> None:
    experiment = Experiment(run_dir=tmp_path / "runs" / "a", experts_dir=tmp_path / "experts")
    suite, settings = experiment.full_suite, experiment.full_suite.finetune
    here = Machines(1, processor_device(2), 0, 2, None, False, "here", "cpu")
    for number, (seconds, steps, device, threads, batch) in enumerate(
        [
            (20.0, 100, "cpu", 1, settings.batch_size),
            (60.0, 200, "cpu", 1, settings.batch_size),
            (1.0, 200, "cuda:0", 1, settings.batch_size),  # another kind of device
            (9.0, 200, "cpu", 8, settings.batch_size),  # other threads
            (9.0, 200, "cpu", 1, 2 * settings.batch_size),  # other work
        ]
    ):
        folder = experiment.experts_dir / f"mini_vision-{number}"
        spec = {"suite": "mini_vision", "settings": {"steps": steps, "batch_size": batch}}
        told = {"device": device, "threads": threads, "seconds": seconds, "spec": spec}
        write_json(folder / "manifest.json", told)
    (experiment.experts_dir / "damaged").mkdir()
    (experiment.experts_dir / "damaged" / "manifest.json").write_text("{")
    rates = measured_rates(experiment, suite, here, 1)
    assert rates.experts == 2
    assert rates.step == pytest.approx((0.2 + 0.3) / 2)
    assert rates.runs == 0
    on_gpu = measured_rates(experiment, suite, described("2xL4"), 2)
    assert on_gpu.step is None


def test_a_damaged_record_leaves_the_rates_of_the_others(tmp_path: Path) -> None:
    experiment = Experiment(run_dir=tmp_path / "runs" / "a", experts_dir=tmp_path / "experts")
    suite = experiment.full_suite
    store = RecordStore(experiment.folder)
    machine = {"devices": ["CPU"], "gpus": 0, "threads_per_worker": 1, "workers": 2}
    write_json(experiment.folder / "manifest.json", {
        "suite": {"name": suite.name}, "experiment": {"smoke": False},
        "machine": machine, "stages": [],
    })  # fmt: skip
    seconds: dict[str, float] = {}
    for number in range(5):
        record = Record(
            kind=Kind.TRIAL, method="ties", variant=Variant.TUNED, seed=0, params={},
            inputs={"trial": f"study#{number}", "examples": f"{experiment.limit}/None"},
            scores={}, seconds={"merge": 1.0 + number},
        )  # fmt: skip
        store.add(record)
        seconds[record.key] = 1.0 + number
    first, *others = store.keys(Kind.TRIAL)
    damaged = experiment.folder / "records" / "trial" / f"{first}.json"
    damaged.write_text(damaged.read_text()[:-20])
    here = Machines(1, processor_device(2), 0, 2, None, False, "here", "cpu")
    rates = measured_rates(experiment, suite, here, 1)
    assert rates.trials == {"ties": pytest.approx(sum(seconds[key] for key in others) / 4)}


def test_a_plan_neither_starts_nor_writes_anything(tmp_path: Path) -> None:
    for command in (full_repro, compare_methods, ablations):
        for extra in (["--address", "local", "--plan"], ["--plan-for", "2xL4"]):
            folders = ["--run-dir", str(tmp_path / "run"), "--experts-dir", str(tmp_path / "e")]
            assert command.main([*extra, *folders]) == 0
    assert list(tmp_path.iterdir()) == []
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


def test_a_plan_takes_what_is_damaged_for_missing_and_leaves_it(tmp_path: Path) -> None:
    experiment = Experiment(
        methods=("fisher",), run_dir=tmp_path / "runs" / "a", experts_dir=tmp_path / "experts"
    )
    check(experiment)  # which claims the folder
    suite, root = experiment.full_suite, experiment.experts_dir
    cells, _fetched = data_cells(suite, corrupted=True, unseen_validation=False)
    hashes = {cell: suite.examples(*cell).sha256 for cell in cells}  # which renders what is missing
    train = {task.name: hashes[task.name, Split.TRAIN] for task in suite.tasks}
    for spec in model_specs(experiment, suite, train).values():
        weights = spec.folder(root) / "weights.safetensors"
        weights.parent.mkdir(parents=True)
        weights.write_bytes(spec.task.encode())
        write_sealed(weights.parent / "manifest.json", {"sha256": sha256_file(weights)})
    statistics = []
    for _seed, need, task in wanted_statistics(experiment, suite):
        sha256 = hashlib.sha256(task.encode()).hexdigest()
        spec = statistic_spec(need, suite, task, sha256, train[task], experiment.statistic_settings)
        statistics.append(spec.path(root / "statistics"))
        save_sealed(statistics[-1], {"x": torch.ones(3)}, {})
    workload = look(experiment, suite).workload
    assert workload is not None
    (study,) = studies_of(experiment, suite)
    store = RecordStore(experiment.folder)
    for number in range(2):
        names = {"trial": f"{study_key(study, workload)}#{number}"}
        store.add(
            Record(
                kind=Kind.TRIAL, method="fisher", variant=Variant.TUNED, seed=0, params={},
                inputs=names, scores={}, details={"number": number},
            )
        )  # fmt: skip
    output = plain(replace(experiment, plan_for="2xcpu:2"))
    assert counts(output)["experts"] == (0, 8)
    assert counts(output)["statistics"] == (0, 8)
    assert counts(output)["search"] == (experiment.trials - 2, 2)
    assert "damaged" not in output

    record = store.root / Kind.TRIAL / f"{store.keys(Kind.TRIAL)[0]}.json"
    for path in (record, statistics[2]):
        content = bytearray(path.read_bytes())
        content[-8] ^= 1
        path.write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    plan = plan_of(replace(experiment, plan_for="2xcpu:2"))
    stages = {stage.name: stage for stage in plan.stages}
    (again,) = stages["statistics"].jobs
    assert suite.tasks[2].name in again.name
    assert stages["search"].reused == 1
    weights.write_bytes(b"others")
    output = plain(replace(experiment, plan_for="2xcpu:2"))
    assert counts(output)["experts"] == (1, 7)
    assert "damaged: 3 results on disk, made again by the run" in output
    assert sorted(tmp_path.rglob("*")) == before


def test_a_piped_plan_and_a_bad_description(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "experiments.full_repro", *arguments],
            capture_output=True, text=True, check=False, timeout=400,
            env={**os.environ, "COLUMNS": "80", "APGD_CACHE": str(tmp_path)},
        )  # fmt: skip

    done = run("--plan-for", "4xA10G", "--suite", "mini_text")
    assert done.returncode == 0, done.stderr
    assert counts(done.stdout)["experts"] == (8, 0)
    bad = run("--plan-for", "many")
    assert bad.returncode == 2
    assert bad.stderr.strip().count("\n") == 0
    assert "got 'many'" in bad.stderr


SMOKE = ["--smoke", "--address", "local", "--cpus", "2"]


@pytest.mark.slow
def test_the_run_does_what_was_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Planned, run, planned again with everything there: counts of stages are the run's own."""
    arguments = [*SMOKE, "--run-dir", str(tmp_path / "runs" / "a"), "--experts-dir",
                 str(tmp_path / "experts"), "--methods", "weight_averaging", "ties", "doge_ta",
                 "fisher"]  # fmt: skip
    main = full_repro.main
    assert main([*arguments, "--plan"]) == 0
    before = counts(capsys.readouterr().out)
    assert not (tmp_path / "runs").exists()
    assert main(arguments) == 0
    capsys.readouterr()
    manifest = json.loads((tmp_path / "runs" / "a" / "manifest.json").read_text("utf-8"))
    did = {stage["name"]: (stage["done"], stage["reused"]) for stage in manifest["stages"]}
    rows = len(manifest["records"]["evaluation"])
    # Rows whose tuned parameters came out as the published ones are scored once.
    assert did.pop("evaluation")[0] <= before.pop("evaluation")[0] == rows
    assert before.pop("report") == (1, 0)
    assert before == did
    assert main([*arguments, "--plan"]) == 0
    output = capsys.readouterr().out
    after = counts(output)
    assert {stage: todo for stage, (todo, _there) in after.items() if stage != "report"} == {
        "data": 0, "experts": 0, "statistics": 0, "search": 0, "evaluation": 0,
    }  # fmt: skip
    assert after["evaluation"][1] == rows
    # One more seed: rates are those that the run has measured.
    assert main([*arguments, "--seeds", "2", "--plan"]) == 0
    more = capsys.readouterr().out
    assert counts(more)["experts"] == (8, 8)
    experts = next(line for line in more.splitlines() if line.startswith(" experts"))
    assert experts.endswith("measured   ") or experts.rstrip().endswith("measured")


def test_a_plan_is_made_of_all_stages_of_comparisons() -> None:
    plan: Plan = plan_of(
        compare_methods.MethodComparison(plan_for="4xA10G", run_dir=Path("/nonexistent/run"))
    )
    names = [stage.name for stage in plan.stages]
    assert names == [
        *("data", "experts", "statistics", "singular vectors", "search", "evaluation"),
        *("geometry", "report"),
    ]
    assert isinstance(DEVICES, MappingProxyType)
