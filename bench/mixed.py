"""Many requests of mixed lengths at once, and whether their answers are right: `python bench/mixed.py ENGINE`.

`--requests` prompts of random tokens and lengths, greedy, each answer exactly as long as asked for. Then some of them
again, alone: how many give the same tokens (all, if the engine is deterministic), and, since an engine with batch
variance may differ where two tokens are as good as equal, how far each token of the busy hour was from the likeliest
by the engine's own log-probabilities for that text.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

from allotrope.api import LLM, SamplingParams


def main() -> None:
    """Measure, judge, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", help="an engine's folder")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--prompts", default="100:1024", help="shortest and longest (%(default)s)")
    parser.add_argument("--outputs", default="100:1024", help="shortest and longest (%(default)s)")
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--max-batched-tokens", type=int, default=4096)
    parser.add_argument("--judged", type=int, default=8, help="answers that are looked at (%(default)s)")
    parser.add_argument("--out", type=Path, help="file to which the line is added")
    args = parser.parse_args()
    line = json.dumps(measure(args))
    sys.stdout.write(line + "\n")
    if args.out:
        with args.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Figures of the load and of the judging."""
    source = random.Random(0)
    (low, high), (least, most) = (map(int, bounds.split(":")) for bounds in (args.prompts, args.outputs))
    lengths = [(source.randint(low, high), source.randint(least, most)) for _ in range(args.requests)]
    room = {"max_num_seqs": args.max_num_seqs, "max_batched_tokens": args.max_batched_tokens}
    with LLM(args.engine, device=args.device, max_len=high + most, prefix_cache=False, **room) as llm:
        vocab = llm.engine.manifest.plan.vocab
        prompts = [[source.randrange(3, vocab) for _ in range(length)] for length, _ in lengths]
        asked = [SamplingParams(temperature=0, max_tokens=length, ignore_eos=True) for _, length in lengths]
        llm.generate(prompts[:8], asked[:8])
        before, began = llm.metrics(), time.perf_counter()
        answers = [list(output.outputs[0].token_ids) for output in llm.generate(prompts, asked)]
        seconds, after = time.perf_counter() - began, llm.metrics()
        told = {name: after[name] - before[name] for name in ("busy_s", "idle_s", "preemptions", "output_tokens")}
        chosen = range(0, args.requests, max(1, args.requests // args.judged))
        same, margins = 0, list[float]()
        for i in chosen:
            same += list(llm.generate([prompts[i]], asked[i])[0].outputs[0].token_ids) == answers[i]
            margins += behind(llm, prompts[i], answers[i])
    return {
        "engine": Path(args.engine).name,
        "requests": args.requests,
        "max_num_seqs": args.max_num_seqs,
        "seconds": round(seconds, 3),
        "tokens_per_s": round(told["output_tokens"] / seconds, 1),
        "idle_share": round(told["idle_s"] / max(told["busy_s"] + told["idle_s"], 1e-9), 5),
        "preemptions": told["preemptions"],
        "lengths_right": sum(len(answer) == length for answer, (_, length) in zip(answers, lengths, strict=True)),
        "same_alone": f"{same} of {len(chosen)}",
        "tokens_judged": len(margins),
        "likeliest": sum(margin == 0 for margin in margins),
        "farthest_behind_nats": round(max(margins), 5),
    }


def behind(llm: LLM, prompt: list[int], answer: list[int]) -> list[float]:
    """For each token of an answer, how much less likely it was than the likeliest, in nats."""
    asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1)
    # The last token is the prompt's end, and one more is drawn after it: there must be room.
    scores = llm.generate([[*prompt, *answer[:-1]]], asked)[0].prompt_logprobs
    assert scores is not None
    found = []
    for token, place in zip(answer, scores[len(prompt) :], strict=False):
        assert place is not None
        found.append(max(one.logprob for one in place.values()) - place[token].logprob)
    return found


if __name__ == "__main__":
    main()
