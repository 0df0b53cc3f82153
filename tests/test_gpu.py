"""On a GPU: every tactic's numerics and row class, every family against its oracle, real shapes, determinism."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from allotrope.api import LLM, SamplingParams
from allotrope.artifact.engine import open_engine
from allotrope.build import build, compiling
from allotrope.hw import detect
from allotrope.hw.device import Device
from allotrope.models.typical import typical_problems
from allotrope.ops import check, kernels, poison, registry
from allotrope.verify.session import Question, Result, verify
from allotrope.verify.verdict import default_requirement, enough
from tests.test_graph import Traffic, compare
from tests.tiny import KINDS
from tests.verifying import checkpoint

pytestmark = pytest.mark.gpu
DTYPES = ("fp16", "bf16", "fp32")


@pytest.fixture(scope="module")
def gpu() -> Device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return detect.detect("cuda")


@pytest.fixture(autouse=True)
def _memory_back() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


TACTICS = [(op, tactic.name) for op in registry.names() for tactic in registry.tactics(op)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "name"), TACTICS)
def test_every_tactic_is_right_and_keeps_its_row_class(op: str, name: str, dtype: str, gpu: Device) -> None:
    tactic, tried = registry.tactic(op, name), 0
    for rows in (1, 8, 65):
        problem = typical_problems(dtype, rows)[op]
        with kernels.made_by(compiling.make):
            refusal = tactic.why_not(problem, gpu)
        if refusal is None:
            tried += 1
            result = check.check(tactic, problem, gpu, seed=rows)
            assert result.ok, f"{rows} rows: {result.reason}"
    if not tried:
        pytest.skip(str(tactic.why_not(typical_problems(dtype, 1)[op], gpu)))
    problem = typical_problems(dtype, 8)[op]
    if tactic.row_class(problem, gpu) is not None:
        assert check.check_rows(tactic, problem, gpu, seed=3) is None


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize(("op", "name"), TACTICS)
def test_every_tactic_repeats_its_bits(op: str, name: str, dtype: str, gpu: Device) -> None:
    """Same inputs, same memory's neighbours or others: a result that changes from run to run is nobody's model."""
    tactic, tried = registry.tactic(op, name), 0
    for rows in (1, 8, 64):
        problem = typical_problems(dtype, rows)[op]
        with kernels.made_by(compiling.make):
            if tactic.why_not(problem, gpu) is not None:
                continue
        tried += 1
        case = check.prepare(problem, gpu, seed=rows)
        first, *others = [poison.run(tactic, case.contract, problem, gpu, case.ins, False).outs for _ in range(20)]
        for other in others:
            for out, value in first.items():
                assert torch.equal(poison.bits(value), poison.bits(other[out])), f"{out}, {rows} rows"
    if not tried:
        pytest.skip("it refuses")


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize("kind", ["gpt2", "opt-350m", "llama-grouped", "qwen", "mistral"])
def test_recorded_steps_give_the_eager_bits(kind: str, dtype: str, gpu: Device, tmp_path: Path) -> None:
    """Prompts and decoding rows, padded, read late, drawn and greedy: graphs against the same tactics one by one."""
    built = build(str(checkpoint(kind, tmp_path / "c")), tmp_path / "engine", device="cuda", dtype=dtype, tune="off")
    assert built.manifest.evidence["executor"]["kind"] == "graph"
    engine = open_engine(tmp_path / "engine", device=gpu)
    plan = engine.manifest.plan
    steps = list(Traffic(plan.vocab, min(plan.max_len, 40), slots=11, pages=90, seed=1).steps(120))
    graph = compare(engine, plan, steps, 2, device=gpu, pages=90, max_requests=11, poison=False)
    assert len(graph._recorded) > 2
    graph.close()


def test_kernels_of_the_compiler_are_kept_and_launched_without_it(gpu: Device, tmp_path: Path) -> None:
    build("random:galactica-125m", tmp_path / "engine", device="cuda", dtype="fp16", tune="fast")
    code = (
        "import sys; from allotrope.api import LLM, SamplingParams\n"
        f"llm = LLM({str(tmp_path / 'engine')!r}, device='cuda', max_len=64)\n"
        "llm.generate([[5, 6, 7]], SamplingParams(temperature=0, max_tokens=5, ignore_eos=True))\n"
        "assert llm.engine.manifest.kernels\n"
        "sys.exit(any(name.split('.')[0] == 'triton' or name.startswith('torch._inductor') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[1]).returncode == 0


def judged(folder: Path, **asked: object) -> Result:
    result = verify(folder, Question(device="cuda", **asked))  # type: ignore[arg-type]
    findings = result.findings
    assert enough(findings.verdict, default_requirement(findings.dtype)), json.dumps(findings.to_json(), default=str)[
        :4000
    ]
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_family_is_the_same_model(kind: str, dtype: str, gpu: Device, tmp_path: Path) -> None:
    for seed in (0, 1):
        source, engine = checkpoint(kind, tmp_path / f"ckpt{seed}", seed=seed), tmp_path / f"engine{seed}"
        build(str(source), engine, device="cuda", dtype=dtype, tune="off")
        judged(engine, locate=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_trained_model_is_the_same(dtype: str, gpu: Device, tmp_path: Path, assets: Path) -> None:
    build(str(assets / "stories260K"), tmp_path / "engine", device="cuda", dtype=dtype, tune="fast")
    judged(tmp_path / "engine")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("shape", ["llama-15m", "galactica-125m", "llama-7b"])
def test_a_real_shape_is_the_same_model(shape: str, dtype: str, gpu: Device, tmp_path: Path) -> None:
    build(f"random:{shape}", tmp_path / "engine", device="cuda", dtype=dtype, tune="fast")
    judged(tmp_path / "engine")


@pytest.mark.parametrize("kind", ["galactica", "llama-grouped", "qwen"])
def test_who_shares_the_batch_changes_no_bit(kind: str, gpu: Device, tmp_path: Path) -> None:
    source = checkpoint(kind, tmp_path / "ckpt")
    build(str(source), tmp_path / "engine", device="cuda", dtype="bf16", tune="off")
    rng = random.Random(7)
    prompts = [[rng.randrange(3, 131) for _ in range(rng.randint(1, 30))] for _ in range(32)]
    params = [SamplingParams(temperature=0.8, seed=i, max_tokens=16, ignore_eos=True) for i in range(32)]

    def answers(llm: LLM, chosen: range) -> dict[int, tuple[tuple[int, ...], float | None]]:
        outputs = llm.generate([prompts[i] for i in chosen], [params[i] for i in chosen])
        return {
            i: (o.outputs[0].token_ids, o.outputs[0].cumulative_logprob) for i, o in zip(chosen, outputs, strict=True)
        }

    with LLM(tmp_path / "engine", device="cuda", max_num_seqs=32, max_len=64) as llm:
        together = answers(llm, range(32))
        for i in range(0, 32, 5):
            assert answers(llm, range(i, i + 1))[i] == together[i]
    with LLM(tmp_path / "engine", device="cuda", max_num_seqs=5, max_len=64, max_batched_tokens=7) as llm:
        assert answers(llm, range(32)) == together
