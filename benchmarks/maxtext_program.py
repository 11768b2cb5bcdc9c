"""Compiles MaxText's LLaMA-7B step for absent chips; runs in MaxText's environment.

  python3.12 -m venv maxtext && maxtext/bin/pip install maxtext==0.2.4 jinja2 sympy
  maxtext/bin/pip install "jax[tpu]==0.10.2"      # the same compiler on both sides
  maxtext/bin/python benchmarks/maxtext_program.py v5e-64 4 OUT

Writes OUT.txt, the program's text, and OUT.json: memory on one chip and seconds.
`benchmarks/plan_maxtext.py` calls it and compares.
"""

import json
import os
import pathlib
import sys
import time

os.environ |= {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "DECOUPLE_GCLOUD": "TRUE",
}
ARGUMENTS = (
  "model_name=llama2-7b",
  "max_target_length=2048",
  "dataset_type=synthetic",
  "enable_checkpointing=false",
  "ici_fsdp_parallelism=64",
  "vocab_size=48512",
  "override_model_config=true",
  "remat_policy=full",
  "attention=flash",
  "compile_topology_num_slices=1",
)


def main(topology: str, rows: str, out: str) -> None:
  """Compiles `rows` per chip and writes what the compiler made."""
  import maxtext
  from maxtext.trainers.pre_train import train_compile

  compile_step, path = train_compile.jit_and_compile, pathlib.Path(out)

  def keep(*args):
    started = time.monotonic()
    compiled = compile_step(*args)
    found = compiled.memory_analysis()
    figures = {
      "arguments": found.argument_size_in_bytes,
      "outputs": found.output_size_in_bytes - found.alias_size_in_bytes,
      "temporaries": found.temp_size_in_bytes,
      "code": found.generated_code_size_in_bytes,
      "compile_seconds": time.monotonic() - started,
    }
    path.with_suffix(".txt").write_text(compiled.as_text())
    path.with_suffix(".json").write_text(json.dumps(figures, indent=2))
    return compiled

  train_compile.jit_and_compile = keep
  base = pathlib.Path(maxtext.__file__).parent / "configs" / "base.yml"
  own = (f"compile_topology={topology}", f"per_device_batch_size={rows}")
  train_compile.main(["train_compile", str(base), *own, *ARGUMENTS])


if __name__ == "__main__":
  main(*sys.argv[1:])
