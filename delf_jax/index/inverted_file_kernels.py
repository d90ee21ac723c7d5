"""What the inverted file runs for every descriptor and query, compiled by
numba.

Kept apart from `inverted_file`, which says what the arrays mean. What works on
parts [first, last) of its arrays can be shared by threads. Everything is
compiled once and kept on disk for the next process.

Codes lie in blocks of 32 entries. Of every sub-vector a block has the low four
bits of the 32 codes (byte i: entries i and i + 16) and then, for codes of five
bits, their fifth bits; codes of eight bits are plain bytes. So a block of codes
of b bits takes 4 b bytes a sub-vector, nothing is wasted, and a processor that
looks up 32 numbers in a table of 32 at once (AVX-512) needs no step for a
single entry.

Rows are Elias-Fano coded: the rows of a list ascend, so the low bits are kept
as they are and the high ones as gaps in unary, about two bits. The position of
every 256th is kept beside them, so any row is read at once.
"""

import functools
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba.core import cgutils, config, types
from numba.extending import intrinsic

from delf_jax.index.compiled import compiled

BLOCK = 32  # entries whose codes lie together
LANES = 64  # words that are compared together
SAMPLED = 256  # every so many rows the place of one is known

# A processor chosen by hand may be older than this one.
WIDE = (
  config.CPU_NAME is None
  and config.CPU_FEATURES is None
  and bool(binding.get_host_cpu_features().get("avx512bw"))
)

_STEPS = np.float32(60_000)  # of a table's 16-bit entries; their sum fits


_inlined = functools.partial(compiled, inline="always")
# A product and a sum may be one instruction; the order of sums stays, and so
# does the result for a descriptor wherever it stands.
_fused = functools.partial(compiled, fastmath={"contract", "nnan", "nsz"})


@intrinsic
def _ones(typingctx, bits):
  """How many bits are set."""

  def generate(context, builder, signature, arguments):
    return builder.ctpop(arguments[0])

  return types.uint64(types.uint64), generate


@intrinsic
def _zeros_below(typingctx, bits):
  """The place of the lowest bit that is set."""

  def generate(context, builder, signature, arguments):
    return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

  return types.uint64(types.uint64), generate


def _matches(bits: int) -> Any:
  """Makes the function that compares a block's 32 sums with a threshold."""

  @intrinsic
  def matches(typingctx, codes, offset, tables, subvectors, threshold):
    """The entries of a block, one bit each, whose sum is at most a threshold.

    codes: uint8, all of them; offset: where the block starts in them.
    tables: [subvectors, 32] uint16.
    """

    def generate(context, builder, signature, arguments):
      code_type, _, table_type = signature.args[:3]
      _, offset, _, subvectors, threshold = arguments
      byte, short = ir.IntType(8), ir.IntType(16)
      sums = ir.VectorType(short, BLOCK)
      halves = ir.VectorType(byte, BLOCK // 2)
      flags = ir.VectorType(ir.IntType(1), BLOCK)
      module = builder.module
      look_up = cgutils.get_or_insert_function(
        module,
        ir.FunctionType(sums, [sums, sums]),
        "llvm.x86.avx512.permvar.hi.512",
      )
      add = cgutils.get_or_insert_function(
        module, ir.FunctionType(sums, [sums, sums]), "llvm.uadd.sat.v32i16"
      )

      def data(kind, value):
        pointer = context.make_array(kind)(context, builder, value).data
        return builder.bitcast(pointer, byte.as_pointer())

      def load(pointer, kind):
        found = builder.load(builder.bitcast(pointer, kind.as_pointer()))
        found.align = 1
        return found

      def splat(number, kind):
        return ir.Constant(kind, [number] * kind.count)

      code = builder.gep(data(code_type, arguments[0]), [offset])
      table = data(table_type, arguments[2])
      total = cgutils.alloca_once_value(builder, splat(0, sums))
      size = offset.type
      with cgutils.for_range(builder, subvectors) as loop:
        here = builder.gep(
          code, [builder.mul(loop.index, ir.Constant(size, 4 * bits))]
        )
        both = load(here, halves)
        index = builder.shuffle_vector(
          builder.and_(both, splat(15, halves)),
          builder.lshr(both, splat(4, halves)),
          ir.Constant(ir.VectorType(ir.IntType(32), BLOCK), [*range(BLOCK)]),
        )
        index = builder.zext(index, sums)
        if bits == 5:
          fifth = load(
            builder.gep(here, [ir.Constant(size, BLOCK // 2)]), ir.IntType(32)
          )
          index = builder.or_(
            index,
            builder.select(
              builder.bitcast(fifth, flags), splat(16, sums), splat(0, sums)
            ),
          )
        entries = load(
          builder.gep(
            table, [builder.mul(loop.index, ir.Constant(size, 2 * BLOCK))]
          ),
          sums,
        )
        found = builder.call(look_up, [entries, index])
        builder.store(builder.call(add, [builder.load(total), found]), total)
      limit = builder.insert_element(
        splat(0, sums), threshold, ir.Constant(ir.IntType(32), 0)
      )
      limit = builder.shuffle_vector(
        limit, splat(0, sums), splat(0, ir.VectorType(ir.IntType(32), BLOCK))
      )
      within = builder.icmp_unsigned("<=", builder.load(total), limit)
      return builder.bitcast(within, ir.IntType(32))

    signature = types.uint32(
      codes, types.intp, tables, types.intp, types.uint16
    )
    return signature, generate

  return matches


@compiled
def _all(codes, offset, tables, subvectors, threshold):
  """Leaves every entry to be measured."""
  return np.uint32(0xFFFFFFFF)


_matches_four = _matches(4) if WIDE else _all
_matches_five = _matches(5) if WIDE else _all


@_inlined
def _code(codes, block, j, lane, bits):
  """One entry's code of one sub-vector."""
  at = j * 4 * bits
  if bits == 8:
    return np.int64(codes[block, at + lane])
  code = (codes[block, at + (lane & 15)] >> ((lane >> 4) << 2)) & 15
  if bits == 5:
    fifth = (codes[block, at + 16 + (lane >> 3)] >> (lane & 7)) & 1
    code |= fifth << 4
  return np.int64(code)


@_inlined
def _put_code(codes, block, j, lane, bits, code):
  """Writes a code where there are zeros."""
  at = j * 4 * bits
  if bits == 8:
    codes[block, at + lane] = code
  else:
    codes[block, at + (lane & 15)] |= np.uint8(
      (code & 15) << ((lane >> 4) << 2)
    )
    if bits == 5:
      codes[block, at + 16 + (lane >> 3)] |= np.uint8((code >> 4) << (lane & 7))


@compiled
def low_bits(n, size):
  """How many low bits are kept of each of `size` rows below n."""
  bits = 0
  while size << (bits + 1) <= n:
    bits += 1
  return bits


@compiled
def row_words(n, size):
  """How many 64-bit words `size` rows below n take, low and high and places."""
  if size == 0:
    return 0, 0, 0
  bits = low_bits(n, size)
  return (
    (size * bits + 63) >> 6,
    (size + (n >> bits) + 64) >> 6,
    ((size + SAMPLED - 1) // SAMPLED + 1) >> 1,
  )


@compiled
def row_starts(n, sizes):
  """[words + 1], where the rows of each list start."""
  starts = np.zeros(len(sizes) + 1, np.int64)
  for word in range(len(sizes)):
    low, high, places = row_words(n, sizes[word])
    starts[word + 1] = starts[word] + low + high + places
  return starts


@compiled
def _put_row(rows, start, n, size, i, row):
  """Writes the i-th row of a list where there are zeros."""
  bits = low_bits(n, size)
  low, high, _ = row_words(n, size)
  part = np.uint64(row) & ((np.uint64(1) << np.uint64(bits)) - np.uint64(1))
  at = i * bits
  shift = np.uint64(at & 63)
  word = start + (at >> 6)
  if bits:
    rows[word] |= part << shift
    if (at & 63) + bits > 64:
      rows[word + 1] |= part >> (np.uint64(64) - shift)
  at = (row >> bits) + i
  rows[start + low + (at >> 6)] |= np.uint64(1) << np.uint64(at & 63)
  if i % SAMPLED == 0:
    place = i // SAMPLED
    rows[start + low + high + (place >> 1)] |= np.uint64(at) << np.uint64(
      32 * (place & 1)
    )


@compiled
def _row(rows, start, n, size, i):
  """The i-th row of a list; never reads outside of the list."""
  bits = low_bits(n, size)
  low, high, _ = row_words(n, size)
  place = i // SAMPLED
  at = np.int64(
    (rows[start + low + high + (place >> 1)] >> np.uint64(32 * (place & 1)))
    & np.uint64(0xFFFFFFFF)
  )
  left = np.uint64(i % SAMPLED)  # ones to pass by
  word = at >> 6
  if word >= high:
    return n  # only in an index that was made to deceive
  ones = rows[start + low + word] >> np.uint64(at & 63) << np.uint64(at & 63)
  while True:
    count = _ones(ones)
    if count > left:
      break
    left -= count
    word += 1
    if word >= high:
      return n
    ones = rows[start + low + word]
  while left:
    ones &= ones - np.uint64(1)
    left -= np.uint64(1)
  row = ((word << 6) + np.int64(_zeros_below(ones)) - i) << bits
  if bits:
    at = i * bits
    word = start + (at >> 6)
    shift = np.uint64(at & 63)
    part = rows[word] >> shift
    if (at & 63) + bits > 64:
      part |= rows[word + 1] << (np.uint64(64) - shift)
    row |= np.int64(part & ((np.uint64(1) << np.uint64(bits)) - np.uint64(1)))
  return row


@compiled
def _rows_below(rows, start, n, size, limit):
  """How many rows of a list are below a limit."""
  first, last = 0, size
  while first < last:
    middle = (first + last) >> 1
    if _row(rows, start, n, size, middle) < limit:
      first = middle + 1
    else:
      last = middle
  return first


@_fused
def _score(x, columns, norms, block, scores):
  """|c|^2 - 2 x.c of the LANES words of a block."""
  for lane in range(LANES):
    scores[lane] = np.float32(0)
  for i in range(x.shape[0]):
    for lane in range(LANES):
      scores[lane] += x[i] * columns[block, i, lane]
  for lane in range(LANES):
    scores[lane] = norms[block, lane] - np.float32(2) * scores[lane]


@_fused
def assign(vectors, columns, norms, words, first, last):
  """The nearest word of each vector; of equally near ones the first."""
  scores = np.empty(LANES, np.float32)
  best = np.full(last - first, np.inf, np.float32)
  for block in range(columns.shape[0]):
    for i in range(first, last):
      _score(vectors[i], columns, norms, block, scores)
      least = scores[0]
      for lane in range(LANES):
        least = min(least, scores[lane])
      if least < best[i - first]:
        best[i - first] = least
        for lane in range(LANES):
          if scores[lane] == least:
            words[i] = block * LANES + lane
            break


@_fused
def _rotate(x, word, rotation, residual):
  """(x - word) rotated, [D]."""
  for j in range(residual.shape[0]):
    residual[j] = np.float32(0)
  for i in range(x.shape[0]):
    difference = x[i] - word[i]
    for j in range(residual.shape[0]):
      residual[j] += difference * rotation[i, j]


@_fused
def _tabulate(residual, codebooks, table):
  """[M, centroids] squared distances of a residual's parts."""
  width = codebooks.shape[1]
  for j in range(codebooks.shape[0]):
    for c in range(codebooks.shape[2]):
      table[j, c] = np.float32(0)
    for i in range(width):
      for c in range(codebooks.shape[2]):
        difference = residual[j * width + i] - codebooks[j, i, c]
        table[j, c] += difference * difference


@_fused
def rotate(
  vectors, order, words, centres, rotation_of, rotations, residuals, first, last
):
  """Writes the rotated residual of vector order[i] to residuals[i]."""
  for i in range(first, last):
    row = order[i]
    word = words[row]
    _rotate(
      vectors[row], centres[word], rotations[rotation_of[word]], residuals[i]
    )


@_fused
def encode(
  vectors,
  order,
  words,
  centres,
  rotation_of,
  rotations,
  codebook_of,
  codebooks,
  codes,
  first,
  last,
):
  """The nearest centroids of the vectors' residuals, codes [n, M].

  order: in which to go, word after word, so that a word's numbers stay near.
  """
  table = np.empty((codebooks.shape[1], codebooks.shape[3]), np.float32)
  residual = np.empty(rotations.shape[2], np.float32)
  for i in range(first, last):
    row = order[i]
    word = words[row]
    _rotate(vectors[row], centres[word], rotations[rotation_of[word]], residual)
    _tabulate(residual, codebooks[codebook_of[word]], table)
    for j in range(table.shape[0]):
      least = table[j, 0]
      for c in range(table.shape[1]):
        least = min(least, table[j, c])
      for c in range(table.shape[1]):
        if table[j, c] == least:
          codes[row, j] = c
          break


@_fused
def _lloyd(parts, start, stop, offset, codebook, iterations, prior):
  """k-means of parts[start:stop, offset : offset + width], in place.

  codebook: [width, centroids]; every centroid starts as `prior` descriptors.
  """
  width, count = codebook.shape
  first = codebook.copy()
  sums = np.empty((width, count), np.float64)
  sizes = np.empty(count, np.float64)
  distances = np.empty(count, np.float32)
  for _ in range(iterations):
    sizes[:] = prior
    for j in range(width):
      for c in range(count):
        sums[j, c] = prior * first[j, c]
    for i in range(start, stop):
      distances[:] = 0
      for j in range(width):
        for c in range(count):
          difference = parts[i, offset + j] - codebook[j, c]
          distances[c] += difference * difference
      least = distances[0]
      for c in range(count):
        least = min(least, distances[c])
      c = 0
      while distances[c] != least:
        c += 1
      sizes[c] += 1
      for j in range(width):
        sums[j, c] += parts[i, offset + j]
    for c in range(count):
      if sizes[c] > 0:
        for j in range(width):
          codebook[j, c] = np.float32(sums[j, c] / sizes[c])


@compiled
def fit_parts(parts, codebook, iterations, first, last):
  """k-means of sub-vectors [first, last); codebook [M, width, K]."""
  width = codebook.shape[1]
  for j in range(first, last):
    _lloyd(parts, 0, len(parts), j * width, codebook[j], iterations, 0.0)


@compiled
def fit(parts, bounds, codebooks, iterations, prior, first, last):
  """k-means of every word's sub-vectors; codebooks [words, M, width, K].

  bounds: [words, 2], where a word's residuals start and stop.
  """
  width = codebooks.shape[2]
  for word in range(first, last):
    for j in range(codebooks.shape[1]):
      _lloyd(
        parts,
        bounds[word, 0],
        bounds[word, 1],
        j * width,
        codebooks[word, j],
        iterations,
        prior,
      )


@compiled
def covariances(parts, starts, products, first, last):
  """The sums of x x^T over every word's descriptors; products [words, d, d]."""
  d = parts.shape[1]
  for word in range(first, last):
    for i in range(starts[word], starts[word + 1]):
      for a in range(d):
        factor = np.float64(parts[i, a])
        for b in range(d):
          products[word, a, b] += factor * parts[i, b]


@compiled
def add_up(vectors, words, sums, counts):
  """Adds vectors to their words' sums [words, d] and counts."""
  for i in range(len(words)):
    word = words[i]
    counts[word] += 1
    for j in range(vectors.shape[1]):
      sums[word, j] += vectors[i, j]


@compiled
def scatter(
  words,
  given,
  first_row,
  filled,
  block_starts,
  sizes,
  starts,
  n,
  bits,
  codes,
  rows,
):
  """Appends entries to their lists, in the order of rows.

  given: [count, M] codes. filled: [words] how many entries each list has.
  """
  for i in range(len(words)):
    word = words[i]
    place = filled[word]
    filled[word] = place + 1
    block = block_starts[word] + place // BLOCK
    for j in range(given.shape[1]):
      _put_code(codes, block, j, place % BLOCK, bits, given[i, j])
    _put_row(rows, starts[word], n, sizes[word], place, first_row + i)


@compiled
def _is_alive(alive, block, lane):
  if len(alive) == 0:
    return True
  return (alive[block] >> np.uint32(lane)) & np.uint32(1) != 0


@compiled
def count_alive(alive, block_starts, sizes):
  """[words], how many entries of each list are left."""
  counts = np.zeros(len(sizes), np.int64)
  for word in range(len(sizes)):
    for place in range(sizes[word]):
      block = block_starts[word] + place // BLOCK
      counts[word] += _is_alive(alive, block, place % BLOCK)
  return counts


@compiled
def move(
  # what is read
  codes,
  rows,
  block_starts,
  sizes,
  starts,
  n,
  alive,
  gaps,
  removed,
  # what is appended to
  filled,
  to_codes,
  to_rows,
  to_block_starts,
  to_sizes,
  to_starts,
  to_n,
  first_row,
  bits,
  subvectors,
):
  """Appends the living entries of all lists to the same lists elsewhere.

  gaps, removed: the row s = r + first_row becomes s - removed[gaps <= s].
  """
  for word in range(len(sizes)):
    for place in range(sizes[word]):
      block = block_starts[word] + place // BLOCK
      lane = place % BLOCK
      if not _is_alive(alive, block, lane):
        continue
      row = _row(rows, starts[word], n, sizes[word], place)
      row += first_row
      row -= removed[np.searchsorted(gaps, row, side="right")]
      if not 0 <= row < to_n:
        continue  # only from an index that was made to deceive
      to = filled[word]
      filled[word] = to + 1
      to_block = to_block_starts[word] + to // BLOCK
      for j in range(subvectors):
        code = _code(codes, block, j, lane, bits)
        _put_code(to_codes, to_block, j, to % BLOCK, bits, code)
      _put_row(to_rows, to_starts[word], to_n, to_sizes[word], to, row)


@compiled
def kill(rows, block_starts, sizes, starts, n, alive, first, last, lost):
  """Marks the entries of rows [first, last) as dead; lost [words] counts."""
  for word in range(len(sizes)):
    size = sizes[word]
    a = _rows_below(rows, starts[word], n, size, first)
    b = _rows_below(rows, starts[word], n, size, last)
    for place in range(a, b):
      block = block_starts[word] + place // BLOCK
      bit = np.uint32(1) << np.uint32(place % BLOCK)
      if alive[block] & bit:
        alive[block] &= ~bit
        lost[word] += 1


@compiled
def is_sound(rows, sizes, starts, n):
  """Whether the lists hold every row below n once, each list ascending."""
  seen = np.zeros((n >> 3) + 1, np.uint8)
  for word in range(len(sizes)):
    size = sizes[word]
    before = -1
    for i in range(size):
      row = _row(rows, starts[word], n, size, i)
      if row <= before or row >= n:
        return False
      mark = np.uint8(1 << (row & 7))
      if seen[row >> 3] & mark:
        return False
      seen[row >> 3] |= mark
      before = row
  return True


@_inlined
def _swap(keys, i, j):
  key = keys[i]
  keys[i] = keys[j]
  keys[j] = key


@compiled
def _select(keys, count, k):
  """Moves the k smallest of keys[:count] to the front, the k-th to its place.

  None is there twice.
  """
  first, last = 0, count - 1
  while first < last:
    middle = (first + last) >> 1
    if keys[middle] < keys[first]:
      _swap(keys, middle, first)
    if keys[last] < keys[first]:
      _swap(keys, last, first)
    if keys[last] < keys[middle]:
      _swap(keys, last, middle)
    pivot = keys[middle]
    i, j = first, last
    while i <= j:
      while keys[i] < pivot:
        i += 1
      while keys[j] > pivot:
        j -= 1
      if i <= j:
        _swap(keys, i, j)
        i += 1
        j -= 1
    if k - 1 <= j:
      last = j
    elif k - 1 >= i:
      first = i
    else:
      return


@compiled
def _keep_nearest(keys, words, places, count, k, rows, starts, n, sizes):
  """Moves the k nearest of the candidates keys[:count] to the front.

  A key is the bits of a distance, which sort as it does, and the slot of words
  and places where the candidate's are. Where candidates at the k-th distance
  have to go, those with the larger rows do.
  """
  _select(keys, count, k)
  farthest = keys[k - 1] >> np.uint64(32)
  tied = 0
  for i in range(k, count):
    tied += keys[i] >> np.uint64(32) == farthest
  if not tied:
    return
  # They go next to each other, across the boundary.
  last = k
  for i in range(k, count):
    if keys[i] >> np.uint64(32) == farthest:
      _swap(keys, i, last)
      last += 1
  first = k
  for i in range(k - 1, -1, -1):
    if keys[i] >> np.uint64(32) == farthest:
      first -= 1
      _swap(keys, i, first)
  equal = keys[first:last].copy()
  their_rows = np.empty(len(equal), np.int64)
  for i in range(len(equal)):
    slot = np.int64(equal[i] & np.uint64(0xFFFFFFFF))
    word = words[slot]
    their_rows[i] = _row(rows, starts[word], n, sizes[word], places[slot])
  order = np.argsort(their_rows)
  for i in range(len(equal)):
    keys[first + i] = equal[order[i]]


@_fused
def _choose(query, columns, norms, scores, minima, chosen, keys):
  """The nearest words, ascending by (score, word), as many as fit chosen."""
  wanted = len(chosen)
  for block in range(columns.shape[0]):
    _score(query, columns, norms, block, scores[block])
    least = scores[block, 0]
    for lane in range(LANES):
      least = min(least, scores[block, lane])
    minima[block] = least
  keys[:] = np.inf
  chosen[:] = -1
  for block in range(columns.shape[0]):
    if not minima[block] < keys[wanted - 1]:
      continue
    for lane in range(LANES):
      score = scores[block, lane]
      if not score < keys[wanted - 1]:
        continue
      at = wanted - 1
      while at > 0 and score < keys[at - 1]:
        keys[at] = keys[at - 1]
        chosen[at] = chosen[at - 1]
        at -= 1
      keys[at] = score
      chosen[at] = block * LANES + lane


@_fused
def _quantise(table, lowest, scale, small):
  """floor((table - lowest) * scale), no more than 16 bits hold."""
  for j in range(table.shape[0]):
    for c in range(table.shape[1]):
      small[j, c] = np.uint16(
        min((table[j, c] - lowest[j]) * scale, np.float32(65_535))
      )


@compiled
def _within(codes, block, bits, table, bound, sums):
  """The entries of a block, one bit each, at most a squared distance away."""
  one, four = np.uint64(1), np.uint64(4)
  for lane in range(BLOCK):
    sums[lane] = np.float32(0)
  for j in range(table.shape[0]):
    at = j * 4 * bits
    entries = table[j]
    if bits == 8:
      for lane in range(BLOCK):
        sums[lane] += entries[np.uint64(codes[block, at + lane])]
      continue
    fifths = np.uint64(0)
    if bits == 5:
      for i in range(4):
        fifths |= np.uint64(codes[block, at + 16 + i]) << np.uint64(8 * i + 4)
    for lane in range(BLOCK // 2):
      both = np.uint64(codes[block, at + lane])
      fifth = fifths >> np.uint64(lane) & np.uint64(16)
      sums[lane] += entries[both & np.uint64(15) | fifth]
      fifth = fifths >> np.uint64(lane + 16) & np.uint64(16)
      sums[lane + 16] += entries[both >> four | fifth]
  mask = np.uint32(0)
  for lane in range(BLOCK):
    if sums[lane] <= bound:
      mask |= np.uint32(one << np.uint64(lane))
  return mask


@_inlined
def _reach(bound, lowest, subvectors):
  """How much more than the lowest sum an entry within a distance can have.

  The factor spans the rounding of the sum in float32 and of its root.
  """
  slack = 1 + (subvectors + 4) * 2.0**-23
  return np.float64(bound) * np.float64(bound) * slack - lowest


@_inlined
def _threshold(reach, scale):
  """The same in 16 bits; the 1 spans the rounding of what is added up."""
  return np.int64(min(reach * scale + 1, 65_535.0)) if reach >= 0 else -1


@compiled
def search(
  queries,
  # what was trained
  columns,
  norms,
  centres,
  rotation_of,
  rotations,
  codebook_of,
  codebooks,
  bits,
  # the entries
  codes,
  rows,
  block_starts,
  sizes,
  starts,
  n,
  alive,
  # how to search
  living,
  probes,
  visit,
  needed,
  wide,
  start,
  stop,
  # the answer
  distances,
  found,
  first,
  last,
):
  """Searches for queries [first, last); see `InvertedFileIndex.search`.

  living: [words] how many entries each list has in all, here and elsewhere.
  needed: entries to visit at least.
  wide: whether to compare 32 entries at a time first; see WIDE.
  start, stop: rows to leave out.
  distances, found: [m, k], filled with (inf, -1).
  """
  count_words = len(sizes)
  subvectors, _, centroids = codebooks.shape[1:]
  stride = codes.shape[1]
  flat = codes.reshape(-1)
  k = distances.shape[1]
  scores = np.empty((columns.shape[0], LANES), np.float32)
  minima = np.empty(columns.shape[0], np.float32)
  nearest = np.empty(min(probes, count_words), np.int64)
  nearest_keys = np.empty(len(nearest), np.float32)
  residual = np.empty(rotations.shape[2], np.float32)
  table = np.empty((subvectors, centroids), np.float32)
  small = np.zeros((subvectors, max(BLOCK, centroids)), np.uint16)
  lowest = np.empty(subvectors, np.float32)
  sums = np.empty(BLOCK, np.float32)
  # The candidates so far; those beyond k go when there is no room left.
  room = 2 * k + 16
  keys = np.arange(room).astype(np.uint64)
  words = np.empty(room, np.int32)
  places = np.empty(room, np.int64)
  value = np.empty(1, np.float32)
  value_bits = value.view(np.uint32)
  wide = wide and bits < 8
  for number in range(first, last):
    query = queries[number]
    _choose(query, columns, norms, scores, minima, nearest, nearest_keys)
    order = nearest
    visited = 0
    count = 0
    full = False
    bound = np.float32(np.inf)
    reach = np.inf
    turn = 0
    while turn < count_words:
      if turn >= len(nearest) or (visit and visited >= visit):
        if visited >= needed:
          break
        if turn == len(order):
          order = np.argsort(scores.reshape(-1)[:count_words], kind="mergesort")
      word = order[turn]
      turn += 1
      visited += living[word]
      size = sizes[word]
      if size == 0:
        continue
      _rotate(query, centres[word], rotations[rotation_of[word]], residual)
      _tabulate(residual, codebooks[codebook_of[word]], table)
      base = 0.0
      span = 0.0
      for j in range(subvectors):
        least = table[j, 0]
        most = table[j, 0]
        for c in range(centroids):
          least = min(least, table[j, c])
          most = max(most, table[j, c])
        lowest[j] = least
        base += np.float64(least)
        span += np.float64(most) - np.float64(least)
      if full:
        reach = _reach(bound, base, subvectors)
        if reach < 0:
          continue
        span = min(span, reach)
      scale = np.float32(_STEPS / span if span > 1e-30 else 0)
      threshold = _threshold(reach, scale) if full else np.int64(65_535)
      if wide:
        _quantise(table, lowest, scale, small)
      skip, skip_end = 0, 0
      if stop > start:
        skip = _rows_below(rows, starts[word], n, size, start)
        skip_end = _rows_below(rows, starts[word], n, size, stop)
      for place in range(0, size, BLOCK):
        block = block_starts[word] + place // BLOCK
        if not wide:
          mask = _within(
            codes,
            block,
            bits,
            table,
            np.float32(_reach(bound, 0.0, subvectors) + 1e-37),
            sums,
          )
        elif bits == 5:
          mask = _matches_five(
            flat, block * stride, small, subvectors, np.uint16(threshold)
          )
        else:
          mask = _matches_four(
            flat, block * stride, small, subvectors, np.uint16(threshold)
          )
        if mask == 0:
          continue
        if len(alive):
          mask &= alive[block]
        left = np.uint64(mask)
        while left:
          lane = np.int64(_zeros_below(left))
          left &= left - np.uint64(1)
          at = place + lane
          if at >= size:
            break
          if skip <= at < skip_end:
            continue
          total = np.float32(0)
          for j in range(subvectors):
            total += table[j, _code(codes, block, j, lane, bits)]
          distance = np.sqrt(total)
          if not distance <= bound:
            continue
          slot = keys[count] & np.uint64(0xFFFFFFFF)
          words[slot] = word
          places[slot] = at
          value[0] = distance
          keys[count] = np.uint64(value_bits[0]) << np.uint64(32) | slot
          count += 1
          if count == room:
            _keep_nearest(keys, words, places, count, k, rows, starts, n, sizes)
            count = k
            full = True
            value_bits[0] = np.uint32(keys[k - 1] >> np.uint64(32))
            bound = value[0]
            threshold = _threshold(_reach(bound, base, subvectors), scale)
            if threshold < 0:
              break
        if threshold < 0:
          break
    if count > k:
      _keep_nearest(keys, words, places, count, k, rows, starts, n, sizes)
      count = k
    nearest_first = np.sort(keys[:count])
    for i in range(count):
      slot = np.int64(nearest_first[i] & np.uint64(0xFFFFFFFF))
      value_bits[0] = np.uint32(nearest_first[i] >> np.uint64(32))
      word = words[slot]
      row = _row(rows, starts[word], n, sizes[word], places[slot])
      at = i
      while at > 0 and (
        distances[number, at - 1] == value[0] and found[number, at - 1] > row
      ):
        found[number, at] = found[number, at - 1]
        at -= 1
      distances[number, i] = value[0]
      found[number, at] = row


@_fused
def measure(
  queries, vectors, lowest, step, first_row, rows, distances, first, last
):
  """The distances of candidates to their 8-bit descriptors, where they are.

  vectors: [n, d] uint8, of rows first_row and on; other rows are left alone.
  """
  n, d = vectors.shape
  for number in range(first, last):
    query = queries[number]
    for i in range(rows.shape[1]):
      row = rows[number, i] - first_row
      if row < 0 or row >= n:
        continue
      total = np.float32(0)
      for j in range(d):
        difference = query[j] - (lowest[j] + step[j] * vectors[row, j])
        total += difference * difference
      distances[number, i] = np.sqrt(total)
