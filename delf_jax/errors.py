"""The one exception that is meant for the person at the keyboard."""


class InputError(Exception):
  """Something that the user gave cannot be used.

  The message is one whole line: it names the file or the option and says what
  to do. Programs print it and exit with status 1; no traceback helps there.
  """
