"""Weights that others have published: where each lies, and how it is known.

Every number here was found in public places that quote it; what was found
nowhere is left out, and `downloads` then prints what it computes.
"""

import dataclasses
import urllib.parse

from delf_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Published:
  """One file of weights.

  Attributes:
    name: how it is asked for here, and the folder it is kept in.
    source: whose conventions its tensors follow.
    architecture: of the network, and what it was trained on.
    url: where its authors keep it.
    note: licence and paper.
    size: in bytes, where it is known.
    sha256: hexadecimal, the whole or as much of its beginning as is known.
    md5: hexadecimal, where that is what the authors publish.
  """

  name: str
  source: str
  architecture: str
  url: str
  note: str
  size: int | None = None
  sha256: str = ""
  md5: str = ""

  @property
  def file(self) -> str:
    """The name of the file, as in the address."""
    return urllib.parse.urlsplit(self.url).path.rpartition("/")[2]


_TORCHVISION = "https://download.pytorch.org/models/"
_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
_KERAS_2015 = (
  "https://github.com/fchollet/deep-learning-models/releases/download/v0.2/"
)
_DELF = "https://storage.googleapis.com/delf/"
_RESNET = "He et al., arXiv:1512.03385"
_DELG = "Apache-2.0; DELG, Cao et al., arXiv:2001.05027"

_ALL = (
  Published(
    name="torchvision_resnet50_v1",
    source="torchvision",
    architecture="ResNet-50 v1.5, ImageNet-1k",
    url=_TORCHVISION + "resnet50-0676ba61.pth",
    note=f"BSD-3-Clause; {_RESNET}",
    size=102530333,
    sha256="0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
  ),
  Published(
    name="torchvision_resnet50_v2",
    source="torchvision",
    architecture="ResNet-50 v1.5, ImageNet-1k, the longer recipe of 2021",
    url=_TORCHVISION + "resnet50-11ad3fa6.pth",
    note=f"BSD-3-Clause; {_RESNET}",
    size=102540417,
    sha256="11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca",
  ),
  Published(
    name="torchvision_resnet101_v1",
    source="torchvision",
    architecture="ResNet-101 v1.5, ImageNet-1k",
    url=_TORCHVISION + "resnet101-63fe2227.pth",
    note=f"BSD-3-Clause; {_RESNET}",
    sha256="63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a",
  ),
  Published(
    name="torchvision_resnet101_v2",
    source="torchvision",
    architecture="ResNet-101 v1.5, ImageNet-1k, the longer recipe of 2021",
    url=_TORCHVISION + "resnet101-cd907fc2.pth",
    note=f"BSD-3-Clause; {_RESNET}",
    sha256="cd907fc2a0de2292b2ba2b27d2216bc672d84632d1cf20058d01c0c03b5e020e",
  ),
  Published(
    name="torchvision_vgg16",
    source="vgg16",
    architecture="VGG-16 without batch normalisation, ImageNet-1k",
    url=_TORCHVISION + "vgg16-397923af.pth",
    note="BSD-3-Clause; Simonyan and Zisserman, arXiv:1409.1556",
    size=553433881,
    sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
  ),
  Published(
    name="timm_resnet50_a1",
    source="timm",
    architecture="ResNet-50 v1.5, ImageNet-1k, recipe A1",
    # A commit, because "main" may change.
    url="https://huggingface.co/timm/resnet50.a1_in1k/resolve/"
    "767268603ca0cb0bfe326fa87277f19c419566ef/model.safetensors",
    note="Apache-2.0; Wightman et al., arXiv:2110.00476",
    size=102469840,
    sha256="773525d5821de224f8f30c33377b7a795d7863e08522698200d3217d3f2a41bb",
  ),
  Published(
    name="keras_resnet50",
    source="keras",
    architecture="ResNet-50 v1, ImageNet-1k, without its classifier",
    url=_KERAS + "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
    note=f"Apache-2.0; {_RESNET}",
    size=94765736,
    md5="4d473c1dd8becc155b73f8504c6f6626",
  ),
  Published(
    name="keras_resnet101",
    source="keras",
    architecture="ResNet-101 v1, ImageNet-1k, without its classifier",
    url=_KERAS + "resnet101_weights_tf_dim_ordering_tf_kernels_notop.h5",
    note=f"Apache-2.0; {_RESNET}",
    size=171446536,
    md5="88cf7a10940856eca736dc7b7e228a21",
  ),
  Published(
    name="keras_resnet50_2015",
    source="keras",
    architecture="ResNet-50 v1, ImageNet-1k, without its classifier, with the "
    "layer names of the first Keras that TF2 DELF uses too",
    url=_KERAS_2015 + "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
    note=f"MIT; {_RESNET}",
    size=94653016,
    md5="a268eb855778b3df3c7506639542a6af",
  ),
  Published(
    name="delf_v1",
    source="tf_delf",
    architecture="DELF on ResNet-50 conv4, Landmarks, PCA to 40",
    url=_DELF + "delf_v1_20171026.tar.gz",
    note="Apache-2.0; Noh et al., arXiv:1612.06321",
  ),
  Published(
    name="delf_gld",
    source="tf_delf",
    architecture="DELF on ResNet-50 conv4, Google Landmarks, PCA to 128",
    url=_DELF + "delf_gld_20190411.tar.gz",
    note="Apache-2.0; Teichmann et al., arXiv:1812.01584",
  ),
  Published(
    name="r50delg_gld",
    source="tf_delf",
    architecture="DELG on ResNet-50, Google Landmarks, 128-d local features",
    url=_DELF + "r50delg_gld_20200814.tar.gz",
    note=_DELG,
  ),
  Published(
    name="r50delg_gldv2clean",
    source="tf_delf",
    architecture="DELG on ResNet-50, Google Landmarks v2 clean, 128-d local "
    "features",
    url=_DELF + "r50delg_gldv2clean_20200914.tar.gz",
    note=_DELG,
  ),
)

PUBLISHED = {published.name: published for published in _ALL}


def find(name: str) -> Published:
  """Returns what is published under a name.

  Raises:
    InputError: if nothing is; the message lists the names.
  """
  if name not in PUBLISHED:
    raise InputError(
      f"no published weights {name!r}; there are {', '.join(PUBLISHED)}"
    )
  return PUBLISHED[name]
