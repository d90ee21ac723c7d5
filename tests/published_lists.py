"""Lists of photographs as data sets publish them, in miniature."""

import base64
import hashlib
import os
import pickle

import numpy as np

# Written by scipy.io.savemat(do_compression=True): cids, a cell array of three
# strings; cluster, uint16; matrix, float64; name, a string; and a structure.
MAT_FILE = base64.b64decode(
  "TUFUTEFCIDUuMCBNQVQtZmlsZSAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg"
  "ICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg"
  "ICAAAAAAAAAAAAABSU0PAAAAUQAAAHic42NgYBBgZGBgA9IcQAxkggErEp8ZTLMwJGemFPMB2QEM"
  "CPUsWNQrIJkjAOUb4ASJSckpqWnkmltBAIDMNSBgLiOKuUwMh1cyMAAAoJ0bmQ8AAAAyAAAAeJzj"
  "Y2BgcABiNiDmAGJuBghghfIZgZgZSrMDcXJOaXFJahEDC1QPI1BUBygJAF9BA8IPAAAAPQAAAHic"
  "42NgYMgAYjYg5oDSIMAK5TMBMTMQM0LlchNLijIrGBg4gWwDBnTA4QChP9hDaAEonwFKizgAABxH"
  "Bc0PAAAALAAAAHic42NgYLAAYjYg5gBiFgYIYIXyGaFsRqBMXmJuqgCUX5JfnloEpAFELgRYDwAA"
  "AD8AAAB4nONjYGBoAGI2IOYAYiYGCGCF8hmRMDsQ5+WXZGTmpQPlWcBqGYFkIpDmA2ILJHP48JgD"
  "AjxI4iAAAI7IBKM="
)
MAT_CIDS = ["0" * 26 + "abcdef", "x" * 32, "é"]


def make(root, *paths):
  """Makes files whose content is their path."""
  for path in paths:
    place = os.path.join(root, path)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    with open(place, "wb") as file:
      file.write(os.fsencode(path))


URLS = {
  # url -> (label, what a downloader called it)
  "http://a.org/photos.3/big/Saksay.jpg": (
    213,
    "a.org/photos.3/big/Saksay.jpg",
  ),
  "http://b.ru/wp/%D0%97%D0%B0.jpg": (466, "b.ru/wp/За.jpg"),
  "http://c.com/2011/machu-picchu.jpg?w=10&h=3": (
    136,
    "c.com/2011/machu-picchu.jpg?w=10&h=3",
  ),
  "http://d.ru/index.php?action=showimage&id=6": (
    476,
    f"{hashlib.md5(b'http://d.ru/index.php?action=showimage&id=6').hexdigest()}"
    ".jpg",
  ),
  "http://e.de/media/1.jpg": (26, "26/1.jpg"),
  "http://f.de/other/1.jpg": (27, None),  # 1.jpg itself says nothing
  "http://g.de/h/Palma%20Ponte.jpg?s=1": (444, "Palma Ponte.jpg"),
  "http://h.de/../../etc/passwd": (12, None),
  "http://i.de/": (12, None),
  "http://j.com/LRG/\\22\\2278\\5F3.jpg": (253, "\\22\\2278\\5F3.jpg"),
}


def write_lists(root, variant, *, urls=URLS, box=""):
  root.mkdir(exist_ok=True)
  lines = [f"{url} {label}{box}\n" for url, (label, _) in urls.items()]
  half = len(lines) // 2
  for split, part in (("train", lines[:half]), ("val", lines[half:])):
    (root / f"annotation_{variant}_{split}.txt").write_text("".join(part))


CIDS = [MAT_CIDS[0], "1234567890abcdef", MAT_CIDS[1], "00ffeedd"]


def sfm_path(cid):
  return f"ims/{cid[-2:]}/{cid[-4:-2]}/{cid[-6:-4]}/{cid}"


def write_sfm(root, name="retrieval-SfM-120k.pkl"):
  root.mkdir(exist_ok=True)
  database = {
    "train": {
      "cids": [*CIDS[:3], "short"],
      "cluster": np.array([4, 30, 4, 5]),
      "qidxs": [0],
      "pidxs": np.array([2]),
    },
    "val": {"cids": CIDS[3:], "cluster": [9], "qidxs": [], "pidxs": []},
  }
  (root / name).write_bytes(pickle.dumps(database, protocol=2))
