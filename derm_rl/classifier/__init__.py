"""Multi-label image classifiers: the reward that DDPO climbs and the judge that grades the result.

``model`` holds the classifier and its folder format, ``augment`` what training images go through,
``training`` the loop and ``calibration`` the temperatures. Their measurement is in
:mod:`derm_rl.evaluation.classification`.
"""

from derm_rl.classifier.model import LabelClassifier, build, load
from derm_rl.classifier.training import train

__all__ = ["LabelClassifier", "build", "load", "train"]
