"""Objects in pickles that are read as their attributes, and nothing else."""

import io
import pickle

import numpy as np
import pytest

from delf_jax.data import safe_pickle


class Thing:
  """Something with attributes, one of them itself in a list."""

  def __init__(self):
    self.weights = np.arange(6.0).reshape(2, 3)
    self.names = ["a", {"b": 2}]


ATTRIBUTES = {(__name__, "Thing"): safe_pickle.Attributes}
CLASS = f"c{__name__}\nThing\n".encode()
REFUSED = (
  safe_pickle.NotPlainError,
  AttributeError,
  TypeError,
  ValueError,
)


def read(pickled, allowed=None):
  return safe_pickle.plain(
    safe_pickle.unpickle(io.BytesIO(pickled), allowed=allowed)
  )


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_attributes_of_an_object(protocol):
  pickled = pickle.dumps({"one": Thing()}, protocol)
  found = read(pickled, ATTRIBUTES)
  assert found["one"]["names"] == ["a", {"b": 2}]
  np.testing.assert_array_equal(found["one"]["weights"], Thing().weights)
  with pytest.raises(safe_pickle.NotPlainError, match="Thing"):
    read(pickled)


@pytest.mark.parametrize(
  "steps",
  [
    b"}b.",  # changes the class
    b")\x81}b}b.",  # sets the attributes again
    b")\x81]b.",  # to what are none
    b"K\x01\x85R.",  # calls the class
    b".",  # gives it back
    b")\x81.",  # an object without attributes
  ],
)
def test_nothing_else_can_be_done_with_its_class(steps):
  before = dict(vars(safe_pickle.Attributes))
  with pytest.raises(REFUSED):
    read(b"\x80\x04" + CLASS + steps, ATTRIBUTES)
  assert dict(vars(safe_pickle.Attributes)) == before
