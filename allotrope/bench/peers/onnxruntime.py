"""ONNX Runtime GenAI over what its own model builder makes for the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def versions() -> dict[str, str]:
    """ONNX Runtime's and its GenAI's."""
    import onnxruntime
    import onnxruntime_genai

    return {"onnxruntime": onnxruntime.__version__, "onnxruntime-genai": onnxruntime_genai.__version__}


def convert(source: str, target: str, form: str) -> None:
    """Its builder's command, with activations in int8 where weights are codes (accuracy level 4): its fastest way."""
    builder = [sys.executable, "-I", "-m", "onnxruntime_genai.models.builder"]
    places = ["-i", source, "-o", target, "-c", str(Path(target) / "cache")]
    extra = ["--extra_options", "accuracy_level=4"] if form in ("int4", "int8") else []
    done = subprocess.run([*builder, *places, "-p", form, "-e", "cpu", *extra], check=False, stderr=subprocess.PIPE)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ValueError(said[-1].partition(": ")[2] if said else f"the builder exited with {done.returncode}")


def open_model(folder: str, asked: dict[str, Any]) -> _Model:
    """The model, with so many threads."""
    return _Model(folder, asked)


class _Model:
    def __init__(self, folder: str, asked: dict[str, Any]) -> None:
        import onnxruntime_genai

        path = Path(folder) / "genai_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = asked["threads"]
        path.write_text(json.dumps(config, indent=1), encoding="utf-8")
        self._model = onnxruntime_genai.Model(folder)
        form = asked["form"]
        self.actual = {"weights": form, "activations": form if form == "fp32" else "int8"}

    def generate(self, prompts: list[list[int]], count: int, beams: int) -> list[list[int]]:
        import numpy as np
        import onnxruntime_genai

        length = len(prompts[0]) + count
        params = onnxruntime_genai.GeneratorParams(self._model)
        asked = {"num_beams": beams} if beams > 1 else {}
        params.set_search_options(
            max_length=length, min_length=length, do_sample=False, batch_size=len(prompts), **asked
        )
        generator = onnxruntime_genai.Generator(self._model, params)
        generator.append_tokens(np.array(prompts, dtype=np.int32))
        for _ in range(count):
            generator.generate_next_token()
        return [[int(token) for token in generator.get_sequence(row)[-count:]] for row in range(len(prompts))]
