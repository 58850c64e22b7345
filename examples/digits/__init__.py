"""Three small networks, trained here on handwritten digits, and what compression costs them.

``python -m examples.digits`` shows all of it.

The functions below are what a command line names, for example
``tersor compress examples.digits:vgg --data examples.digits:calibration --evaluate examples.digits:evaluate …``.
"""

from .models import calibration, evaluate, mobilenetv2, resnet20, vgg, vgg_pruned
