import collections
import functools
import io
import os
import pickle
import struct
import warnings
import zipfile

import numpy as np
import pytest

from delf_jax.conversion import torch_files
from delf_jax.errors import InputError


def header(*, protocol=1001, little=True):
  """How torch.save began before 1.6: magic number, protocol, machine."""
  machine = {
    "protocol_version": 1001,
    "little_endian": little,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
  }
  parts = (0x1950A86A20F9469CFC6C, protocol, machine)
  return b"".join(pickle.dumps(part, 2) for part in parts)


SEED = np.arange(12, dtype="<f4") / 7


def step(value):
  """The pickle steps that push a plain value."""
  return pickle.dumps(value, 2)[2:-1]


def storage(count, *, key="0", kind="torch\nFloatStorage", tail=b""):
  """The steps that push a storage; `tail` is the part of it that is meant."""
  return (
    b"("
    + step("storage")
    + f"c{kind}\n".encode()
    + b"".join(map(step, (key, "cpu", count)))
    + tail
    + b"tQ"
  )


def tensor(stored, shape, strides, offset=0, *, version="_v2"):
  rest = b"\x89ccollections\nOrderedDict\n)R" if version else b""
  return (
    f"ctorch._utils\n_rebuild_tensor{version}\n(".encode()
    + stored
    + step(offset)
    + step(tuple(shape))
    + step(tuple(strides))
    + rest
    + b"tR"
  )


def rows(**values):
  """The steps that push an OrderedDict of what other steps push."""
  content = b"".join(step(k) + v for k, v in values.items())
  return b"ccollections\nOrderedDict\n)R(" + content + b"u"


def legacy(program, storages=None):
  """A file as torch.save wrote it before PyTorch 1.6."""
  storages = {"0": SEED} if storages is None else storages
  body = b"".join(
    struct.pack("<q", len(values)) + values.tobytes()
    for values in storages.values()
  )
  keys = pickle.dumps(list(storages), 2)
  return header() + b"\x80\x02" + program + b"." + keys + body


def archive(program, storages=None, **members):
  """A file as torch.save has written it since PyTorch 1.6."""
  storages = {"0": SEED} if storages is None else storages
  content = {
    "data.pkl": b"\x80\x02" + program + b".",
    "byteorder": b"little",
    **{f"data/{k}": v.tobytes() for k, v in storages.items()},
    "version": b"3\n",
    **members,
  }
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as file:
    for name, data in content.items():
      file.writestr(f"weights/{name}", data)
  return buffer.getvalue()


FORMATS = pytest.mark.parametrize("form", [legacy, archive])


def read(tmp_path, data):
  path = tmp_path / "weights.pth"
  path.write_bytes(data)
  return torch_files.read_torch(path)


def refuse(tmp_path, data, match):
  with pytest.raises(InputError, match=match) as caught:
    read(tmp_path, data)
  message = str(caught.value)
  assert "weights.pth" in message and message.isprintable()


@FORMATS
def test_tensors_by_hand(tmp_path, form):
  whole = storage(12)
  program = rows(
    whole=tensor(whole, (3, 4), (4, 1)),
    transposed=tensor(whole, (4, 3), (1, 4)),
    part=tensor(whole, (2, 2), (4, 2), 5),
    scalar=tensor(whole, (), (), 11),
    old=tensor(whole, (12,), (1,), version=""),
    stretched=tensor(whole, (2, 6), (0, 1)),
    empty=tensor(storage(0, key="1"), (0, 3), (3, 1)),
    half=tensor(storage(2, key="2", kind="torch\nBFloat16Storage"), (2,), (1,)),
    size=b"ctorch\nSize\n" + step(((2, 3),)) + b"R",
    device=b"ctorch\ndevice\n" + step(("cuda", 1)) + b"R",
    type=b"ctorch\nfloat16\n",
    parameter=b"ctorch._utils\n_rebuild_parameter\n("
    + tensor(whole, (1,), (1,))
    + b"\x88ccollections\nOrderedDict\n)RtR",
  )
  # What a module's state_dict carries besides its items.
  program += b"}" + step("_metadata") + b"}sb"
  half = np.array([0x3F80, 0xC049], "<u2")
  found = read(tmp_path, form(program, {"0": SEED, "1": SEED[:0], "2": half}))
  assert type(found) is dict
  assert found.pop("size") == (2, 3)
  assert found.pop("device") == "cuda:1"
  assert found.pop("type") == "float16"
  expected = {
    "whole": SEED.reshape(3, 4),
    "transposed": SEED.reshape(3, 4).T,
    "part": SEED[[[5, 7], [9, 11]]],
    "scalar": SEED[11],
    "old": SEED,
    "stretched": np.stack([SEED[:6]] * 2),
    "empty": np.zeros((0, 3), np.float32),
    "half": np.array([1, -3.140625], np.float32),
    "parameter": SEED[:1],
  }
  assert list(found) == list(expected)
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array)
    assert found[name].dtype == np.float32
    assert found[name].shape == array.shape
    assert not found[name].flags.writeable


def test_a_part_of_a_storage(tmp_path):
  # Tensors that shared memory, until PyTorch 0.3.
  part = storage(12, tail=step(("view", 4, 3)))
  program = rows(part=tensor(part, (3,), (1,)))
  np.testing.assert_array_equal(
    read(tmp_path, legacy(program))["part"], SEED[4:7]
  )
  beyond = storage(12, tail=step(("view", 10, 3)))
  program = rows(part=tensor(beyond, (3,), (1,)))
  refuse(tmp_path, legacy(program), "part of a storage lies outside")


TYPES = [
  *("float64", "float32", "float16", "int64", "int32", "int16", "int8"),
  *("uint8", "bool", "complex64", "complex128"),
]


def tensors(types=TYPES):
  generator = np.random.default_rng(0)
  made = {
    f"layer.{kind}": (generator.normal(size=(2, 3, 5)) * 9).astype(kind)
    for kind in types
  }
  return {
    **made,
    "zz.scalar": np.float32(-0.5),
    "empty": np.zeros((0, 3), np.int64),
    "transposed": np.arange(6.0, dtype=">f4").reshape(2, 3).T,
    "Ünicode": np.array([np.nan, np.inf, -0.0, 1e-45], np.float32),
  }


def check(found, expected):
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    array = np.asarray(array)
    assert found[name].dtype == array.dtype.newbyteorder("=")
    assert found[name].shape == array.shape
    np.testing.assert_array_equal(found[name], array)


def test_written_files_are_read_again(tmp_path):
  path = tmp_path / "weights.pth"
  for content in (tensors(), {}):
    torch_files.write_torch(path, content)
    found = torch_files.read_torch(path)
    check(found, content)
    assert list(found) == list(content)
    first = path.read_bytes()
    torch_files.write_torch(path, content)
    assert path.read_bytes() == first
  assert os.listdir(tmp_path) == ["weights.pth"]


def test_safetensors(tmp_path):
  numpy = pytest.importorskip("safetensors.numpy", reason="the extra convert")
  path = tmp_path / "weights.bin"
  content = tensors([*TYPES[:-2], "uint16", "uint32", "uint64"])
  metadata = {"zeta": "1", "alpha": "é\n"}
  torch_files.write_safetensors(path, content, metadata)
  check(torch_files.read_torch(path), content)
  check(numpy.load_file(path), content)
  with numpy.safe_open(path, framework="np") as file:
    assert file.metadata() == metadata
  first = path.read_bytes()
  reordered = dict(reversed(content.items()))
  torch_files.write_safetensors(
    path, reordered, dict(reversed(metadata.items()))
  )
  assert path.read_bytes() == first
  torch_files.write_safetensors(path, {}, {})
  assert torch_files.read_torch(path) == {}
  # Written by the library, and a type that NumPy lacks.
  path.write_bytes(numpy.save({"a": SEED}))
  check(torch_files.read_torch(path), {"a": SEED})
  for kind, expected in (("BF16", [1.0, -3.140625]), ("F8_E4M3", None)):
    width = 2 if kind == "BF16" else 1
    header = b'{"a":{"dtype":"%s","shape":[2],"data_offsets":[0,%d]}}' % (
      kind.encode(),
      2 * width,
    )
    data = struct.pack("<Q", len(header)) + header + b"\x80\x3f\x49\xc0"
    path.write_bytes(data[: len(data) - 4 + 2 * width])
    if expected:
      found = torch_files.read_torch(path)["a"]
      assert found.tolist() == expected and found.dtype == np.float32
    else:
      with pytest.raises(InputError, match="'a' as F8_E4M3"):
        torch_files.read_torch(path)


def test_what_cannot_be_written(tmp_path):
  path = tmp_path / "weights.pth"
  path.write_bytes(b"old")
  write_safetensors = functools.partial(
    torch_files.write_safetensors, metadata={}
  )
  for write, array in (
    (torch_files.write_torch, np.array(["a"])),
    (torch_files.write_torch, np.zeros(1, np.uint16)),
    (torch_files.write_torch, np.zeros(1, object)),
    (write_safetensors, np.zeros(1, "M8[s]")),
    (write_safetensors, np.zeros(1, np.complex64)),
  ):
    with pytest.raises(ValueError, match="'name'"):
      write(path, {"name": array})
    with pytest.raises(InputError, match="cannot write .*none.*No such"):
      write(tmp_path / "none" / "weights.pth", {})
  with pytest.raises(ValueError, match="__metadata__"):
    write_safetensors(path, {"__metadata__": SEED})
  assert path.read_bytes() == b"old"
  assert os.listdir(tmp_path) == ["weights.pth"]


class Runs:
  """Pickles as a call of a function."""

  def __init__(self, function, *arguments):
    self._call = function, arguments

  def __reduce__(self):
    return self._call


@FORMATS
def test_no_code_is_run(tmp_path, form):
  trace = tmp_path / "trace"
  calls = [
    (os.system, f"touch {trace}"),
    (eval, f"open({str(trace)!r}, 'w')"),
    (open, str(trace), "w"),
    (getattr, str, "join"),
    (functools.partial, open, str(trace), "w"),
  ]
  for function, *arguments in calls:
    payload = Runs(function, *arguments)
    program = rows(a=step(payload), b=tensor(storage(12), (12,), (1,)))
    refuse(tmp_path, form(program), "asks for .*; it was not run")
    for start in (b"", header()[:15]):
      refuse(tmp_path, start + pickle.dumps(payload), "asks for")
    # Calls that are allowed, given what is not.
    inner = b"ctorch._tensor\n_rebuild_from_type_v2\n(" + step(payload)
    refuse(tmp_path, form(rows(a=inner + b"N)NtR")), "asks for")
  # The class of a whole model, as torch.save(model) stores it.
  model = b"(" + step("module") + b"ctorchvision.models.resnet\nResNet\ntQ"
  refuse(
    tmp_path,
    form(rows(model=model)),
    r"asks for torchvision.models.resnet.ResNet,.*state_dict\(\)",
  )
  for name in ("torch.storage\n_load_from_bytes", "torch\nfloat8_e4m3fn"):
    refuse(tmp_path, form(rows(a=f"c{name}\n".encode())), "asks for torch")
  # The state of an object could change this program.
  for target in (
    b"ctorch\nFloatStorage\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    storage(12),
    tensor(storage(12), (1,), (1,)),
  ):
    for state in (b"}", b"N}\x86"):
      refuse(tmp_path, form(rows(a=target + state + b"b")), "a changed")
  assert not trace.exists()


@FORMATS
def test_claims_are_checked(tmp_path, form):
  whole = storage(12)
  huge = 2**62
  for program, match in (
    (tensor(whole, (13,), (1,)), "shape"),
    (tensor(whole, (12,), (1,), 1), "shape"),
    (tensor(whole, (huge, huge), (0, 0)), "shape"),
    (tensor(whole, (2, 2), (1, huge)), "shape"),
    (tensor(whole, (1,), (1,), huge), "shape"),
    (tensor(whole, (4,), (-1,), 3), "strides"),
    (tensor(whole, (4,), (1,), -1), "strides"),
    (tensor(whole, (-4,), (1,)), "strides"),
    (tensor(whole, (4.0,), (1,)), "strides"),
    (tensor(whole, (4,), ()), "strides"),
    (tensor(whole, (1,) * 100, (1,) * 100), ""),
    (tensor(whole, (0, huge, huge), (1, 1, 1)), ""),
    (tensor(storage(huge), (huge,), (1,)), "storage"),
    (tensor(storage(13), (12,), (1,)), "storage"),
    (tensor(storage(-1), (12,), (1,)), "storage"),
    (tensor(storage(12, key="9"), (12,), (1,)), "data/9|storage"),
    (tensor(storage(12, kind="torch\nTensor"), (12,), (1,)), "Tensor"),
    (tensor(step("storage"), (12,), (1,)), ""),
  ):
    refuse(
      tmp_path, form(rows(a=program)), f"not a whole PyTorch file .*{match}"
    )
  refuse(tmp_path, form(whole), "holds a ndarray, not tensors by name")
  # Values with a bit that says that they are negated.
  odd = tensor(whole, (1,), (1,))
  odd = odd.replace(b")RtR", b")R}" + step("neg") + b"\x88stR")
  refuse(tmp_path, form(rows(a=odd)), "a negated or conjugate tensor")


def test_other_files(tmp_path):
  program = rows(a=tensor(storage(12), (12,), (1,)))
  packed = io.BytesIO()
  with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
    file.writestr("a/data.pkl", bytes(10**7))
  other = io.BytesIO()
  np.savez(other, a=SEED)
  crc = bytearray(archive(program))
  crc[crc.index(SEED.tobytes())] ^= 1
  for data, match in (
    (b"<html>", "is a web page"),
    (pickle.dumps({"a": SEED}), "is a pickle, but not one of PyTorch"),
    (header(protocol=1002), "a protocol other than 1001"),
    (header(little=False), "big-endian"),
    (archive(program, byteorder=b"big"), "big-endian"),
    (archive(program, **{"constants.pkl": b""}), "is a TorchScript program"),
    (other.getvalue(), r"zip archive without data\.pkl"),
    (packed.getvalue(), "packed again"),
    (bytes(crc), "not a whole PyTorch file .*CRC"),
    (b"\x10\0\0\0\0\0\0\0{", "not a whole safetensors file"),
  ):
    if b"{" not in data[8:9] or pytest.importorskip("safetensors"):
      refuse(tmp_path, data, match)
  with pytest.raises(InputError, match="cannot read .*none.*No such file"):
    torch_files.read_torch(tmp_path / "none")
  with pytest.raises(InputError, match="it is not a file"):
    torch_files.read_torch(tmp_path)


def test_stored_members_may_not_lie_over_each_other(tmp_path):
  # A directory that lists the same bytes many times.
  whole = archive(rows(), {"0": np.zeros(10**4)})
  start = whole.index(b"PK\x01\x02")
  end = whole.index(b"PK\x05\x06")
  entries = whole[start:end]
  many = 40
  tail = struct.pack(
    "<4s4H2LH",
    *(b"PK\x05\x06", 0, 0, 4 * many, 4 * many),
    *(len(entries) * many, start, 0),
  )
  renamed = b"".join(
    entries.replace(b"weights/", b"%08d" % i) for i in range(many)
  )
  data = whole[:start] + renamed.replace(b"00000000", b"weights/") + tail
  refuse(tmp_path, data, "larger than the whole|not a whole PyTorch file")


def samples():
  program = rows(
    a=tensor(storage(12), (4, 3), (1, 4)),
    b=tensor(storage(2, key="1", kind="torch\nBoolStorage"), (2,), (1,)),
  )
  storages = {"0": SEED, "1": np.array([True, False])}
  yield legacy(program, storages)
  yield archive(program, storages)


@pytest.mark.parametrize("which", ["legacy", "zip", "safetensors"])
def test_damage_is_one_line(tmp_path, which):
  path = tmp_path / "weights.pth"
  if which == "safetensors":
    pytest.importorskip("safetensors", reason="the extra convert")
    torch_files.write_safetensors(
      path, {"a": SEED, "b": np.array([True])}, {"c": "d"}
    )
    whole = path.read_bytes()
  else:
    whole = dict(zip(("legacy", "zip"), samples(), strict=True))[which]
  torch_files.read_torch(path) if path.exists() else read(tmp_path, whole)
  for cut in range(0, len(whole), 3):
    refuse(tmp_path, whole[:cut], "weights.pth")
  generator = np.random.default_rng(0)
  for _ in range(400):
    damaged = bytearray(whole)
    for place in generator.integers(len(whole), size=generator.integers(1, 4)):
      damaged[place] ^= generator.integers(1, 256)
    try:
      read(tmp_path, bytes(damaged))
    except InputError as error:
      assert str(error).isprintable()


@pytest.fixture
def torch():
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    return pytest.importorskip("torch", reason="compares with PyTorch itself")


def plain(torch, value):
  """What read_torch should return for what was saved."""
  if isinstance(value, torch.Tensor):
    value = value.detach()
    return (value.float() if value.dtype is torch.bfloat16 else value).numpy()
  if isinstance(value, torch.Size):
    return tuple(value)
  if isinstance(value, (torch.dtype, torch.device)):
    return str(value).removeprefix("torch.")
  if isinstance(value, dict):
    return {k: plain(torch, v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return type(value)(plain(torch, v) for v in value)
  return value


def same(found, expected):
  assert type(found) is type(expected)
  if isinstance(expected, np.ndarray):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)
  elif isinstance(expected, dict):
    assert list(found) == list(expected)
    for key, value in expected.items():
      same(found[key], value)
  elif isinstance(expected, (list, tuple)):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
      same(one, other)
  else:
    assert found == expected


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("is_zip", [True, False])
def test_files_of_pytorch(tmp_path, torch, is_zip, protocol):
  torch.manual_seed(0)
  model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(2, 2)
  )
  optimisers = {
    "sgd": torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
    "adam": torch.optim.AdamW(model.parameters(), 0.1),
  }
  schedule = torch.optim.lr_scheduler.MultiStepLR(optimisers["sgd"], [1, 2])
  model(torch.randn(2, 3, 4, 4)).sum().backward()
  for optimiser in optimisers.values():
    optimiser.step()
  schedule.step()
  base = torch.randn(4, 6)
  with_attribute = torch.ones(2)
  with_attribute.note = "kept out"
  kinds = [
    *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16"),
    *("int8", "uint8", "bool", "complex64", "complex128"),
    *("uint16", "uint32", "uint64"),
  ]
  content = {
    "base": model.state_dict(),
    "attn": collections.OrderedDict(w=torch.nn.Parameter(torch.randn(2, 2))),
    "epoch": 3,
    "best": [0.5, None, True, "ü", b"\xff"],
    "kinds": {k: (torch.randn(3, 2) * 9).to(getattr(torch, k)) for k in kinds},
    "views": (base, base.T, base[1:, ::2], base[2, 3], base.expand(1, 4, 6)),
    "shared half": [base.bfloat16().T] * 2,
    "channels last": torch.randn(2, 3, 4, 4).to(
      memory_format=torch.channels_last
    ),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(7),
    "attribute": with_attribute,
    "size": torch.Size([1, 2]),
    "device": torch.device("cuda:0"),
    "dtype": torch.float16,
    "numpy": np.arange(3.0),
    "counter": collections.Counter({5: 1}),
    "default": collections.defaultdict(dict, {1: {}}),
    **{name: o.state_dict() for name, o in optimisers.items()},
    "schedule": schedule.state_dict(),
  }
  path = tmp_path / "weights.pth.tar"
  torch.save(
    content,
    path,
    _use_new_zipfile_serialization=is_zip,
    pickle_protocol=protocol,
  )
  same(torch_files.read_torch(path), plain(torch, content))


@pytest.mark.parametrize("is_zip", [True, False])
def test_what_pytorch_saves_and_this_refuses(tmp_path, torch, is_zip):
  path = tmp_path / "weights.pth"
  for content, match in (
    (torch.nn.Linear(2, 2), "asks for torch.nn.modules.linear.Linear"),
    ({"a": torch.zeros(2).to_sparse()}, "asks for torch._utils._rebuild_spar"),
    ({"a": torch.zeros(2, dtype=torch.complex64).conj()}, "a negated or conj"),
    ([torch.zeros(2)], "holds a list"),
    ({"a": torch.zeros(1).expand(10**9)}, r"shape \(1000000000,\)"),
    ({"a": torch.zeros(2).to(torch.float8_e5m2)}, "float8_e5m2"),
  ):
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(InputError, match=match):
      torch_files.read_torch(path)


def test_pytorch_reads_what_is_written(tmp_path, torch):
  path = tmp_path / "weights.pth"
  content = tensors()
  torch_files.write_torch(path, content)
  for options in ({"weights_only": True}, {"weights_only": True, "mmap": True}):
    found = torch.load(path, **options)
    assert type(found) is collections.OrderedDict
    assert list(found) == list(content)
    assert all(tensor.is_contiguous() for tensor in found.values())
    check({k: v.numpy() for k, v in found.items()}, content)
  torch_files.write_torch(path, {})
  assert torch.load(path, weights_only=True) == {}
