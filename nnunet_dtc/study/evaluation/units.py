"""How metrics are called and in which unit they are shown."""

from nnunet_dtc.study.evaluation.metrics import metric

higher_is_better = lambda key: metric(key).higher_is_better  # noqa: E731
factor = lambda key: metric(key).factor  # noqa: E731
unit = lambda key: metric(key).unit  # noqa: E731
difference_unit = lambda key: metric(key).difference_unit  # noqa: E731
title = lambda key: metric(key).title  # noqa: E731
value = lambda key, score: metric(key).shown(score)  # noqa: E731
signed = lambda key, difference: metric(key).signed(difference)  # noqa: E731
