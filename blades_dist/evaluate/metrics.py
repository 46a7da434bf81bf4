"""Every measurement in one import: ranking, rates, calibration error, and comparisons of detectors."""

from blades_dist.evaluate.bootstrap import Ranked, difference, difference_p, rank
from blades_dist.evaluate.calibration_error import Reliability, measured_fpr, p_value_error, reliability
from blades_dist.evaluate.paired import delong, holm, mcnemar
from blades_dist.evaluate.ranking import auc, average_precision, equal_error_rate, ladder, roc, tpr_at
from blades_dist.evaluate.rates import Estimate, balanced_accuracy, balanced_share, confusion, rate, share, wilson

__all__ = [
    "Estimate",
    "Ranked",
    "Reliability",
    "auc",
    "average_precision",
    "balanced_accuracy",
    "balanced_share",
    "confusion",
    "delong",
    "difference",
    "difference_p",
    "equal_error_rate",
    "holm",
    "ladder",
    "mcnemar",
    "measured_fpr",
    "p_value_error",
    "rank",
    "rate",
    "reliability",
    "roc",
    "share",
    "tpr_at",
    "wilson",
]
