"""The rows that stage 1b reads: pictures with their codes, of one size per batch."""

from lavit_jax.data import coded, pipeline, skipping
from lavit_jax.training import feed


def rows(source, config, mesh, position) -> pipeline.RowFeed:
  """The host's rows; with several picture sizes, each batch has one of them."""
  size = config.batch_size
  local = feed.local_rows(mesh, size)
  left_out = feed.rows_left_out(config)
  if len(source.targets) > 1:
    edges = [edge for span in left_out.spans for edge in span]
    if any(edge % size for edge in edges):
      raise ValueError(
        f"batches hold one picture size: expected config.data.skip to leave out whole"
        f" batches of {size} rows, got {config.data.skip!r}; widen it to multiples"
      )
    if position % size:
      raise ValueError(
        f"batches hold one picture size: the position {position} is no multiple of"
        f" batch_size {size}; resume with the batch size of before"
      )
  places = skipping.Order(order(source, config), left_out)
  return pipeline.RowFeed(
    source,
    size,
    config.data.shuffle_seed,
    local,
    left_out.used(position),
    threads=config.data_threads,
    places=places,
  )


def order(source, config):
  """The order of the stream; with several picture sizes each batch has one of them."""
  seed = config.data.shuffle_seed
  if len(source.targets) > 1:
    return coded.BatchOrder(source.bucket, config.batch_size, seed)
  return pipeline.order(source, seed)


def fixed_batches(source, config, mesh):
  """The first held-out batches of each picture size, always the same."""
  size, local = config.batch_size, feed.local_rows(mesh, config.batch_size)
  order = coded.BatchOrder(source.bucket, size, 0)
  for number in range(min(config.eval_batches, order.per_epoch)):
    items = [source[order[number * size + row]] for row in local]
    yield feed.place(pipeline.stack(items), local, size, mesh)
