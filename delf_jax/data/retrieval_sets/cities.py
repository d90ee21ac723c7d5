"""What is published of Oxford5k and Paris6k, and added to them."""

from typing import NamedTuple

from delf_jax.data.retrieval_sets.downloads import Source

# Their authors' list: these files hold an error page. Everybody leaves them
# out, which makes 6,392 photographs of 6,412.
CORRUPT = tuple(
  f"paris_{name}"
  for name in (
    "louvre_000136",
    "louvre_000146",
    "moulinrouge_000422",
    "museedorsay_001059",
    "notredame_000188",
    "pantheon_000284",
    "pantheon_000960",
    "pantheon_000974",
    "pompidou_000195",
    "pompidou_000196",
    "pompidou_000201",
    "pompidou_000467",
    "pompidou_000640",
    "sacrecoeur_000299",
    "sacrecoeur_000330",
    "sacrecoeur_000353",
    "triomphe_000662",
    "triomphe_000833",
    "triomphe_000863",
    "triomphe_000867",
  )
)


class City(NamedTuple):
  """One of the two sets.

  Attributes:
    source: of the photographs.
    other: the city that distractor queries come from.
    truth: archive of the original ground truth.
    queries: of the original set.
    revisited: file of the revisited ground truth.
    revisited_database: number of its database photographs.
    revisited_queries: number of its queries.
  """

  source: Source
  other: str
  truth: str
  queries: int
  revisited: str
  revisited_database: int
  revisited_queries: int


REVISITED_FROM = "cmp.felk.cvut.cz/revisitop"

CITIES = {
  "oxford5k": City(
    Source(
      title="Oxford5k",
      folder="oxford5k",
      others=(
        "oxford",
        "oxbuildings",
        "oxbuild_images",
        "oxbuild_images-v1",
        "oxford-buildings",
        "roxford5k",
      ),
      pattern=(
        r"(all_souls|ashmolean|balliol|bodleian|christ_church|cornmarket"
        r"|hertford|jesus|keble|magdalen|new|oriel|oxford|pitt_rivers"
        r"|radcliffe_camera|trinity|worcester)_\d{6}"
      ),
      count=5062,
      fetch=(
        "oxbuild_images.tgz and gt_files_170407.tgz from "
        "www.robots.ox.ac.uk/~vgg/data/oxbuildings"
      ),
    ),
    other="paris6k",
    truth="gt_files_170407.tgz",
    queries=55,
    revisited="gnd_roxford5k.pkl",
    revisited_database=4993,
    revisited_queries=70,
  ),
  "paris6k": City(
    Source(
      title="Paris6k",
      folder="paris6k",
      others=("paris", "parisbuildings", "paris-buildings", "rparis6k"),
      pattern=r"paris_[a-z]+_\d{6}",
      count=6392,
      fetch=(
        "paris_1.tgz, paris_2.tgz and paris_120310.tgz from "
        "www.robots.ox.ac.uk/~vgg/data/parisbuildings"
      ),
    ),
    other="oxford5k",
    truth="paris_120310.tgz",
    queries=55,
    revisited="gnd_rparis6k.pkl",
    revisited_database=6322,
    revisited_queries=70,
  ),
}

FLICKR = Source(
  title="Flickr100k",
  folder="flickr100k",
  others=("oxc1_100k", "oxford100k", "ox100k", "flickr"),
  pattern=r".+",
  count=100_071,
  fetch=(
    "oxc1_100k.part01.rar and the other parts from "
    "www.robots.ox.ac.uk/~vgg/data/oxbuildings"
  ),
)

MILLION = Source(
  title="R1M",
  folder="revisitop1m",
  others=("r1m", "revisitop1m.1"),
  pattern=r".+",
  count=1_001_001,
  fetch=f"revisitop1m.1.tar.gz and the other 99 from {REVISITED_FROM}",
)
