"""Model directories: exact round trips, sharded reading, complete complaints."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from lavit_jax.core import sharding
from lavit_jax.weights import model_directory, sums
from lavit_jax.weights.model_directory import Part


def params() -> dict:
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return {
    "blocks": {"mlp": {"kernel": normal(3, 8, 4)}, "norm": {"scale": normal(3, 8)}},
    "head": {"kernel": normal(8, 6)},
  }


def abstract(tree) -> dict:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def one_device():
  return sharding.replicated(sharding.make_mesh({}, jax.devices()[:1]))


def test_round_trip_is_exact_with_one_tensor_per_layer(tmp_path):
  tree = params()
  model_directory.save(tmp_path / "model", {"a": Part(tree, {"size": 8})})
  file = tmp_path / "model/a-00000.safetensors"
  names = set(safetensors.numpy.load_file(file))
  layers = {f"blocks.{i}.{leaf}" for i in range(3) for leaf in LEAVES}
  assert names == layers | {"head.kernel"}
  found = model_directory.load(tmp_path / "model", "a", abstract(tree), one_device())
  jax.tree.map(np.testing.assert_array_equal, found, tree)
  assert model_directory.part_config(tmp_path / "model", "a") == {"size": 8}


LEAVES = ("mlp.kernel", "norm.scale")


def test_each_device_reads_its_slice(tmp_path):
  tree = params()
  model_directory.save(tmp_path / "model", {"a": Part(tree, {})})
  mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
  axes = {
    "blocks": {
      "mlp": {"kernel": (None, "embed", "mlp")},
      "norm": {"scale": (None, None)},
    },
    "head": {"kernel": ("embed", "vocab")},
  }
  spread = sharding.parameter_shardings(abstract(tree), axes, mesh)
  found = model_directory.load(tmp_path / "model", "a", abstract(tree), spread)
  kernel = found["blocks"]["mlp"]["kernel"]
  assert kernel.addressable_shards[0].data.shape == (3, 2, 2)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), tree)


def test_cast_while_reading_rounds_once_to_bfloat16(tmp_path):
  tree = params()
  model_directory.save(tmp_path / "model", {"a": Part(tree, {})})
  where, shapes = one_device(), abstract(tree)
  found = model_directory.load(tmp_path / "model", "a", shapes, where, "bfloat16")
  expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), expected)
  # Stored as bfloat16 they come back bit by bit.
  model_directory.save(tmp_path / "half", {"a": Part(expected, {})})
  again = model_directory.load(tmp_path / "half", "a", abstract(expected), where)
  assert again["head"]["kernel"].dtype == jnp.bfloat16
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), expected)


def test_every_tensor_that_does_not_fit_is_listed(tmp_path):
  tree = params()
  model_directory.save(tmp_path / "model", {"a": Part(tree, {})})
  wanted = abstract(tree)
  wanted["blocks"]["mlp"]["kernel"] = jax.ShapeDtypeStruct((4, 8, 4), jnp.float32)
  wanted["blocks"]["norm"] = {"scale": jax.ShapeDtypeStruct((3, 7), jnp.float32)}
  wanted["new"] = wanted.pop("head")
  with pytest.raises(ValueError, match="part 'a' of .* does not fit") as error:
    model_directory.load(tmp_path / "model", "a", wanted, one_device())
  message = str(error.value)
  for problem in (
    "missing blocks.3.mlp.kernel",
    "missing new.kernel",
    "unused head.kernel",
    "blocks.1.norm.scale is (8,), expected (7,)",
  ):
    assert problem in message


def test_parts_are_added_replaced_and_taken_over(tmp_path):
  first, second = params(), jax.tree.map(lambda x: x + 1, params())
  words = tmp_path / "words"
  words.mkdir()
  (words / "tokenizer.json").write_text("{}")
  old, new = tmp_path / "old", tmp_path / "new"
  parts = {"a": Part(first, {}), "b": Part(first, {})}
  model_directory.save(old, parts, text_tokenizer=words)
  model_directory.save(new, {"b": Part(second, {})}, base=old)
  for name, tree in (("a", first), ("b", second)):
    found = model_directory.load(new, name, abstract(tree), one_device())
    jax.tree.map(np.testing.assert_array_equal, found, tree)
  assert (new / "text_tokenizer/tokenizer.json").is_file()
  sums = [model_directory.checksum(folder, ["a"]) for folder in (old, new)]
  assert sums[0] == sums[1]
  assert model_directory.checksum(old, ["b"]) != model_directory.checksum(new, ["b"])


def test_a_failed_write_leaves_the_old_directory(tmp_path):
  folder = tmp_path / "model"
  model_directory.save(folder, {"a": Part(params(), {})})
  before = {path.name: path.read_bytes() for path in folder.iterdir()}
  broken = {"head": {"kernel": np.zeros(2, object)}}
  with pytest.raises(Exception):  # noqa: B017  (whatever the file library says)
    model_directory.save(folder, {"b": Part(broken, {})})
  assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
  model_directory.save(folder, {"b": Part(params(), {})})
  assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_large_parts_are_written_in_pieces(tmp_path, monkeypatch):
  monkeypatch.setattr(model_directory, "MAX_SHARD_BYTES", 200)
  tree = params()
  model_directory.save(tmp_path / "model", {"a": Part(tree, {})})
  assert len(list((tmp_path / "model").glob("a-*.safetensors"))) > 2
  found = model_directory.load(tmp_path / "model", "a", abstract(tree), one_device())
  jax.tree.map(np.testing.assert_array_equal, found, tree)


def test_a_subtree_can_be_read_alone(tmp_path):
  tree = params()
  model_directory.save(tmp_path / "model", {"a": Part(tree, {})})
  wanted = {"head": abstract(tree)["head"]}
  found = model_directory.load(
    tmp_path / "model", "a", wanted, one_device(), below=("head",)
  )
  np.testing.assert_array_equal(found["head"]["kernel"], tree["head"]["kernel"])


def test_another_version_is_refused(tmp_path):
  model_directory.save(tmp_path / "model", {"a": Part(params(), {})})
  path = tmp_path / "model/manifest.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 7}))
  with pytest.raises(ValueError, match="has version 7, this program reads 1"):
    model_directory.read_manifest(tmp_path / "model")


def test_a_number_stays_a_number(tmp_path):
  tree = {"scale": np.float32(2.5)}
  model_directory.save(tmp_path / "model", {"a": Part(tree, {})})
  found = model_directory.load(tmp_path / "model", "a", abstract(tree), one_device())
  assert found["scale"].shape == () and found["scale"] == 2.5


def flipped(path, at: int):
  """Changes one bit of a file."""
  content = bytearray(path.read_bytes())
  content[at] ^= 1 << (at % 8)
  path.write_bytes(bytes(content))


@pytest.mark.parametrize("blocks", [True, False], ids=["blocks", "of old"])
def test_a_flipped_bit_in_any_file_is_refused_by_whatever_reads_it(
  tmp_path, monkeypatch, blocks
):
  monkeypatch.setattr(model_directory, "MAX_SHARD_BYTES", 200)
  tree = params()
  model_directory.save(tmp_path / "model", {"a": Part(tree, {}), "b": Part(tree, {})})
  if not blocks:  # as directories were written before there were sums
    path = tmp_path / "model/manifest.json"
    manifest = json.loads(path.read_text())
    for entry in manifest["parts"].values():
      del entry[model_directory.BLOCKS]
    path.write_text(json.dumps(manifest))
  names = sorted(path.name for path in (tmp_path / "model").glob("*.safetensors"))
  assert len(names) > 4
  for number, name in enumerate(names):
    folder = tmp_path / f"copy{number}"
    shutil.copytree(tmp_path / "model", folder)
    flipped(folder / name, -1 - number)
    good, bad = ("b", "a") if name.startswith("a") else ("a", "b")
    message = f"files that were written in .*copy{number}, got changed ones: .*{name}"
    for below in ((), tuple(tree)[:1]):
      shapes = abstract({key: tree[key] for key in below or tree})
      with pytest.raises(ValueError, match=message):
        model_directory.load(folder, bad, shapes, one_device(), below=below)
    with pytest.raises(ValueError, match=message):
      model_directory.read_part(folder, bad)
    model_directory.load(folder, good, abstract(tree), one_device())


def test_block_sums_see_any_bit_and_any_move(tmp_path, monkeypatch):
  monkeypatch.setattr(sums, "ROWS", 4)
  monkeypatch.setattr(sums, "LANES", 2)
  monkeypatch.setattr(sums, "BLOCK", 64)
  content = np.random.default_rng(0).integers(0, 256, 150, dtype=np.uint8)
  path = tmp_path / "file"

  def of(values):
    path.write_bytes(values.tobytes())
    return sums.of_file(path)

  expected, found = of(content), sums.BlockSum()
  for start in range(0, 150, 7):
    found.update(content[start : start + 7])
  assert found.hexdigest() == expected
  others = [content[:-1], np.append(content, np.uint8(0)), content[::-1].copy()]
  for at in range(150):
    changed = content.copy()
    changed[at] ^= 1 << (at % 8)
    others.append(changed)
  for first, second in ((0, 8), (8, 40), (0, 64)):
    moved = content.copy()
    moved[first : first + 8] = content[second : second + 8]
    moved[second : second + 8] = content[first : first + 8]
    others.append(moved)
  assert len({of(values) for values in others} | {expected}) == len(others) + 1


def test_the_checksum_of_a_published_part_covers_large_tensors():
  """A merged adapter changes attention kernels alone, which are large."""
  kernel = np.zeros((256, 128), np.float32)
  merged = kernel.copy()
  merged[7, 5] = 1e-3
  one, other = (
    model_directory._PublishedEntry(Part({"kernel": value}, {"heads": 2}))
    for value in (kernel, merged)
  )
  assert one["config"] == {"heads": 2} and one["checksum"] != other["checksum"]
  again = model_directory._PublishedEntry(Part({"kernel": kernel.copy()}, {}))
  assert again["checksum"] == one["checksum"]
