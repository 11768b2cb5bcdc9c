"""The floors of the house: who may import whom, read from the source."""

import ast
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2] / "lavit_jax"
TESTS = pathlib.Path(__file__).parents[1]
MAX_LINES = 400
EXPORTED = "gpu"  # PyTorch files that an export ships: data, imported by nothing
MAX_EXPORTED_LINES = 700  # that are not blank: people read them before they trust
# Rooms from the ground up; a file imports from lower floors, or from its own room.
FLOORS = (
  ("core", "diffusion"),
  ("layers", "data"),
  ("models",),
  ("weights", "generate"),
  ("training",),
  ("inference",),
  ("stages", "evaluate"),
  ("planning", "toy"),
)
TOP = len(FLOORS)  # the verbs: every file at the root, which may call each other
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
VERBS = {
  "compare",
  "prepare",
  "tokenize",
  "train",
  "infer",
  "evaluate_model",
  "convert",
  "plan",
  "sweep",
  "doctor",
  "quickstart",
}
MAX_ROOMS, MAX_ARROWS = 30, 130


@functools.cache
def files() -> dict[str, pathlib.Path]:
  """Every module of the package by its dotted name below it."""
  found = {}
  for path in ROOT.rglob("*.py"):
    if path.is_relative_to(ROOT / EXPORTED):
      continue
    parts = path.relative_to(ROOT).with_suffix("").parts
    found[".".join(parts).removesuffix(".__init__").replace("__init__", "")] = path
  return found


@functools.cache
def tree(name: str) -> ast.Module:
  return ast.parse(files()[name].read_text())


def modules(node: ast.AST) -> list[str]:
  """Dotted names that one import statement may mean."""
  if isinstance(node, ast.Import):
    return [alias.name for alias in node.names]
  if isinstance(node, ast.ImportFrom):
    assert not node.level, "relative imports hide the floor"
    return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
  return []


def imports(name: str) -> set[str]:
  """Everything a module imports, inside functions too."""
  return {found for node in ast.walk(tree(name)) for found in modules(node)}


def own_imports(name: str) -> set[str]:
  """The modules of the package that a module imports."""
  found = {m.removeprefix("lavit_jax.") for m in imports(name)}
  return {m for m in found if m and m in files()}


def room(name: str) -> str:
  return name.split(".")[0]


def floor(name: str) -> int:
  return FLOOR.get(room(name), TOP)


def test_every_folder_has_its_floor():
  folders = {room(name) for name, path in files().items() if path.parent != ROOT}
  assert folders <= set(FLOOR), "name the floor of a new folder in FLOORS"


def test_the_root_holds_verbs_alone():
  alone = {name for name, path in files().items() if path.parent == ROOT and name}
  assert alone == VERBS


def test_tests_lie_in_the_rooms_that_they_are_about():
  flat = [path.name for path in TESTS.glob("test_*.py")]
  assert not flat
  folders = {path.parent.name for path in TESTS.glob("*/test_*.py")}
  assert folders <= {*FLOOR, "verbs", "house"}


def test_the_house_stays_easy_to_survey():
  arrows = {
    (room(name), room(other))
    for name in files()
    for other in own_imports(name)
    if room(name) != room(other)
  }
  rooms = {room(name) for name in files()}
  print(f"{len(rooms)} rooms, {len(arrows)} arrows")
  assert len(rooms) <= MAX_ROOMS
  assert len(arrows) <= MAX_ARROWS


def test_imports_go_down_or_stay_in_the_room():
  wrong = [
    f"{name} (floor {floor(name)}) imports {other} (floor {floor(other)})"
    for name in files()
    for other in own_imports(name)
    if floor(other) > floor(name)
    or (floor(other) == floor(name) != TOP and room(other) != room(name))
  ]
  assert not wrong, "\n".join(wrong)


def test_imports_have_no_cycle():
  done, path = set(), []

  def visit(name):
    assert name not in path, " -> ".join([*path[path.index(name) :], name])
    if name in done:
      return
    path.append(name)
    for other in own_imports(name):
      visit(other)
    done.add(path.pop())

  for name in files():
    visit(name)


def test_models_do_not_know_data():
  names = [name for name in files() if room(name) in ("core", "layers", "models")]
  assert len(names) > 15
  assert not [name for name in names if "data" in map(room, own_imports(name))]


def test_data_is_free_of_device_libraries():
  names = [name for name in files() if room(name) == "data"]
  assert names
  for name in names:
    used = {module.split(".")[0] for module in imports(name)}
    assert not used & {"jax", "jaxlib", "flax", "optax", "torch", "orbax"}, name


def test_torch_is_never_imported_with_a_module():
  for name in files():
    at_once = [node for node in tree(name).body for node in _outside_functions(node)]
    used = {module.split(".")[0] for node in at_once for module in modules(node)}
    assert "torch" not in used, name


def _outside_functions(node: ast.AST):
  if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
    return
  yield node
  for child in ast.iter_child_nodes(node):
    yield from _outside_functions(child)


def test_exported_files_are_few_and_imported_by_nothing():
  paths = list((ROOT / EXPORTED).rglob("*.py"))
  lines = [line for path in paths for line in path.read_text().splitlines()]
  assert sum(bool(line.strip()) for line in lines) < MAX_EXPORTED_LINES
  for path in paths:
    assert "lavit_jax" not in path.read_text(), path
  for name in files():
    assert not any(m.startswith(f"lavit_jax.{EXPORTED}") for m in imports(name)), name


def test_only_the_upper_floors_see_a_config_object():
  for name in files():
    if floor(name) < FLOOR["training"]:
      assert not any(m.startswith("ml_collections") for m in imports(name)), name


@pytest.mark.parametrize("folder", ["lavit_jax", "configs", "tests"])
def test_no_file_is_longer_than_can_be_read(folder):
  for path in (ROOT.parent / folder).rglob("*.py"):
    assert len(path.read_text().splitlines()) <= MAX_LINES, path
