"""`allotrope run` and `allotrope chat`, through the command line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from allotrope.api import LLM, SamplingParams
from allotrope.cli import main
from allotrope.errors import UsageError
from tests.engines import LLAMA, plan_of, random_weights, write
from tests.schemas import fits

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("engine") / "an engine", plan_of(LLAMA), random_weights(LLAMA))


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same engine with a chat template."""
    folder = tmp_path_factory.mktemp("talker") / "engine"
    return write(folder, plan_of(LLAMA), random_weights(LLAMA), chat_template=TEMPLATE)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def result(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def expected(engine: Path, prompt: str, **params: Any) -> Any:
    with LLM(engine, threads=1) as llm:
        return llm.generate(prompt, SamplingParams(**({"temperature": 0.0, "max_tokens": 6} | params)))[0].outputs[0]


def test_json(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "run", str(engine), "one", "two", "--max-tokens", "6", "--json", "--threads", "1")
    assert code == 0 and len(out.splitlines()) == 1
    found = result(out)
    fits("run", found)
    for output, prompt in zip(found["outputs"], ("one", "two"), strict=True):
        answer = expected(engine, prompt)
        assert output["text"] == answer.text and output["token_ids"] == list(answer.token_ids)
        assert output["finish_reason"] == answer.finish_reason
    assert found["ttft_ms"] > 0 and found["tokens_per_s"] > 0
    assert expected(engine, "one").text in err


def test_for_people(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = expected(engine, "one")
    for stream in ([], ["--stream"]):
        code, out, _ = call(capsys, "run", str(engine), "one", "--max-tokens", "6", *stream)
        assert code == 0
        assert out.startswith(answer.text + "\n") and "tokens/s" in out.splitlines()[-1]
    code, out, _ = call(capsys, "run", str(engine), "one", "two", "--max-tokens", "6", "--quiet")
    assert (code, out) == (0, "")


def test_options_reach_the_sampling(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"max_tokens": 6, "temperature": 1.5, "top_k": 30, "top_p": 0.9, "min_p": 0.01, "seed": 12}
    options = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    _, out, _ = call(capsys, "run", str(engine), "one", "--json", *options)
    assert result(out)["outputs"][0]["token_ids"] == list(expected(engine, "one", **given).token_ids)
    stop = expected(engine, "one").text[4]
    running = ["--kv-memory", "1MiB", "--page-size", "8", "--max-batched-tokens", "5", "--max-num-seqs", "2"]
    _, out, _ = call(capsys, "run", str(engine), "one", "--json", "--max-tokens", "6", "--stop", stop, *running)
    assert result(out)["outputs"][0]["text"] == expected(engine, "one", stop=stop).text


def test_several_answers_and_what_is_known_of_them(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = {"max_tokens": 6, "temperature": 1.0, "n": 2, "logprobs": 1, "prompt_logprobs": 0, "seed": 3}
    options = [text for name, value in drawn.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    _, out, err = call(capsys, "run", str(engine), "one", "two", "--json", *options)
    found = result(out)["outputs"]
    with LLM(engine, threads=1) as llm:
        wanted = llm.generate(["one", "two"], SamplingParams(**drawn))
    assert [(one["prompt"], one["index"]) for one in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    answers = [(output, answer) for output in wanted for answer in output.outputs]
    for one, (output, answer) in zip(found, answers, strict=True):
        assert (one["text"], one["token_ids"]) == (answer.text, list(answer.token_ids))
        assert answer.logprobs is not None and output.prompt_logprobs is not None
        rows = [{row["token_id"]: row["logprob"] for row in rows} for rows in one["logprobs"]]
        assert rows == [{token: found.logprob for token, found in row.items()} for row in answer.logprobs]
        assert ("prompt_logprobs" in one) == (one["index"] == 0)
    assert found[0]["prompt_logprobs"][0] is None and len(found[0]["prompt_logprobs"]) == 4
    assert "── 1.2 one" in err and "── 2.1 two" in err


def test_beams(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beams = {"max_tokens": 6, "beams": 3, "n": 2, "length_penalty": 0.5}
    options = [text for name, value in beams.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    _, out, err = call(capsys, "run", str(engine), "one", "--json", *options, "--early-stopping", "never")
    with LLM(engine, threads=1) as llm:
        params = SamplingParams(temperature=0, early_stopping="never", **beams)
        [wanted] = llm.generate("one", params)
    assert [one["score"] for one in result(out)["outputs"]] == [answer.score for answer in wanted.outputs]
    assert f"── 1.1 ({wanted.outputs[0].score:.3f}) one" in err


@pytest.mark.parametrize(
    ("options", "params"),
    [
        (["--logit-bias", "7:100", "--logit-bias", "9:-2.5"], {"logit_bias": {7: 100.0, 9: -2.5}}),
        (["--repetition-penalty", "1.5"], {"repetition_penalty": 1.5}),
        (
            ["--presence-penalty", "1.5", "--frequency-penalty", "-1"],
            {"presence_penalty": 1.5, "frequency_penalty": -1},
        ),
        (["--ignore-eos", "--min-tokens", "3"], {"ignore_eos": True, "min_tokens": 3}),
        (["--bad-words", "a", "--bad-words", "bc"], {"bad_words": ["a", "bc"]}),
    ],
)
def test_every_way_of_drawing_has_its_option(
    engine: Path, capsys: pytest.CaptureFixture[str], options: list[str], params: dict[str, Any]
) -> None:
    _, out, _ = call(capsys, "run", str(engine), "one", "--max-tokens", "6", "--json", *options)
    assert result(out)["outputs"][0]["token_ids"] == list(expected(engine, "one", **params).token_ids)


def test_how_it_runs_changes_nothing(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running = ["--prefix-cache", "off", "--skip-step", "3", "--check-step", "8", "--executor", "eager"]
    _, out, _ = call(capsys, "run", str(engine), "one", "--max-tokens", "6", "--json", "--threads", "1", *running)
    assert result(out)["outputs"][0]["token_ids"] == list(expected(engine, "one").token_ids)


def test_a_prompt_from_standard_input(
    engine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one"))
    _, out, _ = call(capsys, "run", str(engine), "-", "--max-tokens", "6", "--json")
    assert result(out)["outputs"][0]["token_ids"] == list(expected(engine, "one").token_ids)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1"], "temperature is -1.0; it must be from 0 to 100"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--max-tokens", "0"], "max_tokens is 0; it must be from 1"),
        (["--kv-memory", "lots"], "kv_memory is 'lots'; give a size such as 2GiB"),
        (["--max-tokns", "3"], "did you mean --max-tokens?"),
        (["two", "--stream"], "--stream prints one answer, 2 prompts were given"),
        (["--n", "2", "--temperature", "1", "--stream"], "--stream prints one answer, --n is 2"),
        (["--n", "9"], "n is 9; it must be from 1 to 8"),
        (["--logit-bias", "x"], "'x' is not a token's id and a number, such as 42:-1.5"),
        (["--logit-bias", "5:1", "--logit-bias", "5:2"], "--logit-bias names a token twice"),
        (["--check-step", "0"], "check_step is 0; it must be a whole number from 1 to 32"),
        (["--prefix-cache", "maybe"], "invalid choice: 'maybe'"),
        (["--executor", "graph", "--device", "cpu"], "executor is 'graph'; on a CPU it must be native or eager"),
        (["a\udcffb"], "a prompt is not UTF-8"),
    ],
)
def test_wrong_usage(engine: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    code, out, err = call(capsys, "run", str(engine), "one", *arguments)
    assert code == 2 and message in err and len(err.splitlines()) == 1 and out == ""


def test_too_little_memory_exits_4(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "run", str(engine), "one", "--kv-memory", "1kB")
    assert code == 4 and "needs 4.1 kB, 1 kB are available" in err


def test_numbers_gone_wrong_exit_1_and_name_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = random_weights(LLAMA)
    weights["head.weight"][7] = torch.inf
    code, out, err = call(capsys, "run", str(write(tmp_path / "e", plan_of(LLAMA), weights)), "one", "--json")
    assert code == 1 and "NaN or infinity" in err and "allotrope verify" in err
    assert result(out)["outputs"][0]["finish_reason"] == "error"


def test_chat_without_a_template_points_to_run(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "chat", str(engine))
    assert code == 2 and "no chat template" in err and "allotrope run" in err


def test_chat_answers_what_is_piped_in(
    talker: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hi"))
    code, out, _ = call(capsys, "chat", str(talker), "--max-tokens", "6", "--json", "--system", "be")
    assert code == 0
    fits("chat", result(out))
    with LLM(talker, threads=1) as llm:
        ids = llm.tokenizer.chat_ids([{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}])
        [answer] = llm.generate([ids], SamplingParams(temperature=0, max_tokens=6))
    assert result(out)["outputs"][0]["token_ids"] == list(answer.outputs[0].token_ids)
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))  # as echo writes it, and as a terminal's line is read
    _, again, _ = call(capsys, "chat", str(talker), "--max-tokens", "6", "--json", "--system", "be")
    assert result(again)["outputs"] == result(out)["outputs"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    code, _, err = call(capsys, "chat", str(talker))
    assert code == 2 and "standard input is empty" in err


def test_a_checkpoint_is_built_with_the_threads_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[dict[str, Any]]()

    def cached(ref: str, **options: Any) -> Path:
        asked.append(options)
        raise UsageError("seen")

    monkeypatch.setattr("allotrope.build.cached", cached)
    common = ["--threads", "1", "--cache-dir", str(tmp_path)]
    for verb, *rest in (("run", "one", "--max-len", "9"), ("chat",), ("verify", "--new-tokens", "1")):
        code, _, err = call(capsys, verb, "random:llama-15m", *rest, *common, "--tune", "off")
        assert code == 2 and "seen" in err
        assert asked[-1]["threads"] == 1 and asked[-1]["tune"] == "off" and "max_len" not in asked[-1]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_conversation_remembers_until_it_is_reset(
    talker: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", _Terminal("a\nb\n/reset\na\n\n/exit\nnever read\n"))
    code, out, _ = call(capsys, "chat", str(talker), "--max-tokens", "3", "--json")
    first, second, again = result(out)["outputs"]
    assert code == 0 and first["token_ids"] == again["token_ids"]
    with LLM(talker, threads=1) as llm:
        said = {"role": "assistant", "content": first["text"]}
        talk = [{"role": "user", "content": "a"}, said, {"role": "user", "content": "b"}]
        [answer] = llm.generate([llm.tokenizer.chat_ids(talk)], SamplingParams(temperature=0, max_tokens=3))
    assert second["token_ids"] == list(answer.outputs[0].token_ids)


def test_a_conversation_that_has_grown_too_long_goes_on(
    talker: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", _Terminal("x" * 100 + "\na\n"))
    code, out, err = call(capsys, "chat", str(talker), "--max-tokens", "3", "--json")
    assert code == 0 and "the limit is 64" in err and "/reset" in err
    assert len(result(out)["outputs"]) == 1
