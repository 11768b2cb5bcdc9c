"""Runs the jobs of `conversion` on Apache Beam, for sets that outgrow one machine."""

import shlex

from lavit_jax.data import conversion


def convert(jobs: list[conversion.Job], options: str) -> None:
  """Does the jobs as a Beam pipeline and waits for its end.

  Args:
    jobs: jobs in any order; each element of the pipeline is one.
    options: Beam's pipeline options as on a command line, such as
      "--runner=DataflowRunner --project=P --region=R --temp_location=gs://B/tmp".
  """
  try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise ValueError(
      "expected the package apache-beam, got none; it asks for an older numpy, so make"
      " an environment of its own from launch/requirements-beam.txt"
    ) from error
  with beam.Pipeline(options=PipelineOptions(shlex.split(options))) as pipeline:
    _ = (
      pipeline
      | beam.Create(jobs)
      | beam.Reshuffle()  # else one worker would keep all
      | beam.Map(conversion.ensure)
    )
