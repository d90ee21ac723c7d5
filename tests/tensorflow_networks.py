"""The released DELF networks as TensorFlow builds them, with random weights.

What our converted networks are compared with: TF-Slim's ResNet with the TF1
attention and extraction graph, the TF2 training code's model, and Keras' own
ResNets. Written from the definitions' facts; TensorFlow is imported only when a
function needs it.

Widths and depths are parameters, so that tests are small; `units` are those of
conv2_x, conv3_x and so on, `width` the channels inside the first of them.
"""

import os
import warnings
from pathlib import Path

import numpy as np

OFFSET = SCALE = 128.0  # of pixels
FIELD, PADDING = 291.0, 145.0  # hard-coded in both released systems
SIGNATURE = (
  "input_image",
  "input_scales",
  "input_max_feature_num",
  "input_abs_thres",
)
OUTPUTS = ("boxes", "features", "scales", "scores")
EXPANSION = 4
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def import_tensorflow():
  """Imports TensorFlow without its messages and its libraries' warnings."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")
    tf.config.set_visible_devices([], "GPU")
  return tf


def random_value(name, shape, rng):
  """A value for a variable, such that activations neither vanish nor explode.

  Args:
    name: of the variable; its last part says what it is.
    shape: of the variable.
    rng: NumPy's.
  """
  kind = name.rsplit("/", 1)[-1].split(":")[0]
  if kind in ("weights", "kernel", "_kernel"):
    fan_in = np.prod(shape[:-1])
    value = rng.standard_normal(shape) * np.sqrt(2 / fan_in)
    if shape[-1] == 1:  # scores, of which softplus should leave something
      value *= 0.1
  elif kind in ("gamma", "moving_variance"):
    value = rng.uniform(0.5, 1.5, shape)
  else:  # biases, beta, moving_mean
    value = 0.1 * rng.standard_normal(shape)
  return value.astype(np.float32)


# TF-Slim, TensorFlow 1.


def _slim_variable(tf, name, shape, rng):
  scope = tf.compat.v1.get_variable_scope().name
  value = random_value(name, shape, rng)
  variable = tf.compat.v1.get_variable(
    name, initializer=value, use_resource=False
  )
  assert variable.op.name == f"{scope}/{name}"
  return variable


def _slim_conv(
  tf, x, name, features, rng, *, kernel=1, stride=1, rectify=True, norm=True
):
  """slim.conv2d, and resnet_utils.conv2d_same for strides."""
  with tf.compat.v1.variable_scope(name):
    shape = (kernel, kernel, int(x.shape[-1]), features)
    weights = _slim_variable(tf, "weights", shape, rng)
    padding = "SAME"
    if stride > 1 and kernel > 1:
      before = (kernel - 1) // 2
      around = [before, kernel - 1 - before]
      x = tf.pad(x, [[0, 0], around, around, [0, 0]])
      padding = "VALID"
    x = tf.nn.conv2d(x, weights, strides=stride, padding=padding)
    if not norm:
      return x + _slim_variable(tf, "biases", (features,), rng)
    with tf.compat.v1.variable_scope("BatchNorm"):
      beta, gamma, mean, variance = (
        _slim_variable(tf, part, (features,), rng)
        for part in ("beta", "gamma", "moving_mean", "moving_variance")
      )
    x = tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-5)
  return tf.nn.relu(x) if rectify else x


def slim_delf(
  images, rng, *, width, units, end_stride, hidden, scope="resnet_v1_50"
):
  """Builds the released TF1 network in the current graph.

  Args:
    images: [b, h, w, 3] normalised.
    rng: NumPy's, for the variables.
    width: see the module.
    units: of three stages.
    end_stride: stride of the last unit; the released graph has 2.
    hidden: channels inside the attention.
    scope: of the backbone's variables.

  Returns:
    {"stem", "conv2", "conv3", "conv4": [b, h', w', c], "attention":
    [b, h', w']}
  """
  tf = import_tensorflow()
  v1 = tf.compat.v1
  found = {}
  with v1.variable_scope(scope, reuse=v1.AUTO_REUSE):
    x = _slim_conv(tf, images, "conv1", width, rng, kernel=7, stride=2)
    x = found["stem"] = tf.nn.max_pool2d(x, 3, 2, padding="SAME")
    for s, count in enumerate(units):
      depth = width * 2**s
      for u in range(count):
        last = u == count - 1
        stride = (2 if s < len(units) - 1 else end_stride) if last else 1
        with v1.variable_scope(f"block{s + 1}/unit_{u + 1}/bottleneck_v1"):
          if x.shape[-1] == EXPANSION * depth:
            shortcut = x
            if stride > 1:
              shortcut = tf.nn.max_pool2d(x, 1, stride, padding="SAME")
          else:
            shortcut = _slim_conv(
              tf,
              x,
              "shortcut",
              EXPANSION * depth,
              rng,
              stride=stride,
              rectify=False,
            )
          y = _slim_conv(tf, x, "conv1", depth, rng)
          y = _slim_conv(tf, y, "conv2", depth, rng, kernel=3, stride=stride)
          y = _slim_conv(tf, y, "conv3", EXPANSION * depth, rng, rectify=False)
          x = tf.nn.relu(shortcut + y)
      found[f"conv{s + 2}"] = x
  with v1.variable_scope(
    "attention_block/attention/compute", reuse=v1.AUTO_REUSE
  ):
    y = _slim_conv(tf, x, "conv1", hidden, rng)
    y = _slim_conv(tf, y, "conv2", 1, rng, norm=False)
  found["attention"] = tf.nn.softplus(y)[..., 0]
  return found


def _extract(tf, network, resize, inputs, *, stride, iou):
  """The released extraction graph, for TF1 and TF2 alike.

  Args:
    tf: TensorFlow.
    network: normalised [1, h, w, 3] -> scores [1, h', w'], features.
    resize: images, [2] int32 -> images.
    inputs: tensors of `SIGNATURE`.
    stride: of the features.
    iou: threshold of the suppression.

  Returns:
    tensors of `OUTPUTS`.
  """
  image, image_scales, max_features, threshold = inputs
  pixels = (tf.cast(image, tf.float32) - OFFSET) / SCALE
  size = tf.cast(tf.shape(image)[:2], tf.float32)

  def level(i):
    scale = image_scales[i]
    new_size = tf.cast(tf.round(size * scale), tf.int32)
    scores, features = network(resize(pixels[None], new_size))
    rows, columns = tf.shape(scores)[1], tf.shape(scores)[2]
    y, x = tf.meshgrid(tf.range(rows), tf.range(columns), indexing="ij")
    corner = tf.cast(tf.stack([y, x], -1), tf.float32) * stride - PADDING
    boxes = tf.concat([corner, corner + FIELD - 1], -1) / scale
    scores = tf.reshape(scores, [-1])
    keep = tf.where(scores >= threshold)[:, 0]
    return (
      tf.gather(tf.reshape(boxes, [-1, 4]), keep),
      tf.gather(tf.reshape(features, [-1, features.shape[-1]]), keep),
      tf.fill([tf.shape(keep)[0]], 1.0 / scale),
      tf.gather(scores, keep),
    )

  def add(i, *so_far):
    further = [
      tf.concat(pair, 0) for pair in zip(so_far, level(i), strict=True)
    ]
    return (i + 1, *further)

  first = level(0)
  shapes = [tf.TensorShape([None, *tensor.shape[1:]]) for tensor in first]
  _, boxes, features, scales, scores = tf.while_loop(
    lambda i, *_: i < tf.shape(image_scales)[0],
    add,
    [tf.constant(1), *first],
    shape_invariants=[tf.TensorShape([]), *shapes],
  )
  chosen = tf.image.non_max_suppression(
    boxes, scores, tf.minimum(max_features, tf.shape(scores)[0]), iou
  )
  boxes, features, scales, scores = (
    tf.gather(tensor, chosen) for tensor in (boxes, features, scales, scores)
  )
  return boxes, features, scales, scores[:, None]


def write_slim(
  directory,
  *,
  images=(),
  width=8,
  units=(1, 2, 2),
  end_stride=2,
  hidden=16,
  seed=0,
):
  """Writes a released-looking TF1 model with random weights.

  `directory/model` becomes a SavedModel with the released signature, and
  `directory/checkpoints/model.ckpt` a checkpoint with the step and moments of
  an optimizer as well.

  Args:
    directory: made if there is none.
    images: arrays [b, h, w, 3], normalised, of any sizes.
    width: see the module.
    units: likewise.
    end_stride: of conv4_x.
    hidden: channels inside the attention.
    seed: of the weights.

  Returns:
    for each of `images` the activations, as `slim_delf` names them.
  """
  tf = import_tensorflow()
  v1 = tf.compat.v1
  directory = Path(directory)
  rng = np.random.default_rng(seed)
  shape = dict(width=width, units=units, end_stride=end_stride, hidden=hidden)
  with tf.Graph().as_default(), v1.Session() as session:
    inputs = tuple(
      v1.placeholder(dtype, size, name)
      for name, dtype, size in zip(
        SIGNATURE,
        (tf.uint8, tf.float32, tf.int32, tf.float32),
        ([None, None, 3], [None], [], []),
        strict=True,
      )
    )
    normalised = v1.placeholder(tf.float32, [None, None, None, 3])
    activations = slim_delf(normalised, rng, **shape)
    variables = v1.global_variables()

    def network(x):
      # A loop's body sees the variables of outside.
      found = slim_delf(x, rng, **shape)
      return found["attention"], found["conv4"]

    def resize(x, size):
      return v1.image.resize_bilinear(x, size, align_corners=False)

    outputs = _extract(
      tf, network, resize, inputs, stride=16.0 * end_stride, iou=1.0
    )
    assert v1.global_variables() == variables
    named = {
      name: tf.identity(value, name)
      for name, value in zip(OUTPUTS, outputs, strict=True)
    }
    builder = v1.saved_model.Builder(str(directory / "model"))
    session.run(v1.global_variables_initializer())
    builder.add_meta_graph_and_variables(
      session,
      [v1.saved_model.tag_constants.SERVING],
      {
        "serving_default": v1.saved_model.predict_signature_def(
          dict(zip(SIGNATURE, inputs, strict=True)), named
        )
      },
    )
    builder.save()
    v1.train.get_or_create_global_step()
    for variable in variables[:3]:
      v1.get_variable(
        f"{variable.op.name}/Momentum",
        initializer=np.zeros(variable.shape, np.float32),
        use_resource=False,
      )
    session.run(
      v1.variables_initializer(
        [v for v in v1.global_variables() if v not in variables]
      )
    )
    (directory / "checkpoints").mkdir()
    v1.train.Saver().save(
      session, str(directory / "checkpoints" / "model.ckpt")
    )
    return [session.run(activations, {normalised: x}) for x in images]


def run_slim(directory, image, *, scales, max_features, threshold):
  """Runs a TF1 SavedModel with the released signature.

  Args:
    directory: the SavedModel.
    image: [h, w, 3] uint8.
    scales: of the pyramid.
    max_features: at most so many.
    threshold: of the scores.

  Returns:
    {"boxes": [n, 4], "features": [n, c], "scales": [n], "scores": [n, 1]}
  """
  tf = import_tensorflow()
  v1 = tf.compat.v1
  with tf.Graph().as_default(), v1.Session() as session:
    v1.saved_model.load(
      session, [v1.saved_model.tag_constants.SERVING], str(directory)
    )
    values = (image, scales, max_features, threshold)
    return session.run(
      {name: f"{name}:0" for name in OUTPUTS},
      dict(zip((f"{n}:0" for n in SIGNATURE), values, strict=True)),
    )


# The TF2 training code's model.


def import_keras(version):
  """Returns Keras 3, or Keras 2 (which wrote the released files).

  Args:
    version: 2 or 3.

  Raises:
    ImportError: if it is not installed.
  """
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  import_tensorflow()
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    if version == 2:
      import tf_keras as keras
    else:
      import keras
  return keras


def tf2_delf(
  keras,
  *,
  width=8,
  units=(1, 2, 2, 1),
  block3_strides=True,
  code_dim=0,
  hidden=16,
  num_classes=0,
  seed=0,
):
  """Builds the TF2 DELF with random weights.

  Args:
    keras: see `import_keras`.
    width: see the module.
    units: likewise; of conv2_x to conv5_x.
    block3_strides: conv4_x ends with a 1x1 maximum of stride 2.
    code_dim: channels of the autoencoder; 0 for none.
    hidden: channels inside the attention.
    num_classes: of the two classifiers; 0 for none.
    seed: of the weights.

  Returns:
    a keras.Model: normalised [b, h, w, 3] -> {"stem", "conv2", ..., "conv5",
    "attention": [b, h', w', 1], "features"}; features are codes if there are
    any.
  """
  tf = import_tensorflow()
  layers = keras.layers

  class Unit(keras.Model):
    """Convolutions a, b, c, and one beside them in a stage's first unit."""

    def __init__(self, depth, stage, letter, stride, shortcut):
      super().__init__()
      conv, norm = (f"{kind}{stage}{letter}_branch" for kind in ("res", "bn"))
      self.conv2a = layers.Conv2D(depth, 1, strides=stride, name=f"{conv}2a")
      self.bn2a = layers.BatchNormalization(axis=3, name=f"{norm}2a")
      self.conv2b = layers.Conv2D(depth, 3, padding="same", name=f"{conv}2b")
      self.bn2b = layers.BatchNormalization(axis=3, name=f"{norm}2b")
      self.conv2c = layers.Conv2D(EXPANSION * depth, 1, name=f"{conv}2c")
      self.bn2c = layers.BatchNormalization(axis=3, name=f"{norm}2c")
      if shortcut:
        self.conv_shortcut = layers.Conv2D(
          EXPANSION * depth, 1, strides=stride, name=f"{conv}1"
        )
        self.bn_shortcut = layers.BatchNormalization(axis=3, name=f"{norm}1")
      self._shortcut = shortcut

    def call(self, inputs, training=False):
      x = tf.nn.relu(self.bn2a(self.conv2a(inputs), training=training))
      x = tf.nn.relu(self.bn2b(self.conv2b(x), training=training))
      x = self.bn2c(self.conv2c(x), training=training)
      if self._shortcut:
        inputs = self.conv_shortcut(inputs)
        inputs = self.bn_shortcut(inputs, training=training)
      return tf.nn.relu(x + inputs)

  class Backbone(keras.Model):
    def __init__(self):
      super().__init__(name="backbone")
      self.conv1 = layers.Conv2D(
        width, 7, strides=2, padding="same", name="conv1"
      )
      self.bn_conv1 = layers.BatchNormalization(axis=3, name="bn_conv1")
      self.max_pool = layers.MaxPooling2D(3, strides=2)
      self._names = []
      for s, count in enumerate(units):
        names = []
        for u in range(count):
          stride = 2 if s > 0 and u == 0 else 1
          if s == 3 and block3_strides:
            stride = 1
          name = f"l{s + 2}{LETTERS[u]}"
          unit = Unit(width * 2**s, s + 2, LETTERS[u], stride, u == 0)
          setattr(self, name, unit)
          names.append(name)
        self._names.append(names)
      if block3_strides:
        self.subsampling_layer = layers.MaxPooling2D(1, strides=2)

    def call(self, inputs, training=False):
      x = self.bn_conv1(self.conv1(inputs), training=training)
      found = {"stem": self.max_pool(tf.nn.relu(x))}
      x = found["stem"]
      for s, names in enumerate(self._names):
        for name in names:
          x = getattr(self, name)(x, training=training)
        if s == 2 and block3_strides:
          x = self.subsampling_layer(x)
        found[f"conv{s + 2}"] = x
      return found

  class Attention(keras.Model):
    def __init__(self):
      super().__init__(name="attention")
      self.conv1 = layers.Conv2D(hidden, 1, padding="same", name="attn_conv1")
      self.bn_conv1 = layers.BatchNormalization(axis=3, name="bn_conv1")
      self.conv2 = layers.Conv2D(1, 1, padding="same", name="attn_conv2")
      self.activation_layer = layers.Activation("softplus")

    def call(self, inputs, training=False):
      x = tf.nn.relu(self.bn_conv1(self.conv1(inputs), training=training))
      return self.activation_layer(self.conv2(x))

  class Autoencoder(keras.Model):
    def __init__(self):
      super().__init__(name="autoencoder")
      self.conv1 = layers.Conv2D(
        code_dim, 1, padding="same", name="autoenc_conv1"
      )
      self.conv2 = layers.Conv2D(
        EXPANSION * width * 4,
        1,
        padding="same",
        activation="relu",
        name="autoenc_conv2",
      )

    def call(self, inputs):
      code = self.conv1(inputs)
      return self.conv2(code), code

  class Delf(keras.Model):
    def __init__(self):
      super().__init__(name="DELF")
      self.backbone = Backbone()
      self.attention = Attention()
      if code_dim:
        self.autoencoder = Autoencoder()
      if num_classes:
        self.desc_classification = layers.Dense(num_classes, name="desc_fc")
        self.attn_classification = layers.Dense(num_classes, name="att_fc")

    def call(self, inputs, training=False):
      found = self.backbone(inputs, training=training)
      seen = found["features"] = found["conv4"]
      if code_dim:
        # Attention looks at what is rebuilt from the codes.
        seen, found["features"] = self.autoencoder(seen)
      found["attention"] = self.attention(seen, training=training)
      if num_classes:
        last = tf.reduce_mean(found[f"conv{len(units) + 1}"], [1, 2])
        found["descriptor_logits"] = self.desc_classification(last)
        pooled = tf.nn.l2_normalize(found["conv4"], -1) * found["attention"]
        pooled = tf.reduce_mean(pooled, [1, 2])
        found["attention_logits"] = self.attn_classification(pooled)
      return found

  model = Delf()
  model(tf.zeros([1, 64, 64, 3]))
  randomise(model, seed)
  return model


def randomise(model, seed):
  """Fills a Keras model with random weights and statistics."""
  rng = np.random.default_rng(seed)
  for variable in model.variables:
    name = getattr(variable, "path", variable.name)
    variable.assign(random_value(name, tuple(variable.shape), rng))


def activations(model, images):
  """Runs a model that returns a dictionary, as NumPy arrays."""
  found = model(np.asarray(images, np.float32), training=False)
  return {name: np.asarray(value) for name, value in found.items()}


def export_tf2(model, directory, *, block3_strides=True, iou=1.0):
  """Saves a TF2 DELF as the released code exports it.

  Args:
    model: of `tf2_delf`.
    directory: of the SavedModel.
    block3_strides: as given to `tf2_delf`.
    iou: threshold of the suppression.

  Returns:
    the module, whose `ExtractFeatures` takes `SIGNATURE`.
  """
  tf = import_tensorflow()
  dtypes = (tf.uint8, tf.float32, tf.int32, tf.float32)
  shapes = ([None, None, 3], [None], [], [])

  class Module(tf.Module):
    def __init__(self):
      super().__init__()
      self._stride_factor = 2.0 if block3_strides else 1.0
      self._model = model

    @tf.function(
      input_signature=[
        tf.TensorSpec(shape, dtype, name)
        for name, dtype, shape in zip(SIGNATURE, dtypes, shapes, strict=True)
      ]
    )
    def ExtractFeatures(  # noqa: N802, the released name
      self, input_image, input_scales, input_max_feature_num, input_abs_thres
    ):
      def network(x):
        found = self._model(x, training=False)
        return found["attention"][..., 0], found["features"]

      outputs = _extract(
        tf,
        network,
        tf.image.resize,
        (input_image, input_scales, input_max_feature_num, input_abs_thres),
        stride=16.0 * self._stride_factor,
        iou=iou,
      )
      return {
        name: tf.identity(value, name)
        for name, value in zip(OUTPUTS, outputs, strict=True)
      }

  module = Module()
  tf.saved_model.save(module, str(directory))
  return module


def run_tf2(directory, image, *, scales, max_features, threshold):
  """Runs a TF2 SavedModel with the released signature; see `run_slim`."""
  tf = import_tensorflow()
  function = tf.saved_model.load(str(directory)).signatures["serving_default"]
  found = function(
    input_image=tf.constant(image),
    input_scales=tf.constant(scales, tf.float32),
    input_max_feature_num=tf.constant(max_features),
    input_abs_thres=tf.constant(threshold, tf.float32),
  )
  return {name: found[name].numpy() for name in OUTPUTS}


def train_step(keras, model):
  """Takes a tiny step, so that slots exist; returns the optimizer."""
  tf = import_tensorflow()
  optimizer = keras.optimizers.SGD(1e-9, momentum=0.9)
  with tf.GradientTape() as tape:
    found = model(tf.ones([1, 64, 64, 3]), training=False)
    loss = tf.reduce_sum(found["attention"])
  variables = model.trainable_variables
  gradients = tape.gradient(loss, variables)
  optimizer.apply_gradients(
    [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
  )
  return optimizer


# Keras' own ResNets.


def keras_resnet(keras, name="ResNet50", *, seed=0, include_top=False):
  """Builds one of keras.applications with random weights.

  Args:
    keras: see `import_keras`.
    name: "ResNet50", "ResNet101" or "ResNet152".
    seed: of the weights.
    include_top: with the ImageNet classifier.
  """
  keras.backend.clear_session()
  shape = (224, 224, 3) if include_top else (None, None, 3)
  model = getattr(keras.applications, name)(
    weights=None, include_top=include_top, input_shape=shape
  )
  randomise(model, seed)
  return model


def keras_activations(keras, model, images):
  """Returns the stem's and every stage's activations of a Keras ResNet.

  Args:
    keras: see `import_keras`.
    model: of `keras_resnet`.
    images: [b, h, w, 3], normalised.
  """
  stages = {"stem": "pool1_pool"}
  for layer in model.layers:
    if layer.name.endswith("_out"):  # the last unit of a stage wins
      stages[layer.name.split("_")[0]] = layer.name
  outputs = {
    stage: model.get_layer(layer).output for stage, layer in stages.items()
  }
  return activations(keras.Model(model.input, outputs), images)
