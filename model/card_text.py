"""What model cards say in the same words for every bundle."""

NOT_MEASURED = "not measured"

INTENDED = (
    "Research on ordering and flagging archives of frontal chest radiographs: which"
    " images a reader should see first, and whether that order helps."
)
INTENDED_PHANTOMS = (
    "Trying the software, and nothing else. The model has seen synthetic phantoms,"
    " which are drawings and not radiographs: on radiographs its scores mean nothing."
)
EXCLUDED = (
    "Diagnosis, or any decision about a patient. It is no medical device.",
    "Ruling anything out: an image that is not flagged is not a normal one.",
    "Showing where a finding is: activation maps show attention, not location.",
    "Images of another kind than it was trained on, such as lateral views or CT.",
)

LIMITS = (
    "Recall and precision change with the patients, the devices and the share of"
    " images with a finding. Thresholds hold for images like those they were chosen"
    " on; elsewhere choose new ones.",
    "The network sees {size}x{size} pixels. What is small in a radiograph may be gone"
    " at that size.",
    "The abnormality score takes findings for independent, which they are not. It orders images.",
)
LIMIT_PHANTOMS = (
    "All numbers here are about phantoms. They show that the software works and"
    " foretell nothing about radiographs."
)
LIMIT_NIH_LABELS = (
    "The labels of ChestX-ray14 were mined from radiology reports by text processing"
    " (Wang et al. 2017, https://arxiv.org/abs/1705.02315). Some are wrong, and a finding"
    " that a report leaves out counts as absent. All metrics are against these"
    " labels, and not against what is in the image."
)
LIMIT_UNCALIBRATED = (
    "Scores are not probabilities: a score of 0.8 does not mean that eight in ten such"
    " images have the finding."
)

MEASURED = {
    "auc": "AUC",
    "average_precision": "average precision",
    "brier": "Brier score",
    "calibration_error": "calibration error",
    "recall": "recall at the threshold",
    "precision": "precision at the threshold",
}
"""Metrics of a finding, in the order of their columns."""

RULES = {
    "point": "the highest whose recall reaches the target",
    "conservative": "the highest with which the lower end of the recall's interval does",
    "fallback_few_positives": "too few positives to aim at a recall, so that it flags all of"
    " them; expect many false alarms",
    "imported": "taken over with the network; what it does on other scores is not known",
}
"""How a threshold was chosen, as `model.thresholds.Rule` names it."""

INTERVAL_KINDS = {
    "wilson_images": "Wilson's, by images; too narrow where patients have several",
    "wilson_patients": "Wilson's, by patients",
    "bootstrap_patients": "bootstrap over patients",
}
"""How the interval of a recall was computed, likewise."""
